//! One thread in each kind of wait, none of which may notice anything.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::{go_on, say, tried};

/// What a wait came to: whether as it should, and what the thread may do afterwards.
type Result = (&'static str, bool, i32);

pub fn every_kind() -> bool {
    let [pipe, epolled, polled, received] = [pipe(), pipe(), pipe(), sockets()];
    let word = std::sync::atomic::AtomicU32::new(0);
    let kinds: [(&str, &(dyn Fn() -> bool + Sync)); 7] = [
        ("read", &|| read(pipe.0) == 1),
        ("epoll", &|| epoll(epolled.0) == 1),
        ("poll", &|| poll(polled.0) == 1),
        ("recv", &|| read(received.0) == 1),
        ("futex", &|| futex(&word, libc::FUTEX_WAIT) == 0),
        ("sleep", &|| sleep(Duration::from_millis(300))),
        ("sigsuspend", &suspended),
    ];
    let begun = Barrier::new(kinds.len() + 1);
    std::thread::scope(|scope| {
        let begun = &begun;
        let all = kinds.map(|(name, wait)| {
            scope.spawn(move || -> Result {
                begun.wait();
                (name, wait(), tried())
            })
        });
        begun.wait();
        let waiting = || sleepers() > kinds.len() - 2;
        while !waiting() {
            std::thread::yield_now();
        }
        say("ready");
        go_on();
        for end in [pipe.1, epolled.1, polled.1, received.1] {
            write(end);
        }
        word.store(1, std::sync::atomic::Ordering::SeqCst);
        futex(&word, libc::FUTEX_WAKE);
        // Until it waits, the signal would be lost on it: it is blocked before and pending then.
        signal_all();
        let results = all.map(|thread| thread.join().unwrap_or(("died", false, 0)));
        results
            .iter()
            .for_each(|(_, _, errno)| say(&errno.to_string()));
        say(&tried().to_string());
        let harmed: Vec<_> = results.iter().filter(|result| !result.1).collect();
        if !harmed.is_empty() {
            eprintln!("harmed: {harmed:?}");
        }
        harmed.is_empty()
    })
}

/// How many threads of this process sleep.
fn sleepers() -> usize {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return 0;
    };
    let sleeps = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") S "))
    };
    threads.flatten().filter(sleeps).count()
}

fn pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two ints into a live array.
    unsafe { libc::pipe(ends.as_mut_ptr()) };
    (ends[0], ends[1])
}

fn sockets() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: as above.
    unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
    (ends[0], ends[1])
}

fn read(end: i32) -> isize {
    let mut byte = 0u8;
    // SAFETY: one byte into a live local.
    unsafe { libc::read(end, (&raw mut byte).cast(), 1) }
}

fn write(end: i32) {
    // SAFETY: one byte of a live constant.
    unsafe { libc::write(end, c"x".as_ptr().cast(), 1) };
}

fn epoll(end: i32) -> i32 {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    // SAFETY: live structures; the descriptors are open.
    unsafe {
        let epoll = libc::epoll_create1(0);
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, end, &raw mut event);
        libc::epoll_wait(epoll, &raw mut event, 1, -1)
    }
}

fn poll(end: i32) -> i32 {
    let mut one = libc::pollfd {
        fd: end,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live structure.
    unsafe { libc::poll(&raw mut one, 1, 60_000) }
}

fn futex(word: &std::sync::atomic::AtomicU32, operation: i32) -> i64 {
    let limit = libc::timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    if word.load(std::sync::atomic::Ordering::SeqCst) != 0 && operation == libc::FUTEX_WAIT {
        return 0;
    }
    // SAFETY: the word outlives the wait; for a wake the count stands where the value does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation,
            u32::from(operation == libc::FUTEX_WAKE) * 9,
            &raw const limit,
        )
    };
    // Woken before it waited is as good.
    let late = std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    if result < 0 && late { 0 } else { result }
}

fn sleep(time: Duration) -> bool {
    let began = Instant::now();
    let time_left = libc::timespec {
        tv_sec: 0,
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: a live structure; no remainder is wanted.
    let slept = unsafe { libc::nanosleep(&raw const time_left, std::ptr::null_mut()) };
    slept == 0 && began.elapsed() >= time
}

/// Waits for a signal that is blocked everywhere else.
fn suspended() -> bool {
    // SAFETY: live sets; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        let mut own: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut own, libc::SIGUSR1);
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const own, &raw mut before);
        SUSPENDED.store(libc::gettid(), std::sync::atomic::Ordering::SeqCst);
        let result = libc::sigsuspend(&raw const before);
        let interrupted = std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR);
        let mut after: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut after);
        let blocked = libc::sigismember(&raw const after, libc::SIGUSR1) == 1;
        result == -1 && interrupted && blocked
    }
}

static SUSPENDED: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

extern "C" fn nothing(_: i32) {}

fn signal_all() {
    let tid = SUSPENDED.load(std::sync::atomic::Ordering::SeqCst);
    // SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) };
}
