//! The real session over a sandbox that is only a table, so that every lever can be made to fail.
//!
//! ```text
//! script ─▶ Session ─▶ Backend, Instance: a table of what is granted, and faults to inject
//!              └─▶ log: read again from disk at every effect
//! ```
//!
//! Whatever happens, in whatever order, and whichever lever fails: no effect without a durable record
//! before it, nothing kept that the last decision or an order denies, nothing back that was taken for
//! good, no data read after its withdrawal, nothing left at the end, and every decision in the log is
//! arrived at again.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, LazyLock, Mutex};

use casemate::adjust::Change;
use casemate::enforcement::Enforcement;
use casemate::event::{Denied, Event};
use casemate::isolation::cgroup::Limits;
use casemate::isolation::child::Ending;
use casemate::isolation::inject::Layer;
use casemate::isolation::spawner::Failure;
use casemate::isolation::{Backend, Instance, Launch, Place};
use casemate::lever::tighten::Tightening;
use casemate::order::EXEC;
use casemate::plan::{FileAccess, Plan, Run, Tier, limits};
use casemate::record::{Record, hex};
use casemate::session::Killer;
use casemate::{By, Command, Order, Session, SessionError};
use common::{Local, ORIGIN, Policy, Room, tee, verifier};
use policy::{Bundle, Endpoint, Facts};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use vault::audit::{Log, LogKey};

const RULES: &str = r#"
forbid (principal, action == Action::"use", resource) when { context.risk >= 10 };
forbid (principal, action == Action::"write", resource is Path) when { context.risk >= 20 };
forbid (principal, action == Action::"connect", resource) when { context.risk >= 25 };
forbid (principal, action == Action::"exec", resource) when { context.risk >= 30 };
forbid (principal, action == Action::"read", resource is Path) when { context.risk >= 35 };
forbid (principal, action == Action::"read", resource is Vault) when { context.risk >= 35 };
forbid (principal, action == Action::"proceed", resource) when { context.risk >= 60 };
forbid (principal, action == Action::"live", resource) when { context.risk >= 95 };
"#;

/// Whom the workload may connect to.
const PEER: &str = "192.0.2.1:443";

/// What a fault can befall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lever {
    Tree,
    Net,
    Exec,
    Tighten,
    Limit,
    Freeze,
    Stop,
}

/// The sandbox: what is granted in it, and what was seen to be wrong.
#[derive(Debug, Default)]
struct World {
    log: PathBuf,
    trees: BTreeMap<String, FileAccess>,
    connect: BTreeSet<Endpoint>,
    exec: bool,
    limits: Option<Limits>,
    data: Option<PathBuf>,
    /// What orders that are in force took away.
    ordered: BTreeSet<String>,
    /// The right to start programs was taken for good, by an order that is in force.
    tightened: bool,
    /// An order to freeze is in force.
    held: bool,
    frozen: bool,
    alive: bool,
    faults: BTreeMap<Lever, u32>,
    wrong: Vec<String>,
}

impl World {
    /// An effect is about to happen: its record has to be durable. Then the lever fails, if it is to.
    fn effect(&mut self, lever: Lever, recorded: impl Fn(&Change) -> bool) -> Result<(), Failure> {
        let last = last_record(&self.log);
        let change = last.and_then(|(kind, payload)| {
            let change = serde_json::from_value(payload["change"].clone()).ok()?;
            (kind == "adjusting").then_some(change)
        });
        if !change.as_ref().is_some_and(recorded) {
            self.wrong
                .push(format!("{lever:?} moved, but last on disk is {change:?}"));
        }
        match self.faults.get_mut(&lever) {
            Some(left @ 1..) => {
                *left -= 1;
                Err(Failure {
                    step: format!("{lever:?}"),
                    error: "a fault was injected".into(),
                    errno: None,
                })
            }
            _ => Ok(()),
        }
    }

