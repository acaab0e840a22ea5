//! Process 1 of a guest: prepares the machine, runs the one session that it was launched for, and ends it.
//!
//! Whatever goes wrong, the machine ends: it is never left running without a session that watches over
//! its workload.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use casemate::Handle;
use casemate::error::describe;
use casemate::isolation::Backend;
use casemate::isolation::container::Container;
use casemate::isolation::microvm::channel::Inlet;
use casemate::isolation::microvm::image::{Archive, ArchiveError, unpack};
use casemate::isolation::microvm::{Incoming, Link, StreamId, guest};
use casemate::isolation::nursery::Nursery;
use casemate::isolation::pool::{Pool, Pooled};
use casemate::plan::{self, Plan};
use casemate::receipt::Receipt;
use casemate::record::hex;

use super::keys::{Asked, CarriedBroker, Waiting};
use super::log::Mirror;
use super::{
    Ended, MAX_FILES, POLICY_FILE, PROTOCOL, Reason, Start, ToGuest, ToHost, places, stream, ways,
};
use crate::api::Listed;
use crate::control::OneSession;
use crate::view::View;
use crate::{Assembled, Assembly, lockdown, transport};

/// What the guest calls the folder of its log, and where it has what is measured and what crosses.
const LOG: &str = "/run/log";
const MEASURED: &str = "/measured";
const DELIVERY: &str = "/delivery";
/// Streams in which nothing comes.
const OUTGOING: [StreamId; 5] = [
    stream::STDOUT,
    stream::STDERR,
    stream::VIEW,
    stream::RECEIPT,
    stream::RESULTS,
];
/// How long the host may take to say what is to be run, and to say goodbye.
const START_DEADLINE: Duration = Duration::from_secs(300);
const BYE_DEADLINE: Duration = Duration::from_secs(60);

/// Whether this process is the first one of a machine.
#[must_use]
pub fn is_init() -> bool {
    std::process::id() == 1
        && std::env::args_os()
            .next()
            .is_some_and(|name| name == "/init")
}

/// Runs the machine's session. Does not return: the machine ends.
pub fn run() -> ! {
    if let Err(why) = follow() {
        // To the console, which the host keeps for its error message.
        eprintln!("casemate: {why}");
    }
    guest::power_off()
}

/// What arrives, for the thread that follows the session.
#[derive(Default)]
struct Heard {
    handle: Option<Handle>,
    session: Option<OneSession>,
}

struct Guest {
    link: Arc<Link>,
    asked: Arc<Asked>,
    kept: Arc<Waiting<Result<(), String>>>,
    heard: Mutex<Heard>,
}

/// What the main thread waits for.
enum Word {
    Start(Start),
    Bye,
}

/// What is there before the host is heard: all of it comes from the measured image, and is the same in
/// every machine of that image. None of it is secret, and nothing was drawn for it.
struct Prepared {
    assembly: Assembly,
    backend: Box<dyn Backend>,
}

impl Prepared {
    fn make() -> Result<Self, String> {
        let assembly = Assembly::read(Path::new(POLICY_FILE)).map_err(|error| describe(&error))?;
        lay_out(&assembly)?;
        let backend: Box<dyn Backend> = match made(&assembly) {
            Some(sandbox) => Box::new(sandbox),
            None => Box::new(Container::prepare().map_err(|failure| failure.to_string())?),
        };
        Ok(Self { assembly, backend })
    }
}

/// The sandbox, as far as it can be made before its session: not with trees or vaults that are yet to come.
///
/// It is that of a decision without evidence. If the session decides otherwise it makes another one, and if
/// none can be made it says why.
fn made(assembly: &Assembly) -> Option<Pooled> {
    let bundle = assembly.bundle();
    let tables = bundle.tables();
    if !tables.data.is_empty() || !tables.files.write.is_empty() {
        return None;
    }
    let facts = casemate::facts::gather(None, None, 0, &BTreeSet::new());
    let plan = Plan::under(&bundle.decide(&facts));
    let floor = plan::floor(bundle, &plan, assembly.base(), &BTreeMap::new()).ok()?;
    let limits = plan::limits(tables, plan.tier);
    let pool = Pool::start(Nursery::start().ok()?, floor, limits, 1).ok()?;
    pool.wait_until_full().ok()?;
    Some(pool.last())
}

