//! `new-exec`: the workload executes a program that it has not executed before. Its own program, those
//! that the policy calls known, and what interprets them are expected. Fades by its half-life.
//!
//! The kernel tells (fanotify(7), `FAN_OPEN_EXEC`) of each execution from the mounts of the sandbox,
//! without making it wait, so nothing is missed however short it is. That takes root; elsewhere the
//! sensor is a gap. Who executes a program's interpreter by itself, and has it read a program as data, is
//! not noticed.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;
use crate::sys::fanotify;

/// Most different programs that are told apart; each execution of a further one is new.
const MAX_PROGRAMS: usize = 4096;
/// How many interpreters of interpreters are followed, as the kernel does.
const MAX_INTERPRETERS: usize = 5;
/// Bytes of a program in which its interpreter's name is looked for.
const HEAD: usize = 4096;

/// Passes on which programs are new.
#[derive(Debug)]
pub struct NewExec;

impl Sensor for NewExec {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::Exec { path, .. }) = look.happened else {
            return None;
        };
        Some(Signal {
            sensor: "new-exec",
            kind: Kind::Happened,
            detail: path.clone(),
        })
    }
}

/// A file, whatever its name.
type Identity = (u64, u64);

/// A thread that is told of executions in one sandbox. Dropping it ends the thread.
#[derive(Debug)]
pub struct Watcher {
    waker: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to watch the sandbox of this init, before its workload is started.
    ///
    /// # Errors
    ///
    /// `EPERM` unless this is root; else what the kernel answers.
    pub fn start(init: i32, known: &[PathBuf], events: SyncSender<Event>) -> io::Result<Self> {
        let group = fanotify::group()?;
        let root = PathBuf::from(format!("/proc/{init}/root"));
        let mounts = std::fs::read_to_string(format!("/proc/{init}/mountinfo"))?;
        for at in executable_mounts(&mounts) {
            let path = format!("{}{at}", root.display());
            match fanotify::watch_mount(group.as_fd(), &path) {
                // Mounted over: nothing is executed from it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&root, flags, Mode::empty())?;
        let mut seen = Seen {
            root,
            programs: HashSet::new(),
            first: true,
        };
        for path in known {
            // What is not there is not executed either.
            if let Ok(file) = seen.open(path) {
                seen.learn(&file, 0);
            }
        }
        let (stop, waker) = io::pipe()?;
        let thread = std::thread::Builder::new()
            .name("new-exec".into())
            .spawn(move || follow(&group, &stop, &mut seen, &events))?;
        Ok(Self {
            waker: Some(waker),
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Closing the pipe is the word to end.
        self.waker = None;
        // Not waited for: it may be about to report to the session, which is where we are.
        drop(self.thread.take());
    }
}

fn follow(group: &OwnedFd, stop: &io::PipeReader, seen: &mut Seen, events: &SyncSender<Event>) {
    loop {
        let mut watched = [
            PollFd::new(group, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) if watched[1].revents().is_empty() => {}
            _ => return,
        }
        let opened = match fanotify::read(group.as_fd()) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        for opened in opened {
            let path = match opened.file {
                Some(file) => match seen.is_new(File::from(file)) {
                    Some(path) => path,
                    None => continue,
                },
                None => "more programs than could be followed".to_owned(),
            };
            let event = Event::Exec {
                path,
                pid: opened.pid,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }
}

/// Programs that were executed.
struct Seen {
    root: OwnedFd,
    programs: HashSet<Identity>,
    /// The first program is the workload's own.
    first: bool,
}

impl Seen {
    /// The path of a program that was not seen before.
    fn is_new(&mut self, file: File) -> Option<String> {
        let identity = identity(&file)?;
        if self.programs.contains(&identity) {
            return None;
        }
        self.learn(&file, 0);
        if std::mem::take(&mut self.first) {
            return None;
        }
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let path = std::fs::read_link(link).unwrap_or_default();
        Some(path.to_string_lossy().into_owned())
    }

    /// Takes a program, and what interprets it, as seen.
    fn learn(&mut self, file: &File, depth: usize) {
        if self.programs.len() < MAX_PROGRAMS
            && let Some(identity) = identity(file)
        {
            self.programs.insert(identity);
        }
        if depth < MAX_INTERPRETERS
            && let Some(interpreter) = interpreter(file)
            && let Ok(file) = self.open(Path::new(&interpreter))
        {
            self.learn(&file, depth + 1);
        }
    }

    /// Opens a file as the sandbox sees it.
    fn open(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)?;
        Ok(File::from(file))
    }
}

fn identity(file: &File) -> Option<Identity> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Name of the program that interprets this one: of its first line, or of its `PT_INTERP` (ELF-64).
fn interpreter(file: &File) -> Option<String> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let mut reader = file.try_clone().ok()?;
    std::io::Seek::rewind(&mut reader).ok()?;
    reader.take(HEAD as u64).read_to_end(&mut head).ok()?;
    interpreter_of(&head)
}

fn interpreter_of(head: &[u8]) -> Option<String> {
    let name = if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
        words.find(|word| !word.is_empty())?
    } else if head.starts_with(b"\x7fELF\x02\x01") {
        let at = |offset: usize, length: usize| head.get(offset..offset.checked_add(length)?);
        let number = |offset: usize, length: usize| {
            let mut bytes = [0; 8];
            bytes[..length].copy_from_slice(at(offset, length)?);
            usize::try_from(u64::from_le_bytes(bytes)).ok()
        };
        const PT_INTERP: usize = 3;
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let header = (0..count)
            .map_while(|n| table.checked_add(n.checked_mul(size)?))
            .find(|header| number(*header, 4) == Some(PT_INTERP))?;
        let name = at(
            number(header.checked_add(8)?, 8)?,
            number(header.checked_add(32)?, 8)?,
        )?;
        name.strip_suffix(b"\0").unwrap_or(name)
    } else {
        return None;
    };
    String::from_utf8(name.to_vec()).ok()
}

/// Mount points inside from which something can be executed. Vaults are not among them: their file
/// system is served by this very process.
fn executable_mounts(mountinfo: &str) -> impl Iterator<Item = String> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (at, options) = (fields.get(4)?, fields.get(5)?);
        let ours = kind.starts_with("fuse") || kind.starts_with("proc ");
        let executable = !options.split(',').any(|option| option == "noexec");
        (executable && !ours).then(|| unescaped(at))
    })
}