    /// Nothing goes beyond what was decided.
    fn check(&mut self, bundle: &Bundle, plan: &Plan, when: &str) {
        if !self.alive || self.frozen {
            return;
        }
        let mut wrong = Vec::new();
        if plan.run != Run::Running || self.held {
            wrong.push(format!(
                "it runs, but is to be {:?}, {}",
                plan.run, self.held
            ));
        }
        let ordered = |name: &str| self.ordered.contains(name);
        for (at, access) in &self.trees {
            if Some(access) > plan.files.get(at) || ordered(at) {
                wrong.push(format!("{at} can be used to {access}"));
            }
        }
        for endpoint in &self.connect {
            if !plan.connect.contains(endpoint) || ordered(&endpoint.to_string()) {
                wrong.push(format!("{endpoint} can be connected"));
            }
        }
        if self.exec && (!plan.exec || ordered(EXEC) || self.tightened) {
            wrong.push("programs can be started".into());
        }
        if plan.tier == Tier::Reduced && self.limits != Some(limits(bundle.tables(), Tier::Reduced))
        {
            wrong.push("full limits".into());
        }
        let readable = self.data.as_deref().is_some_and(|folder| {
            let mut files = common::files(folder).into_iter();
            files.any(|file| fs::metadata(file).unwrap().len() > 0)
        });
        if readable && (plan.data.is_empty() || ordered("customers")) {
            wrong.push("data can be read".into());
        }
        self.wrong
            .extend(wrong.into_iter().map(|what| format!("{when}: {what}")));
    }
}

/// Seed of the key that the logs here are signed with: a copy of one can be opened, as after a crash.
const SEED: [u8; 32] = [7; 32];

/// A folder in memory, where there is one: these logs are written and read a thousand times.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::Builder::new();
    let folder = if memory.is_dir() {
        folder.tempdir_in(memory)
    } else {
        folder.tempdir()
    };
    folder.unwrap()
}

/// Kind and payload of the last record on the disk: what a log gives that was cut off right now.
fn last_record(log: &Path) -> Option<(String, serde_json::Value)> {
    let copy = in_memory();
    common::copy(log, copy.path());
    let opened = Log::open(copy.path(), LogKey::from_seed(&SEED).ok()?).ok()?;
    opened.close().ok()?;
    let verified = vault::audit::verify(copy.path(), None, None).ok()?;
    let entry = verified.records().last()?.ok()?;
    Some((entry.record.kind.to_string(), entry.record.payload))
}

type Shared = Arc<Mutex<World>>;

struct Table(Shared, Arc<Mutex<Option<SyncSender<Event>>>>);

impl Backend for Table {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        let mut world = self.0.lock().unwrap();
        for bind in launch.floor.rootfs.binds.iter().filter(|bind| bind.owned) {
            let access = if bind.writable {
                FileAccess::Write
            } else {
                FileAccess::Read
            };
            world.trees.insert(bind.at.clone(), access);
        }
        let granted = launch.connect.iter().filter(|(_, granted)| *granted);
        world.connect = granted.map(|(endpoint, _)| endpoint.clone()).collect();
        world.exec = true;
        world.limits = Some(launch.limits);
        if let (Some(data), Some(folder)) = (launch.floor.rootfs.data.first(), world.data.clone()) {
            fs::create_dir_all(&folder).unwrap();
            let folder = OwnedFd::from(File::open(folder).unwrap());
            (launch.serve)(&data.name, Place::Memory(folder))?;
        }
        world.alive = true;
        *self.1.lock().unwrap() = Some(launch.events.clone());
        drop(world);
        Ok(Box::new(Row {
            world: self.0,
            events: launch.events,
            enforcement: Enforcement::default(),
        }))
    }
}

struct Row {
    world: Shared,
    events: SyncSender<Event>,
    enforcement: Enforcement,
}

impl Row {
    fn end(&self, signal: i32) {
        let mut world = self.world.lock().unwrap();
        if std::mem::replace(&mut world.alive, false) {
            let _ = self.events.try_send(Event::Ended(Ending::Killed(signal)));
        }
    }
}

