//! A grant: one thing the tables allow, and rules decide about.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use crate::tables::{Access, Endpoint, Tables};

/// One thing a workload may be allowed to do.
///
/// Displayed and serialised as a short sentence: `read vault customers`,
/// `connect api.example.com:443`, `proceed`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// What is done.
    pub action: Action,
    /// To what.
    pub resource: Resource,
}

/// What is done. The names are those of the actions in the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Read a path or a vault.
    Read,
    /// Write a path or a vault.
    Write,
    /// Start programs.
    Exec,
    /// Connect to an endpoint.
    Connect,
    /// Use the full tier of resources.
    Use,
    /// Go on running; else frozen.
    Proceed,
    /// Be alive; else stopped.
    Live,
}

impl Action {
    /// The name in the schema.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Write => "write",
            Action::Exec => "exec",
            Action::Connect => "connect",
            Action::Use => "use",
            Action::Proceed => "proceed",
            Action::Live => "live",
        }
    }

    /// Every action.
    pub const ALL: [Action; 7] = [
        Action::Read,
        Action::Write,
        Action::Exec,
        Action::Connect,
        Action::Use,
        Action::Proceed,
        Action::Live,
    ];
}

/// What it is done to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A path inside the sandbox.
    Path(PathBuf),
    /// A network endpoint.
    Endpoint(Endpoint),
    /// A vault, by its name in `[data]`.
    Vault(String),
    /// The full tier of resources.
    FullTier,
    /// The session itself.
    Session,
}

impl Resource {
    pub(crate) fn kind(&self) -> ResourceType {
        match self {
            Resource::Path(_) => ResourceType::Path,
            Resource::Endpoint(_) => ResourceType::Endpoint,
            Resource::Vault(_) => ResourceType::Vault,
            Resource::FullTier => ResourceType::Tier,
            Resource::Session => ResourceType::Session,
        }
    }

    /// The identifier of the resource's entity.
    pub(crate) fn id(&self) -> String {
        match self {
            Resource::Path(path) => path.to_string_lossy().into_owned(),
            Resource::Endpoint(endpoint) => endpoint.to_string(),
            Resource::Vault(name) => name.clone(),
            Resource::FullTier => "full".to_owned(),
            Resource::Session => "this".to_owned(),
        }
    }
}

/// The type of a resource's entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ResourceType {
    Path,
    Endpoint,
    Vault,
    Tier,
    Session,
}

impl ResourceType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ResourceType::Path => "Path",
            ResourceType::Endpoint => "Endpoint",
            ResourceType::Vault => "Vault",
            ResourceType::Tier => "Tier",
            ResourceType::Session => "Session",
        }
    }
}

/// What takes a grant back while the workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Lever {
    /// Paths.
    Files,
    /// Vaults.
    Data,
    /// Endpoints.
    Network,
    /// Starting programs.
    Exec,
    /// Limits.
    Resources,
    /// Going on.
    Freeze,
}

impl Grant {
    /// What takes it back while the workload runs; for `live` that is killing, which always can.
    pub fn lever(&self) -> Option<Lever> {
        Some(match (self.action, &self.resource) {
            (_, Resource::Vault(_)) => Lever::Data,
            (Action::Exec, _) => Lever::Exec,
            (_, Resource::Path(_)) => Lever::Files,
            (_, Resource::Endpoint(_)) => Lever::Network,
            (_, Resource::FullTier) => Lever::Resources,
            (Action::Live, _) => return None,
            (_, Resource::Session) => Lever::Freeze,
        })
    }

    /// To read a path inside the sandbox.
    pub fn read_path(at: impl Into<PathBuf>) -> Self {
        Grant {
            action: Action::Read,
            resource: Resource::Path(at.into()),
        }
    }

    /// To write a path inside the sandbox.
    pub fn write_path(at: impl Into<PathBuf>) -> Self {
        Grant {
            action: Action::Write,
            resource: Resource::Path(at.into()),
        }
    }

    /// To read a vault.
    pub fn read_vault(name: impl Into<String>) -> Self {
        Grant {
            action: Action::Read,
            resource: Resource::Vault(name.into()),
        }
    }

    /// To write a vault.
    pub fn write_vault(name: impl Into<String>) -> Self {
        Grant {
            action: Action::Write,
            resource: Resource::Vault(name.into()),
        }
    }

    /// To connect to an endpoint.
    pub fn connect(endpoint: Endpoint) -> Self {
        Grant {
            action: Action::Connect,
            resource: Resource::Endpoint(endpoint),
        }
    }

    /// To start further programs, wherever they are: `exec /`.
    pub fn exec() -> Self {
        Grant {
            action: Action::Exec,
            resource: Resource::Path(PathBuf::from("/")),
        }
    }

    /// To use the full tier of resources; the reduced one holds otherwise.
    pub fn full_tier() -> Self {
        Grant {
            action: Action::Use,
            resource: Resource::FullTier,
        }
    }

    /// To go on running; the workload is frozen otherwise.
    pub fn proceed() -> Self {
        Grant {
            action: Action::Proceed,
            resource: Resource::Session,
        }
    }

    /// To be alive; the workload is stopped otherwise.
    pub fn live() -> Self {
        Grant {
            action: Action::Live,
            resource: Resource::Session,
        }
    }

    /// Every grant the tables can give, in order and without duplicates.
    pub(crate) fn all(tables: &Tables) -> Vec<Grant> {
        let mut grants = vec![
            Grant::exec(),
            Grant::full_tier(),
            Grant::proceed(),
            Grant::live(),
        ];
        for file in tables.files.read.iter().chain(&tables.files.write) {
            grants.push(Grant::read_path(&file.at));
        }
        for file in &tables.files.write {
            grants.push(Grant::write_path(&file.at));
        }
        for (name, data) in &tables.data {
            grants.push(Grant::read_vault(name));
            if data.access == Access::ReadWrite {
                grants.push(Grant::write_vault(name));
            }
        }
        for endpoint in &tables.network.connect {
            grants.push(Grant::connect(endpoint.clone()));
        }
        grants.sort();
        grants.dedup();
        grants
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.as_str())?;
        match &self.resource {
            Resource::Path(path) => write!(f, " {}", path.display()),
            Resource::Endpoint(endpoint) => write!(f, " {endpoint}"),
            Resource::Vault(name) => write!(f, " vault {name}"),
            Resource::FullTier => f.write_str(" tier full"),
            Resource::Session => Ok(()),
        }
    }
}

impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
