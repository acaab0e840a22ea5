//! What an appraisal must be for a secret to be released on it.

use attestation::{Appraisal, TrustTier};

use crate::release::{Standing, Unwelcome};

/// What an appraisal must be for a secret to be released on it.
///
/// The default asks for everything: the tier is affirming, which no failed and no unknown check
/// leaves, and the host cannot read the guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleasePolicy {
    accepts_warning: bool,
    policies: Option<Vec<[u8; 32]>>,
    over_channel: bool,
}

/// Reaches what weakens a policy; each use is one to be reviewed.
#[derive(Clone, Debug)]
pub struct DangerousReleasePolicy(ReleasePolicy);

impl ReleasePolicy {
    /// Releases only to guests whose evidence is bound to one of these policy bundles (SHA-256): the
    /// secret then goes where these rules hold, and not to any workload that the guest may run.
    #[must_use]
    pub fn only_for(mut self, policies: impl IntoIterator<Item = [u8; 32]>) -> Self {
        self.policies = Some(policies.into_iter().collect());
        self
    }

    /// Releases only to guests whose evidence is bound to the channel that it came over: to nobody who relays
    /// an exchange.
    #[must_use]
    pub fn only_over_channel(mut self) -> Self {
        self.over_channel = true;
        self
    }

    /// Reaches what weakens the policy.
    #[must_use]
    pub fn dangerous(self) -> DangerousReleasePolicy {
        DangerousReleasePolicy(self)
    }

    /// Whether a secret may be released on this appraisal of evidence that is bound to this policy
    /// bundle, or to none.
    ///
    /// # Errors
    ///
    /// [`Unwelcome`] says why not.
    pub fn permits(
        &self,
        appraisal: &Appraisal,
        policy: Option<&[u8; 32]>,
    ) -> Result<(), Unwelcome> {
        self.permits_standing(&Standing::of(appraisal, policy))
    }

    pub(crate) fn permits_standing(&self, standing: &Standing) -> Result<(), Unwelcome> {
        if standing.debug {
            return Err(Unwelcome::Debug);
        }
        let policy = standing.policy.as_ref();
        let policies = self.policies.as_deref();
        if policies.is_some_and(|all| policy.is_none_or(|policy| !all.contains(&policy.0))) {
            return Err(Unwelcome::Policy);
        }
        if self.over_channel && !standing.over_channel {
            return Err(Unwelcome::Channel);
        }
        match standing.tier {
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
