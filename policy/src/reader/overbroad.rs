//! Entries that give away more than a workload can be meant to have.

use std::ops::Range;
use std::path::Path;

use super::Reader;

impl Reader<'_> {
    /// Warns of host paths that give away more than a workload can be meant to have.
    pub(super) fn warn_of_path(&mut self, span: Range<usize>, from: &Path, write: bool) {
        let parts: Vec<&str> = from.iter().filter_map(|part| part.to_str()).collect();
        let why = match parts.as_slice() {
            ["/"] => "the whole host",
            ["/", "proc" | "sys", ..] => "the host's kernel interfaces",
            ["/", "dev"] => "every device of the host",
            ["/", "root"] | ["/", "home"] | ["/", "home", _] => {
                "a whole home directory, with its keys"
            }
            ["~", ..] => {
                self.warn(span, "`~` is not expanded: this is a folder called `~`");
                return;
            }
            [.., last] if last.ends_with(".sock") && ENGINES.contains(last) => {
                "a container engine's socket, which is root on the host"
            }
            ["/", "run" | "var"] | ["/", "var", "run"] => "the sockets of the host's services",
            ["/", "etc" | "usr" | "boot" | "lib" | "bin" | "sbin", ..] if write => {
                "the host's own system files, for writing"
            }
            _ => return,
        };
        self.warn(span, format!("this gives the workload {why}"))
            .help("name the files it needs");
    }

    pub(super) fn warn_of_host(&mut self, span: Range<usize>, host: &str) {
        let why = match host {
            "0.0.0.0" | "::" => "this is no address to connect to: it is refused",
            "169.254.169.254" | "fd00:ec2::254" | "metadata.google.internal" => {
                "this is the cloud's metadata service, which hands out credentials of the host"
            }
            _ => return,
        };
        self.warn(span, why);
    }
}

/// Sockets through which whoever can write to them commands the host.
const ENGINES: [&str; 4] = ["docker.sock", "containerd.sock", "podman.sock", "crio.sock"];
