//! What people reasonably write and a policy cannot say, or says elsewhere: told as such, so that nobody
//! looks for another spelling of it.

use std::ops::Range;

use super::Reader;
use super::value::Section;
use crate::sensors::SENSORS;

/// Table, key, why there is no such key, and what to write instead.
const WISHES: [(&str, &str, &str, &str); 7] = [
    (
        "network",
        "listen",
        "listening at a port cannot be granted: nothing reaches a sandbox from outside",
        "serve over a Unix socket in a folder of `[files] write`, or standard input and output",
    ),
    (
        "network",
        "deny",
        "nothing has to be denied: only what `connect` lists can be connected to",
        "leave it out; what a rule takes away is written as a `forbid` in `[rules]`",
    ),
    (
        "files",
        "deny",
        "nothing has to be denied: only what `read` and `write` list is there",
        "leave it out, and list less in `read` and `write`",
    ),
    (
        "files",
        "exec",
        "execution cannot be granted path by path",
        "what `read` lists can be executed, what `write` lists cannot; a rule about `Action::\"exec\"` \
         decides whether any program may be started",
    ),
    (
        "data.",
        "objects",
        "the objects of a vault cannot be granted one by one",
        "keep what is granted apart in a vault of its own",
    ),
    (
        "syscalls",
        "groups",
        "system calls are built into the sandbox and cannot be moved by rules in groups",
        "choose a `profile`, and name calls in `allow` and `deny`",
    ),
    (
        "isolation",
        "network",
        "there is no switch for the network: without `[network] connect` there is none",
        "leave it out",
    ),
];

/// Keys and tables that are looked for in the wrong place, and the one they belong to.
const ELSEWHERE: [(&str, &str); 24] = [
    ("command", "workload"),
    ("rootfs", "workload"),
    ("env", "workload"),
    ("cwd", "workload"),
    ("backend", "isolation"),
    ("memory", "isolation"),
    ("pids", "isolation"),
    ("cpu", "isolation"),
    ("time", "isolation"),
    ("timeout", "isolation"),
    ("limits", "isolation"),
    ("resources", "isolation"),
    ("read", "files"),
    ("write", "files"),
    ("mounts", "files"),
    ("connect", "network"),
    ("profile", "syscalls"),
    ("seccomp", "syscalls"),
    ("vault", "data"),
    ("vaults", "data"),
    ("accept", "attestation"),
    ("max-age", "attestation"),
    ("sensors", "risk"),
    ("cedar", "rules"),
];

impl<'s> Reader<'s> {
    /// Says of a key that is not known why it cannot be, if that is known.
    pub(super) fn wished(
        &mut self,
        section: &Section<'_, 's>,
        span: Range<usize>,
        key: &str,
    ) -> bool {
        let of = |table: &str| match table.ends_with('.') {
            true => section.place.starts_with(table),
            false => section.place == table,
        };
        let wish = WISHES
            .iter()
            .find(|(table, name, ..)| of(table) && *name == key);
        if let Some((_, _, why, instead)) = wish {
            self.error(span, *why).help(instead);
            return true;
        }
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == key);
        let Some((_, table)) = elsewhere.filter(|(_, table)| !of(table)) else {
            return false;
        };
        let place = section.in_words();
        self.error(span, format!("unknown key `{key}`{place}"))
            .help(&format!("it belongs in `[{table}]`"));
        true
    }

    /// Says of a path beside the policy file how it is granted, as a place inside has to be named too.
    pub(super) fn beside(&mut self, span: Range<usize>, text: &str) -> bool {
        let inside = text.trim_start_matches("./").trim_end_matches('/');
        let plain = |part: &str| !part.is_empty() && !matches!(part, "." | ".." | "~");
        if text.starts_with('/') || !inside.split('/').all(plain) || inside.contains('\0') {
            return false;
        }
        let inside = inside.escape_debug();
        let message =
            format!("`{inside}` is beside this file, and where the workload sees it is not said");
        self.error(span, message).help(&format!(
            "`{{ from = \"./{inside}\", at = \"/{inside}\" }}`"
        ));
        true
    }

    pub(super) fn unknown_sensor(&mut self, span: Range<usize>, name: &str) {
        if name == "denied-path" {
            self.error(span, "there is no sensor for paths: the kernel does not tell of names that are not there")
                .help("`denied-syscall` hears of refused calls, `new-exec` of programs that are not expected");
            return;
        }
        self.unknown(span, "sensor", name, &SENSORS);
    }
}
