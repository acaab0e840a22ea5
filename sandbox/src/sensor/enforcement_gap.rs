//! `enforcement-gap`: something the floor or a lever should do is not wholly in force on this host.
//! Holds as long as that is true.

use super::{Edge, Look, Sensor, Signal};

/// Notices protections that are missing.
#[derive(Debug, Default)]
pub struct EnforcementGap {
    gap: Edge,
}

impl Sensor for EnforcementGap {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let kind = self.gap.turn(!look.gaps.is_empty())?;
        let names: Vec<_> = look.gaps.iter().map(String::as_str).collect();
        Some(Signal {
            sensor: "enforcement-gap",
            kind,
            detail: names.join(", "),
        })
    }
}
