//! The host's end of the channel, from the guest's first word to its last.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use casemate::By;
use casemate::error::describe;
use casemate::isolation::microvm::channel::Inlet;
use casemate::isolation::microvm::image::{Archive, unpack};
use casemate::isolation::microvm::{ChannelError, Incoming, Link, Origin, StreamId};
use casemate::release::KeyBroker;
use policy::Bundle;
use rustix::process::Signal;
use serde_json::json;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use super::super::keys::Waiting;
use super::super::log::{Copy, Took};
use super::super::places::{self, Place};
use super::super::{Ended, MAX_FILES, PROTOCOL, Start, ToGuest, ToHost, stream, ways};
use super::launch::Launched;
use super::machine_log::MachineLog;
use super::{Closed, Options, VmError, now};
use crate::LocalBroker;
use crate::agent::{Agent, AgentError, Caller};
use crate::api::Listed;
use crate::control::Control;
use crate::transport::Service;

/// How often the guest is asked whether it is there.
const TICK: Duration = Duration::from_secs(1);
/// How much longer a guest may take that is booting, or unpacking what it was sent.
pub(super) const BOOT: Duration = Duration::from_secs(120);
/// How long a machine may take to power off, or to end a workload that was asked to end twice.
const END: Duration = Duration::from_secs(30);

/// What the main thread hears of.
#[derive(Debug)]
pub(super) enum Event {
    /// The guest said something.
    Said(ToHost),
    /// A piece of the log came, and is kept.
    Kept(u64, Result<(), String>),
    /// The channel is at its end.
    Broken(ChannelError),
    /// A Unix signal reached this process.
    Signal(i32, Option<By>),
}

/// Everything that a conversation needs.
pub(super) struct Talk<'t> {
    pub(super) bundle: &'t Bundle,
    pub(super) base: &'t Path,
    pub(super) carried: &'t [Place],
    pub(super) broker: LocalBroker,
    pub(super) options: &'t Options,
    pub(super) log: &'t mut MachineLog,
    pub(super) session_log: &'t Path,
    pub(super) receipt: Option<&'t mut File>,
    pub(super) start: Start,
    pub(super) origin: Origin,
}

/// What it is about while it goes on.
struct State {
    link: Arc<Link>,
    answers: Arc<Waiting<String>>,
    control: Option<Control>,
    key: Option<[u8; 32]>,
    begun: bool,
    paused: bool,
    /// Ticks since the guest was last heard of.
    silent: u32,
    pings: u64,
    /// How often its end was asked for, and ticks since.
    asked: u32,
    since_asked: u32,
    failed: Option<String>,
}

