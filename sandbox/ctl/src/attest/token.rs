//! What goes in and out of an appraisal under a signature: tables of firmware, and tokens.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use attestation::Appraisal;
use attestation::ear::{Issuer, TokenKey};
use attestation::note::{self, NoteKey};
use attestation::snp::TcbTable;
use clap::Args;
use zeroize::Zeroizing;

use super::{create, read};
use crate::failure::Failure;

#[derive(Args)]
pub struct Table {
    /// Table of what AMD's firmware versions are worth, signed (`attest sign-table` makes one).
    #[arg(long, value_name = "FILE", requires = "tcb_table_key")]
    tcb_table: Option<PathBuf>,
    /// The key that the table must be signed with: `<name>+<digits>+<base64>`.
    #[arg(long, value_name = "KEY", requires = "tcb_table")]
    tcb_table_key: Option<NoteKey>,
}

impl Table {
    pub fn read(&self) -> Result<Option<TcbTable>, Failure> {
        let (Some(path), Some(key)) = (&self.tcb_table, &self.tcb_table_key) else {
            return Ok(None);
        };
        let unusable = |error: &dyn std::error::Error| {
            Failure::caused(
                format!("cannot use the TCB table `{}`", path.display()),
                error,
            )
        };
        let text = String::from_utf8(read(path)?).map_err(|error| unusable(&error))?;
        TcbTable::open(&text, key)
            .map(Some)
            .map_err(|error| unusable(&error))
    }
}

#[derive(Args)]
pub struct EarOutput {
    /// File for the appraisal as a token (EAR, a JWT); it must not exist yet.
    #[arg(long, value_name = "FILE", requires = "ear_key")]
    ear: Option<PathBuf>,
    /// Private key that signs the token: PKCS#8 of a P-384 or Ed25519 key, PEM or DER.
    #[arg(long, value_name = "FILE", requires = "ear")]
    ear_key: Option<PathBuf>,
    /// Seconds after which the token ends, unless what it rests on ends before.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    ear_lifetime: u64,
}

impl EarOutput {
    pub fn write(&self, appraisal: &Appraisal) -> Result<(), Failure> {
        let (Some(path), Some(key)) = (&self.ear, &self.ear_key) else {
            return Ok(());
        };
        let issuer = Issuer {
            developer: "casemate".to_owned(),
            build: concat!("sandboxctl ", env!("CARGO_PKG_VERSION")).to_owned(),
            lifetime: self.ear_lifetime,
        };
        let token = TokenKey::from_pkcs8(&private_key(key)?)?.sign(appraisal, &issuer)?;
        create(path, &token)
    }
}

#[derive(Args)]
pub struct SignTable {
    /// The table (JSON), as `attestation/data/amd-tcb.json` is one.
    table: PathBuf,
    /// Private key: PKCS#8 of an Ed25519 key, PEM or DER.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Name of the key, for example `tcb.example.org`.
    #[arg(long)]
    name: String,
    /// File for the signed table; it must not exist yet.
    #[arg(long, short)]
    output: PathBuf,
}

impl SignTable {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let text = String::from_utf8(read(&self.table)?)?;
        TcbTable::check_text(&text)?;
        let (signed, verifier) = note::sign_pkcs8(&text, &self.name, &private_key(&self.key)?)?;
        create(&self.output, &signed)?;
        println!("{verifier}");
        Ok(ExitCode::SUCCESS)
    }
}

/// PKCS#8 in DER, whether the file has it so or in PEM.
fn private_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let bytes = Zeroizing::new(read(path)?);
    if !bytes.starts_with(b"-----BEGIN ") {
        return Ok(bytes);
    }
    attestation::note::pkcs8_from_pem(&bytes)
        .map(Zeroizing::new)
        .ok_or_else(|| Failure::new(format!("`{}` is no PEM of a private key", path.display())))
}
