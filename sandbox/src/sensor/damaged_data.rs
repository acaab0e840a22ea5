//! `damaged-data`: a read of a vault came upon bytes that are not what was written, so the disk is
//! damaged or somebody works on it. The workload got an error, and none of the bytes.

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;

/// Passes on what a lease tells.
#[derive(Debug)]
pub struct DamagedData;

impl Sensor for DamagedData {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::Damaged { data, what }) = look.happened else {
            return None;
        };
        let detail = format!("{data}: {what}");
        Some(Signal {
            sensor: "damaged-data",
            kind: Kind::Happened,
            detail,
        })
    }
}
