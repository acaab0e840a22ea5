//! What operators order of a session and ask of it.

use super::Session;
use crate::error::SessionError;
use crate::event::Event;
use crate::facts;
use crate::order::OrderError;
use crate::record::Record;
use crate::status::{self, Held, Position, Status};

impl Session {
    /// Takes orders: each is recorded, with who gave it and why, before anything comes of it. Whoever
    /// ordered or asked something is answered at the end of the step.
    pub(super) fn hear(&mut self, events: &mut Vec<Event>) -> Result<(), SessionError> {
        let mut refused = Vec::new();
        for (index, event) in events.iter().enumerate() {
            match event {
                Event::Ask(asking) => self.asked.push(asking.clone()),
                Event::Order(order, asking) => {
                    if let Err(error) = order.check(self.bundle.tables()) {
                        // Whoever does not wait for the answer does not get it.
                        let _ = asking.try_send(Err(error));
                        refused.push(index);
                        continue;
                    }
                    self.journal.note(Record::Ordered {
                        order: order.command.clone(),
                        by: order.by,
                        why: order.why.clone(),
                    })?;
                    self.orders.take(order);
                    self.asked.push(asking.clone());
                }
                _ => {}
            }
        }
        for index in refused.into_iter().rev() {
            events.remove(index);
        }
        Ok(())
    }

    /// Answers whoever waits, now that what was ordered is recorded and in force.
    pub(super) fn answer(&mut self) -> Result<(), SessionError> {
        if self.asked.is_empty() {
            return Ok(());
        }
        self.journal.settle()?;
        let status = Box::new(self.status());
        for asking in std::mem::take(&mut self.asked) {
            let _ = asking.try_send(Ok(status.clone()));
        }
        Ok(())
    }

    /// Tells whoever waits that the session is over.
    pub(super) fn close_asked(&mut self) {
        for asking in std::mem::take(&mut self.asked) {
            let _ = asking.try_send(Err(OrderError::Over));
        }
    }

    fn status(&self) -> Status {
        let now = self.clock.now();
        let evidence = self.attested.appraisal().map(|appraisal| {
            let (tier, tcb) = facts::rank(appraisal);
            Held {
                tee: appraisal.tee().to_string(),
                tier: tier.to_string(),
                tcb: tcb.to_string(),
                simulated: appraisal.is_simulated(),
                age: self.attested.age(now).unwrap_or_default().as_secs(),
            }
        });
        let usage = self.vaults.usage().into_iter();
        Status {
            version: status::VERSION,
            policy: self.bundle.name().to_owned(),
            policy_version: self.bundle.version(),
            at: now.as_secs_f64(),
            started: self.started,
            init: self
                .instance
                .as_ref()
                .map(|instance| instance.pid().as_raw_nonzero().get()),
            plan: Position {
                run: self.plan.run,
                tier: self.plan.tier,
                data: self.plan.data.clone(),
                files: self.plan.files.clone(),
                connect: self.plan.connect.iter().map(ToString::to_string).collect(),
                exec: self.plan.exec,
                tightened: self.plan.tightened.clone(),
            },
            risk: self.watch.risk(now),
            parts: self.watch.parts(now),
            evidence,
            gaps: self.gaps.clone(),
            orders: self.orders.clone(),
            read: usage.map(|(name, usage)| (name, usage.bytes)).collect(),
            recent: self.journal.recent(),
        }
    }
}
