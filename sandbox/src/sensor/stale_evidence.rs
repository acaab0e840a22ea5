//! `stale-evidence`: the newest believed evidence is older than the policy's `max-age`. Holds as long
//! as that is true: fresh evidence ends it.

use super::{Edge, Look, Sensor, Signal};

/// Notices evidence that has grown too old.
#[derive(Debug, Default)]
pub struct StaleEvidence {
    stale: Edge,
}

impl Sensor for StaleEvidence {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let max_age = look.max_age?;
        // Evidence that is not there is not fresh.
        let old = look.evidence_age.is_none_or(|age| age >= max_age);
        let kind = self.stale.turn(old || look.expired)?;
        let detail = match look.evidence_age {
            None => "there is no evidence".to_owned(),
            Some(_) if look.expired => "what the evidence rests on has expired".to_owned(),
            Some(age) => format!(
                "evidence is {}s old, {}s at most",
                age.as_secs(),
                max_age.as_secs()
            ),
        };
        Some(Signal {
            sensor: "stale-evidence",
            kind,
            detail,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::Kind;
    use super::super::tests::Said;
    use super::*;

    #[test]
    fn evidence_is_stale_at_its_age_and_fresh_again_after_new_evidence() {
        let (said, gaps) = (Said::default(), BTreeSet::new());
        let mut sensor = StaleEvidence::default();
        let mut at = |age: Option<u64>| {
            let look = Look {
                evidence_age: age.map(Duration::from_secs),
                max_age: Some(Duration::from_secs(10)),
                expired: age == Some(3),
                ..said.look(Duration::ZERO, &gaps)
            };
            sensor.sense(&look).map(|signal| signal.kind)
        };
        assert_eq!(at(Some(9)), None);
        assert_eq!(at(Some(10)), Some(Kind::Began));
        assert_eq!(at(Some(11)), None);
        assert_eq!(at(Some(0)), Some(Kind::Ended));
        assert_eq!(at(None), Some(Kind::Began));
        assert_eq!(at(Some(1)), Some(Kind::Ended));
        assert_eq!(
            at(Some(3)),
            Some(Kind::Began),
            "young, but its certificate has expired"
        );
    }
}
