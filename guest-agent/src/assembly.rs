//! From a policy file on this machine to a session that only has to be run.
//!
//! ```text
//! policy file ─▶ bundle ─▶ keys, reference values ─▶ attester, verifier, broker ─▶ log ─▶ session
//! ```
//!
//! Everything that can be wrong about a policy and this machine is found here, before anything is
//! started.

mod attester;
mod error;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{
    Attester, EndorsedAttester, EndorsementFolder, MAX_REFERENCE_VALUES, ReferenceValues, UnixTime,
    Verifier, VerifierBuilder,
};
use broker::key_file::KeyFileError;
use casemate::isolation::Backend;
use casemate::release::KeyBroker;
use casemate::{Session, SessionBuilder};
use policy::Bundle;
use vault::anchor::FreshnessAnchor;
use vault::audit::{Log, LogKey};
use zeroize::Zeroizing;

use crate::brokers::Brokers;
use crate::endorsements::Renewal;
use crate::key_file;
use crate::leases::Leases;
use crate::local_broker::LocalBroker;
use crate::remote_broker::{self, RemoteBroker};

pub use error::AssemblyError;

/// Name of the log that a run is recorded in, as its checkpoints carry it.
const LOG_ORIGIN: &str = "casemate/run";

/// A policy that was read on this machine, and how it is to be run here.
#[derive(Debug)]
pub struct Assembly {
    bundle: Bundle,
    base: PathBuf,
    accept_simulated: bool,
    ways: BTreeMap<String, SocketAddr>,
}

/// Reaches what weakens a session; each use is one to be reviewed.
#[derive(Debug)]
pub struct DangerousAssembly(Assembly);

/// A session, complete but for who watches it and what its workload reads and writes.
#[must_use]
pub struct Assembled {
    /// The session, to be told where its workload's stdio goes and who sees its records.
    pub session: SessionBuilder,
    /// Its log: the last thing the builder is given.
    pub log: Log,
    /// The keys that brokers elsewhere release: their leases are kept while it runs.
    pub leases: Leases,
}

