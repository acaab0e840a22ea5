//! One session in a thread of its own, and its records and outputs on their way to who follows it.
//!
//! ```text
//!  session ─▶ records ─┐
//!  workload ─▶ outputs ┴▶ outbox ─▶ follower
//!  the caller of an attached session is gone, or too slow ─▶ it is stopped
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::error::describe;
use casemate::receipt::Receipt;
use casemate::record::Record;
use casemate::{Outcome, SessionError, Why};

use crate::agent::{Agent, AgentError, Caller, Stopper};
use crate::api::{Reply, Stream, Wanted};
use crate::outbox::{Next, Outbox};
use crate::transport::{failure, note};

/// Most bytes of output in one line.
const OUTPUT_PIECE: usize = 16 << 10;

/// The workload's outputs, where they are read.
type Outputs = [(Stream, io::PipeReader); 2];

/// A session that has begun.
pub(crate) struct Begun {
    /// Its name.
    pub id: String,
    /// The first line of what is told of it.
    pub line: Vec<u8>,
    /// What is told of it from then on.
    pub outbox: Arc<Outbox>,
    pub stopper: Stopper,
}

/// Begins a session under a policy, in a thread of its own.
pub(crate) fn begin(agent: &Agent, caller: Caller, wanted: Wanted) -> Result<Begun, AgentError> {
    let (sender, begun) = mpsc::sync_channel(1);
    let agent = agent.clone();
    thread::Builder::new()
        .name("session".into())
        .spawn(move || run(&agent, caller, &wanted, &sender))
        .map_err(|error| AgentError::Session(SessionError::Stdio(error)))?;
    // A thread that ends without a word has panicked.
    begun
        .recv()
        .unwrap_or(Err(AgentError::Session(SessionError::Lost)))
}

/// Follows a session, or tells that somebody does already.
pub(crate) fn follow(outbox: Arc<Outbox>, stopper: Option<Stopper>) -> Option<Arc<Following>> {
    let follower = outbox.follow()?;
    Some(Arc::new(Following {
        outbox,
        follower,
        stopper,
    }))
}

/// Somebody who follows a session.
pub(crate) struct Following {
    outbox: Arc<Outbox>,
    follower: u64,
    stopper: Option<Stopper>,
}

impl Following {
    /// Waits for the next line.
    pub fn next(&self) -> Next {
        self.outbox.next(self.follower)
    }

    /// Ends it. An attached session ends with its follower.
    pub fn end(&self) {
        if self.outbox.leave(self.follower)
            && let Some(stopper) = &self.stopper
        {
            note(format_args!(
                "the caller of a session is gone, so it is stopped"
            ));
            stopper.stop();
        }
    }
}

/// Admits a session, says so, runs it, and says how it ended.
fn run(
    agent: &Agent,
    caller: Caller,
    wanted: &Wanted,
    begun: &SyncSender<Result<Begun, AgentError>>,
) {
    let outbox = Arc::new(Outbox::new(wanted.detached));
    let admitted = pipes()
        .map_err(|error| AgentError::Session(SessionError::Stdio(error)))
        .and_then(|(stdio, outputs)| {
            let watcher = watcher(Arc::clone(&outbox));
            let told = Arc::clone(&outbox);
            let admitted = agent.admit(caller, &wanted.policy, stdio, watcher, told)?;
            Ok((admitted, outputs))
        });
    let (admitted, outputs) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => {
            note(format_args!(
                "uid {} may not run {:?}: {}",
                caller.uid,
                wanted.policy,
                describe(&error)
            ));
            let _ = begun.send(Err(error));
            return;
        }
    };
    let id = admitted.id().to_owned();
    note(format_args!(
        "{id}: begins, for uid {} (process {})",
        caller.uid, caller.pid
    ));
    let begins = Reply::Session {
        id: &id,
        log: admitted.log().display().to_string(),
        key: admitted.key(),
    };
    let _ = begun.send(Ok(Begun {
        id: id.clone(),
        line: begins.line(),
        outbox: Arc::clone(&outbox),
        stopper: admitted.stopper(),
    }));
    let (log, key) = (admitted.log().to_owned(), admitted.log_key());
    let basis = admitted.basis();
    let (result, place) = thread::scope(|scope| {
        for (which, output) in outputs {
            let outbox = &outbox;
            scope.spawn(move || forward(which, output, outbox));
        }
        admitted.run()
    });
    agent.closed(&log, key);
    let receipt = wanted.receipt.then(|| match Receipt::of(&log, &basis) {
        Ok(receipt) => Reply::Receipt(Box::new(receipt)).line(),
        Err(error) => {
            let why = describe(&error);
            Reply::NoReceipt { why }.line()
        }
    });
    let last = match result {
        Ok(outcome) => {
            note(format_args!("{id}: {}", outcome.why));
            outcome_line(&outcome)
        }
        Err(error) => {
            note(format_args!("{id}: {}", describe(&error)));
            failure(&AgentError::Session(error)).line()
        }
    };
    // The place first: whoever has read the last line finds that nothing runs any more.
    place.give_back(&last, receipt.as_deref());
    receipt.map(|line| outbox.record(line));
    outbox.record(last);
    outbox.finish();
}

/// Hands records to the outbox. The session does not wait for who follows it.
fn watcher(outbox: Arc<Outbox>) -> impl FnMut(&Record, Duration) + Send + 'static {
    move |record, at| {
        let at = at.as_secs_f64();
        // A caller who does not follow is given up, and whoever sends to it stops the session.
        outbox.record(Reply::Record { at, record }.line());
    }
}

/// Passes on what the workload writes, until nobody can write any more.
fn forward(stream: Stream, mut output: io::PipeReader, outbox: &Outbox) {
    let mut piece = vec![0; OUTPUT_PIECE];
    loop {
        match output.read(&mut piece) {
            Ok(0) => return,
            Ok(read) => {
                let base64 = STANDARD.encode(&piece[..read]);
                if !outbox.output(Reply::Output { stream, base64 }.line()) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The workload's stdin, stdout and stderr, and where its outputs are read.
fn pipes() -> io::Result<([OwnedFd; 3], Outputs)> {
    let input = File::open("/dev/null")?;
    let (from_stdout, stdout) = io::pipe()?;
    let (from_stderr, stderr) = io::pipe()?;
    let stdio = [input.into(), stdout.into(), stderr.into()];
    Ok((
        stdio,
        [(Stream::Stdout, from_stdout), (Stream::Stderr, from_stderr)],
    ))
}

fn outcome_line(outcome: &Outcome) -> Vec<u8> {
    let because = match &outcome.why {
        Why::Policy(rules) => rules.as_slice(),
        _ => &[],
    };
    Reply::Outcome {
        ending: outcome.ending,
        why: outcome.why.to_string(),
        because,
    }
    .line()
}
