//! The broker's configuration, checked whole when it is read.
//!
//! ```toml
//! listen = "0.0.0.0:8443"
//! log = "log"                              # folder of the audit log; begun if it is not there
//! log-key = "log.key"                      # made with it
//! admin = "/run/casemate/broker.sock"
//! store = "broker.redb"                    # or etcd://…, which replicas share
//!
//! [tls]
//! certificate = "broker.pem"               # and those between it and its root
//! key = "broker-key.pem"
//!
//! [attestation]
//! reference-values = "reference.json"
//! endorsements = "endorsements"            # folder: certificates, revocation lists, collateral
//!
//! [limits]                                 # each of them can be left out
//! session = 300                            # seconds
//! nonce = 120                              # seconds
//! lease = 60                               # seconds that a released secret may be used without word from here
//! connections = 256
//! appraisals = 16                          # at once
//! asks-per-minute = 600                    # of one address
//! patience = 10                            # seconds for a handshake, a header, or a request with its answer
//!
//! [resources."default/key/sales"]          # REPO/TYPE/TAG
//! key-file = "sales.key"                   # 64 hexadecimal digits; or file = "…", the bytes as they are
//! policies = ["9f86d0…"]                   # SHA-256 of the bundles it is for; or "any"
//! over-channel = true                      # only on evidence that is bound to its TLS connection
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attestation::{
    EndorsementFolder, Hex, MAX_REFERENCE_VALUES, MAX_SECRET, ReferenceValues, Verifier,
};
use broker::key_file::{self, KeyFileError};
use broker::{Broker, ReleasePolicy};
use rustls::ServerConfig;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::believing::{Believing, Source, SourceError};

/// Most bytes of the configuration file.
const MAX_CONFIG: u64 = 1 << 20;
/// Signatures on certificates that are verified once: three or four for each platform.
const REMEMBERED: usize = 4_096;
/// Most bytes of a resource's name.
const MAX_NAME: usize = 256;

/// What a broker serves under: every file that it names was read and makes sense.
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its operator reaches it.
    pub admin: PathBuf,
    /// Folder of its audit log.
    pub log: PathBuf,
    /// Key of its audit log.
    pub log_key: PathBuf,
    /// Its TLS.
    pub tls: Arc<ServerConfig>,
    /// What a client may cost.
    pub limits: Limits,
    /// Where its store is; relative paths start at `base`.
    pub store: String,
    /// The folder of the configuration.
    pub base: PathBuf,
    /// What evidence is believed by, and the secrets.
    pub believing: Believing,
    /// For whom each secret is, for the operator to see.
    pub rules: BTreeMap<String, String>,
    /// SHA-256 of the file, hexadecimal.
    pub digest: String,
}

/// What a client may cost.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Seconds that a session lasts.
    pub session: u64,
    /// Seconds that a nonce is good.
    pub nonce: u64,
    /// Seconds for which a released secret may be used without word from here.
    pub lease: u64,
    /// Connections at once.
    pub connections: usize,
    /// Requests with evidence that are read or appraised at once.
    pub appraisals: usize,
    /// How often one address may ask for a nonce in a minute.
    pub asks_per_minute: u32,
    /// Seconds that a handshake, a header, and a request with its answer may take, each.
    pub patience: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            session: 300,
            nonce: 120,
            lease: 60,
            connections: 256,
            appraisals: 16,
            asks_per_minute: 600,
            patience: 10,
        }
    }
}