impl Talk<'_> {
    /// Talks until the session is over, or the machine is.
    pub(super) fn follow(
        mut self,
        mut launched: Launched,
        sender: SyncSender<Event>,
        events: &Receiver<Event>,
    ) -> Result<Closed, VmError> {
        let recorder = Recorder::create(self.options.recorded.as_deref())?;
        let link = Link::new(recorder.over(launched.channel.try_clone()?));
        self.start.receipt = self.receipt.is_some();
        let copy = Copy::create(self.session_log).map_err(|source| VmError::File {
            path: self.session_log.into(),
            source,
        })?;
        let outputs = Outputs::open(&link, self.bundle, self.base)?;
        // What is sent there needs its credit.
        let outgoing = [link.open(stream::STDIN)?, link.open(stream::FILES)?];
        let reader = recorder.over(launched.channel.try_clone()?);
        receive(&link, reader, copy, self.bundle, sender)?;
        if self.origin == Origin::Clone {
            // It has said hello when its template was made.
            self.begin(&link)?;
        }
        let mut state = State {
            link: Arc::clone(&link),
            answers: Arc::new(Waiting::new()),
            control: None,
            key: None,
            begun: false,
            paused: false,
            silent: 0,
            pings: 0,
            asked: 0,
            since_asked: 0,
            failed: None,
        };
        let ended = self.converse(&mut state, events, &mut launched);
        state.control = None;
        state.answers.give_up();
        drop(outgoing);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let console = launched.last_words();
                link.break_off();
                outputs.finish_shown();
                return Err(match error {
                    VmError::Channel(ChannelError::Gone) => match state.failed {
                        Some(why) => VmError::Keep(why),
                        None => VmError::Lost { console },
                    },
                    other => other,
                });
            }
        };
        let results = outputs.finish(self.receipt.take());
        link.send(&ToGuest::Bye)?;
        let killed = launched.end(END);
        // Of a session that failed there may be none; why it failed is what counts.
        if matches!(ended, Ended::Outcome { .. }) {
            results?;
        }
        if killed {
            return Err(VmError::Killed);
        }
        Ok(Closed {
            ended,
            key: state.key,
        })
    }

    fn converse(
        &mut self,
        state: &mut State,
        events: &Receiver<Event>,
        launched: &mut Launched,
    ) -> Result<Ended, VmError> {
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Said(ToHost::Ended(ended))) => return Ok(ended),
                Ok(Event::Said(said)) => {
                    state.silent = 0;
                    self.hear(state, said, launched)?;
                }
                Ok(Event::Kept(number, kept)) => {
                    state.silent = 0;
                    state.failed = kept.clone().err().or(state.failed.take());
                    state.link.send(&ToGuest::Kept(number, kept))?;
                }
                Ok(Event::Signal(SIGTSTP, by)) => self.pause(state, launched, by)?,
                Ok(Event::Signal(SIGCONT, by)) => self.resume(state, launched, by)?,
                Ok(Event::Signal(signal, by)) => self.pass_on(state, signal, by)?,
                Ok(Event::Broken(error)) => return Err(error.into()),
                Err(RecvTimeoutError::Timeout) => self.tick(state)?,
                Err(RecvTimeoutError::Disconnected) => return Err(ChannelError::Gone.into()),
            }
        }
    }

    /// Counts ticks and not time: when this process was stopped together with the machine, neither is late.
    fn tick(&mut self, state: &mut State) -> Result<(), VmError> {
        if state.paused {
            return Ok(());
        }
        let patience = match state.begun {
            true => self.options.patience,
            false => self.options.patience.saturating_add(BOOT),
        };
        state.silent += 1;
        if Duration::from_secs(state.silent.into()) > patience {
            return Err(VmError::Hung(self.options.patience));
        }
        if state.asked > 1 {
            state.since_asked += 1;
            if Duration::from_secs(state.since_asked.into()) > END {
                return Err(VmError::Killed);
            }
        }
        // One at a time: a guest that does not answer is not sent any more.
        if state.begun && state.silent == 1 {
            state.pings += 1;
            state.link.send(&ToGuest::Ping(state.pings))?;
        }
        Ok(())
    }

    /// Stops the machine's processors, and this process with them, as Ctrl-Z does.
    fn pause(
        &self,
        state: &mut State,
        launched: &mut Launched,
        by: Option<By>,
    ) -> Result<(), VmError> {
        self.log.record("machine-pausing", json!({ "by": by }))?;
        launched.qmp.pause()?;
        state.paused = true;
        // It goes on with a SIGCONT, and hears of it.
        let stopped = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        Ok(stopped.map_err(io::Error::from)?)
    }

    fn resume(
        &self,
        state: &mut State,
        launched: &mut Launched,
        by: Option<By>,
    ) -> Result<(), VmError> {
        if std::mem::take(&mut state.paused) {
            self.log.record("machine-resuming", json!({ "by": by }))?;
            launched.qmp.resume()?;
        }
        Ok(())
    }

    fn pass_on(&self, state: &mut State, signal: i32, by: Option<By>) -> Result<(), VmError> {
        let ends = [SIGINT, SIGTERM, SIGQUIT, SIGHUP].contains(&signal);
        if ends {
            state.asked += 1;
        }
        self.log
            .record("machine-kill", json!({ "signal": signal, "by": by }))?;
        if state.key.is_none() && ends {
            // There is no session yet that could be asked.
            return Err(VmError::Killed);
        }
        Ok(state.link.send(&ToGuest::Kill { signal, by })?)
    }

    fn hear(
        &mut self,
        state: &mut State,
        said: ToHost,
        launched: &Launched,
    ) -> Result<(), VmError> {
        match said {
            ToHost::Hello { protocol, booted } => {
                self.log.record(
                    "machine-hello",
                    json!({ "protocol": protocol, "booted": booted }),
                )?;
                if protocol != PROTOCOL {
                    return Err(VmError::Version(protocol));
                }
                self.begin(&state.link)?;
            }
            ToHost::Log(key) => {
                self.log
                    .record("machine-session", json!({ "log-key": key }))?;
                let key = unhex(&key).ok_or(ChannelError::Protocol("a key that is none"))?;
                state.key = Some(key);
                state.begun = true;
                state.control = self.control(state, launched);
            }
            ToHost::Answer(number, line) => state.answers.answered(number, line),
            ToHost::Challenge(number, resource) => {
                let nonce = self.broker.challenge(&resource, now());
                self.log.record(
                    "machine-challenge",
                    json!({ "data": resource, "refused": refusal(&nonce) }),
                )?;
                let nonce = nonce.map_err(Into::into);
                state.link.send(&ToGuest::Challenged(number, nonce))?;
            }
            ToHost::Release(number, request) => {
                self.log
                    .record("machine-releasing", json!({ "data": request.resource }))?;
                let sealed = self.broker.release(
                    &request.evidence,
                    &request.challenge,
                    &request.resource,
                    now(),
                );
                self.log.record(
                    "machine-released",
                    json!({ "data": request.resource, "refused": refusal(&sealed) }),
                )?;
                let sealed = sealed.map_err(Into::into);
                state.link.send(&ToGuest::Released(number, sealed))?;
            }
            // Dealt with where it arrives.
            ToHost::Dial(..) | ToHost::Pong(_) | ToHost::Ended(_) => {}
        }
        Ok(())
    }

    /// Tells the guest what to run, and sends what that needs.
    fn begin(&self, link: &Arc<Link>) -> Result<(), VmError> {
        link.send(&ToGuest::Start(self.start.clone()))?;
        self.send_files(link)?;
        feed_stdin(link)
    }

    /// Sends what is not in the image, while other things go on.
    fn send_files(&self, link: &Arc<Link>) -> Result<(), VmError> {
        let link = Arc::clone(link);
        let sources = self
            .carried
            .iter()
            .map(|place| (self.base.join(&place.written), place.name.clone()));
        let sources: Vec<_> = sources.collect();
        let send = move || {
            let out = Outlet(Arc::clone(&link), stream::FILES);
            let mut archive = Archive::new(io::BufWriter::with_capacity(64 << 10, out));
            let sent = sources
                .iter()
                .try_for_each(|(from, name)| archive.tree(from, name))
                .and_then(|()| archive.finish());
            if let Err(error) = sent {
                eprintln!(
                    "sandboxctl: cannot send the policy's files: {}",
                    describe(&error)
                );
            }
            // Without its end the guest refuses what came.
            let _ = link.end(stream::FILES);
        };
        thread::Builder::new().name("files".into()).spawn(send)?;
        Ok(())
    }

    /// The session's socket on this host: what it is asked goes to the session inside.
    fn control(&self, state: &State, launched: &Launched) -> Option<Control> {
        let relay = Relay {
            link: Arc::clone(&state.link),
            answers: Arc::clone(&state.answers),
            id: self.bundle.name().to_owned(),
            shown: format!("{}-{}", self.bundle.name(), launched.pid()),
        };
        Control::serving(relay).ok()
    }
}

