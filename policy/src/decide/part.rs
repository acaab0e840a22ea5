//! Rules that are evaluated together, and what became of them.

use cedar_policy::{AuthorizationError, Decision as CedarDecision, Policy, PolicyId, PolicySet};

use super::asked::Asked;
use super::{Engine, Target};
use crate::condition::Condition;
use crate::rules::Rule;

/// Rules that are evaluated together.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Those whose conditions are compiled.
    pub(super) compiled: Vec<Compiled>,
    /// The others.
    pub(super) set: PolicySet,
    /// Those that permit.
    pub(super) permits: Vec<usize>,
}

/// A rule whose head matches wherever its part is asked.
#[derive(Debug)]
pub(super) struct Compiled {
    rule: usize,
    permits: bool,
    condition: Condition,
}

/// What became of the rules of one or several parts; each list is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) permitted: Vec<usize>,
    pub(super) forbidden: Vec<usize>,
    pub(super) errored: Vec<usize>,
    /// Permits that were asked.
    pub(super) candidates: Vec<usize>,
    /// Whether a rule forbade or failed that is not known by its id.
    pub(super) lost: bool,
}

impl Part {
    pub(super) fn add(&mut self, index: usize, rule: &Rule) -> Result<(), String> {
        self.put(index, rule, &rule.policy)
    }

    /// Adds a rule in the shape that it has here.
    pub(super) fn put(&mut self, index: usize, rule: &Rule, policy: &Policy) -> Result<(), String> {
        match rule.is_shallow().then(|| Condition::of(policy)).flatten() {
            Some(condition) => self.compiled.push(Compiled {
                rule: index,
                permits: rule.permits,
                condition,
            }),
            None => self
                .set
                .add(policy.clone())
                .map_err(|error| error.to_string())?,
        }
        if rule.permits {
            self.permits.push(index);
        }
        Ok(())
    }

    /// How many rules there are.
    pub(super) fn len(&self) -> usize {
        self.compiled.len() + self.set.num_of_policies()
    }

    /// Asks the rules about a grant, at which the heads of all of them match.
    pub(super) fn ask(
        &self,
        engine: &Engine,
        target: &Target,
        asked: &Asked<'_>,
    ) -> Result<Outcome, String> {
        let mut outcome = Outcome::default();
        for rule in &self.compiled {
            if rule.condition.holds(&asked.view) {
                match rule.permits {
                    true => outcome.permitted.push(rule.rule),
                    false => outcome.forbidden.push(rule.rule),
                }
            }
        }
        if !self.set.is_empty() {
            self.ask_cedar(engine, target, asked, &mut outcome)?;
        }
        outcome.candidates.extend(&self.permits);
        outcome.sort();
        Ok(outcome)
    }

    fn ask_cedar(
        &self,
        engine: &Engine,
        target: &Target,
        asked: &Asked<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let request = engine.request(target, asked.context(engine)?, false)?;
        let response = engine
            .authorizer
            .is_authorized(&request, &self.set, &engine.entities);
        let reasons = response.diagnostics().reason();
        match response.decision() {
            CedarDecision::Allow => outcome.permitted.extend(reasons.filter_map(index_of)),
            CedarDecision::Deny => {
                for id in reasons {
                    outcome.note(index_of(id), |outcome| &mut outcome.forbidden);
                }
            }
        }
        for AuthorizationError::PolicyEvaluationError(error) in response.diagnostics().errors() {
            outcome.note(index_of(error.policy_id()), |outcome| &mut outcome.errored);
        }
        Ok(())
    }
}

impl Outcome {
    /// Notes a rule that stands against the grant; one that cannot be told must not be forgotten.
    fn note(&mut self, rule: Option<usize>, list: fn(&mut Self) -> &mut Vec<usize>) {
        match rule {
            Some(rule) => list(self).push(rule),
            None => self.lost = true,
        }
    }

    pub(super) fn merge(&mut self, other: &Outcome) {
        if *other == Outcome::default() {
            return;
        }
        self.permitted.extend(&other.permitted);
        self.forbidden.extend(&other.forbidden);
        self.errored.extend(&other.errored);
        self.candidates.extend(&other.candidates);
        self.lost |= other.lost;
        self.sort();
    }

    fn sort(&mut self) {
        for list in [
            &mut self.permitted,
            &mut self.forbidden,
            &mut self.errored,
            &mut self.candidates,
        ] {
            if !list.is_sorted() {
                list.sort_unstable();
            }
            list.dedup();
        }
    }
}

/// The rule behind a policy id.
pub(super) fn index_of(id: &PolicyId) -> Option<usize> {
    AsRef::<str>::as_ref(id).parse().ok()
}
