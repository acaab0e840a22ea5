//! How a verdict is put together from checks, the same for every TEE.

use crate::appraisal::{Check, Outcome, TrustTier};
use crate::encoding::Hex;

/// Where a requirement of the relying party comes from.
pub(crate) const REFERENCE: &str = "reference values";

/// The checks of one appraisal, in order.
pub(crate) struct List(pub(crate) Vec<Check>);

impl Default for List {
    fn default() -> Self {
        Self(Vec::with_capacity(64))
    }
}

impl List {
    pub(crate) fn tier(&self) -> TrustTier {
        self.0.iter().fold(TrustTier::Affirming, |tier, check| {
            tier.or_worse(check.leaves)
        })
    }

    fn add(
        &mut self,
        id: &'static str,
        outcome: Outcome,
        observed: String,
        required: &str,
        source: &'static str,
        leaves: TrustTier,
    ) {
        let required = required.to_owned();
        self.0.push(Check {
            id,
            outcome,
            observed,
            required,
            source,
            leaves,
        });
    }

    pub(crate) fn passed(
        &mut self,
        id: &'static str,
        observed: impl Into<String>,
        source: &'static str,
    ) {
        let observed = observed.into();
        self.add(
            id,
            Outcome::Pass,
            observed,
            "",
            source,
            TrustTier::Affirming,
        );
    }

    pub(crate) fn skipped(
        &mut self,
        id: &'static str,
        observed: impl Into<String>,
        source: &'static str,
    ) {
        let observed = observed.into();
        self.add(
            id,
            Outcome::Skipped,
            observed,
            "",
            source,
            TrustTier::Affirming,
        );
    }

    pub(crate) fn unknown(
        &mut self,
        id: &'static str,
        observed: impl Into<String>,
        required: &str,
        source: &'static str,
    ) {
        let observed = observed.into();
        self.add(
            id,
            Outcome::Unknown,
            observed,
            required,
            source,
            TrustTier::Warning,
        );
    }

    pub(crate) fn judged(
        &mut self,
        id: &'static str,
        met: bool,
        observed: String,
        required: &str,
        source: &'static str,
        otherwise: TrustTier,
    ) {
        let (outcome, leaves) = if met {
            (Outcome::Pass, TrustTier::Affirming)
        } else {
            (Outcome::Fail, otherwise)
        };
        self.add(id, outcome, observed, required, source, leaves);
    }

    pub(crate) fn contraindicated(
        &mut self,
        id: &'static str,
        met: bool,
        observed: String,
        required: &str,
        source: &'static str,
    ) {
        self.judged(
            id,
            met,
            observed,
            required,
            source,
            TrustTier::Contraindicated,
        );
    }

    pub(crate) fn one_of<const N: usize>(
        &mut self,
        id: &'static str,
        seen: Option<&Hex<N>>,
        allowed: &[Hex<N>],
    ) {
        let observed = seen.map_or_else(|| "none".to_owned(), Hex::to_string);
        let met = seen.is_some_and(|seen| allowed.contains(seen));
        let required = format!("one of {} reference values", allowed.len());
        self.contraindicated(id, met, observed, &required, REFERENCE);
    }

    pub(crate) fn optional<const N: usize>(
        &mut self,
        id: &'static str,
        seen: Option<&Hex<N>>,
        allowed: Option<&[Hex<N>]>,
    ) {
        match allowed {
            Some(allowed) => self.one_of(id, seen, allowed),
            None => {
                let observed = seen.map_or_else(|| "none".to_owned(), Hex::to_string);
                self.skipped(id, observed, REFERENCE);
            }
        }
    }
}
