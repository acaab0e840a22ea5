//! The tables of a bundle: the most a workload may ever do.
//!
//! Host paths stay as they were written; whoever acts on them resolves relative ones against the
//! folder of the policy file. Paths inside the sandbox are absolute and normalised.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::sensors::RiskEntry;

/// Every table of a bundle but `[rules]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tables {
    /// `[attestation]`: which evidence is asked for.
    pub attestation: Attestation,
    /// `[workload]`: what is run.
    pub workload: Workload,
    /// `[isolation]`: in what, and within which limits.
    pub isolation: Isolation,
    /// `[files]`: host paths it may see.
    pub files: Files,
    /// `[network]`: whom it may call.
    pub network: Network,
    /// `[syscalls]`: which system calls it may make.
    pub syscalls: Syscalls,
    /// `[data]`: vaults it may open, by name.
    pub data: BTreeMap<String, Data>,
    /// `[risk]`: what each sensor's signals add, by the name of the sensor (one of [`crate::SENSORS`]).
    pub risk: BTreeMap<String, RiskEntry>,
    /// `[risk] falls-after`: how long risk has to stay below its score before the score falls. Default
    /// five seconds.
    pub risk_falls_after: Duration,
}

/// `[attestation]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attestation {
    /// Kinds of evidence that are accepted. Empty when the bundle asks for none.
    pub accept: Vec<TeeName>,
    /// The age after which evidence is asked for again.
    pub max_age: Option<Duration>,
    /// The file of reference values, as written.
    pub reference_values: Option<PathBuf>,
    /// The folder of endorsements (certificates, revocation lists, TCB info), as written. What comes
    /// there while a session runs has its evidence appraised again.
    pub endorsements: Option<PathBuf>,
}

/// A kind of trusted execution environment, by its name in policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TeeName {
    /// `sev-snp`
    SevSnp,
    /// `tdx`
    Tdx,
    /// `simulated`: proves nothing.
    Simulated,
}

impl TeeName {
    /// The name as policies spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            TeeName::SevSnp => "sev-snp",
            TeeName::Tdx => "tdx",
            TeeName::Simulated => "simulated",
        }
    }

    pub(crate) const ALL: [TeeName; 3] = [TeeName::SevSnp, TeeName::Tdx, TeeName::Simulated];
}

/// `[workload]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// What `/` is made of.
    pub rootfs: Rootfs,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// The working directory inside the sandbox. Default `/`.
    pub cwd: PathBuf,
}

/// What the workload's `/` is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rootfs {
    /// `"host"`: the host's `/usr`, `/lib` …, read-only. The default.
    Host,
    /// A directory or OCI layout, as written.
    Path(PathBuf),
}

/// `[isolation]`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Isolation {
    /// What confines the workload.
    pub backend: BackendName,
    /// Memory in bytes. Default 512 MiB.
    pub memory: u64,
    /// Processes and threads. Default 64.
    pub pids: u64,
    /// Processor cores, more than 0. Default 1.
    pub cpu: f64,
    /// Wall-clock time after which the workload is stopped. Default: none.
    pub time: Option<Duration>,
    /// What holds instead while `use tier full` is denied.
    pub reduced: Option<Reduced>,
}

/// `[isolation.reduced]`: limits of the reduced tier, none above those of the full one.
///
/// What is absent stays as in the full tier.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Reduced {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processor cores.
    pub cpu: Option<f64>,
}

/// A backend, by its name in policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendName {
    /// `container`, the default.
    Container,
    /// `microvm`
    Microvm,
    /// `process`: no namespaces.
    Process,
}

impl BackendName {
    /// The name as policies spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendName::Container => "container",
            BackendName::Microvm => "microvm",
            BackendName::Process => "process",
        }
    }

    pub(crate) const ALL: [BackendName; 3] = [
        BackendName::Container,
        BackendName::Microvm,
        BackendName::Process,
    ];
}

/// `[files]`. No path inside the sandbox occurs twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Files {
    /// Readable.
    pub read: Vec<FileGrant>,
    /// Readable and writable.
    pub write: Vec<FileGrant>,
}

/// A host path and where the workload sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGrant {
    /// On the host, as written.
    pub from: PathBuf,
    /// In the sandbox: absolute, normalised.
    pub at: PathBuf,
}

/// `[network]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Network {
    /// Whom the workload may connect to. Empty: no network at all.
    pub connect: Vec<Endpoint>,
}

/// A host and a port. Ordered and displayed as `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// A domain name in lower case, or an IP address in its canonical spelling, without brackets.
    pub host: String,
    /// The TCP port, never 0.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    /// Reads `host:port`, `10.0.0.5:5432` or `[::1]:443`.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        parse_endpoint(text).map_err(EndpointError)
    }
}

/// Why a text names no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EndpointError(&'static str);

fn parse_endpoint(text: &str) -> Result<Endpoint, &'static str> {
    if text.contains("://") {
        return Err("it is a URL");
    }
    let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
    let digits =
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
    let port = port
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or("its port is not between 1 and 65535")?;
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        let address: std::net::Ipv6Addr = inner
            .parse()
            .map_err(|_| "its address is not an IPv6 address")?;
        return Ok(Endpoint {
            host: address.to_string(),
            port,
        });
    }
    if host.contains('/') {
        return Err("address ranges cannot be granted, only single addresses");
    }
    if host.contains('*') {
        return Err("wildcards cannot be granted, only single hosts");
    }
    // Whatever ends in a number is meant as an address, and has to be a well-formed one: `010.0.0.1`
    // or `1.2` is read differently by different resolvers.
    let last = host.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
        let address: std::net::Ipv4Addr = host
            .parse()
            .map_err(|_| "its address is not an IPv4 address")?;
        return Ok(Endpoint {
            host: address.to_string(),
            port,
        });
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err("its host is not a domain name in lower case");
    }
    Ok(Endpoint {
        host: host.to_owned(),
        port,
    })
}

/// `[syscalls]`. The names are checked by whoever knows the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Syscalls {
    /// The named set to start from. Default `default`.
    pub profile: String,
    /// Calls allowed on top.
    pub allow: Vec<String>,
    /// Calls denied on top; wins over `allow`.
    pub deny: Vec<String>,
}

/// One entry of `[data]`: a vault the workload may open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Data {
    /// The vault on the host, as written.
    pub vault: PathBuf,
    /// Where the workload sees it: absolute, normalised.
    pub at: PathBuf,
    /// What it may do there.
    pub access: Access,
    /// Where a broker in the same process takes the KEK from: a URI such as `file:customers.key`.
    pub key: Option<String>,
    /// What remembers the vault's latest commit: a URI such as `file:/mnt/elsewhere/customers.anchor`
    /// or `tpm:0x01800001`.
    pub anchor: Option<String>,
}

/// What a workload may do with a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `read`
    Read,
    /// `read-write`
    ReadWrite,
}