impl Instance for Row {
    fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::getpid()
    }

    fn start(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn kill(&mut self, signal: i32) -> Result<(), Failure> {
        self.end(signal);
        Ok(())
    }

    fn limit(&mut self, limits: &Limits) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Limit, |change| matches!(change, Change::Limit(_)))?;
        world.limits = Some(*limits);
        Ok(())
    }

    fn freeze(&mut self, frozen: bool) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Freeze, |change| *change == Change::Freeze(frozen))?;
        world.frozen = frozen;
        Ok(())
    }

    fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Tree, |change| match (change, access) {
            (Change::Detach(place), None) => place == at,
            (Change::ReadOnly(place), Some(FileAccess::Read)) => place == at,
            (Change::Restore { at: place, access }, Some(wanted)) => {
                place == at && *access == wanted
            }
            _ => false,
        })?;
        match access {
            Some(access) => world.trees.insert(at.to_owned(), access),
            None => world.trees.remove(at),
        };
        Ok(())
    }

    fn connect(&mut self, endpoint: &Endpoint, granted: bool) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Net, |change| match (change, granted) {
            (Change::Disconnect(to), false) | (Change::Reconnect(to), true) => {
                *to == endpoint.to_string()
            }
            _ => false,
        })?;
        match granted {
            true => world.connect.insert(endpoint.clone()),
            false => world.connect.remove(endpoint),
        };
        Ok(())
    }

    fn exec(&mut self, allowed: bool) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Exec, |change| *change == Change::Exec(allowed))?;
        world.exec = allowed;
        Ok(())
    }

    fn exec_returns(&self) -> bool {
        true
    }

    fn tighten(&mut self, layer: &Layer) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.effect(Lever::Tighten, |change| match change {
            Change::Tighten(what) => what.layer().unwrap().lost_rights == layer.lost_rights,
            _ => false,
        })?;
        // For good: what opens the other way later opens nothing.
        if layer.lost_rights != 0 {
            (world.tightened, world.exec) = (true, false);
        }
        Ok(())
    }

    fn killer(&self) -> Killer {
        let world = Arc::clone(&self.world);
        Box::new(move || world.lock().unwrap().alive = false)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.world
            .lock()
            .unwrap()
            .effect(Lever::Stop, |change| *change == Change::Stop)?;
        self.end(libc::SIGKILL);
        Ok(())
    }
}

impl Drop for Row {
    /// As the spawner does: whatever is left is killed.
    fn drop(&mut self) {
        self.world.lock().unwrap().alive = false;
    }
}

/// What happens to a session from outside.
#[derive(Clone, Debug)]
enum Step {
    /// An operator doubts.
    Doubt,
    /// The workload makes so many refused calls.
    Refused(u8),
    /// The next so many moves of a lever fail.
    Fault(Lever, u32),
    /// So many milliseconds pass, in which risk fades.
    Pass(u8),
    /// A signal that asks for nothing is passed on.
    Look,
    /// An operator orders something, and waits until it is in force.
    Order(Command),
}

fn step() -> impl Strategy<Value = Step> {
    let lever = prop_oneof![
        Just(Lever::Tree),
        Just(Lever::Net),
        Just(Lever::Exec),
        Just(Lever::Tighten),
        Just(Lever::Limit),
        Just(Lever::Freeze),
        Just(Lever::Stop)
    ];
    let names = ["customers", "/out", PEER, EXEC].map(str::to_owned);
    let names = prop::sample::subsequence(names.to_vec(), 1..=4);
    let names = names.prop_map(BTreeSet::from_iter).boxed();
    let calls = || Tightening::Calls(["socket".to_owned()].into());
    let order = prop_oneof![
        2 => (1i8..40).prop_map(Command::Risk),
        2 => (-40i8..-1).prop_map(Command::Risk),
        2 => Just(Command::Freeze),
        2 => Just(Command::Thaw),
        4 => names.clone().prop_map(Command::Withdraw),
        4 => names.prop_map(Command::Restore),
        1 => prop_oneof![Just(Tightening::Exec), Just(calls())].prop_map(Command::Tighten),
        1 => Just(Command::Stop),
    ];
    prop_oneof![
        4 => order.prop_map(Step::Order),
        4 => Just(Step::Doubt),
        4 => (1u8..20).prop_map(Step::Refused),
        1 => (lever, 1u32..3).prop_map(|(lever, times)| Step::Fault(lever, times)),
        4 => (1u8..30).prop_map(Step::Pass),
        1 => Just(Step::Look),
    ]
}

