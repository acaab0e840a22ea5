//! `operator`: a person raises the risk, with a reason.

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;

/// Passes on what an operator says.
#[derive(Debug)]
pub struct Operator;

impl Sensor for Operator {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::Operator(why)) = look.happened else {
            return None;
        };
        Some(Signal {
            sensor: "operator",
            kind: Kind::Happened,
            detail: why.clone(),
        })
    }
}
