//! What `sandboxctl attest bundle` gets from the vendors' services, or keeps of them.

use std::path::PathBuf;
use std::time::SystemTime;

use attestation::{EndorsementFolder, Evidence, Platform, UnixTime};
use clap::Args;
use fetch::{Client, Fetcher, Services};

use crate::failure::Failure;

#[derive(Args)]
pub(super) struct Fetched {
    /// Get what is missing from the services of AMD and Intel. The only use of a network.
    #[arg(long, requires = "cache")]
    fetch: bool,
    /// Folder of endorsements: what is there is put into the bundle, and what is fetched is kept
    /// there. A policy's `[attestation] endorsements` may name it.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl Fetched {
    pub(super) fn add_to(&self, evidence: Evidence) -> Result<Evidence, Failure> {
        let Some(cache) = &self.cache else {
            return Ok(evidence);
        };
        let folder = EndorsementFolder::at(cache.clone());
        let now = UnixTime::from(SystemTime::now());
        if self.fetch {
            let platform = Platform::of(&evidence).ok_or_else(|| {
                Failure::new("the evidence does not say which machine it comes from").hint(
                    "reports of SEV-SNP before version 3 do not; give the certificates by hand",
                )
            })?;
            let wait = |time: std::time::Duration| {
                eprintln!("waiting {} s for the vendor's service", time.as_secs());
                std::thread::sleep(time);
            };
            let services = Services::default();
            let mut fetcher =
                Fetcher::new(Client::new(), services, folder.clone(), now, Box::new(wait));
            for name in fetcher.fetch(&platform)? {
                eprintln!("fetched {}", name.file());
            }
        }
        Ok(folder.bundle(evidence, now)?)
    }
}
