//! QEMU's own control: pause, go on, end; and what it tells of the machine.
//!
//! Follows the "QEMU Machine Protocol Specification".

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::machine::path;

/// How long QEMU may take to answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Most bytes of one line of an answer.
const MAX_LINE: u64 = 1 << 20;

/// How long apart a status is asked for.
const PAUSE: Duration = Duration::from_millis(1);

/// Why the machine's control did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// QEMU does not answer, or is gone.
    #[error("QEMU does not answer")]
    Io(#[from] io::Error),
    /// It refused.
    #[error("QEMU refuses: {0}")]
    Refused(String),
}

/// The control of one machine.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Greets QEMU.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn open(socket: UnixStream) -> Result<Self, QmpError> {
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        let mut qmp = Self {
            reader: BufReader::new(socket),
        };
        qmp.line()?;
        qmp.ask("qmp_capabilities", None)?;
        Ok(qmp)
    }

    /// Asks one thing, and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn ask(&mut self, command: &str, arguments: Option<Value>) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer["error"]["desc"].as_str() {
                return Err(QmpError::Refused(error.to_owned()));
            }
            // Events come in between.
            if Instant::now() > deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
        }
    }

    /// Stops the machine's processors; nothing inside notices.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn pause(&mut self) -> Result<(), QmpError> {
        self.ask("stop", None).map(drop)
    }

    /// Lets them go on.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn resume(&mut self) -> Result<(), QmpError> {
        self.ask("cont", None).map(drop)
    }

    /// Stops the machine, and keeps what its processors and devices are in, under this descriptor; its
    /// memory is kept already. It is of no use afterwards but to be ended.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn keep(&mut self, devices: i32) -> Result<(), QmpError> {
        self.pause()?;
        self.leave_memory_alone()?;
        self.ask("migrate", Some(json!({ "uri": uri(devices) })))?;
        self.until("query-migrate", |status| match status {
            "completed" => Some(Ok(())),
            "failed" | "cancelled" => Some(Err(QmpError::Refused("it was not kept".into()))),
            _ => None,
        })
    }

    /// Goes on where the machine was that was kept so.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn go_on_from(&mut self, devices: i32) -> Result<(), QmpError> {
        self.leave_memory_alone()?;
        let from = json!({ "uri": uri(devices) });
        self.ask("migrate-incoming", Some(from))?;
        self.until("query-status", |status| {
            (status != "inmigrate").then_some(Ok(()))
        })?;
        self.resume()
    }

    /// Memory in a file is neither written to what is kept, nor read from there.
    fn leave_memory_alone(&mut self) -> Result<(), QmpError> {
        let ignore = json!([{ "capability": "x-ignore-shared", "state": true }]);
        let capabilities = json!({ "capabilities": ignore });
        self.ask("migrate-set-capabilities", Some(capabilities))
            .map(drop)
    }

    /// Asks for a status until it says what was waited for.
    fn until(
        &mut self,
        query: &str,
        done: impl Fn(&str) -> Option<Result<(), QmpError>>,
    ) -> Result<(), QmpError> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            let answer = self.ask(query, None)?;
            if let Some(result) = done(answer["status"].as_str().unwrap_or_default()) {
                return result;
            }
            std::thread::sleep(PAUSE);
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    }

    /// Ends QEMU.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; it may be gone already.
    pub fn quit(&mut self) -> Result<(), QmpError> {
        self.ask("quit", None).map(drop)
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        let mut limited = (&mut self.reader).take(MAX_LINE);
        if limited.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_str(&line).map_err(|error| QmpError::Io(error.into()))
    }
}

/// What is kept under this descriptor, as QEMU calls it.
fn uri(descriptor: i32) -> String {
    format!("file:{}", path(descriptor))
}
