//! Control groups: which version holds which controller, and whether we may write there.

use std::path::{Path, PathBuf};

use super::{Area, Finding, read};

pub(super) fn findings() -> Vec<Finding> {
    let hierarchies = hierarchies();
    let mut findings = vec![mode(&hierarchies)];
    findings.extend(
        [
            ("cgroup-memory", "memory", "memory limits"),
            ("cgroup-pids", "pids", "limits on the number of processes"),
            ("cgroup-cpu", "cpu", "limits on processor time"),
            ("cgroup-io", "io", "limits on disk throughput"),
        ]
        .map(|(id, controller, what)| one(&hierarchies, id, controller, what)),
    );
    findings.push(core_file(
        &hierarchies,
        "cgroup-freeze",
        "cgroup.freeze",
        "freezing",
    ));
    findings.push(core_file(
        &hierarchies,
        "cgroup-kill",
        "cgroup.kill",
        "killing",
    ));
    findings
}

/// A mounted hierarchy, and where this process is in it.
struct Hierarchy {
    own: PathBuf,
    v2: bool,
    controllers: Vec<String>,
}

fn mode(hierarchies: &[Hierarchy]) -> Finding {
    let v2 = hierarchies.iter().any(|h| h.v2);
    let v1 = hierarchies
        .iter()
        .any(|h| !h.v2 && !h.controllers.is_empty());
    let (id, area) = ("cgroup-mode", Area::Cgroup);
    match (v1, v2) {
        (false, true) => Finding::available(id, area, "v2", "one hierarchy for limits and levers"),
        (true, true) => Finding::partly(
            id,
            area,
            "hybrid",
            "limits go to v1; placement, freezing and killing to v2",
            "boot with `systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all` to have v2 only",
        ),
        (true, false) => Finding::partly(
            id,
            area,
            "v1",
            "limits work; starting is slower, and a sandbox is killed process by process",
            "mount cgroup2, or boot with `systemd.unified_cgroup_hierarchy=1`",
        ),
        (false, false) => Finding::missing(
            id,
            area,
            "no cgroup file system is mounted",
            "no limits on resources, no freezing",
            "`mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    }
}

fn one(hierarchies: &[Hierarchy], id: &'static str, controller: &str, what: &str) -> Finding {
    let area = Area::Cgroup;
    let v1_name = if controller == "io" {
        "blkio"
    } else {
        controller
    };
    let found = hierarchies.iter().find(|h| {
        let name = if h.v2 { controller } else { v1_name };
        h.controllers.iter().any(|known| known == name)
    });
    let Some(found) = found else {
        return Finding::missing(
            id,
            area,
            "no hierarchy has it",
            &format!("no {what}"),
            "enable it in the kernel's configuration, or delegate it: `systemctl edit user@.service`, `Delegate=yes`",
        );
    };
    let version = if found.v2 { "v2" } else { "v1" };
    let observed = format!("{version} at `{}`", found.own.display());
    if writable(&found.own) {
        Finding::available(id, area, format!("{observed}, writable"), what)
    } else {
        Finding::partly(
            id,
            area,
            format!("{observed}, not writable by this user"),
            &format!("{what} only as root or with a delegated cgroup"),
            "start in a delegated scope: `systemd-run --user --scope -p Delegate=yes ...`",
        )
    }
}

fn core_file(hierarchies: &[Hierarchy], id: &'static str, file: &str, what: &str) -> Finding {
    let area = Area::Cgroup;
    let (older, found) = match hierarchies.iter().find(|h| h.v2) {
        Some(v2) if below(&v2.own, file) || v2.own.join(file).exists() => {
            (false, Some(format!("`{file}` in `{}`", v2.own.display())))
        }
        // The root group has neither file: only the version tells.
        Some(v2) => (
            false,
            kernel_at_least((5, 14)).then(|| {
                format!(
                    "`{file}` by kernel version; `{}` is the root group",
                    v2.own.display()
                )
            }),
        ),
        None => (
            hierarchies
                .iter()
                .any(|h| h.controllers.iter().any(|c| c == "freezer")),
            None,
        ),
    };
    match found {
        Some(observed) => Finding::available(id, area, observed, &format!("{what} a sandbox")),
        None if older && file == "cgroup.freeze" => Finding::partly(
            id,
            area,
            "v1 freezer",
            "freezing by the older controller",
            "mount cgroup2",
        ),
        None => Finding::missing(
            id,
            area,
            format!("no `{file}`"),
            &format!("no {what} of a sandbox as a whole; its processes are signalled one by one"),
            "mount cgroup2 on Linux 5.14 or newer",
        ),
    }
}

/// Tells whether some group just below has the file.
fn below(own: &Path, file: &str) -> bool {
    std::fs::read_dir(own).is_ok_and(|entries| {
        entries
            .flatten()
            .take(64)
            .any(|entry| entry.path().join(file).exists())
    })
}

fn kernel_at_least(wanted: (u32, u32)) -> bool {
    super::host::kernel_version().is_some_and(|version| version >= wanted)
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let membership = read("/proc/self/cgroup").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| hierarchy(line, &membership))
        .collect()
}

/// Reads a line of `/proc/self/mountinfo`, see proc(5).
fn hierarchy(line: &str, membership: &str) -> Option<Hierarchy> {
    let (mount, source) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let mut source = source.split(' ');
    let kind = source.next()?;
    let options: Vec<_> = source.nth(1)?.split(',').collect();
    let v2 = match kind {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let path = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let ours = if v2 {
            names.is_empty()
        } else {
            names.split(',').any(|n| options.contains(&n))
        };
        ours.then_some(path)
    })?;
    let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let own = Path::new(at).join(inside.strip_prefix("/").unwrap_or(inside));
    let controllers = if v2 {
        let text = read(own.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    } else {
        let known = names_of_controllers();
        options
            .iter()
            .filter(|o| known.iter().any(|k| k == *o))
            .map(|o| (*o).to_owned())
            .collect()
    };
    Some(Hierarchy {
        own,
        v2,
        controllers,
    })
}

fn names_of_controllers() -> Vec<String> {
    let text = read("/proc/cgroups").unwrap_or_default();
    let names = text.lines().filter(|line| !line.starts_with('#'));
    names
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn writable(group: &Path) -> bool {
    let writable = |path: PathBuf| std::fs::OpenOptions::new().write(true).open(path).is_ok();
    // Opening for writing changes nothing; a write would.
    writable(group.join("cgroup.procs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_line_tells_version_and_own_group() {
        let membership = "4:memory:/jobs/one\n0::/user.slice";
        let v2 = "38 31 0:31 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate";
        let found = hierarchy(v2, membership).expect("v2");
        assert!(found.v2);
        assert_eq!(found.own, Path::new("/sys/fs/cgroup/user.slice"));

        let v1 = "35 31 0:32 /jobs /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let found = hierarchy(v1, membership).expect("v1");
        assert!(!found.v2);
        assert_eq!(found.own, Path::new("/sys/fs/cgroup/memory/one"));

        assert!(hierarchy("22 27 0:21 / /proc rw - proc proc rw", membership).is_none());
        assert!(hierarchy("", membership).is_none());
        assert!(hierarchy(" - ", membership).is_none());
    }
}
