//! A program that does not cooperate: something is taken from it while it runs.
//!
//! ```text
//! victim thread | threads | waits | forks | chains | stopped | vfork | vfork-forever | diverged | undumpable
//!        signals | trap ignored|blocked|handled | sequence | traced | filtered | killing | layers NUMBER
//! ```
//!
//! Each way prints `ready` once it is where it should be caught, and goes on when a line comes on stdin.
//! Then each of its tasks tries to start a program that is not there and prints the error number: 2
//! (`ENOENT`) while it may, 1 (`EPERM`) when that was taken. What it was doing meanwhile it checks
//! itself, and exits with 0 if that is as it should be.

mod confine;
mod disturbed;
mod waits;

use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let well = match words[..] {
        ["threads"] => threads(8),
        ["thread"] => threads(1),
        ["waits"] => waits::every_kind(),
        ["forks"] => forks(),
        ["chains"] => chains(),
        ["stopped"] => stopped(),
        ["vfork"] => vfork(false),
        ["vfork-forever"] => vfork(true),
        ["diverged"] => diverged(),
        ["undumpable"] => undumpable(),
        ["filtered"] => alone_after(|| confine::refuse_confinement(false)),
        ["killing"] => alone_after(|| confine::refuse_confinement(true)),
        ["signals"] => disturbed::by_signals(),
        ["trap", how] => disturbed::by_traps(how),
        ["sequence"] => disturbed::in_sequence(),
        ["traced"] => disturbed::traced(),
        ["layers", number] => alone_after(|| confine::nest(number.parse().unwrap_or(0))),
        _ => {
            eprintln!("victim: no such way");
            false
        }
    };
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Tries to start a program that is not there, and tells the error number.
fn tried() -> i32 {
    let nothing = [std::ptr::null::<libc::c_char>()];
    // SAFETY: a live C string and two lists that end at once.
    unsafe { libc::execve(c"/nothing".as_ptr(), nothing.as_ptr(), nothing.as_ptr()) };
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn say(word: &str) {
    println!("{word}");
}

/// Waits for a line on stdin, in `read`.
fn go_on() {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

/// Threads that compute, without a system call, and know what they should arrive at.
fn threads(count: usize) -> bool {
    let stop = AtomicBool::new(false);
    let begun = Barrier::new(count + 1);
    let compute = || {
        begun.wait();
        let (mut sum, mut rounds) = (0u64, 0u64);
        while !stop.load(Ordering::Relaxed) {
            sum = step(sum, rounds);
            rounds += 1;
        }
        (sum == (0..rounds).fold(0, step), tried())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..count).map(|_| scope.spawn(compute)).collect();
        begun.wait();
        say("ready");
        go_on();
        stop.store(true, Ordering::Relaxed);
        let results: Vec<_> = all.into_iter().filter_map(|t| t.join().ok()).collect();
        results
            .iter()
            .for_each(|(_, errno)| say(&errno.to_string()));
        say(&tried().to_string());
        results.len() == count && results.iter().all(|(right, _)| *right)
    })
}

fn step(sum: u64, round: u64) -> u64 {
    (sum ^ round)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(31)
}

/// Makes processes all the time, each of which makes another, and hears from each what it may. Once
/// one was refused, all are.
fn forks() -> bool {
    let mut refused = false;
    let mut well = true;
    say("ready");
    let mut left = 200;
    while left > 0 {
        let errno = child(|| child(tried));
        well &= !refused || errno == libc::EPERM;
        refused |= errno == libc::EPERM;
        left -= u32::from(refused);
    }
    go_on();
    say(&tried().to_string());
    well
}

/// Chains of processes, each of which makes the next and ends. Whoever looks at one finds it gone.
fn chains() -> bool {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two ints into a live array.
    unsafe { libc::pipe(ends.as_mut_ptr()) };
    for _ in 0..4 {
        // SAFETY: this way has one thread, so each copy is whole; it ends within the loop.
        if unsafe { libc::fork() } == 0 {
            loop {
                let errno = tried() as u8;
                // SAFETY: one byte of a live local; then as above. Nobody reads any more: SIGPIPE.
                unsafe {
                    libc::write(ends[1], (&raw const errno).cast(), 1);
                    if libc::fork() > 0 {
                        libc::_exit(0);
                    }
                }
            }
        }
    }
    // SAFETY: the parent's own end.
    unsafe { libc::close(ends[1]) };
    let heard = || {
        let mut bytes = [0u8; 1 << 16];
        // SAFETY: into a live array.
        let read = unsafe { libc::read(ends[0], bytes.as_mut_ptr().cast(), bytes.len()) };
        bytes[..read.max(0) as usize].to_vec()
    };
    heard();
    say("ready");
    go_on();
    // All that the pipe held, and what was about to be said when it was taken.
    heard();
    let mut late = 0;
    while late < 16 {
        late += heard().len();
    }
    let well = (0..50).all(|_| heard().iter().all(|errno| i32::from(*errno) == libc::EPERM));
    say(&tried().to_string());
    well
}