impl Assembly {
    /// Reads a policy file. Relative paths in it are resolved against the folder it is in.
    ///
    /// # Errors
    ///
    /// [`AssemblyError::Policy`] if it cannot be read, [`AssemblyError::Bundle`] if it has mistakes.
    pub fn read(policy: &Path) -> Result<Self, AssemblyError> {
        let unreadable = |source| AssemblyError::Policy {
            path: policy.into(),
            source,
        };
        let source = read_bounded(policy, Bundle::MAX_LEN as u64).map_err(unreadable)?;
        let source = String::from_utf8(source).map_err(|error| {
            unreadable(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                error.utf8_error(),
            ))
        })?;
        let folder = policy.parent().unwrap_or(Path::new(""));
        let bundle = Bundle::parse_with(
            &source,
            &policy.display().to_string(),
            &included_from(folder),
        )?;
        let path = policy.canonicalize().map_err(unreadable)?;
        let base = path
            .parent()
            .map_or_else(|| PathBuf::from("/"), Path::to_owned);
        Ok(Self {
            bundle,
            base,
            accept_simulated: false,
            ways: BTreeMap::new(),
        })
    }

    /// The policy.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Reaches settings that weaken what the session proves.
    #[must_use]
    pub fn dangerous(self) -> DangerousAssembly {
        DangerousAssembly(self)
    }

    /// The folder that relative paths of the policy start at.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Makes a session in a machine of its own, on this backend: keys in files are asked of `outside`, who
    /// has them, and brokers elsewhere are reached by these ways. Otherwise as [`Assembly::logged_to`].
    ///
    /// # Errors
    ///
    /// [`AssemblyError`].
    pub fn in_a_machine(
        mut self,
        backend: Box<dyn Backend>,
        folder: &Path,
        outside: impl KeyBroker + 'static,
        ways: BTreeMap<String, SocketAddr>,
    ) -> Result<Assembled, AssemblyError> {
        self.ways = ways;
        let (_, remote) = self.keys(|_| Ok(Zeroizing::default()))?;
        let leases = Leases::of(&remote);
        let assembled = self.assembled(folder, leases, |_, _, _| Brokers::new(outside, remote))?;
        Ok(Assembled {
            session: assembled.session.on(backend),
            ..assembled
        })
    }

    /// The broker that has the keys in files, for a session in a machine.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`].
    pub fn broker(&self) -> Result<LocalBroker, AssemblyError> {
        let (keys, _) = self.keys(key_file::read)?;
        let (verifier, endorsements) = self.believed()?;
        let broker = LocalBroker::new(verifier, keys, self.bundle.digest());
        Ok(broker.endorsed_by(endorsements))
    }

    /// Reads the keys and reference values, finds the TEE, and makes the log in a folder that does not
    /// exist yet.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`]; the log is made last, so that a failure leaves nothing behind.
    pub fn logged_to(self, folder: &Path) -> Result<Assembled, AssemblyError> {
        let (keys, remote) = self.keys(key_file::read)?;
        let leases = Leases::of(&remote);
        self.assembled(folder, leases, |verifier, endorsements, policy| {
            let broker = LocalBroker::new(verifier, keys, policy);
            Brokers::new(broker.endorsed_by(endorsements), remote)
        })
    }

    /// Whose word counts: the verifier, and what renews it.
    fn believed(&self) -> Result<(Verifier, Option<Renewal>), AssemblyError> {
        let builder = self.verifier(self.reference_values()?);
        Ok(match self.endorsements() {
            Some(folder) => {
                let (renewal, verifier) = Renewal::read(folder, builder)?;
                (verifier, Some(renewal))
            }
            None => (builder.build()?, None),
        })
    }

    fn assembled(
        self,
        folder: &Path,
        leases: Leases,
        brokers: impl FnOnce(Verifier, Option<Renewal>, [u8; 32]) -> Brokers,
    ) -> Result<Assembled, AssemblyError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let accept = &self.bundle.tables().attestation.accept;
        let attester = attester::choose(accept, self.accept_simulated, UnixTime(now.as_secs()))?;
        let attester: Box<dyn Attester> = match self.endorsements() {
            Some(folder) => Box::new(EndorsedAttester::new(
                attester,
                folder,
                Box::new(|| UnixTime::from(SystemTime::now())),
            )),
            None => attester,
        };
        let (verifier, endorsements) = self.believed()?;
        let broker = brokers(verifier.clone(), endorsements.clone(), self.bundle.digest());
        let key = LogKey::generate().map_err(AssemblyError::LogKey)?;
        let log = Log::create(folder, LOG_ORIGIN, key).map_err(|source| AssemblyError::Log {
            path: folder.into(),
            source,
        })?;
        let anchors = self.anchors()?;
        let mut session = Session::builder(self.bundle)
            .base(self.base)
            .attested_by(attester, verifier)
            .keys_from(broker);
        if let Some(renewal) = endorsements {
            session = session.endorsed_by(renewal);
        }
        let session = anchors
            .into_iter()
            .fold(session, |session, (data, anchor)| {
                session.anchored_by(data, anchor)
            });
        Ok(Assembled {
            session,
            log,
            leases,
        })
    }

    /// The key of each vault, or who has it, where the policy says it is.
    fn keys(
        &self,
        read: impl Fn(&Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError>,
    ) -> Result<(Keys, BTreeMap<String, RemoteBroker>), AssemblyError> {
        let (mut keys, mut remote) = (Keys::new(), BTreeMap::new());
        for (name, data) in &self.bundle.tables().data {
            let data_name = || name.clone();
            let uri = data
                .key
                .as_ref()
                .ok_or_else(|| AssemblyError::NoKey { data: data_name() })?;
            if let Some(path) = uri.strip_prefix("file:") {
                keys.insert(data_name(), read(&self.base.join(path))?);
            } else if uri.starts_with(remote_broker::SCHEME) {
                let broker = RemoteBroker::reached(uri, &self.base, &self.ways);
                let broker = broker.map_err(|source| AssemblyError::KeyAddress {
                    data: data_name(),
                    source,
                })?;
                remote.insert(data_name(), broker);
            } else {
                return Err(AssemblyError::KeyKind {
                    data: data_name(),
                    uri: uri.clone(),
                });
            }
        }
        Ok((keys, remote))
    }

    /// What remembers each vault, where the policy says so.
    fn anchors(&self) -> Result<Anchors, AssemblyError> {
        let data = self.bundle.tables().data.iter();
        data.filter_map(|(name, data)| Some((name, data.anchor.as_ref()?)))
            .map(|(name, uri)| {
                let anchor = vault::anchor::named(uri, &self.base);
                let anchor = anchor.ok_or_else(|| AssemblyError::AnchorKind {
                    data: name.clone(),
                    uri: uri.clone(),
                })?;
                Ok((name.clone(), anchor))
            })
            .collect()
    }

    fn reference_values(&self) -> Result<ReferenceValues, AssemblyError> {
        let Some(path) = &self.bundle.tables().attestation.reference_values else {
            return Ok(ReferenceValues::default());
        };
        let path = self.base.join(path);
        let json = read_bounded(&path, MAX_REFERENCE_VALUES as u64).map_err(|source| {
            AssemblyError::ReferenceFile {
                path: path.clone(),
                source,
            }
        })?;
        ReferenceValues::from_json(&json)
            .map_err(|source| AssemblyError::ReferenceValues { path, source })
    }

    fn endorsements(&self) -> Option<EndorsementFolder> {
        let folder = self.bundle.tables().attestation.endorsements.as_ref()?;
        Some(EndorsementFolder::at(self.base.join(folder)))
    }

    fn verifier(&self, reference: ReferenceValues) -> VerifierBuilder {
        let builder = Verifier::builder().reference_values(reference);
        if self.accept_simulated {
            builder.dangerous().accept_simulated()
        } else {
            builder
        }
    }
}

/// Keys, by the name of their `[data]` entry.
type Keys = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// What remembers a vault, by the name of its `[data]` entry.
type Anchors = Vec<(String, Arc<dyn FreshnessAnchor>)>;