/// What came of a script.
struct Played {
    result: Result<(), SessionError>,
    records: Vec<Record>,
    wrong: Vec<String>,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

fn policy() -> Policy {
    let risk = "operator = { adds = 25, half-life = \"15ms\" }\n\
                denied-syscall = { adds = 2, half-life = \"15ms\" }";
    Policy::shell("true")
        .with_data()
        .connecting(&[PEER])
        .with_rules(risk, RULES)
}

/// Runs a script against a session, and checks at each decision what came of the one before.
fn play(room: &Room, script: &[Step]) -> Played {
    let bundle = policy().bundle();
    let folder = in_memory();
    let log = folder.path().join("log");
    let world = Shared::default();
    {
        let mut world = world.lock().unwrap();
        world.log.clone_from(&log);
        world.data = Some(log.with_extension("data"));
    }
    let sender = Arc::new(Mutex::new(None));
    let records = Arc::new(Mutex::new(Vec::<Record>::new()));
    let (seen, watched, rules) = (Arc::clone(&records), Arc::clone(&world), policy().bundle());
    let mut in_force: Option<Plan> = None;
    let watcher = move |record: &Record, _| {
        let mut world = watched.lock().unwrap();
        match record {
            Record::Decided { facts, digest, .. } => {
                if let Some(plan) = &in_force {
                    world.check(&rules, plan, "at the next decision");
                }
                let decision = rules.decide(facts);
                let again = hex(&Sha256::digest(serde_json::to_vec(&decision).unwrap()));
                if again != *digest {
                    world
                        .wrong
                        .push("a decision is not arrived at again".into());
                }
                in_force = Some(Plan::under(&decision));
            }
            // The loop has come round: what was decided is in force.
            Record::Kill { .. } | Record::Ended { .. } => {
                if let Some(plan) = &in_force {
                    world.check(&rules, plan, record.kind());
                }
            }
            Record::Closed { .. } if world.alive => world.wrong.push("closed, but alive".into()),
            _ => {}
        }
        drop(world);
        seen.lock().unwrap().push(record.clone());
    };
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let session = Session::builder(bundle)
        .base(room.path())
        .attested_by(Box::new(tee().build().unwrap()), verifier())
        .keys_from(Local::new(verifier(), "customers", &room.key))
        .on(Table(Arc::clone(&world), Arc::clone(&sender)))
        .stdio(null(), null(), null())
        .watched_by(watcher)
        .logged_to(Log::create(&log, ORIGIN, LogKey::from_seed(&SEED).unwrap()).unwrap())
        .unwrap();
    let handle = session.handle();
    let running = std::thread::spawn(move || session.run().map(drop));
    common::wait_until("the start", || {
        sender.lock().unwrap().is_some() || running.is_finished()
    });
    let events = sender.lock().unwrap().clone();
    for step in script {
        match step {
            Step::Doubt => handle.operator("doubt"),
            Step::Look => handle.kill(libc::SIGUSR1 + 1000),
            Step::Fault(lever, times) => {
                world.lock().unwrap().faults.insert(*lever, *times);
            }
            Step::Order(command) => ordered(&handle, &world, command),
            Step::Pass(millis) => {
                std::thread::sleep(std::time::Duration::from_millis((*millis).into()))
            }
            Step::Refused(times) => {
                for number in 0..*times {
                    let denied = Denied {
                        name: "ptrace".into(),
                        detail: (number % 3).to_string(),
                        pid: 1,
                    };
                    let _ = events.as_ref().map(|e| e.try_send(Event::Denied(denied)));
                }
            }
        }
    }
    handle.kill(libc::SIGTERM);
    let result = running.join().unwrap();
    drop(events);
    let mut world = world.lock().unwrap();
    if world.alive {
        world.wrong.push("alive after the run".into());
    }
    let records = std::mem::take(&mut *records.lock().unwrap());
    Played {
        result,
        records,
        wrong: std::mem::take(&mut world.wrong),
        log,
        _folder: folder,
    }
}

/// Orders something, and holds the sandbox to it from the answer on.
fn ordered(handle: &casemate::Handle, world: &Shared, command: &Command) {
    match command {
        // What is lifted may be back before the answer.
        Command::Thaw => world.lock().unwrap().held = false,
        Command::Restore(names) => world.lock().unwrap().ordered.retain(|n| !names.contains(n)),
        _ => {}
    }
    let by = By { uid: 0, pid: 1 };
    let (command, why) = (command.clone(), "doubt".into());
    let answer = handle.order(Order {
        command: command.clone(),
        by,
        why,
    });
    let mut world = world.lock().unwrap();
    let Ok(status) = answer else {
        // It is over; what was not in force never will be.
        return;
    };
    match command {
        Command::Freeze => world.held = true,
        Command::Withdraw(names) => {
            let kept = names.iter().any(|name| match &**name {
                EXEC => status.plan.exec,
                PEER => status.plan.connect.contains(PEER),
                "/out" => status.plan.files.contains_key("/out"),
                vault => status.plan.data.contains(vault),
            });
            if kept {
                world
                    .wrong
                    .push(format!("{names:?} not all withdrawn: {:?}", status.plan));
            }
            world.ordered.extend(names);
        }
        Command::Tighten(what) => {
            let taken = status.plan.tightened.contains(&what);
            if !taken || (what == Tightening::Exec && (!world.tightened || status.plan.exec)) {
                world
                    .wrong
                    .push(format!("{what} not taken: {:?}", status.plan));
            }
        }
        _ => {}
    }
}

impl Played {
    fn assert_right(&self) {
        assert!(
            self.wrong.is_empty(),
            "{:#?}\n{:#?}",
            self.wrong,
            self.records
        );
        // A change that took something away and failed closes the sandbox down, in this order.
        let failed = self.records.iter().position(|record| {
            matches!(record, Record::NotAdjusted { change, .. }
                if !matches!(change, Change::Restore { .. } | Change::Release(_)))
        });
        if let Some(failed) = failed
            && self.result.is_err()
        {
            let steps = self.records[failed..]
                .iter()
                .filter_map(|record| match record {
                    Record::Adjusting { change, .. } => Some(change),
                    _ => None,
                });
            let rank = |change: &Change| match change {
                Change::Withdraw(_) => 0,
                Change::Freeze(true) => 1,
                Change::Stop => 2,
                other => panic!("{other} after a lever failed"),
            };
            let ranks: Vec<_> = steps.map(rank).collect();
            assert!(ranks.is_sorted() && ranks.ends_with(&[1, 2]), "{ranks:?}");
        }
        // What was shown is what the log has, and it replays.
        let verified = vault::audit::verify(&self.log, None, None).unwrap();
        let entries: Vec<_> = verified.records().map(Result::unwrap).collect();
        assert_eq!(entries.len(), self.records.len());
        for entry in entries.iter().filter(|e| e.record.kind == "decided") {
            let facts: Facts =
                serde_json::from_value(entry.record.payload["facts"].clone()).unwrap();
            let decision = policy().bundle().decide(&facts);
            let again = hex(&Sha256::digest(serde_json::to_vec(&decision).unwrap()));
            assert_eq!(entry.record.payload["digest"], again);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("CASEMATE_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48),
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_order_of_signals_and_failures_leaves_a_grant_that_was_denied(
        script in prop::collection::vec(step(), 1..24)
    ) {
        static ROOM: LazyLock<Option<Room>> = LazyLock::new(Room::new);
        let Some(room) = &*ROOM else { return Ok(()) };
        play(room, &script).assert_right();
    }
}

/// Doubt until nothing but staying alive is granted.
const DOUBTS: [Step; 3] = [Step::Doubt, Step::Doubt, Step::Doubt];

#[test]
fn a_lever_that_fails_closes_the_sandbox_down_step_by_step() {
    let Some(room) = Room::new() else { return };
    for failing in [
        &[(Lever::Tree, 1)][..],
        &[(Lever::Net, 1)],
        &[(Lever::Exec, 1)],
        &[(Lever::Limit, 1)],
        &[(Lever::Freeze, 2)],
        &[(Lever::Limit, 1), (Lever::Freeze, 1)],
        &[(Lever::Limit, 1), (Lever::Freeze, 1), (Lever::Stop, 1)],
    ] {
        let faults = failing
            .iter()
            .map(|(lever, times)| Step::Fault(*lever, *times));
        let script: Vec<_> = faults.chain(DOUBTS).collect();
        let run = play(&room, &script);
        run.assert_right();
        assert!(run.result.is_err(), "{failing:?}: {:#?}", run.records);
        let changes = |ordered: bool| -> BTreeSet<String> {
            let change = |record: &Record| match record {
                Record::Adjusting { change, .. } if ordered => Some(change.to_string()),
                Record::NotAdjusted { change, .. } if !ordered => Some(change.to_string()),
                _ => None,
            };
            run.records.iter().filter_map(change).collect()
        };
        for step in [Change::Freeze(true), Change::Stop] {
            assert!(changes(true).contains(&step.to_string()), "{failing:?}");
        }
        assert!(!changes(false).is_empty());
    }
}