fn refusal<T>(answer: &Result<T, casemate::release::Refusal>) -> Option<&str> {
    answer.as_ref().err().map(|refusal| refusal.code.as_str())
}

/// Follows the channel in a thread of its own.
fn receive(
    link: &Arc<Link>,
    mut reader: impl Read + Send + 'static,
    mut copy: Copy,
    bundle: &Bundle,
    sender: SyncSender<Event>,
) -> Result<(), VmError> {
    let link = Arc::clone(link);
    let brokers = ways::brokers(bundle);
    let follow = move || {
        let error = loop {
            let event = match link.receive(&mut reader) {
                Ok(Incoming::Stream) => continue,
                Ok(Incoming::Message(json)) => match serde_json::from_slice(&json) {
                    Ok(ToHost::Dial(id, broker)) => {
                        if id < stream::FIRST_WAY || !brokers.contains(&broker) {
                            break ChannelError::Protocol("a way to nowhere");
                        }
                        match link.open(id) {
                            Ok(inlet) => ways::dial(&link, id, inlet, broker),
                            Err(error) => break error,
                        }
                        continue;
                    }
                    Ok(said) => Event::Said(said),
                    Err(_) => break ChannelError::Protocol("a message that is none"),
                },
                Ok(Incoming::Entry(piece)) => match copy.take(&piece) {
                    Some(Took::Piece) => continue,
                    Some(Took::Keep(number, kept)) => Event::Kept(number, kept),
                    None => break ChannelError::Protocol("a piece of no log"),
                },
                Err(error) => break error,
            };
            if sender.send(event).is_err() {
                return;
            }
        };
        link.break_off();
        let _ = sender.send(Event::Broken(error));
    };
    thread::Builder::new()
        .name("channel".into())
        .spawn(follow)?;
    Ok(())
}

/// What comes out of a machine besides messages, each followed in a thread of its own.
struct Outputs {
    shown: Vec<JoinHandle<()>>,
    receipt: JoinHandle<io::Result<Vec<u8>>>,
    results: JoinHandle<Result<(), VmError>>,
}

