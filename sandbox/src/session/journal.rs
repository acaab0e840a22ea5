//! What a session writes down, in order: durable before the next effect, and shown once it is.
//!
//! Records between two effects become durable together, so that what led to a change (the signal, the
//! decision, the change itself) costs one wait for the disk, and the change is not kept waiting for
//! three.

use std::collections::VecDeque;
use std::time::Duration;

use vault::audit::{Log, Record as Entry};

use super::builder::Watcher;
use crate::error::SessionError;
use crate::event::Clock;
use crate::record::Record;
use crate::status::Recent;

/// The audit log of a session, and who watches it.
pub(super) struct Journal {
    log: Log,
    watcher: Watcher,
    clock: Clock,
    waiting: Vec<(Record, Duration, Entry)>,
    recent: VecDeque<Recent>,
}

/// Records that are kept to be shown to whoever asks how the session is.
const RECENT: usize = 16;

impl Journal {
    pub(super) fn new(log: Log, watcher: Watcher, clock: Clock) -> Self {
        Self {
            log,
            watcher,
            clock,
            waiting: Vec::new(),
            recent: VecDeque::new(),
        }
    }

    /// The newest records about signals, decisions, orders and changes, oldest first.
    pub(super) fn recent(&self) -> Vec<Recent> {
        self.recent.iter().cloned().collect()
    }

    fn remember(&mut self, record: Record, at: Duration) {
        use Record::{Adjusted, Decided, Kill, NotAdjusted, Ordered, Signal};
        if matches!(
            record,
            Signal { .. }
                | Decided { .. }
                | Adjusted { .. }
                | NotAdjusted { .. }
                | Ordered { .. }
                | Kill { .. }
        ) {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            let at = at.as_secs_f64();
            self.recent.push_back(Recent { at, record });
        }
    }

    /// Takes a record of something that needs no effect to wait for it. It is durable before the next
    /// effect, and before the session waits for anything.
    pub(super) fn note(&mut self, record: Record) -> Result<(), SessionError> {
        let now = self.clock.now();
        let since_boot = u64::try_from(self.clock.since_boot().as_nanos()).unwrap_or(u64::MAX);
        let entry = Entry::new(
            record.kind(),
            now,
            since_boot,
            serde_json::to_value(&record)?,
        );
        self.waiting.push((record, now, entry));
        Ok(())
    }

    /// Takes the record of what is about to be done, and returns when it is durable, with all before.
    pub(super) fn announce(&mut self, record: Record) -> Result<(), SessionError> {
        self.note(record)?;
        self.settle()
    }

    /// Makes every record durable, and shows them.
    pub(super) fn settle(&mut self) -> Result<(), SessionError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (shown, entries): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .map(|(record, at, entry)| ((record, at), entry))
            .unzip();
        self.log.append_all(&entries)?;
        for (record, at) in shown {
            (self.watcher)(&record, at);
            self.remember(record, at);
        }
        Ok(())
    }

    /// Signs the last checkpoint.
    pub(super) fn close(self) -> Result<(), SessionError> {
        self.log.close()?;
        Ok(())
    }
}
