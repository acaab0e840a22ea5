//! A quote from the host's quote generation service.
//!
//! Follows Intel's `qgs_msg_lib`: over a stream, each message after its length,
//!
//! ```text
//! length 4, big endian | major 2 (1) | minor 2 | type 4 | size 4 | error 4 | rest
//! request  type 0, rest: report size 4 | id list size 4 (0) | TDREPORT
//! response type 1, rest: selected id size 4 | quote size 4 | selected id | quote
//! ```
//!
//! Numbers but the first are little endian; `size` counts the message with its header. Where the
//! kernel offers configfs-tsm, that is the way; this is for guests without it, which reach the
//! service over vsock (CID 2, port 4050) and get the TDREPORT from `/dev/tdx_guest`.

use std::io::{self, Read, Write};

/// Length of a TDREPORT.
pub const TD_REPORT_LENGTH: usize = 1024;
/// Larger than any answer with a quote.
const MAX_MESSAGE: usize = 64 * 1024;
const HEADER: usize = 16;
const GET_QUOTE_REQUEST: u32 = 0;
const GET_QUOTE_RESPONSE: u32 = 1;

/// Why the service gave no quote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QgsError {
    /// The service cannot be spoken with.
    #[error("cannot speak with the quote generation service")]
    Io(#[from] io::Error),
    /// The answer is not of the documented form.
    #[error("`{0}` in the answer of the quote generation service is not as documented")]
    Malformed(&'static str),
    /// The service reports an error of its own.
    #[error("the quote generation service reports error {0:#x}")]
    Service(u32),
}

/// Asks for the quote of a TDREPORT over a stream that leads to the service.
///
/// # Errors
///
/// [`QgsError`].
pub fn quote_from_qgs(
    mut stream: impl Read + Write,
    report: &[u8; TD_REPORT_LENGTH],
) -> Result<Vec<u8>, QgsError> {
    stream.write_all(&request(report))?;
    stream.flush()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(HEADER..=MAX_MESSAGE).contains(&length) {
        return Err(QgsError::Malformed("length"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    quote(&message).map(<[u8]>::to_vec)
}

/// A request, with its length before it.
fn request(report: &[u8; TD_REPORT_LENGTH]) -> Vec<u8> {
    const SIZE: u32 = (HEADER + 8 + TD_REPORT_LENGTH) as u32;
    const REPORT: u32 = TD_REPORT_LENGTH as u32;
    let mut bytes = SIZE.to_be_bytes().to_vec();
    // Major and minor version.
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    for number in [GET_QUOTE_REQUEST, SIZE, 0, REPORT, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(report);
    bytes
}

/// The quote in an answer.
fn quote(message: &[u8]) -> Result<&[u8], QgsError> {
    let field = |at: usize, what| {
        let bytes = message.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes
            .map(|bytes| u32::from_le_bytes(*bytes))
            .ok_or(QgsError::Malformed(what))
    };
    let size = |at, what| {
        let number = field(at, what)?;
        usize::try_from(number).map_err(|_| QgsError::Malformed(what))
    };
    if !message.starts_with(&[1, 0]) {
        return Err(QgsError::Malformed("version"));
    }
    if field(4, "type")? != GET_QUOTE_RESPONSE {
        return Err(QgsError::Malformed("type"));
    }
    if size(8, "size")? != message.len() {
        return Err(QgsError::Malformed("size"));
    }
    match field(12, "error")? {
        0 => {}
        error => return Err(QgsError::Service(error)),
    }
    let (id, quote) = (size(16, "id size")?, size(20, "quote size")?);
    let start = id.checked_add(24).ok_or(QgsError::Malformed("id size"))?;
    let rest = message.get(start..).ok_or(QgsError::Malformed("id size"))?;
    if rest.len() != quote || quote == 0 {
        return Err(QgsError::Malformed("quote size"));
    }
    Ok(rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixStream;

    /// An answer; each number can be set wrong.
    fn answer(numbers: [u32; 5], rest: &[u8]) -> Vec<u8> {
        let mut message = vec![1, 0, 5, 0];
        for number in numbers {
            message.extend_from_slice(&number.to_le_bytes());
        }
        message.extend_from_slice(rest);
        message
    }

    /// What comes of a service that answers this.
    fn asked(message: &[u8]) -> Result<Vec<u8>, QgsError> {
        let (ours, mut service) = UnixStream::pair().unwrap();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let message = [&length, message].concat();
        let service = std::thread::spawn(move || {
            let mut request = vec![0; 4 + HEADER + 8 + TD_REPORT_LENGTH];
            service.read_exact(&mut request).unwrap();
            service.write_all(&message).unwrap();
            request
        });
        let result = quote_from_qgs(ours, &[7; TD_REPORT_LENGTH]);
        let request = service.join().unwrap();
        assert_eq!(request[..8], [0, 0, 4, 24, 1, 0, 0, 0]);
        assert_eq!(request[12..16], 1048_u32.to_le_bytes());
        assert_eq!(request[20..28], [0, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request[28..], [7; TD_REPORT_LENGTH]);
        result
    }

    #[test]
    fn the_service_gives_the_quote_of_the_report() {
        let whole = answer([1, 24 + 5, 0, 0, 5], b"quote");
        assert_eq!(asked(&whole).unwrap(), b"quote");
        let with_id = answer([1, 24 + 7, 0, 2, 5], b"idquote");
        assert_eq!(asked(&with_id).unwrap(), b"quote");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let wrong = |numbers, rest: &[u8]| asked(&answer(numbers, rest)).unwrap_err().to_string();
        assert!(wrong([0, 29, 0, 0, 5], b"quote").contains("`type`"));
        assert!(wrong([1, 28, 0, 0, 5], b"quote").contains("`size`"));
        assert!(wrong([1, 29, 0x11001, 0, 5], b"quote").contains("0x11001"));
        assert!(wrong([1, 29, 0, 9, 5], b"quote").contains("`id size`"));
        assert!(wrong([1, 29, 0, u32::MAX, 5], b"quote").contains("`id size`"));
        assert!(wrong([1, 29, 0, 0, 6], b"quote").contains("`quote size`"));
        assert!(wrong([1, 24, 0, 0, 0], b"").contains("`quote size`"));
        let mut version = answer([1, 29, 0, 0, 5], b"quote");
        version[0] = 2;
        assert!(matches!(
            asked(&version),
            Err(QgsError::Malformed("version"))
        ));
        assert!(matches!(
            asked(&[0; 15]),
            Err(QgsError::Malformed("length"))
        ));
        let huge = vec![0; MAX_MESSAGE + 1];
        assert!(matches!(asked(&huge), Err(QgsError::Malformed("length"))));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = quote(&noise);
            let _ = quote(&[&[1, 0, 0, 0], &noise[..]].concat());
        }
    }
}