impl Outputs {
    fn open(link: &Arc<Link>, bundle: &Bundle, base: &Path) -> Result<Self, VmError> {
        let shown = vec![
            show(link.open(stream::STDOUT)?, io::stdout(), <[u8]>::to_vec)?,
            show(link.open(stream::STDERR)?, io::stderr(), <[u8]>::to_vec)?,
            show(link.open(stream::VIEW)?, io::stderr(), harmless)?,
        ];
        let receipt = link.open(stream::RECEIPT)?;
        let read = move || {
            let mut bytes = Vec::new();
            let mut limited = receipt.take(casemate::receipt::MAX_RECEIPT as u64);
            limited.read_to_end(&mut bytes).map(|_| bytes)
        };
        let mut results = link.open(stream::RESULTS)?;
        let trees = places::written(bundle)?.into_iter();
        let trees: Vec<_> = trees.map(|place| base.join(place.written)).collect();
        let unpack = move || {
            for tree in trees {
                unpack(&mut results, &tree, MAX_FILES)?;
            }
            Ok(())
        };
        Ok(Self {
            shown,
            receipt: thread::Builder::new().name("receipt".into()).spawn(read)?,
            results: thread::Builder::new()
                .name("results".into())
                .spawn(unpack)?,
        })
    }

    /// Waits until everything that was said is shown.
    fn finish_shown(self) {
        for shown in self.shown {
            let _ = shown.join();
        }
    }

    /// Waits until everything is shown and kept.
    fn finish(self, receipt: Option<&mut File>) -> Result<(), VmError> {
        for shown in self.shown {
            let _ = shown.join();
        }
        let lost = || VmError::Channel(ChannelError::Gone);
        self.results.join().map_err(|_| lost())??;
        let bytes = self.receipt.join().map_err(|_| lost())??;
        if let Some(file) = receipt {
            file.write_all(&bytes)?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// Shows a stream until its end. A reader that is gone ends nothing.
fn show(
    mut inlet: Inlet,
    mut to: impl Write + Send + 'static,
    clean: fn(&[u8]) -> Vec<u8>,
) -> Result<JoinHandle<()>, VmError> {
    let follow = move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(read @ 1..) = inlet.read(&mut piece) {
            let written = to.write_all(&clean(&piece[..read]));
            if written.and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    };
    Ok(thread::Builder::new().name("output".into()).spawn(follow)?)
}

/// Text of a guest that is shown to people: colours stay, nothing else steers a terminal.
fn harmless(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .filter(|byte| matches!(byte, b'\n' | b'\t' | 0x1b) || **byte >= 0x20 && **byte != 0x7f)
        .copied()
        .collect()
}

fn feed_stdin(link: &Arc<Link>) -> Result<(), VmError> {
    let link = Arc::clone(link);
    let feed = move || {
        let _ = io::copy(
            &mut io::stdin().lock(),
            &mut Outlet(Arc::clone(&link), stream::STDIN),
        );
        let _ = link.end(stream::STDIN);
    };
    thread::Builder::new().name("stdin".into()).spawn(feed)?;
    Ok(())
}

/// Records what crosses, if that is asked for.
struct Recorder(Option<File>);

impl Recorder {
    fn create(path: Option<&Path>) -> Result<Self, VmError> {
        let file = path.map(|path| {
            File::create_new(path).map_err(|source| VmError::File {
                path: path.into(),
                source,
            })
        });
        Ok(Self(file.transpose()?))
    }

    fn over(&self, socket: UnixStream) -> Recorded {
        Recorded {
            socket,
            file: self.0.as_ref().and_then(|file| file.try_clone().ok()),
        }
    }
}

struct Recorded {
    socket: UnixStream,
    file: Option<File>,
}

impl Recorded {
    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file
            .as_mut()
            .map_or(Ok(()), |file| file.write_all(bytes))
    }
}

impl Read for Recorded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.socket.read(into)?;
        self.keep(&into[..read])?;
        Ok(read)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.socket.write(bytes)?;
        self.keep(&bytes[..written])?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
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

/// Answers at the session's socket by asking the session.
struct Relay {
    link: Arc<Link>,
    answers: Arc<Waiting<String>>,
    /// What the session calls itself, and what it is called on this host.
    id: String,
    shown: String,
}

impl Service for Relay {
    fn agent(&self) -> Option<&Agent> {
        None
    }

    fn elsewhere(&self, caller: Caller, request: &[u8]) -> Option<Vec<u8>> {
        let request = String::from_utf8_lossy(request).replace(&self.shown, &self.id);
        let ask = |number| {
            self.link.send(&ToGuest::Ask {
                number,
                by: caller.by(),
                line: request,
            })
        };
        let answer = self.answers.answer_to(ask)?;
        let own = format!("\"id\":\"{}\"", self.id);
        let shown = format!("\"id\":\"{}\"", self.shown);
        Some(answer.replace(&own, &shown).into_bytes())
    }

    fn status(&self, _: Caller, _: bool) -> Vec<Listed> {
        Vec::new()
    }

    fn kill(&self, _: Caller, session: &str, _: i32) -> Result<(), AgentError> {
        Err(AgentError::NoSession(session.into()))
    }

    fn adjust(
        &self,
        _: Caller,
        session: &str,
        _: casemate::order::Command,
        _: &str,
    ) -> Result<Box<casemate::status::Status>, AgentError> {
        Err(AgentError::NoSession(session.into()))
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
