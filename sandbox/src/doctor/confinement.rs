//! Landlock, seccomp, tracing, and memory protection.

use super::{Area, Finding, read, told};
use crate::sys::probe::{self, As, Outcome};
use crate::sys::{landlock, memory, seccomp};
use crate::syscall::{Action, FilterSpec};

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![landlock_version(), landlock_errata(), actions()];
    findings.extend(listener());
    findings.extend([
        flag(
            "seccomp-tsync",
            libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
            "the threads of a running program are tightened in one call, not one by one",
            "use Linux 5.7 or newer",
        ),
        flag(
            "seccomp-wait-killable",
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            "a signal does not make a reported call run twice",
            "use Linux 5.19 or newer",
        ),
        ptrace(),
        unfiltered(),
        read_memory(),
        exec_gain(),
        sealing(),
        secret_memory(),
        io_uring(),
    ]);
    findings
}

fn landlock_version() -> Finding {
    let (id, area) = ("landlock-abi", Area::Landlock);
    match landlock::abi() {
        Ok(abi @ 6..) => Finding::available(
            id,
            area,
            format!("ABI {abi}"),
            "paths, TCP, devices, signals and abstract sockets are confined without root",
        ),
        Ok(abi) => Finding::partly(
            id,
            area,
            format!("ABI {abi}"),
            "paths are confined; of network, devices, signals and sockets only what this ABI knows",
            "use Linux 6.12 or newer (ABI 6)",
        ),
        Err(error) => Finding::missing(
            id,
            area,
            error.to_string(),
            "paths are confined by mounts alone, and running programs cannot be tightened",
            "boot with `lsm=landlock,...`; inside a container allow the landlock_* system calls",
        ),
    }
}

fn landlock_errata() -> Finding {
    let (id, area) = ("landlock-errata", Area::Landlock);
    match landlock::errata() {
        Ok(fixed) => Finding::available(
            id,
            area,
            format!("fixed: {fixed:#x}"),
            "these known faults of Landlock are fixed here",
        ),
        Err(error) => Finding::unknown(
            id,
            area,
            error.to_string(),
            "the kernel cannot tell which faults are fixed (before Linux 6.15)",
        ),
    }
}

fn actions() -> Finding {
    let (id, area) = ("seccomp-actions", Area::Seccomp);
    let needed = [
        Action::Allow,
        Action::Log,
        Action::Notify,
        Action::Errno(0),
        Action::Trap,
        Action::Kill,
    ];
    let (known, unknown): (Vec<Action>, Vec<Action>) = needed
        .into_iter()
        .partition(|action| seccomp::action_is_available(action.verdict()));
    let list = |actions: &[Action]| {
        actions
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let observed = list(&known);
    match (known.as_slice(), unknown.as_slice()) {
        ([], _) => Finding::missing(
            id,
            area,
            "none",
            "no system call can be filtered",
            "build the kernel with CONFIG_SECCOMP_FILTER; inside a container allow `seccomp`",
        ),
        (_, []) => Finding::available(id, area, observed, "system calls can be filtered"),
        (_, missing) => Finding::partly(
            id,
            area,
            format!("{observed}; not: {}", list(missing)),
            "system calls can be filtered, but not with all answers",
            "use Linux 5.0 or newer",
        ),
    }
}

fn listener() -> Vec<Finding> {
    let area = Area::Seccomp;
    let Ok(filter) = FilterSpec::new(Action::Allow).compile() else {
        return Vec::new();
    };
    let first = probe::listener(&filter);
    let sizes = seccomp::notification_sizes().map_or_else(
        |error| error.to_string(),
        |(notification, response, data)| format!("sizes {notification}/{response}/{data}"),
    );
    let observed = format!("{}; {sizes}", told(first));
    let brokers = "the supervisor refuses and counts denied calls";
    let without = "denied calls fail unseen, and no socket can be brokered";
    let mut findings = vec![match first {
        Outcome::Done => Finding::available("seccomp-listener", area, observed, brokers),
        Outcome::Refused(libc::EBUSY) => Finding::missing(
            "seccomp-listener",
            area,
            format!("{observed}: a filter of the outer container has a listener already"),
            without,
            "start the outer container without a seccomp listener (OCI `linux.seccomp.listenerPath`)",
        ),
        Outcome::Unknown => Finding::unknown("seccomp-listener", area, observed, without),
        _ => Finding::missing(
            "seccomp-listener",
            area,
            observed,
            without,
            "use Linux 5.0 or newer; inside a container allow `seccomp`",
        ),
    }];
    let wake = probe::synchronous_wake_up(&filter);
    findings.push(match wake {
        Outcome::Done => Finding::available(
            "seccomp-sync-wake-up",
            area,
            told(wake),
            "a denied call costs about 4 microseconds",
        ),
        _ => Finding::missing(
            "seccomp-sync-wake-up",
            area,
            told(wake),
            "a denied call costs about 50 microseconds, for it wakes another processor",
            "use Linux 6.6 or newer",
        ),
    });
    findings
}

fn flag(id: &'static str, bits: libc::c_ulong, means: &str, fix: &str) -> Finding {
    if seccomp::flags_are_known(bits) {
        Finding::available(id, Area::Seccomp, "known", means)
    } else {
        Finding::missing(
            id,
            Area::Seccomp,
            "unknown",
            &format!("not so: {means}"),
            fix,
        )
    }
}

fn ptrace() -> Finding {
    let (own, ordinary) = (
        probe::ptrace_seize(0, As::Self_),
        probe::ptrace_seize(0, As::Nobody),
    );
    let yama = read("/proc/sys/kernel/yama/ptrace_scope").map_or_else(
        || "no Yama".to_owned(),
        |scope| format!("Yama scope {scope}"),
    );
    let observed = format!(
        "own child here: {}; ordinary user: {}; {yama}",
        told(own),
        told(ordinary)
    );
    let (id, area) = ("ptrace-child", Area::Ptrace);
    let fix = "`sysctl -w kernel.yama.ptrace_scope=1`; inside a container allow `ptrace`";
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => Finding::available(
            id,
            area,
            observed,
            "the tasks of a running sandbox can be seized, and tightened",
        ),
        (Outcome::Done, _) => Finding::partly(
            id,
            area,
            observed,
            "running sandboxes can be tightened by root only; others are frozen or stopped",
            fix,
        ),
        _ => Finding::missing(
            id,
            area,
            observed,
            "running sandboxes cannot be tightened, only frozen or stopped",
            fix,
        ),
    }
}