/// A mount point with its octal escapes undone.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, character)| {
            text.replace(code, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_found_in_scripts_and_in_elf() {
        assert_eq!(
            interpreter_of(b"#! /usr/bin/env  python3\nx"),
            Some("/usr/bin/env".into())
        );
        assert_eq!(interpreter_of(b"#!/bin/sh"), Some("/bin/sh".into()));
        for none in [&b""[..], b"#!", b"#!\n", b"echo", b"\x7fELF\x02\x01"] {
            assert_eq!(interpreter_of(none), None);
        }
        let ourselves = File::open("/proc/self/exe").ok();
        let loader = ourselves.and_then(|file| interpreter(&file));
        assert!(loader.is_some_and(|loader| loader.contains("ld-")));
    }

    proptest::proptest! {
        #[test]
        fn no_head_of_a_file_makes_the_reader_panic(mut head in proptest::collection::vec(proptest::num::u8::ANY, 0..200), elf in proptest::bool::ANY) {
            if elf {
                head.splice(0..0, *b"\x7fELF\x02\x01");
            }
            let _ = interpreter_of(&head);
        }
    }

    #[test]
    fn mounts_that_nothing_is_executed_from_are_left_out() {
        let text = "1 0 0:1 / / ro,nosuid - tmpfs tmpfs rw\n2 1 0:2 / /tmp rw,noexec - tmpfs tmpfs rw\n\
                    3 1 0:3 / /data ro - fuse.casemate casemate rw\n4 1 0:4 / /a\\040b ro master:1 - ext4 /dev/x rw\nx\n";
        assert_eq!(executable_mounts(text).collect::<Vec<_>>(), ["/", "/a b"]);
    }
}
