//! Asking an agent or a session over its socket: one request, one answer, one connection.
//!
//! Spoken as HTTP/1.0, so that an answer is what comes until the end of the connection, in no other framing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::Request;
use crate::http::BASE;

/// Most bytes of an answer: a status with the records in it.
const MAX_ANSWER: u64 = 4 << 20;
/// Most bytes of an answer's header.
const MAX_HEADER: u64 = 16 << 10;
/// How long anything may take to be answered.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// Asks one thing, and gives the answer, or the error in it.
///
/// # Errors
///
/// When nobody answers, or not in JSON.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Value> {
    let (method, path, body) = match request {
        Request::Status { detail } => ("GET", format!("sessions?detail={detail}"), None),
        Request::Adjust {
            session,
            order,
            why,
        } => (
            "POST",
            format!("sessions/{}/orders", escaped(session)),
            Some(json!({ "order": order, "why": why })),
        ),
        Request::Kill { session, signal } => (
            "POST",
            format!("sessions/{}/signals", escaped(session)),
            Some(json!({ "signal": signal })),
        ),
    };
    let (_, answer) = send(socket, method, &format!("{BASE}/{path}"), body.as_ref())?;
    let mut bytes = Vec::new();
    answer.take(MAX_ANSWER).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Sends a request; gives the status of the answer, and what is to be read of it.
///
/// # Errors
///
/// When nobody answers, or not in HTTP.
pub fn send(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> io::Result<(u16, BufReader<UnixStream>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    let kind = if body.is_empty() {
        ""
    } else {
        "content-type: application/json\r\n"
    };
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\n{kind}content-length: {length}\r\n\r\n{body}");
    // Whoever does not serve us says so and hangs up, without having read why we call.
    let sent = stream.write_all(request.as_bytes());
    let mut answer = BufReader::new(stream);
    match status(&mut answer) {
        Ok(status) => Ok((status, answer)),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

/// Reads the header of an answer.
fn status(answer: &mut BufReader<UnixStream>) -> io::Result<u16> {
    let mut header = answer.take(MAX_HEADER);
    let mut line = String::new();
    header.read_line(&mut line)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.trim().parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    loop {
        line.clear();
        header.read_line(&mut line)?;
        match line.trim_end() {
            "" if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            "" => return Ok(status),
            _ => {}
        }
    }
}

/// A name as it stands in a path.
fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => (byte as char).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_place_in_the_path() {
        assert_eq!(escaped("a-1_2.3"), "a-1_2.3");
        assert_eq!(escaped("../x?y z"), "..%2Fx%3Fy%20z");
    }
}