/// The file, before anything in it is believed.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    listen: SocketAddr,
    log: PathBuf,
    log_key: PathBuf,
    admin: PathBuf,
    #[serde(default = "default_store")]
    store: String,
    tls: Tls,
    attestation: Attestation,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    resources: BTreeMap<String, Resource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Attestation {
    reference_values: PathBuf,
    endorsements: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Resource {
    key_file: Option<PathBuf>,
    file: Option<PathBuf>,
    policies: Policies,
    #[serde(default)]
    over_channel: bool,
    #[serde(default)]
    dangerously_accept_warning: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Policies {
    Named(Vec<String>),
    Any(String),
}

/// Why a configuration cannot be served under.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not of the documented form. The text shows the place.
    #[error("the configuration has mistakes\n{0}")]
    Form(#[from] toml::de::Error),
    /// A secret can be read by others.
    #[error("`{}` can be read by others: chmod 600 it", .0.display())]
    Exposed(PathBuf),
    /// A secret has no bytes, or more than can be released.
    #[error("`{}` is empty, or longer than {MAX_SECRET} bytes", .0.display())]
    Length(PathBuf),
    /// A key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The certificate or its key cannot be used.
    #[error("`[tls]` cannot be used: {0}")]
    Tls(String),
    /// What evidence is believed by cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A resource is described in a way that makes no sense.
    #[error("resource `{name}`: {why}")]
    Resource {
        /// Its name.
        name: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// A limit is zero, or so large that it is none.
    #[error("`[limits] {0}` is zero or too large")]
    Limit(&'static str),
}

impl Config {
    /// Reads a configuration file and everything that it names; relative paths start at its folder.
    /// Simulated evidence proves nothing; it is believed only if `accept_simulated`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first thing that cannot be served under.
    pub fn read(path: &Path, accept_simulated: bool) -> Result<Self, ConfigError> {
        let bytes = read(path, MAX_CONFIG)?;
        let text = String::from_utf8_lossy(&bytes);
        let file: File = toml::from_str(&text)?;
        let base = path.parent().unwrap_or(Path::new(""));
        check(&file.limits)?;
        let reference = read(
            &base.join(&file.attestation.reference_values),
            MAX_REFERENCE_VALUES as u64,
        )?;
        let reference = ReferenceValues::from_json(&reference).map_err(SourceError::from)?;
        let folder = file.attestation.endorsements.as_ref();
        let folder = folder.map(|folder| EndorsementFolder::at(base.join(folder)));
        let mut builder = Verifier::builder().remember(REMEMBERED);
        if accept_simulated {
            builder = builder.dangerous().accept_simulated();
        }
        let source = Source {
            builder,
            reference,
            folder,
        };
        let mut builder = Broker::builder(source.verifier(None)?.0);
        let mut rules = BTreeMap::new();
        for (name, resource) in &file.resources {
            let (policy, rule) = resource.rule(name)?;
            builder = builder.resource(name, resource.secret(name, base)?, policy);
            rules.insert(name.clone(), rule);
        }
        Ok(Self {
            listen: file.listen,
            admin: base.join(file.admin),
            log: base.join(file.log),
            log_key: base.join(file.log_key),
            tls: crate::tls::server(&base.join(&file.tls.certificate), &base.join(&file.tls.key))?,
            limits: file.limits,
            store: file.store,
            base: base.to_owned(),
            believing: Believing::new(source, builder.build())?,
            rules,
            digest: Hex::<32>(Sha256::digest(&bytes).into()).to_string(),
        })
    }
}

impl Resource {
    /// For whom it is.
    fn rule(&self, name: &str) -> Result<(ReleasePolicy, String), ConfigError> {
        let wrong = |why| ConfigError::Resource {
            name: name.to_owned(),
            why,
        };
        let parts: Vec<_> = name.split('/').collect();
        let plain = |part: &&str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && *part != "." && *part != ".." && part.bytes().all(known)
        };
        if parts.len() != 3 || !parts.iter().all(plain) || name.len() > MAX_NAME {
            return Err(wrong(
                "its name is REPO/TYPE/TAG, of letters, digits, `-`, `_` and `.`",
            ));
        }
        let mut policy = ReleasePolicy::default();
        let mut rule = match &self.policies {
            Policies::Any(any) if any == "any" => "any policy".to_owned(),
            Policies::Named(digests) if !digests.is_empty() => {
                let digests = digests.iter().map(|digest| digest.parse::<Hex<32>>());
                let digests: Result<Vec<_>, _> = digests.collect();
                let digests = digests.map_err(|_| {
                    wrong("a policy is named by its SHA-256, 64 hexadecimal digits")
                })?;
                policy = policy.only_for(digests.iter().map(|digest| digest.0));
                let names: Vec<_> = digests.iter().map(ToString::to_string).collect();
                names.join(" ")
            }
            _ => {
                return Err(wrong(
                    "`policies` names no bundle: it would go to nobody; \"any\" is for any guest",
                ));
            }
        };
        if self.over_channel {
            policy = policy.only_over_channel();
            rule.push_str(", over one connection");
        }
        if self.dangerously_accept_warning {
            policy = policy.dangerous().accept_warning();
            rule.push_str(", also at tier warning");
        }
        Ok((policy, rule))
    }

    fn secret(&self, name: &str, base: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        match (&self.key_file, &self.file) {
            (Some(path), None) => Ok(key_file::read(&base.join(path))?),
            (None, Some(path)) => secret(&base.join(path)),
            _ => Err(ConfigError::Resource {
                name: name.to_owned(),
                why: "give it either a `key-file` or a `file`",
            }),
        }
    }
}

fn default_store() -> String {
    "broker.redb".to_owned()
}

fn check(limits: &Limits) -> Result<(), ConfigError> {
    let ranges = [
        ("session", limits.session, 86_400),
        ("nonce", limits.nonce, 3_600),
        ("lease", limits.lease, 86_400),
        ("patience", limits.patience, 3_600),
        ("connections", limits.connections as u64, 65_536),
        ("appraisals", limits.appraisals as u64, 1_024),
        (
            "asks-per-minute",
            u64::from(limits.asks_per_minute),
            1_000_000,
        ),
    ];
    match ranges
        .iter()
        .find(|(_, value, most)| *value == 0 || value > most)
    {
        Some((name, ..)) => Err(ConfigError::Limit(name)),
        None => Ok(()),
    }
}

pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// Reads a file that nobody but its owner can read, into memory that is zeroed.
pub(crate) fn private(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let unreadable = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    // A named pipe must not hold us up.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::ErrorKind::InvalidInput.into()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(ConfigError::Exposed(path.into()));
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let bytes = private(path, MAX_SECRET)?;
    match (1..=MAX_SECRET).contains(&bytes.len()) {
        true => Ok(bytes),
        false => Err(ConfigError::Length(path.into())),
    }
}
