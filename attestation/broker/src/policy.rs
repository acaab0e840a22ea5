//! What an appraisal must be for a secret to be released on it.

use attestation::{Appraisal, TrustTier};

use crate::release::Unwelcome;

/// What an appraisal must be for a secret to be released on it.
///
/// The default asks for everything: the tier is affirming, which no failed and no unknown check
/// leaves, and the host cannot read the guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasePolicy {
    accepts_warning: bool,
}

/// Reaches what weakens a policy; each use is one to be reviewed.
#[derive(Clone, Debug)]
pub struct DangerousReleasePolicy(ReleasePolicy);

impl ReleasePolicy {
    /// Reaches what weakens the policy.
    #[must_use]
    pub fn dangerous(self) -> DangerousReleasePolicy {
        DangerousReleasePolicy(self)
    }

    /// Whether a secret may be released on this appraisal.
    ///
    /// # Errors
    ///
    /// [`Unwelcome`] says why not.
    pub fn permits(&self, appraisal: &Appraisal) -> Result<(), Unwelcome> {
        if appraisal.debug() {
            return Err(Unwelcome::Debug);
        }
        match appraisal.tier() {
            TrustTier::Affirming => Ok(()),
            TrustTier::Warning if self.accepts_warning => Ok(()),
            TrustTier::Warning => Err(Unwelcome::Warning),
            TrustTier::Contraindicated => Err(Unwelcome::Contraindicated),
            TrustTier::None => Err(Unwelcome::Nothing),
        }
    }
}

impl DangerousReleasePolicy {
    /// Also releases on appraisals of the warning tier: old firmware, an unknown measurement.
    #[must_use]
    pub fn accept_warning(self) -> ReleasePolicy {
        let mut policy = self.0;
        policy.accepts_warning = true;
        policy
    }
}
