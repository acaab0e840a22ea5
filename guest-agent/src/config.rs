//! The service's configuration, checked when it is read.
//!
//! ```toml
//! socket = "/run/casemate/agent.sock"
//! state = "/var/lib/casemate"            # logs of runs, in a folder `runs`
//! policies = "/etc/casemate/policies"    # NAME.toml is called as NAME
//! allow-uids = [1000]                    # beside the user that the agent runs as, and root
//!
//! [vsock]                                # for other machines too: the host is 2
//! port = 7733
//! allow-cids = [2]
//!
//! [seal]                                 # what it must not forget: see `sealed`
//! key = "file:/etc/casemate/seal.key"    # or "credential:NAME", of systemd, or "tpm:"
//! anchor = "tpm:0x01800010"              # or "file:PATH", outside of `state`
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Most bytes of a configuration file.
const MAX_LEN: u64 = 64 << 10;
/// Most bytes of a Unix socket's path (`sun_path` in unix(7), less its end mark).
const MAX_SOCKET_PATH: usize = 107;

/// A configuration that can be served under: its folders exist, and nobody else can change its policies.
#[derive(Clone, Debug)]
pub struct Config {
    socket: PathBuf,
    state: PathBuf,
    policies: PathBuf,
    allow_uids: BTreeSet<u32>,
    vsock: Option<Vsock>,
    seal: Option<Seal>,
}

/// A port for other machines, and which of them may call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vsock {
    /// The port.
    pub port: u32,
    /// Context ids of the machines that may call.
    pub allow_cids: BTreeSet<u32>,
}

/// Where the key of the sealed state comes from, and what remembers its latest commit.
#[derive(Clone, Debug)]
pub struct Seal {
    key: String,
    anchor: String,
    base: PathBuf,
}

/// The file, before anything in it is believed.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ConfigFile {
    socket: PathBuf,
    state: PathBuf,
    policies: PathBuf,
    #[serde(default)]
    allow_uids: BTreeSet<u32>,
    vsock: Option<Vsock>,
    seal: Option<SealTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealTable {
    key: String,
    anchor: String,
}

/// Why a configuration cannot be served under.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or folder cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not of the documented form. The text shows the place.
    #[error("the configuration has mistakes\n{0}")]
    Form(#[from] toml::de::Error),
    /// The socket's path is longer than the kernel takes.
    #[error("the socket's path is longer than 107 bytes: `{}`", .0.display())]
    SocketPath(PathBuf),
    /// What remembers the state would be put back together with it.
    #[error("the anchor of `[seal]` is in the state that it has to remember: `{}`", .0.display())]
    Anchor(PathBuf),
    /// What should be a folder is something else.
    #[error("`{key}` is no folder: `{}`", path.display())]
    NoFolder {
        /// Key of the configuration.
        key: &'static str,
        /// What it names.
        path: PathBuf,
    },
    /// Others than the agent and root can put files there, and so decide what runs.
    #[error("others can write to `{}` (mode {mode:o}, owner {owner}): chown and chmod go-w it", path.display())]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
}

impl Config {
    /// Reads a configuration file; relative paths in it start at its folder.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when it cannot be read, has mistakes, or names what cannot be used.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        let path = path.canonicalize().map_err(unreadable)?;
        let length = fs::metadata(&path).map_err(unreadable)?.len();
        if length > MAX_LEN {
            return Err(unreadable(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let file: ConfigFile = toml::from_str(&fs::read_to_string(&path).map_err(unreadable)?)?;
        only_ours(&path)?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let config = Self {
            socket: base.join(file.socket),
            state: base.join(file.state),
            policies: base.join(file.policies),
            allow_uids: file.allow_uids,
            vsock: file.vsock,
            seal: file.seal.map(|seal| Seal::at(base, seal)),
        };
        if let Some(file) = config.seal.as_ref().and_then(Seal::anchor_file)
            && file.starts_with(&config.state)
        {
            return Err(ConfigError::Anchor(file));
        }
        if config.socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ConfigError::SocketPath(config.socket));
        }
        for (key, folder) in [("policies", &config.policies), ("state", &config.state)] {
            let unreadable = |source| ConfigError::Read {
                path: folder.clone(),
                source,
            };
            if !fs::metadata(folder).map_err(unreadable)?.is_dir() {
                return Err(ConfigError::NoFolder {
                    key,
                    path: folder.clone(),
                });
            }
            only_ours(folder)?;
        }
        Ok(config)
    }