fn follow() -> Result<(), String> {
    lockdown::confine().map_err(|error| format!("confining: {error}"))?;
    guest::prepare().map_err(|failure| failure.to_string())?;
    let mut port = guest::port().map_err(|failure| failure.to_string())?;
    let writer = port.try_clone().map_err(|error| error.to_string())?;
    let guest = Arc::new(Guest {
        link: Link::new(writer),
        asked: Arc::new(Asked {
            challenges: Waiting::new(),
            releases: Waiting::new(),
        }),
        kept: Arc::new(Waiting::new()),
        heard: Mutex::default(),
    });
    let link = &guest.link;
    let inlets = [link.open(stream::STDIN), link.open(stream::FILES)];
    let [stdin, files] = inlets.map(|inlet| inlet.map_err(|error| error.to_string()));
    for id in OUTGOING {
        // Nothing comes in those; what goes out needs their credit.
        let outgoing = link.open(id).map_err(|error| error.to_string())?;
        std::mem::forget(outgoing);
    }
    let (words, heard) = mpsc::channel();
    let receiver = Arc::clone(&guest);
    let receive = move || {
        while let Ok(incoming) = receiver.link.receive(&mut port) {
            match incoming {
                Incoming::Message(json) => match serde_json::from_slice(&json) {
                    Ok(message) => receiver.take(message, &words),
                    Err(_) => break,
                },
                Incoming::Entry(_) => break,
                Incoming::Stream => {}
            }
        }
        // Without a host there is nobody to keep the log, so nothing may go on.
        eprintln!("casemate: the host is gone");
        guest::power_off()
    };
    thread::Builder::new()
        .name("channel".into())
        .spawn(receive)
        .map_err(|error| error.to_string())?;
    let prepared = Prepared::make();
    // A template is kept from here on, and each of its clones goes on here.
    let booted = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let hello = ToHost::Hello {
        protocol: PROTOCOL,
        booted: u64::try_from(booted.tv_sec).unwrap_or(0) * 1_000_000_000
            + u64::try_from(booted.tv_nsec).unwrap_or(0),
    };
    link.send(&hello).map_err(|error| describe(&error))?;
    let Ok(Word::Start(start)) = heard.recv_timeout(START_DEADLINE) else {
        return Err("the host does not say what to run".into());
    };
    guest::reseed(start.seed.bytes()).map_err(|failure| failure.to_string())?;
    let ended = prepared
        .and_then(|prepared| guest.session(prepared, &start, stdin?, files?))
        .unwrap_or_else(Ended::Failed);
    // Those of the workload too: it may not have come so far that something ended them.
    for id in OUTGOING {
        link.end(id).map_err(|error| describe(&error))?;
    }
    let ended = link.send(&ToHost::Ended(ended));
    ended.map_err(|error| describe(&error))?;
    let bye = heard.recv_timeout(BYE_DEADLINE);
    matches!(bye, Ok(Word::Bye))
        .then_some(())
        .ok_or_else(|| "the host does not say goodbye".into())
}

impl Guest {
    /// Deals with what the host says. Nothing here decides; orders are the session's to judge.
    fn take(&self, message: ToGuest, words: &mpsc::Sender<Word>) {
        match message {
            ToGuest::Start(start) => drop(words.send(Word::Start(start))),
            ToGuest::Bye => drop(words.send(Word::Bye)),
            ToGuest::Kill { signal, by } => {
                let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                match (&heard.handle, by) {
                    (Some(handle), Some(by)) => handle.kill_by(signal, by),
                    (Some(handle), None) => handle.kill(signal),
                    // It has not begun; the host knows, and ends the machine.
                    (None, _) => {}
                }
            }
            ToGuest::Ask { number, by, line } => {
                let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                let session = heard.session.clone();
                drop(heard);
                let link = Arc::clone(&self.link);
                // A session takes a while to answer, and the channel does not wait for it.
                thread::spawn(move || {
                    let answer = transport::answer(session.as_ref(), by, line.as_bytes());
                    let answer = String::from_utf8_lossy(&answer).into_owned();
                    link.send(&ToHost::Answer(number, answer))
                });
            }
            ToGuest::Challenged(number, nonce) => self.asked.challenges.answered(number, nonce),
            ToGuest::Released(number, sealed) => self.asked.releases.answered(number, sealed),
            ToGuest::Kept(number, kept) => self.kept.answered(number, kept),
            ToGuest::Ping(number) => drop(self.link.send(&ToHost::Pong(number))),
        }
    }

