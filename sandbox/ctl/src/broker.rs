//! The relying party in this process: a real broker, with keys from files.
//!
//! It appraises the evidence it is given like any other broker and releases a key only then. What it
//! cannot give is distance: whoever controls this machine controls it too.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ::broker::{Broker, ReleasePolicy};
use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime, Verifier};
use casemate::release::{KeyBroker, Refusal};
use zeroize::Zeroizing;

use crate::failure::{Failure, describe};

/// A broker in this process.
pub struct Local(Broker);

impl Local {
    /// Makes a broker that holds these keys, by resource.
    pub fn new(verifier: Verifier, keys: BTreeMap<String, Zeroizing<Vec<u8>>>) -> Self {
        let builder = keys.into_iter().fold(Broker::builder(verifier), |builder, (name, key)| {
            builder.resource(name, key, ReleasePolicy::default())
        });
        Self(builder.build())
    }
}

impl KeyBroker for Local {
    fn challenge(&mut self, now: UnixTime) -> Result<Nonce, Refusal> {
        self.0.challenge(now).map_err(|error| Refusal {
            code: "challenge".into(),
            message: describe(&error),
        })
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        self.0
            .release(evidence, challenge, resource, now)
            .map(|release| release.sealed)
            .map_err(|error| Refusal { code: error.code().into(), message: describe(&error) })
    }
}

/// Reads a key file: 64 hexadecimal digits (32 bytes), readable by its owner only.
///
/// # Errors
///
/// When it is missing, open to others, or something else than a key.
pub fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| {
        Failure::caused(format!("cannot read the key file `{shown}`"), &error)
            .hint(format!("`sandboxctl vault create VAULT --key-file {shown}` makes a vault and its key"))
    })?;
    if metadata.mode() & 0o077 != 0 {
        return Err(Failure::new(format!("the key file `{shown}` can be read by others"))
            .hint(format!("chmod 600 {shown}")));
    }
    let text = Zeroizing::new(
        fs::read_to_string(path)
            .map_err(|error| Failure::caused(format!("cannot read the key file `{shown}`"), &error))?,
    );
    let digits = text.trim().as_bytes();
    let mut key = Zeroizing::new(Vec::with_capacity(32));
    for pair in digits.chunks(2) {
        let byte = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2);
        match byte.and_then(|p| u8::from_str_radix(p, 16).ok()) {
            Some(byte) => key.push(byte),
            None => break,
        }
    }
    if key.len() == 32 && digits.len() == 64 {
        Ok(key)
    } else {
        Err(Failure::new(format!("`{shown}` is no key file: it must hold 64 hexadecimal digits")))
    }
}

/// Makes a key file with a new random key, unless there is a file already.
///
/// # Errors
///
/// When the file cannot be written.
pub fn new_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut key = Zeroizing::new(vec![0u8; 32]);
    let flags = rustix::rand::GetRandomFlags::empty();
    if !matches!(rustix::rand::getrandom(&mut key[..], flags), Ok(32)) {
        return Err(Failure::new("the system gives no random bytes"));
    }
    let mut text = Zeroizing::new(casemate::record::hex(&key));
    text.push('\n');
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| Failure::caused(format!("cannot write the key file `{}`", path.display()), &error))?;
    Ok(key)
}
