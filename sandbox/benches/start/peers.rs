//! What else starts a program in a sandbox, as commands: each with the confinement it has to offer for
//! such a program, and those of them only that are installed here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// Parts of the host that a program needs to run.
const SYSTEM: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];

/// A tool, and how it is called.
pub struct Peer {
    pub name: &'static str,
    command: Vec<String>,
    folder: PathBuf,
    runs: u32,
}

impl Peer {
    /// Starts the program and waits for its end.
    pub fn start(&mut self) -> Result<()> {
        self.runs += 1;
        let id = format!("casemate-bench-{}-{}", std::process::id(), self.runs);
        let words = self.command.iter().map(|word| word.replace("{id}", &id));
        let words: Vec<_> = words.collect();
        let status = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            return Ok(());
        }
        Err(format!("{} ended with {status}", words.join(" ")).into())
    }
}

/// Those that are installed and able to start `/app/true` of this folder.
pub fn all(folder: &Path) -> Result<Vec<Peer>> {
    let rootfs = bundle(folder)?;
    let app = folder.join("app").display().to_string();
    let root = rootfs.display().to_string();
    let bubblewrap = format!(
        "bwrap --unshare-all --new-session --die-with-parent --cap-drop ALL --ro-bind /usr /usr {} --ro-bind {app} /app \
         --proc /proc --dev /dev --tmpfs /tmp --clearenv --chdir / /app/true",
        SYSTEM[1..]
            .iter()
            .filter_map(|path| Some(format!(
                "--symlink {} {path}",
                fs::read_link(path).ok()?.display()
            )))
            .collect::<Vec<_>>()
            .join(" "),
    );
    let nsjail = format!(
        "nsjail -Mo -Q -N --disable_clone_newcgroup -R /usr -R /bin -R /lib -R /lib64 -R {app}:/app -T /tmp -- /app/true"
    );
    let minijail = format!(
        "minijail0 -U -m -M -p -v -l -e -n -P /var/empty -b /usr -b /bin -b /lib -b /lib64 -b {app},/app -k tmpfs,/tmp,tmpfs -- /app/true"
    );
    let firejail =
        format!("firejail --quiet --noprofile --seccomp --caps.drop=all --net=none {app}/true");
    let wanted = [
        ("bubblewrap", bubblewrap),
        ("minijail", minijail),
        ("nsjail", nsjail),
        ("crun", "crun run --bundle . {id}".to_owned()),
        (
            "crun, cgroup v2 hidden from it",
            "unshare --mount sh crun.sh {id}".to_owned(),
        ),
        ("runc", "runc run --bundle . {id}".to_owned()),
        ("firejail", firejail),
        (
            "gVisor",
            "runsc --network=none --ignore-cgroups run --bundle . {id}".to_owned(),
        ),
    ];
    let mut able = Vec::new();
    for (name, command) in wanted {
        let mut peer = Peer {
            name,
            command: command.split_whitespace().map(str::to_owned).collect(),
            folder: rootfs.parent().unwrap_or(Path::new(&root)).to_owned(),
            runs: 0,
        };
        match peer.start() {
            Ok(()) => able.push(peer),
            Err(error) => println!("not compared: {name}: {error}"),
        }
    }
    Ok(able)
}

/// An OCI bundle that has nothing but the program, with limits and the engines' usual protections.
fn bundle(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("bundle/rootfs");
    fs::create_dir_all(root.join("app"))?;
    for name in ["proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir(root.join(name))?;
    }
    fs::copy(folder.join("app/true"), root.join("app/true"))?;
    symlink("app", root.join("bin"))?;
    fs::write(folder.join("bundle/config.json"), CONFIG)?;
    // It refuses hosts with controllers on both.
    fs::write(
        folder.join("bundle/crun.sh"),
        "umount /sys/fs/cgroup/unified && exec crun run --bundle . \"$1\"\n",
    )?;
    Ok(root)
}

const CONFIG: &str = r#"{
  "ociVersion": "1.0.2",
  "process": {
    "user": { "uid": 0, "gid": 0 },
    "args": ["/app/true"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "capabilities": { "bounding": [], "effective": [], "permitted": [] },
    "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
    "noNewPrivileges": true
  },
  "root": { "path": "rootfs", "readonly": true },
  "hostname": "peer",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
    { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec"] }
  ],
  "linux": {
    "namespaces": [
      { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }
    ],
    "resources": {
      "memory": { "limit": 67108864 },
      "pids": { "limit": 19 },
      "cpu": { "quota": 100000, "period": 100000 }
    },
    "seccomp": {
      "defaultAction": "SCMP_ACT_ALLOW",
      "architectures": ["SCMP_ARCH_X86_64"],
      "syscalls": [{ "names": ["ptrace", "bpf", "mount", "unshare", "setns", "keyctl", "add_key"], "action": "SCMP_ACT_ERRNO" }]
    },
    "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
    "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
  }
}
"#;