    /// Where the agent listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder for what the agent keeps.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder of the policies that can be called by name.
    #[must_use]
    pub fn policies(&self) -> &Path {
        &self.policies
    }

    /// Where other machines reach the agent, if they may.
    #[must_use]
    pub fn vsock(&self) -> Option<&Vsock> {
        self.vsock.as_ref()
    }

    /// How what the agent must not forget is sealed, if it is.
    #[must_use]
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// Users who may call the agent, beside its own and root.
    #[must_use]
    pub fn allow_uids(&self) -> &BTreeSet<u32> {
        &self.allow_uids
    }
}

impl Seal {
    fn at(base: &Path, table: SealTable) -> Self {
        let key = match table.key.strip_prefix("file:") {
            Some(path) => format!("file:{}", base.join(path).display()),
            None => table.key,
        };
        Self {
            key,
            anchor: table.anchor,
            base: base.into(),
        }
    }

    fn anchor_file(&self) -> Option<PathBuf> {
        Some(self.base.join(self.anchor.strip_prefix("file:")?))
    }

    /// Where the key comes from, as a URI.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What remembers the latest commit, as a URI.
    #[must_use]
    pub fn anchor(&self) -> &str {
        &self.anchor
    }

    /// The folder that relative paths start at.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }
}

/// Whether only root and the agent's user can change a file or folder.
pub(crate) fn only_ours(path: &Path) -> Result<(), ConfigError> {
    let metadata = fs::metadata(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&owner);
    if ours && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(ConfigError::Exposed {
        path: path.into(),
        mode,
        owner,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = "socket = \"a.sock\"\nstate = \".\"\npolicies = \".\"\n";

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let config = read(GOOD).unwrap();
        assert!(config.socket().is_absolute() && config.socket().ends_with("a.sock"));
        assert!(config.allow_uids().is_empty());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_keys_there_are() {
        let error = read(&format!("{GOOD}allowed-uids = [0]\n"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 4") && error.contains("`allow-uids`"),
            "{error}"
        );
    }

    #[test]
    fn what_remembers_the_state_is_not_in_it() {
        let seal = |anchor: &str| {
            let state = GOOD.replace("state = \".\"", "state = \"state\"");
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("state")).unwrap();
            let path = folder.path().join("agent.toml");
            let seal = format!("[seal]\nkey = \"tpm:\"\nanchor = \"{anchor}\"\n");
            fs::write(&path, state + &seal).unwrap();
            Config::read(&path)
        };
        assert!(seal("file:anchor").is_ok() && seal("tpm:0x01800010").is_ok());
        assert!(matches!(
            seal("file:state/anchor"),
            Err(ConfigError::Anchor(_))
        ));
    }

    #[test]
    fn what_is_missing_or_too_long_is_refused() {
        assert!(matches!(
            read("socket = \"a\"\n"),
            Err(ConfigError::Form(_))
        ));
        let long = GOOD.replace("a.sock", &"a".repeat(200));
        assert!(matches!(read(&long), Err(ConfigError::SocketPath(_))));
        let missing = GOOD.replace("state = \".\"", "state = \"nowhere\"");
        assert!(matches!(read(&missing), Err(ConfigError::Read { .. })));
        let file = GOOD.replace("policies = \".\"", "policies = \"agent.toml\"");
        assert!(matches!(
            read(&file),
            Err(ConfigError::NoFolder {
                key: "policies",
                ..
            })
        ));
    }

    #[test]
    fn policies_that_others_could_write_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, policies) = (
            folder.path().join("agent.toml"),
            folder.path().join("policies"),
        );
        fs::create_dir(&policies).unwrap();
        fs::write(
            &path,
            GOOD.replace("policies = \".\"", "policies = \"policies\""),
        )
        .unwrap();
        for mode in [0o775, 0o757, 0o1777] {
            fs::set_permissions(&policies, fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(Config::read(&path), Err(ConfigError::Exposed { .. })),
                "{mode:o}"
            );
        }
        fs::set_permissions(&policies, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Config::read(&path).is_ok());
    }
}
