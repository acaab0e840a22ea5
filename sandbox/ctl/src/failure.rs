//! What a user is told when a command fails: what happened, why, and what to do.

use std::error::Error;
use std::process::ExitCode;

pub use casemate::error::describe;

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: Option<u8>,
}

impl Failure {
    /// A failure with a message of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            code: None,
        }
    }

    /// A failure with the error behind it and that error's causes.
    pub fn caused(message: impl AsRef<str>, error: &dyn Error) -> Self {
        Self::new(format!("{}: {}", message.as_ref(), describe(error)))
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code, unless it was set before. Without any it is 1.
    pub fn code(mut self, code: u8) -> Self {
        self.code.get_or_insert(code);
        self
    }

    /// Prints it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("sandboxctl: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("  help: {hint}");
        }
        ExitCode::from(self.code.unwrap_or(1))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(describe(&error))
    }
}
