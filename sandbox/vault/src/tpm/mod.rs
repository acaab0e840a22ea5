//! Just enough of a TPM 2.0: seal 32 bytes to PCRs, and unseal them.
//!
//! Follows "Trusted Platform Module 2.0 Library", Part 3: Commands, and Part 2: Structures. The key that
//! seals is the owner hierarchy's storage primary, which a TPM makes anew from its seed each time, so
//! nothing has to be stored in it.
//!
//! What is unsealed crosses the bus in clear: with a discrete TPM, whoever has a probe on the board
//! reads it. A TPM of the firmware or of the confidential VM has no such bus.

mod nv;
mod wire;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use zeroize::Zeroizing;

use wire::{Answer, Command};

/// Where Linux offers a TPM to many, each with a session of its own.
pub const DEVICE: &str = "/dev/tpmrm0";

/// Which PCRs of the SHA-256 bank a secret is sealed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pcrs(u32);

impl Pcrs {
    /// Names PCRs 0 to 23; `None` for any other number.
    pub fn new(numbers: impl IntoIterator<Item = u8>) -> Option<Self> {
        let mut mask = 0;
        for number in numbers {
            mask |= 1u32
                .checked_shl(u32::from(number))
                .filter(|_| number < 24)?;
        }
        Some(Self(mask))
    }

    pub(crate) fn mask(self) -> u32 {
        self.0
    }

    pub(crate) fn of_mask(mask: u32) -> Option<Self> {
        (mask < 1 << 24).then_some(Self(mask))
    }
}

/// Why a TPM did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The TPM could not be reached.
    #[error("the TPM cannot be reached")]
    Io(#[from] io::Error),
    /// What it answered is no answer to the command.
    #[error("the TPM's answer cannot be understood")]
    Answer,
    /// The PCRs are not those that the secret was sealed to: other firmware, kernel or command line.
    #[error("the TPM's PCRs are not those that the key was sealed to")]
    Pcrs,
    /// The secret was sealed by another TPM, or by this one before it was cleared.
    #[error("the key was sealed by another TPM, or before this one was cleared")]
    OtherTpm,
    /// The TPM refused the command.
    #[error("the TPM refused the command: response code {0:#05x}")]
    Refused(u32),
}

/// A secret that only its TPM opens: the private and the public area of a sealed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) private: Vec<u8>,
    pub(crate) public: Vec<u8>,
}

/// An open TPM.
pub(crate) struct Tpm {
    channel: Box<dyn Channel>,
}

trait Channel: Read + Write + Send {}
impl<T: Read + Write + Send> Channel for T {}

impl Tpm {
    /// Opens a TPM's device, or the socket of an emulator.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let is_socket = path.metadata()?.file_type().is_socket();
        let channel: Box<dyn Channel> = if is_socket {
            Box::new(UnixStream::connect(path)?)
        } else {
            Box::new(File::options().read(true).write(true).open(path)?)
        };
        Ok(Self { channel })
    }

    /// Seals a secret to these PCRs as they are now.
    pub(crate) fn seal(&mut self, secret: &[u8], pcrs: Pcrs) -> Result<Sealed, TpmError> {
        let session = self.start_session(wire::TRIAL)?;
        let policy = self
            .policy_pcr(session, pcrs)
            .and_then(|()| self.call(Command::new(wire::POLICY_GET_DIGEST).handle(session)));
        self.flush(session);
        let policy = policy?.bytes()?;
        self.under_primary(|tpm, primary| {
            let command = Command::new(wire::CREATE)
                .handle(primary)
                .password()
                .sensitive(secret)
                .sized(&wire::sealed_template(&policy))
                .sized(&[])
                .u32(0);
            let mut answer = tpm.call(command)?;
            Ok(Sealed {
                private: answer.bytes()?,
                public: answer.bytes()?,
            })
        })
    }

    /// Unseals what [`Tpm::seal`] sealed.
    pub(crate) fn unseal(
        &mut self,
        sealed: &Sealed,
        pcrs: Pcrs,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.under_primary(|tpm, primary| {
            let command = Command::new(wire::LOAD)
                .handle(primary)
                .password()
                .sized(&sealed.private)
                .sized(&sealed.public);
            let object = tpm.call(command)?.handle()?;
            let secret = tpm.unseal_object(object, pcrs);
            tpm.flush(object);
            secret
        })
    }

    fn unseal_object(&mut self, object: u32, pcrs: Pcrs) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let session = self.start_session(wire::POLICY)?;
        let secret = self.policy_pcr(session, pcrs).and_then(|()| {
            let command = Command::new(wire::UNSEAL).handle(object).policy(session);
            self.call(command)?.bytes().map(Zeroizing::new)
        });
        self.flush(session);
        secret
    }

    fn under_primary<T>(
        &mut self,
        act: impl FnOnce(&mut Self, u32) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = Command::new(wire::CREATE_PRIMARY)
            .handle(wire::OWNER)
            .password()
            .sensitive(&[])
            .sized(&wire::primary_template())
            .sized(&[])
            .u32(0);
        let primary = self.call(command)?.handle()?;
        let outcome = act(self, primary);
        self.flush(primary);
        outcome
    }

    fn start_session(&mut self, kind: u8) -> Result<u32, TpmError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let command = Command::new(wire::START_AUTH_SESSION)
            .handle(wire::NULL)
            .handle(wire::NULL)
            .sized(&nonce)
            .sized(&[])
            .u8(kind)
            .u16(wire::ALG_NULL)
            .u16(wire::SHA256);
        self.call(command)?.handle()
    }

    fn policy_pcr(&mut self, session: u32, pcrs: Pcrs) -> Result<(), TpmError> {
        let command = Command::new(wire::POLICY_PCR)
            .handle(session)
            .sized(&[])
            .pcrs(pcrs);
        self.call(command).map(drop)
    }

    /// Lets go of a loaded object or session. That it cannot be done changes nothing about the outcome.
    fn flush(&mut self, handle: u32) {
        let _ = self.call(Command::new(wire::FLUSH_CONTEXT).u32(handle));
    }

    fn call(&mut self, command: Command) -> Result<Answer, TpmError> {
        let wants_handle = command.answers_with_handle();
        self.channel.write_all(&command.finish())?;
        // A device gives the whole answer to one read, a socket perhaps not.
        let mut bytes = Zeroizing::new(vec![0; wire::MAX_ANSWER]);
        let mut have = 0;
        loop {
            let read = self.channel.read(&mut bytes[have..])?;
            have += read;
            let expected = wire::answer_len(&bytes[..have])?;
            if expected.is_some_and(|expected| have >= expected) {
                break;
            }
            if read == 0 {
                return Err(TpmError::Answer);
            }
        }
        Answer::parse(&bytes[..have], wants_handle)
    }
}

/// Reads an answer as any command's.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = wire::answer_len(bytes);
    for with_handle in [false, true] {
        if let Ok(mut answer) = Answer::parse(bytes, with_handle) {
            while answer.bytes().is_ok_and(|area| !area.is_empty()) {}
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
