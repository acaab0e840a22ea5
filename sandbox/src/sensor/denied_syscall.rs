//! `denied-syscall`: the workload called what its profile does not have. Fades by its half-life.

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;

/// Notices refused system calls.
#[derive(Debug)]
pub struct DeniedSyscall;

impl Sensor for DeniedSyscall {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::Denied(denied)) = look.happened else {
            return None;
        };
        let mut detail = denied.name.clone();
        if !denied.detail.is_empty() {
            detail.push_str(&format!(" ({})", denied.detail));
        }
        Some(Signal {
            sensor: "denied-syscall",
            kind: Kind::Happened,
            detail,
        })
    }
}
