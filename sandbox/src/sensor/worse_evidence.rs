//! `worse-evidence`: the newest appraisal is worse than the best one of this session, because a new
//! certificate revocation list or new collateral says so, or because the platform has changed. Holds as
//! long as that is true.

use super::{Edge, Look, Sensor, Signal};

/// Notices appraisals that get worse.
#[derive(Debug, Default)]
pub struct WorseEvidence {
    worse: Edge,
}

impl Sensor for WorseEvidence {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let kind = self.worse.turn(look.worse.is_some())?;
        Some(Signal {
            sensor: "worse-evidence",
            kind,
            detail: look.worse.unwrap_or("it is as good as it was").to_owned(),
        })
    }
}
