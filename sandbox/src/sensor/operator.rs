//! `operator`: a person raises the risk, with a reason. By so many points as the policy says, or as the
//! person says; those hold until they are taken back, unless the policy gives them a half-life.

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;
use crate::order::Command;

/// Passes on what an operator says.
#[derive(Debug)]
pub struct Operator;

impl Sensor for Operator {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let (kind, detail) = match look.happened? {
            Event::Operator(why) => (Kind::Happened, why.clone()),
            Event::Order(order, _) => {
                let Command::Risk(points) = order.command else {
                    return None;
                };
                let kind = if points > 0 {
                    Kind::Adds(points.unsigned_abs())
                } else {
                    Kind::Relieves(points.unsigned_abs())
                };
                let words = format!("{points:+} by uid {}: {}", order.by.uid, order.why);
                (kind, words)
            }
            _ => return None,
        };
        Some(Signal {
            sensor: "operator",
            kind,
            detail,
        })
    }
}
