//! What evidence is appraised with: anchors, endorsements, reference values, and the time.

use std::path::PathBuf;
use std::time::SystemTime;

use attestation::{EndorsementFolder, ReferenceValues, UnixTime, Verifier};
use clap::Args;

use super::{read, token};
use crate::failure::Failure;

#[derive(Args)]
pub struct Trust {
    /// What is welcome: launch measurements, firmware versions (JSON). Without it nothing is affirmed.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Certificate that the bundle lacks (DER). May be repeated.
    #[arg(long, value_name = "FILE")]
    endorsement: Vec<PathBuf>,
    /// Revocation list (DER). May be repeated; with one, revocation is always asked for.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    #[command(flatten)]
    table: token::Table,
    /// Folder of endorsements: certificates, revocation lists, collateral of Intel.
    #[arg(long, value_name = "DIR")]
    endorsements: Option<PathBuf>,
    /// Appraise as of this time, in seconds since 1970. [default: now]
    #[arg(long, value_name = "SECONDS")]
    at: Option<u64>,
    /// Accept evidence under the simulated root, too. Anybody can forge it.
    #[arg(long)]
    dangerously_accept_simulated: bool,
}

impl Trust {
    /// The time to appraise as of.
    pub fn time(&self) -> UnixTime {
        self.at
            .map_or_else(|| UnixTime::from(SystemTime::now()), UnixTime)
    }

    pub fn folder(&self) -> Option<EndorsementFolder> {
        self.endorsements.clone().map(EndorsementFolder::at)
    }

    pub fn verifier(&self) -> Result<Verifier, Failure> {
        let mut builder = Verifier::builder();
        if let Some(folder) = self.folder() {
            builder = folder.add_to(builder)?;
        }
        if let Some(path) = &self.reference {
            let values = ReferenceValues::from_json(&read(path)?).map_err(|error| {
                Failure::caused(
                    format!("cannot use the reference values `{}`", path.display()),
                    &error,
                )
            })?;
            builder = builder.reference_values(values);
        }
        for path in &self.endorsement {
            builder = builder.endorsement(read(path)?);
        }
        for path in &self.crl {
            builder = builder.crl(read(path)?);
        }
        if let Some(table) = self.table.read()? {
            builder = builder.tcb_table(table);
        }
        if self.dangerously_accept_simulated {
            builder = builder.dangerous().accept_simulated();
        }
        Ok(builder.build()?)
    }
}