impl DangerousAssembly {
    /// Uses a simulated TEE where there is none, if the policy accepts `simulated` too.
    ///
    /// Its evidence proves nothing: anybody can forge it.
    #[must_use]
    pub fn accept_simulated(self) -> Assembly {
        Assembly {
            accept_simulated: true,
            ..self.0
        }
    }
}

/// Names a folder, which does not exist yet, for the log of a run; makes the folders above it, for
/// this user only.
///
/// # Errors
///
/// [`AssemblyError::LogFolder`] when `runs` cannot be made.
pub fn new_log_folder(runs: &Path, bundle: &Bundle) -> Result<PathBuf, AssemblyError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(runs)
        .map_err(|source| AssemblyError::LogFolder {
            path: runs.into(),
            source,
        })?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(runs.join(format!(
        "{}-{}-{}",
        bundle.name(),
        now.as_secs(),
        std::process::id()
    )))
}

/// Reads the files that a policy in this folder includes.
pub fn included_from(folder: &Path) -> impl Fn(&str) -> Result<String, String> + '_ {
    |name| {
        let bytes = read_bounded(&folder.join(name), Bundle::MAX_LEN as u64);
        let text = bytes.and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| std::io::ErrorKind::InvalidData.into())
        });
        text.map_err(|error| error.to_string())
    }
}

/// Reads a file, and no more of it than its parser would take: one byte more is enough to be refused.
pub(crate) fn read_bounded(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
version = 1
name = "greeting"

[workload]
command = ["true"]

[rules]
cedar = "permit (principal, action, resource);"
"#;

    /// A folder with a policy of these further tables.
    fn policy(tables: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, format!("{POLICY}\n{tables}")).unwrap();
        (folder, path)
    }

    fn refused(tables: &str) -> AssemblyError {
        let (folder, path) = policy(tables);
        let error = Assembly::read(&path)
            .unwrap()
            .logged_to(&folder.path().join("log"))
            .err()
            .unwrap();
        assert!(
            !folder.path().join("log").exists(),
            "a failure leaves no log behind"
        );
        error
    }

    #[test]
    fn a_policy_that_asks_for_no_evidence_needs_no_tee() {
        let (folder, path) = policy("");
        let assembled = Assembly::read(&path)
            .unwrap()
            .logged_to(&folder.path().join("log"));
        assert!(assembled.is_ok());
    }

    #[test]
    fn a_policy_with_mistakes_is_refused_with_their_places() {
        let (_folder, path) = policy("[workloads]\n");
        let error = Assembly::read(&path).unwrap_err();
        assert!(matches!(error, AssemblyError::Bundle(_)));
        assert!(error.to_string().contains("policy.toml:"), "{error}");
    }

    #[test]
    fn a_missing_policy_is_named() {
        let error = Assembly::read(Path::new("/nonexistent/policy.toml")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nonexistent/policy.toml`");
    }

    #[test]
    fn vaults_need_a_key_that_is_there() {
        let data = |key: &str| {
            format!("[data]\nsales = {{ vault = \"sales.vault\", at = \"/data\" {key} }}")
        };
        assert!(matches!(refused(&data("")), AssemblyError::NoKey { data } if data == "sales"));
        assert!(matches!(
            refused(&data(", key = \"kbs:x\"")),
            AssemblyError::KeyKind { .. }
        ));
        let address = "kbs+https://broker.example/sales";
        assert!(matches!(
            refused(&data(&format!(", key = \"{address}\""))),
            AssemblyError::KeyAddress { .. }
        ));
        let missing = refused(&data(", key = \"file:sales.key\""));
        assert!(matches!(missing, AssemblyError::Key(_)));
        assert!(missing.hint().unwrap().contains("vault create"));
    }

    #[test]
    fn a_log_is_never_written_over() {
        let (folder, path) = policy("");
        let log = folder.path().join("log");
        let first = Assembly::read(&path).unwrap().logged_to(&log).unwrap();
        drop(first);
        let error = Assembly::read(&path)
            .unwrap()
            .logged_to(&log)
            .err()
            .unwrap();
        assert!(matches!(error, AssemblyError::Log { .. }));
    }

    #[test]
    fn endorsements_must_be_there_and_be_read() {
        let attestation = "[attestation]\nendorsements = \"endorsements\"\n";
        assert!(matches!(
            refused(attestation),
            AssemblyError::Endorsements(_)
        ));
        let (folder, path) = policy(attestation);
        let endorsements = folder.path().join("endorsements");
        fs::create_dir(&endorsements).unwrap();
        let assembled = |log: &str| {
            Assembly::read(&path)
                .unwrap()
                .logged_to(&folder.path().join(log))
        };
        assert!(assembled("log").is_ok());
        fs::write(endorsements.join("genoa.crl"), b"no list").unwrap();
        let error = assembled("other").err().unwrap();
        assert!(matches!(error, AssemblyError::Verifier(_)));
    }

    #[test]
    fn reference_values_must_be_there_and_be_read() {
        let attestation = "[attestation]\nreference-values = \"reference.json\"\n";
        assert!(matches!(
            refused(attestation),
            AssemblyError::ReferenceFile { .. }
        ));
    }
}