fn unfiltered() -> Finding {
    let (id, area) = ("ptrace-suspend-seccomp", Area::Ptrace);
    let tried = probe::ptrace_seize(libc::PTRACE_O_SUSPEND_SECCOMP, As::Self_);
    match tried {
        Outcome::Done => Finding::available(
            id,
            area,
            told(tried),
            "a workload that forbids itself to be confined further is tightened all the same",
        ),
        _ => Finding::missing(
            id,
            area,
            told(tried),
            "a workload whose own filter forbids to be confined further is frozen instead of tightened",
            "start the supervisor as root of the host, outside of any system call filter",
        ),
    }
}

fn read_memory() -> Finding {
    let (own, ordinary) = (probe::read_child(As::Self_), probe::read_child(As::Nobody));
    let observed = format!(
        "of a child here: {}; ordinary user: {}",
        told(own),
        told(ordinary)
    );
    let (id, area) = ("process-vm-readv", Area::Ptrace);
    let means = "the supervisor could read arguments in memory (it looks at registers only so far)";
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => Finding::available(id, area, observed, means),
        (Outcome::Done, _) => {
            Finding::partly(id, area, observed, means, "start the supervisor as root")
        }
        _ => Finding::missing(
            id,
            area,
            observed,
            "the supervisor could read arguments through /proc instead, slower",
            "inside a container allow `process_vm_readv`",
        ),
    }
}

fn exec_gain() -> Finding {
    let (id, area) = ("memory-mdwe", Area::Kernel);
    match memory::exec_gain_is_refused() {
        Ok(on) => Finding::available(
            id,
            area,
            if on {
                "PR_SET_MDWE, on for this process"
            } else {
                "PR_SET_MDWE"
            },
            "memory that was written does not become executable",
        ),
        Err(error) => Finding::missing(
            id,
            area,
            error.to_string(),
            "only the system call filter stands against executable memory, and refuses more for it",
            "use Linux 6.3 or newer",
        ),
    }
}

fn sealing() -> Finding {
    let (id, area) = ("memory-mseal", Area::Kernel);
    if probe::memory_sealing_is_known() {
        Finding::available(
            id,
            area,
            "mseal",
            "the supervisor's mappings cannot be changed",
        )
    } else {
        Finding::missing(
            id,
            area,
            "no mseal",
            "the supervisor's mappings are protected by their permissions only",
            "use Linux 6.10 or newer",
        )
    }
}

fn secret_memory() -> Finding {
    let (id, area) = ("memory-secret", Area::Kernel);
    match probe::secret_memory() {
        Ok(_) => Finding::available(id, area, "memfd_secret", "not even the kernel maps keys"),
        Err(error) => Finding::missing(
            id,
            area,
            error.to_string(),
            "keys lie in locked memory, which root and the kernel can read",
            "boot Linux 5.14 or newer with `secretmem.enable=1`",
        ),
    }
}

fn io_uring() -> Finding {
    let (id, area) = ("io-uring", Area::Kernel);
    let sysctl = read("/proc/sys/kernel/io_uring_disabled").map_or_else(String::new, |value| {
        format!("; kernel.io_uring_disabled = {value}")
    });
    let state = if probe::io_uring_is_on() {
        "on"
    } else {
        "off for this process"
    };
    Finding::available(
        id,
        area,
        format!("{state}{sysctl}"),
        "sandboxes never get it, whatever the host does: it goes round system call filters",
    )
}
