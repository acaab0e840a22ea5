//! The kernel's version, BPF, confidential computing, virtualisation, FUSE and limits.

use std::fs::OpenOptions;
use std::path::Path;

use super::{Area, Finding, read, told};
use crate::sys::probe::{self, As, Outcome};

pub(super) fn kernel() -> Finding {
    let (id, area) = ("kernel-version", Area::Kernel);
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let observed = format!("Linux {release}");
    match kernel_version() {
        Some((6.., 12..) | (7.., _)) => {
            Finding::available(id, area, observed, "new enough for every layer")
        }
        Some((6.., _) | (5, 14..)) => Finding::partly(
            id,
            area,
            observed,
            "works; some layers protect less, each says so itself",
            "use Linux 6.12 or newer",
        ),
        Some(_) => Finding::missing(
            id,
            area,
            observed,
            "too old: no Landlock, no cgroup.kill, no secret memory",
            "use Linux 6.12 or newer",
        ),
        None => Finding::unknown(
            id,
            area,
            observed,
            "every layer is tried out by itself below",
        ),
    }
}

pub(super) fn kernel_version() -> Option<(u32, u32)> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn findings() -> Vec<Finding> {
    vec![
        cgroup_bpf(),
        bpf_lsm(),
        tee_guest("tee-sev-guest", "/dev/sev-guest", "SEV-SNP"),
        tee_guest("tee-tdx-guest", "/dev/tdx_guest", "TDX"),
        reports(),
        processor(),
        kvm(),
        fuse(),
        locked_memory(),
        securityfs(),
    ]
}

fn cgroup_bpf() -> Finding {
    let (id, area) = ("cgroup-bpf", Area::Bpf);
    match probe::load_bpf(CGROUP_SOCK, CGROUP_INET_SOCK_CREATE) {
        Ok(_) => Finding::available(
            id,
            area,
            "a program loads",
            "a second wall around the network, which also holds for sockets already handed out",
        ),
        Err(error) => Finding::missing(
            id,
            area,
            error.to_string(),
            "the network is confined by its namespace and by brokering alone",
            "start the supervisor as root, or with CAP_BPF and CAP_NET_ADMIN",
        ),
    }
}

fn bpf_lsm() -> Finding {
    let (id, area) = ("bpf-lsm", Area::Bpf);
    let means = "would take back files that are open already; no lever uses it yet";
    let fix = "boot with `lsm=...,bpf`, and start the supervisor with CAP_BPF and CAP_PERFMON";
    match probe::load_bpf(LSM, LSM_MAC) {
        Ok(_) => Finding::available(id, area, "a program loads", means),
        // It has no hook to attach to, which is looked at after the right to load it at all.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Finding::unknown(
            id,
            area,
            "the right is there; whether a hook takes a program was not tried",
            means,
        ),
        Err(error) => Finding::missing(id, area, error.to_string(), means, fix),
    }
}

fn tee_guest(id: &'static str, device: &str, name: &str) -> Finding {
    let means = format!("this machine is a {name} guest and can prove it");
    let area = Area::Tee;
    let fix = format!("launch this machine as a {name} guest, with the guest driver in its kernel");
    if !Path::new(device).exists() {
        let without = format!("no {name} evidence from here");
        return Finding::missing(id, area, format!("no `{device}`"), &without, &fix);
    }
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Finding::available(id, area, format!("`{device}` opens"), &means),
        Err(error) => Finding::partly(
            id,
            area,
            format!("`{device}`: {error}"),
            &means,
            "start the agent as root, or give its user the device",
        ),
    }
}

fn reports() -> Finding {
    let (id, area) = ("tee-configfs-tsm", Area::Tee);
    let means = "evidence of any TEE can be asked for in one way";
    let fix = "inside a confidential guest: `mount -t configfs none /sys/kernel/config` on Linux 6.7 or newer";
    let Ok(entries) = std::fs::read_dir(REPORTS) else {
        let without = "evidence comes from the vendor's device, if there is one";
        return Finding::missing(id, area, format!("no `{REPORTS}`"), without, fix);
    };
    let provider = entries
        .flatten()
        .find_map(|entry| read(entry.path().join("provider")));
    let observed = match provider {
        Some(provider) => format!("`{REPORTS}`, provider {provider}"),
        None => format!("`{REPORTS}`, the provider shows when a report is asked for"),
    };
    Finding::available(id, area, observed, means)
}

