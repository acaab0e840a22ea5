//! Programs that are disturbed all the time, and one that is not to be disturbed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{go_on, say, step, tried};

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicBool = AtomicBool::new(false);

extern "C" fn count(_: i32, info: &libc::siginfo_t, _: *mut libc::c_void) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    // A timer's signal comes from the kernel, and not from somebody who took it and sent another.
    FOREIGN.fetch_or(info.si_code != libc::SI_KERNEL, Ordering::Relaxed);
}

/// A thread that computes while signals come, with integers and with fractions.
pub fn by_signals() -> bool {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: 150,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: live structures; the handler adds one and returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    let stop = AtomicBool::new(false);
    let round =
        |(sum, part): (u64, f64), round: u64| (step(sum, round), (part + round as f64).sqrt());
    let compute = || {
        let (mut at, mut rounds) = ((0, 0.0), 0);
        while !stop.load(Ordering::Relaxed) {
            at = round(at, rounds);
            rounds += 1;
        }
        (at == (0..rounds).fold((0, 0.0), round), tried())
    };
    std::thread::scope(|scope| {
        let computing = scope.spawn(compute);
        say("ready");
        go_on();
        let before = SIGNALS.load(Ordering::Relaxed);
        while SIGNALS.load(Ordering::Relaxed) == before {
            std::hint::spin_loop();
        }
        stop.store(true, Ordering::Relaxed);
        let (right, errno) = computing.join().unwrap_or((false, 0));
        say(&errno.to_string());
        right && !FOREIGN.load(Ordering::Relaxed)
    })
}

/// A thread in a restartable sequence: rseq(2). Whatever stops it there has to start it again from the
/// beginning; it must not be let go on as if it were in none.
pub fn in_sequence() -> bool {
    static GO: AtomicBool = AtomicBool::new(false);
    // SAFETY: a live C string.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    std::thread::scope(|scope| {
        let offset = offset.addr();
        let thread = scope.spawn(move || {
            say("ready");
            if offset == 0 {
                // A C library that registers none.
                while !GO.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
                return (true, tried());
            }
            // SAFETY: the symbol is the library's, a number that never changes.
            let offset = unsafe { *std::ptr::with_exposed_provenance::<isize>(offset) };
            (sequence(offset, &GO) != 0, tried())
        });
        go_on();
        GO.store(true, Ordering::SeqCst);
        let (whole, errno) = thread.join().unwrap_or((false, 0));
        say(&errno.to_string());
        whole
    })
}

/// Waits in a sequence until `go`, and returns whether the kernel still knows of it then.
fn sequence(offset: isize, go: &AtomicBool) -> u64 {
    let known;
    // SAFETY: `struct rseq` of this thread is at this offset from its thread pointer, and has the
    // pointer to the sequence at 8. The descriptor names the range from 22 to 44, and 66, before which
    // the signature stands that the C library registered.
    unsafe {
        std::arch::asm!(
            ".pushsection .data.sequence, \"aw\", @progbits",
            ".balign 32",
            "77:",
            ".long 0, 0",
            ".quad 22f, 44f - 22f, 66f",
            ".popsection",
            "add {area}, fs:[0]",
            "55:",
            "lea {known}, [rip + 77b]",
            "mov qword ptr [{area} + 8], {known}",
            "22:",
            "cmp byte ptr [{go}], 0",
            "je 22b",
            "mov {known}, qword ptr [{area} + 8]",
            "44:",
            "mov qword ptr [{area} + 8], 0",
            "jmp 88f",
            ".long 0x53053053",
            "66:",
            "jmp 55b",
            "88:",
            area = inout(reg) offset => _,
            go = in(reg) go.as_ptr(),
            known = out(reg) known,
        );
    }
    known
}

/// A child that is traced by its parent already.
pub fn traced() -> bool {
    // SAFETY: this way has one thread; the child only waits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: takes a pid and touches no memory.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0;
    say("ready");
    go_on();
    seized
}

/// What it does at `SIGTRAP` stays as it was, and it is given none.
pub fn by_traps(how: &str) -> bool {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn count(_: libc::c_int) {
        GIVEN.fetch_add(1, Ordering::Relaxed);
    }
    let handler = match how {
        "ignored" => libc::SIG_IGN,
        _ => count as *const () as libc::sighandler_t,
    };
    // SAFETY: zero is a value of each; the handler only adds to an atomic number.
    let (mut traps, mut before) = unsafe {
        libc::signal(libc::SIGTRAP, handler);
        (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed())
    };
    // SAFETY: live sets.
    unsafe {
        libc::sigemptyset(&raw mut traps);
        libc::sigaddset(&raw mut traps, libc::SIGTRAP);
        if how == "blocked" {
            libc::sigprocmask(libc::SIG_BLOCK, &raw const traps, &raw mut before);
        }
    }
    say("ready");
    go_on();
    say(&tried().to_string());
    // SAFETY: a null set asks; the others are live.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGTRAP, std::ptr::null(), &raw mut now);
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut before);
        let blocked = libc::sigismember(&raw const before, libc::SIGTRAP) == 1;
        now.sa_sigaction == handler
            && blocked == (how == "blocked")
            && GIVEN.load(Ordering::Relaxed) == 0
    }
}
