//! Something is taken for good from programs that do not cooperate, while they run.
//!
//! The victim beside this says what each of its tasks may, and whether it was harmed otherwise.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use attestation::{SimulatedTee, Verifier};
use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::lever::tighten::Tightening;
use casemate::record::Record;
use casemate::{Handle, Outcome, Session, SessionError};
use policy::Bundle;
use tempfile::TempDir;
use vault::audit::{Log, LogKey};

/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_secs(30);

/// A victim in a session of its own.
struct Run {
    handle: Handle,
    stdin: Option<File>,
    stdout: BufReader<File>,
    records: Receiver<Record>,
    seen: Vec<Record>,
    session: JoinHandle<Result<Outcome, SessionError>>,
    _folder: TempDir,
}

impl Run {
    /// Starts a victim and waits until it is where it should be caught.
    fn ready(way: &[&str]) -> Self {
        let victim = Path::new(env!("CARGO_BIN_EXE_victim"));
        let mut command = vec!["/app/victim"];
        command.extend(way);
        let mut run = Self::start(victim, &command, "", "");
        assert_eq!(run.line(), "ready");
        run
    }

    /// Starts a command under a policy with these further tables and rules; `program` is in `/app`.
    fn start(program: &Path, command: &[&str], tables: &str, rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = folder.path().join("app");
        fs::create_dir(&app).unwrap();
        fs::copy(program, app.join(program.file_name().unwrap())).unwrap();
        let source = format!(
            "version = 1\nname = \"tighten\"\n[attestation]\naccept = [\"simulated\"]\n\
             [workload]\ncommand = {command:?}\n[isolation]\npids = 64\ntime = \"60s\"\n\
             [files]\nread = [{{ from = \"app\", at = \"/app\" }}]\n{tables}\n[rules]\n\
             cedar = '''\npermit (principal, action, resource);\n{rules}\n'''\n"
        );
        let bundle = Bundle::parse(&source, "tighten.toml").unwrap_or_else(|e| panic!("{e}"));
        let tee = SimulatedTee::new(SystemTime::now().into()).unwrap();
        let verifier = Verifier::builder()
            .reference_values(tee.reference_values())
            .dangerous()
            .accept_simulated()
            .build()
            .unwrap();
        let (input, ours) = std::io::pipe().unwrap();
        let (output, theirs) = std::io::pipe().unwrap();
        let (told, records) = mpsc::channel();
        let key = LogKey::generate().unwrap();
        let session = Session::builder(bundle)
            .base(folder.path())
            .attested_by(Box::new(tee), verifier)
            .stdio(
                input.into(),
                theirs.into(),
                std::os::fd::AsFd::as_fd(&std::io::stderr())
                    .try_clone_to_owned()
                    .unwrap(),
            )
            .watched_by(move |record, _| drop(told.send(record.clone())))
            .logged_to(Log::create(&folder.path().join("log"), "tighten", key).unwrap())
            .unwrap();
        Self {
            handle: session.handle(),
            stdin: Some(std::os::fd::OwnedFd::from(ours).into()),
            stdout: BufReader::new(std::os::fd::OwnedFd::from(output).into()),
            records,
            seen: Vec::new(),
            session: std::thread::spawn(move || session.run()),
            _folder: folder,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for a record.
    fn wait_for(&mut self, wanted: impl Fn(&Record) -> bool) {
        loop {
            let record = self.records.recv_timeout(DEADLINE);
            let record = record.unwrap_or_else(|e| panic!("{e}; {:#?}", self.seen));
            let found = wanted(&record);
            self.seen.push(record);
            if found {
                return;
            }
        }
    }

    /// Takes the right to start programs, and waits until that is in force.
    fn tighten(&mut self) {
        self.handle.tighten(Tightening::Exec, "a test");
        let taken = Change::Tighten(Tightening::Exec);
        self.wait_for(|r| matches!(r, Record::Adjusted { change, .. } if *change == taken));
    }

    /// Lets the victim go on, and hears what it says.
    fn finish(mut self) -> (Vec<i32>, Ending) {
        writeln!(self.stdin.take().unwrap(), "go on").unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let outcome = self.session.join().unwrap().unwrap();
        let numbers = rest.lines().map(|line| line.parse().unwrap());
        (numbers.collect(), outcome.ending)
    }

    /// Orders a tightening that cannot be done, and returns what the record says of it.
    fn refused(mut self) -> String {
        self.handle.tighten(Tightening::Exec, "a test");
        self.wait_for(|r| matches!(r, Record::NotAdjusted { .. }));
        let Some(Record::NotAdjusted { error, .. }) = self.seen.pop() else {
            unreachable!()
        };
        assert!(self.session.join().unwrap().is_err(), "it was not stopped");
        error
    }
}

/// What is taken is taken from every task of this victim, and it notices nothing else.
fn is_taken_from(way: &[&str], tasks: usize) {
    let mut run = Run::ready(way);
    run.tighten();
    let (errors, ending) = run.finish();
    assert_eq!(ending, Ending::Code(0), "{errors:?}");
    assert_eq!(errors, vec![libc::EPERM; tasks]);
}

#[test]
fn a_victim_may_start_programs_before() {
    let run = Run::ready(&["threads"]);
    assert_eq!(run.finish(), (vec![libc::ENOENT; 9], Ending::Code(0)));
}

#[test]
fn it_is_taken_from_every_thread_of_a_computation() {
    is_taken_from(&["threads"], 9);
}

#[test]
fn it_is_taken_from_threads_that_wait_for_something() {
    is_taken_from(&["waits"], 8);
}

#[test]
fn it_is_taken_from_processes_that_are_born_meanwhile() {
    is_taken_from(&["forks"], 1);
}

#[test]
fn it_is_taken_from_a_process_that_is_stopped_and_stays_so() {
    is_taken_from(&["stopped"], 2);
}

#[test]
fn it_is_taken_from_a_parent_in_vfork() {
    is_taken_from(&["vfork"], 2);
}

#[test]
fn it_is_taken_from_threads_whose_filters_differ() {
    is_taken_from(&["diverged"], 3);
}

#[test]
fn it_is_taken_from_a_process_that_nobody_may_dump() {
    is_taken_from(&["undumpable"], 1);
}
