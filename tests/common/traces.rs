//! By what a sandbox can be found from outside, and that it cannot be found any more.

use std::fs;
use std::path::{Path, PathBuf};

/// By what a sandbox can be found from outside.
pub struct Traces {
    pub init: i32,
    namespace: PathBuf,
    /// Keeps the number of the namespace from being given to another sandbox.
    _pin: Option<fs::File>,
    cgroups: Vec<PathBuf>,
}

impl Traces {
    /// The traces of the sandbox with this init.
    pub fn of(init: i32) -> Self {
        let namespace = fs::read_link(format!("/proc/{init}/ns/pid")).unwrap_or_default();
        let pin = fs::File::open(format!("/proc/{init}/ns/pid")).ok();
        let own = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
        let names = own
            .lines()
            .filter_map(|line| Path::new(line).file_name()?.to_str());
        let names: Vec<_> = names.filter(|name| name.starts_with("casemate-")).collect();
        let cgroups = cgroups().into_iter();
        let cgroups = cgroups
            .filter(|path| names.iter().any(|name| path.ends_with(name)))
            .collect();
        Self {
            init,
            namespace,
            _pin: pin,
            cgroups,
        }
    }

    /// Nothing of the sandbox is left: no process, no cgroup, no mount.
    pub fn assert_gone(&self) {
        assert!(
            !Path::new(&format!("/proc/{}", self.init)).exists(),
            "the init is left"
        );
        let left: Vec<_> = processes().filter(|pid| self.holds(*pid)).collect();
        assert!(
            left.is_empty(),
            "processes of the sandbox are left: {left:?}"
        );
        let left: Vec<_> = self.cgroups.iter().filter(|path| path.exists()).collect();
        assert!(left.is_empty(), "cgroups of the sandbox are left: {left:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<_> = mounts
            .lines()
            // Vaults that are mounted outside of sandboxes, which other tests do meanwhile, are none.
            .filter(|line| line.contains("casemate") && !line.contains("/mounted-"))
            .collect();
        assert!(left.is_empty(), "mounts of a sandbox are left: {left:?}");
    }

    fn holds(&self, pid: i32) -> bool {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"));
        namespace.is_ok_and(|namespace| namespace == self.namespace)
    }
}

/// Every process id of the host. Command lines are not read: that can wait for a process that hangs.
pub fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Every cgroup of a sandbox there is.
pub fn cgroups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = points
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("casemate-"))
            {
                found.push(entry.path());
            } else {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Processes of a session: the spawner and the init. With the init, the kernel ends all in its
/// namespace.
pub fn in_session(session: i32) -> Vec<i32> {
    let wanted = session.to_string();
    processes()
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the name, which may hold anything: state, parent, group, session. One that has
            // exited, and waits for the host's own init to notice, is no process any more.
            let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' '));
            let fields: Vec<_> = fields.into_iter().flatten().take(4).collect();
            matches!(fields[..], [state, _, _, session] if state != "Z" && session == wanted)
        })
        .collect()
}

/// Cgroups of the sandboxes of a supervisor.
pub fn cgroups_of(supervisor: i32) -> Vec<String> {
    let prefix = format!("casemate-{supervisor}-");
    let names = cgroups().into_iter().filter(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix))
    });
    names.map(|path| path.display().to_string()).collect()
}