    /// Runs the session, from its files to its receipt.
    fn session(
        self: &Arc<Self>,
        prepared: Prepared,
        start: &Start,
        stdin: Inlet,
        mut files: Inlet,
    ) -> Result<Ended, String> {
        guest::set_clock(start.now).map_err(|failure| failure.to_string())?;
        let Prepared { assembly, backend } = prepared;
        deliver(&mut files, &assembly)?;
        let written = places::written(assembly.bundle()).map_err(|error| describe(&error))?;
        let listed = listed(&assembly, start);
        let assembly = match start.accept_simulated {
            true => assembly.dangerous().accept_simulated(),
            false => assembly,
        };
        let ways = ways::open(&self.link, assembly.bundle());
        let ways = ways.map_err(|error| format!("no way to a broker: {error}"))?;
        let broker = CarriedBroker {
            link: Arc::clone(&self.link),
            asked: Arc::clone(&self.asked),
        };
        let log = Path::new(LOG);
        let assembled = assembly.in_a_machine(backend, log, broker, ways);
        let Assembled {
            session,
            log: writing,
            leases,
        } = assembled.map_err(|error| describe(&error))?;
        self.say(&ToHost::Log(hex(&writing.public_key())))?;

        let mirror = Mirror::of(log, Arc::clone(&self.link), Arc::clone(&self.kept));
        let mirror = Arc::new(Mutex::new(mirror));
        let keeping = Arc::clone(&mirror);
        let shown = Outlet(Arc::clone(&self.link), stream::VIEW);
        let mut view = View::new(shown, start.look, log.to_owned(), writing.public_key());
        let pipes = pipes(&self.link, stdin).map_err(|error| format!("no pipes: {error}"))?;
        let (stdio, outputs) = pipes;
        let [input, output, error] = stdio;
        let session = session
            .stdio(input, output, error)
            .watched_by(move |record, at| {
                // What a record announces comes after this has returned.
                let mut mirror = keeping.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = mirror.settle() {
                    give_up(&format!("nothing runs without a log: {}", describe(&error)));
                }
                view.show(record, at);
            })
            .logged_to(writing)
            .map_err(|error| describe(&error))?;
        self.reachable(session.handle(), listed);
        let basis = session.basis();
        let keeping = leases.keep(&session).map_err(|error| error.to_string())?;
        let result = session.run();
        drop(keeping);
        self.unreachable();
        for output in outputs {
            let _ = output.recv();
        }
        let mut mirror = mirror.lock().unwrap_or_else(PoisonError::into_inner);
        mirror.settle().map_err(|error| describe(&error))?;
        self.results(&written)?;
        let receipt = match start.receipt {
            true => self.receipt(log, &basis).err(),
            false => None,
        };
        Ok(match result {
            Ok(outcome) => Ended::Outcome {
                ending: outcome.ending,
                why: Reason::from(&outcome.why),
                no_receipt: receipt,
            },
            Err(error) => Ended::Failed(describe(&error)),
        })
    }

    fn reachable(&self, handle: Handle, listed: Listed) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.session = Some(OneSession::new(listed, handle.clone()));
        heard.handle = Some(handle);
    }

    fn unreachable(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Heard::default();
    }

    /// Sends what became of the writable trees.
    fn results(&self, written: &[places::Place]) -> Result<(), String> {
        for place in written {
            let out = Outlet(Arc::clone(&self.link), stream::RESULTS);
            let mut archive = Archive::new(io::BufWriter::with_capacity(64 << 10, out));
            let sent = archive.contents(Path::new(&place.inside));
            sent.and_then(|()| archive.finish())
                .map_err(|error| format!("`{}`: {}", place.inside, describe(&error)))?;
        }
        Ok(())
    }

    fn receipt(&self, log: &Path, basis: &casemate::receipt::Basis) -> Result<(), String> {
        let receipt = Receipt::of(log, basis).map_err(|error| describe(&error))?;
        let json = serde_json::to_vec_pretty(&receipt).map_err(|error| error.to_string())?;
        let sent = self.link.write(stream::RECEIPT, &json);
        sent.map_err(|error| describe(&error))
    }

    fn say(&self, message: &ToHost) -> Result<(), String> {
        self.link.send(message).map_err(|error| describe(&error))
    }
}

