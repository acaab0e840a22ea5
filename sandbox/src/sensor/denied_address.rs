//! `denied-address`: the workload wanted to reach an address or a name that is not granted. Fades by its
//! half-life.

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;

/// Notices refused connections and names.
#[derive(Debug)]
pub struct DeniedAddress;

impl Sensor for DeniedAddress {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::DeniedAddress(denied)) = look.happened else {
            return None;
        };
        Some(Signal {
            sensor: "denied-address",
            kind: Kind::Happened,
            detail: denied.wanted.to_string(),
        })
    }
}
