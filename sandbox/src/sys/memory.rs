//! Memory protection a process takes on for itself and cannot take off again.
//!
//! Follows `PR_SET_MDWE` in prctl(2).

use std::io;

/// Refuses, for this process and its children, to make memory executable that was not mapped so,
/// or to map memory writable and executable.
///
/// # Errors
///
/// `EINVAL` before Linux 6.3, and where another architecture has no such protection.
pub fn refuse_exec_gain() -> io::Result<()> {
    let bits = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    prctl(libc::PR_SET_MDWE, bits).map(drop)
}

/// Tells whether this process is refused executable memory.
///
/// # Errors
///
/// `EINVAL` before Linux 6.3.
pub fn exec_gain_is_refused() -> io::Result<bool> {
    let bits = prctl(libc::PR_GET_MDWE, 0)?;
    Ok(bits.cast_unsigned() & libc::PR_MDWE_REFUSE_EXEC_GAIN != 0)
}

fn prctl(option: libc::c_int, bits: libc::c_ulong) -> io::Result<libc::c_int> {
    let unused: libc::c_ulong = 0;
    // SAFETY: both options take integers and touch no memory of ours; that later mappings are
    // refused is what the caller asks for.
    match unsafe { libc::prctl(option, bits, unused, unused, unused) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::sys::probe::{As, Outcome, in_child};
    use crate::syscall::memory::{MemoryProtection, Way, inspect, protect};
    use crate::syscall::{Action, FilterSpec, Profile};

    const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

    #[test]
    fn protected_memory_does_not_become_executable() {
        let refused = in_child(As::Self_, || {
            protect(None).map_err(|e| e.raw_os_error().unwrap_or(1))?;
            map(BOTH).map(drop)
        });
        assert_eq!(refused, Outcome::Refused(libc::EACCES));
        let gained = in_child(As::Self_, || {
            protect(None).map_err(|e| e.raw_os_error().unwrap_or(1))?;
            let page = map(libc::PROT_READ | libc::PROT_WRITE)?;
            // SAFETY: the page was mapped just now, and nothing else uses it.
            match unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(1)),
            }
        });
        assert_eq!(gained, Outcome::Refused(libc::EACCES));
    }

    #[test]
    fn mdwe_alone_leaves_the_other_ways_open_and_the_filter_closes_them() {
        let told = |filter: Option<&crate::syscall::Program>, expected: MemoryProtection| {
            in_child(As::Self_, || match protect(filter) {
                Ok(found) if found == expected => Ok(()),
                _ => Err(1),
            })
        };
        let alone = MemoryProtection {
            exec_gain: Way::Closed,
            double_mapping: Way::Open,
            memfd_exec: Way::Open,
            proc_mem: Way::Open,
            implied_exec: Way::Open,
        };
        assert_eq!(told(None, alone), Outcome::Done);
        let permissive = FilterSpec::new(Action::Allow).compile().unwrap();
        assert_eq!(told(Some(&permissive), alone), Outcome::Done);

        for listener in [false, true] {
            let filter = Profile::named("default")
                .unwrap()
                .compile(listener)
                .unwrap();
            // `/proc` is that of the machine here; in a sandbox Landlock closes the last way.
            let filtered = MemoryProtection {
                exec_gain: Way::Closed,
                double_mapping: Way::Closed,
                memfd_exec: Way::Closed,
                proc_mem: Way::Open,
                implied_exec: Way::Closed,
            };
            assert_eq!(told(Some(&filter), filtered), Outcome::Done);
        }
    }

    #[test]
    fn without_mdwe_the_stricter_profile_closes_exec_gain() {
        let profile = Profile::named("default").unwrap();
        let open = inspect(Some(&profile.compile(false).unwrap()));
        assert_eq!(open.exec_gain, Way::Open);
        let closed = inspect(Some(&profile.without_exec_gain().compile(false).unwrap()));
        assert_eq!(closed.exec_gain, Way::Closed);
    }

    fn map(protection: i32) -> Result<*mut libc::c_void, i32> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes, which replaces nothing.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(1));
        }
        Ok(page)
    }
}