/// Ends the machine at once, with a word on its console.
fn give_up(why: &str) -> ! {
    eprintln!("casemate: {why}");
    guest::power_off()
}

/// Puts granted trees of the image where their files can be given to the sandbox's user, and makes room for
/// what crosses.
fn lay_out(assembly: &Assembly) -> Result<(), String> {
    let at = Path::new(MEASURED);
    for place in [at, Path::new(DELIVERY)] {
        let wrong = |error| format!("`{}`: {error}", place.display());
        guest::memory_at(place).map_err(wrong)?;
    }
    for place in places::granted(assembly.bundle()).map_err(|error| describe(&error))? {
        let wrong = |error: ArchiveError| format!("`{}`: {}", place.inside, describe(&error));
        let to = at.join(&place.name);
        copy(Path::new(&place.inside), &to).map_err(wrong)?;
        guest::cover(&to, Path::new(&place.inside)).map_err(|error| wrong(error.into()))?;
    }
    Ok(())
}

/// Unpacks what crosses beside the image, and puts each thing where the measured policy has it: never
/// over anything that was measured.
fn deliver(files: &mut Inlet, assembly: &Assembly) -> Result<(), String> {
    let at = Path::new(DELIVERY);
    let mut files = io::BufReader::new(files);
    unpack(&mut files, at, MAX_FILES).map_err(|error| describe(&error))?;
    let carried = places::carried(assembly.bundle()).map_err(|error| describe(&error))?;
    for place in carried {
        guest::show(&at.join(&place.name), Path::new(&place.inside))
            .map_err(|error| format!("`{}`: {error}", place.inside))?;
    }
    Ok(())
}

/// Copies a tree.
fn copy(from: &Path, to: &Path) -> Result<(), ArchiveError> {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir(to)?;
    let (mut reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        let write = scope.spawn(move || {
            let mut archive = Archive::new(io::BufWriter::with_capacity(64 << 10, writer));
            archive.contents(from).and_then(|()| archive.finish())
        });
        let unpacked = unpack(&mut reader, to, MAX_FILES);
        drop(reader);
        let gone = || ArchiveError::Io(io::ErrorKind::BrokenPipe.into());
        write.join().map_err(|_| gone())??;
        unpacked.map(drop)
    })
}

fn listed(assembly: &Assembly, start: &Start) -> Listed {
    let policy = assembly.bundle().name().to_owned();
    Listed {
        id: policy.clone(),
        policy,
        uid: 0,
        since: start.now,
        log: None,
        status: None,
    }
}

/// The workload's stdin, stdout and stderr, and the ends of what carries the outputs.
type Pipes = ([OwnedFd; 3], [Receiver<()>; 2]);

fn pipes(link: &Arc<Link>, mut stdin: Inlet) -> io::Result<Pipes> {
    let (input, mut to_input) = io::pipe()?;
    thread::Builder::new().name("stdin".into()).spawn(move || {
        // A workload that reads no more ends this; the rest is dropped.
        let _ = io::copy(&mut stdin, &mut to_input);
    })?;
    let (stdout, out) = output(link, stream::STDOUT)?;
    let (stderr, error) = output(link, stream::STDERR)?;
    Ok(([input.into(), stdout, stderr], [out, error]))
}

fn output(link: &Arc<Link>, id: StreamId) -> io::Result<(OwnedFd, Receiver<()>)> {
    let (mut reader, writer) = io::pipe()?;
    let (done, ended) = mpsc::channel();
    let link = Arc::clone(link);
    let carry = move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(read @ 1..) = reader.read(&mut piece) {
            if link.write(id, &piece[..read]).is_err() {
                break;
            }
        }
        let _ = link.end(id);
        drop(done);
    };
    thread::Builder::new().name("output".into()).spawn(carry)?;
    Ok((writer.into(), ended))
}

/// Writes into a stream.
struct Outlet(Arc<Link>, StreamId);

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(self.1, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