#[cfg(target_arch = "x86_64")]
fn processor() -> Finding {
    const SEV: u32 = 0x8000_001f;
    const TDX: u32 = 0x21;
    let [sev, ..] = probe::cpuid(SEV);
    let [_, b, c, d] = probe::cpuid(TDX);
    let tdx: Vec<u8> = [b, d, c].into_iter().flat_map(u32::to_le_bytes).collect();
    let mut hints = Vec::new();
    hints.extend((sev & 1 << 1 != 0).then_some("SEV"));
    hints.extend((sev & 1 << 3 != 0).then_some("SEV-ES"));
    hints.extend((sev & 1 << 4 != 0).then_some("SEV-SNP"));
    hints.extend((tdx == b"IntelTDX    ").then_some("TDX guest"));
    processor_says(&hints)
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Finding {
    processor_says(&[])
}

fn processor_says(hints: &[&str]) -> Finding {
    let (id, area) = ("tee-processor", Area::Tee);
    // A hypervisor shows a guest what it likes, so this is never more than a hint.
    let means = "a hint only: evidence decides, not what the processor is said to be";
    if hints.is_empty() {
        Finding::unknown(id, area, "CPUID names no TEE", means)
    } else {
        Finding::available(id, area, format!("CPUID names {}", hints.join(", ")), means)
    }
}

fn kvm() -> Finding {
    let (id, area) = ("kvm", Area::Kvm);
    let fix = "enable virtualisation (nested, inside a virtual machine), load `kvm`, and add the user to group `kvm`";
    let means = "micro-VMs at processor speed, unless the host emulates: a boot takes seconds then";
    let without = "micro-VMs run emulated, about four times slower";
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match device.and_then(probe::kvm_version) {
        Ok(KVM_API) => Finding::available(
            id,
            area,
            format!("API {KVM_API}; whether it emulates was not tried"),
            means,
        ),
        Ok(other) => Finding::missing(id, area, format!("API {other}"), without, fix),
        Err(error) => Finding::missing(id, area, format!("`/dev/kvm`: {error}"), without, fix),
    }
}

fn fuse() -> Finding {
    let (id, area) = ("fuse-device", Area::Fuse);
    let (own, ordinary) = (
        probe::open(c"/dev/fuse", true, As::Self_),
        probe::open(c"/dev/fuse", true, As::Nobody),
    );
    let observed = format!(
        "`/dev/fuse` here: {}; ordinary user: {}",
        told(own),
        told(ordinary)
    );
    let fix = "install `fuse3`, whose udev rule opens the device to everybody (mode 0666); inside a container pass `/dev/fuse` in";
    let means = "vaults are mounted, and taken back while they are open";
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => Finding::available(id, area, observed, means),
        (Outcome::Done, _) => {
            Finding::partly(id, area, observed, "vaults are mounted by root only", fix)
        }
        _ => Finding::missing(
            id,
            area,
            observed,
            "vaults cannot be mounted; the library and the command line can still read them",
            fix,
        ),
    }
}

fn locked_memory() -> Finding {
    let (id, area) = ("limit-memlock", Area::Limits);
    let fix = "raise it: `LimitMEMLOCK=64M` in the unit, or `memlock` in limits.conf";
    match probe::lockable_memory() {
        Ok(u64::MAX) => Finding::available(id, area, "unlimited", "keys can be locked in memory"),
        Ok(bytes) if bytes >= ENOUGH_LOCKED || probe::effective_user() == 0 => Finding::available(
            id,
            area,
            format!("{} KiB", bytes >> 10),
            "keys can be locked in memory",
        ),
        Ok(0) => Finding::missing(id, area, "0", "keys can be swapped out", fix),
        Ok(bytes) => Finding::partly(
            id,
            area,
            format!("{} KiB", bytes >> 10),
            "keys can be locked in memory, for few vaults at a time",
            fix,
        ),
        Err(error) => Finding::unknown(id, area, error.to_string(), "keys are locked if it works"),
    }
}

fn securityfs() -> Finding {
    let (id, area) = ("security-modules", Area::Mounts);
    let means = "for information: what the modules enforce was tried out above";
    match read("/sys/kernel/security/lsm") {
        Some(modules) => Finding::available(id, area, modules, means),
        None => Finding::unknown(id, area, "securityfs is not mounted", means),
    }
}

const REPORTS: &str = "/sys/kernel/config/tsm/report";
const KVM_API: i32 = 12;
const ENOUGH_LOCKED: u64 = 8 << 20;
/// `BPF_PROG_TYPE_CGROUP_SOCK` and the point where sockets are made.
const CGROUP_SOCK: u32 = 9;
const CGROUP_INET_SOCK_CREATE: u32 = 2;
/// `BPF_PROG_TYPE_LSM` and its only point.
const LSM: u32 = 29;
const LSM_MAC: u32 = 27;
