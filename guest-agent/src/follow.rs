//! One `run`: its session, its records and outputs on their way to the caller, and the watch over the
//! caller.
//!
//! ```text
//!  session ─▶ records ─┐
//!  workload ─▶ outputs ┴▶ outbox ─▶ caller
//!  caller gone, or too slow ─▶ the session is stopped
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate::error::describe;
use casemate::receipt::Receipt;
use casemate::record::Record;
use casemate::{Outcome, SessionError, Why};
use rustix::event::{PollFd, PollFlags};

use crate::agent::{Agent, AgentError, Caller, Stopper};
use crate::api::{Reply, Stream};
use crate::outbox::Outbox;
use crate::transport::{SEND_DEADLINE, failure, note};

/// Most bytes of output in one line.
const OUTPUT_PIECE: usize = 16 << 10;

/// The workload's outputs, where they are read.
type Outputs = [(Stream, io::PipeReader); 2];

/// Runs a session, and follows it for its caller. The session ends when the caller is gone.
pub(crate) fn run(agent: &Agent, caller: Caller, policy: &str, receipt: bool, stream: &UnixStream) {
    let outbox = Arc::new(Outbox::default());
    let last = thread::scope(|scope| {
        let sender = scope.spawn(|| send(&outbox, stream));
        let last = follow(agent, caller, policy, receipt, stream, &outbox);
        outbox.record(last);
        outbox.finish();
        sender.join()
    });
    if last.is_err() {
        note(format_args!("an answer was cut short"));
    }
}

fn send(outbox: &Outbox, mut stream: &UnixStream) {
    let sent = stream
        .set_write_timeout(Some(SEND_DEADLINE))
        .and_then(|()| outbox.send_to(&mut stream));
    if sent.is_err() {
        outbox.abandon();
        // Seen by whoever watches the caller.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Admits and runs a session; gives the last line of the answer.
fn follow(
    agent: &Agent,
    caller: Caller,
    policy: &str,
    receipt: bool,
    stream: &UnixStream,
    outbox: &Arc<Outbox>,
) -> Vec<u8> {
    let (stdio, outputs) = match pipes() {
        Ok(pipes) => pipes,
        Err(error) => return failure(&AgentError::Session(SessionError::Stdio(error))).line(),
    };
    let watcher = match stream.try_clone() {
        Ok(caller) => watcher(outbox.clone(), caller),
        Err(error) => return failure(&AgentError::Session(SessionError::Stdio(error))).line(),
    };
    let admitted = match agent.admit(caller, policy, stdio, watcher) {
        Ok(admitted) => admitted,
        Err(error) => {
            note(format_args!(
                "uid {} may not run {policy:?}: {}",
                caller.uid,
                describe(&error)
            ));
            return failure(&error).line();
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
    outbox.record(begins.line());
    let stopper = admitted.stopper();
    let (log, basis) = (admitted.log().to_owned(), admitted.basis());
    let (ended, mut waker) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return failure(&AgentError::Session(SessionError::Stdio(error))).line(),
    };
    let result = thread::scope(|scope| {
        for (which, output) in outputs {
            scope.spawn(move || forward(which, output, outbox));
        }
        scope.spawn(|| watch_caller(stream, &ended, &stopper, outbox, &id));
        let result = admitted.run();
        // The watch over the caller ends with the session.
        let _ = waker.write_all(&[0]);
        result
    });
    if receipt {
        let reply = match Receipt::of(&log, &basis) {
            Ok(receipt) => Reply::Receipt(Box::new(receipt)),
            Err(error) => Reply::NoReceipt {
                why: describe(&error),
            },
        };
        outbox.record(reply.line());
    }
    match result {
        Ok(outcome) => {
            note(format_args!("{id}: {}", outcome.why));
            outcome_line(&outcome)
        }
        Err(error) => {
            note(format_args!("{id}: {}", describe(&error)));
            failure(&AgentError::Session(error)).line()
        }
    }
}

/// Hands records to the outbox. The session does not wait for its caller.
fn watcher(
    outbox: Arc<Outbox>,
    caller: UnixStream,
) -> impl FnMut(&Record, Duration) + Send + 'static {
    move |record, at| {
        let line = Reply::Record {
            at: at.as_secs_f64(),
            record,
        }
        .line();
        if !outbox.record(line) {
            // A caller who does not follow is gone: the watch over it stops the session.
            let _ = caller.shutdown(Shutdown::Both);
        }
    }
}

/// Stops the session when its caller closes the connection, or is given up.
fn watch_caller(
    stream: &UnixStream,
    ended: &io::PipeReader,
    stopper: &Stopper,
    outbox: &Outbox,
    id: &str,
) {
    loop {
        // A caller that only says that it will not write more is still there: that is no hang-up.
        let mut watched = [
            PollFd::new(stream, PollFlags::empty()),
            PollFd::new(ended, PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) if !watched[1].revents().is_empty() => return,
            Ok(0) => continue,
            _ => break,
        }
    }
    note(format_args!(
        "{id}: the caller is gone, so the session is stopped"
    ));
    outbox.abandon();
    stopper.stop();
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