/// Runs `work` in a child and returns its result, a number below 256.
fn child(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this way has one thread, so the copy is whole.
    match unsafe { libc::fork() } {
        // SAFETY: ends the copy at once.
        0 => unsafe { libc::_exit(work()) },
        pid => wait(pid, 0),
    }
}

fn wait(pid: i32, options: i32) -> i32 {
    let mut status = -1;
    // SAFETY: the kernel writes one int into a live local.
    match unsafe { libc::waitpid(pid, &raw mut status, options) } {
        0 => -1,
        _ if libc::WIFEXITED(status) => libc::WEXITSTATUS(status),
        _ => status,
    }
}

/// A child that stopped itself stays stopped until it is told to go on.
fn stopped() -> bool {
    // SAFETY: as above.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: stops this process; then ends it.
        unsafe {
            libc::raise(libc::SIGSTOP);
            libc::_exit(tried());
        }
    }
    let stopped = libc::WIFSTOPPED(wait(pid, libc::WUNTRACED));
    say("ready");
    go_on();
    let quiet = wait(pid, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) == -1;
    // SAFETY: integers only.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    say(&wait(pid, 0).to_string());
    say(&tried().to_string());
    stopped && quiet
}

/// Is in vfork(2) nearly all the time, or for good.
fn vfork(for_good: bool) -> bool {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let parent = scope.spawn(|| {
            let mut last = 0;
            let mut ready = false;
            while !stop.load(Ordering::Relaxed) {
                if !ready {
                    say("ready");
                    ready = true;
                }
                suspend_in_vfork(if for_good { u64::MAX } else { 30_000_000 });
                last = tried();
            }
            last
        });
        go_on();
        stop.store(true, Ordering::Relaxed);
        let errno = parent.join().unwrap_or(0);
        say(&errno.to_string());
        say(&tried().to_string());
        true
    })
}

/// Waits as a parent in vfork(2) does, while the child sleeps for so many nanoseconds.
fn suspend_in_vfork(nanoseconds: u64) {
    let time = libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000).min(1 << 30) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    };
    let pid: i64;
    // The child shares this memory and stack, so it may not return: it sleeps and ends in the same
    // piece of code.
    // SAFETY: vfork, nanosleep on a live local, and exit; the registers that calls change are named.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov eax, 35",
            "mov rdi, {time}",
            "xor esi, esi",
            "syscall",
            "mov eax, 60",
            "xor edi, edi",
            "syscall",
            "2:",
            time = in(reg) &raw const time,
            inlateout("rax") libc::SYS_vfork => pid,
            out("rcx") _, out("r11") _, out("rdi") _, out("rsi") _,
        );
    }
    wait(pid as i32, 0);
}

/// Threads that have filters of different origin.
fn diverged() -> bool {
    let begun = Barrier::new(3);
    let stop = Barrier::new(3);
    let each = |own: bool| {
        let confined = !own || confine::harmless_filter();
        begun.wait();
        stop.wait();
        (confined, tried())
    };
    std::thread::scope(|scope| {
        let all = [true, true].map(|own| scope.spawn(move || each(own)));
        begun.wait();
        say("ready");
        go_on();
        stop.wait();
        let results = all.map(|thread| thread.join().unwrap_or((false, 0)));
        results
            .iter()
            .for_each(|(_, errno)| say(&errno.to_string()));
        say(&tried().to_string());
        results.iter().all(|(confined, _)| *confined)
    })
}

fn undumpable() -> bool {
    // SAFETY: integers only.
    alone_after(|| unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } == 0)
}

fn alone_after(prepared: impl FnOnce() -> bool) -> bool {
    let well = prepared();
    say("ready");
    go_on();
    say(&tried().to_string());
    well
}
