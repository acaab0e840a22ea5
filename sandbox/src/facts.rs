//! From what attestation, sensors and enforcement know to the facts a policy decides from.

use std::collections::BTreeSet;
use std::time::Duration;

use attestation::{Appraisal, TcbStatus, TrustTier};
use policy::{Facts, Tcb, Tier};

/// Translates an appraisal and the state around it into facts.
///
/// Without an appraisal everything about the platform is unknown, and unknown is the worst value.
pub fn gather(
    appraisal: Option<&Appraisal>,
    evidence_age: Option<Duration>,
    risk: u8,
    gaps: &BTreeSet<String>,
) -> Facts {
    let mut facts = Facts::unknown();
    facts.risk = risk;
    facts.gaps.clone_from(gaps);
    facts.evidence_age = evidence_age;
    if let Some(appraisal) = appraisal {
        facts.tier = tier(appraisal.tier());
        facts.tcb = tcb(appraisal.tcb_status());
        facts.simulated = Some(appraisal.is_simulated());
        facts.debug = Some(appraisal.debug());
    }
    facts
}

/// How good an appraisal is: smaller is better.
pub(crate) fn rank(appraisal: &Appraisal) -> (Tier, Tcb) {
    (tier(appraisal.tier()), tcb(appraisal.tcb_status()))
}

fn tier(tier: TrustTier) -> Tier {
    match tier {
        TrustTier::Affirming => Tier::Affirming,
        TrustTier::Warning => Tier::Warning,
        TrustTier::Contraindicated => Tier::Contraindicated,
        _ => Tier::None,
    }
}

fn tcb(status: TcbStatus) -> Tcb {
    match status {
        TcbStatus::UpToDate => Tcb::UpToDate,
        TcbStatus::SwHardeningNeeded => Tcb::SwHardeningNeeded,
        TcbStatus::ConfigurationNeeded => Tcb::ConfigurationNeeded,
        TcbStatus::ConfigurationAndSwHardeningNeeded => Tcb::ConfigurationAndSwHardeningNeeded,
        // What runs was launched on an older TCB: until it is launched anew, that is what protects it.
        TcbStatus::TdRelaunchAdvised | TcbStatus::OutOfDate => Tcb::OutOfDate,
        TcbStatus::TdRelaunchAdvisedConfigurationNeeded
        | TcbStatus::OutOfDateConfigurationNeeded => Tcb::OutOfDateConfigurationNeeded,
        TcbStatus::Revoked => Tcb::Revoked,
        _ => Tcb::Unknown,
    }
}
