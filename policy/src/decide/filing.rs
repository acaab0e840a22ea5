//! Where each rule is looked for: sliced once, when a bundle is loaded.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{
    ActionConstraint, AuthorizationError, EntityUid, Policy, PolicySet, ResourceConstraint,
};

use super::Engine;
use super::asked::Asked;
use super::part::index_of;
use crate::facts::Facts;
use crate::grant::{Action, ResourceType};
use crate::guard::{self, Guard};
use crate::rules::Rule;
use crate::schema;

/// The most pairs of a rule and a grant whose guard is evaluated when a bundle is loaded.
const MOST_QUESTIONS: usize = 1 << 18;
/// The most copies of rules that are kept for single grants.
const MOST_COPIES: usize = 1 << 16;

impl Engine {
    /// Puts a rule into every part whose grants its head can match; if it looks at the resource,
    /// into the list of each head.
    pub(super) fn file(
        &mut self,
        index: usize,
        rule: &Rule,
        heads: &BTreeMap<(Action, ResourceType), usize>,
        sighted: &mut [Vec<usize>],
    ) -> Result<(), String> {
        let actions = rule.policy.action_constraint();
        let resources = rule.policy.resource_constraint();
        if rule.blind && actions == ActionConstraint::Any && resources == ResourceConstraint::Any {
            return self.global.add(index, rule);
        }
        // No entity of the schema has parents, so `in` is the same as `==`.
        let literal = match &resources {
            ResourceConstraint::Eq(uid)
            | ResourceConstraint::In(uid)
            | ResourceConstraint::IsIn(_, uid) => Some(uid.clone()),
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        };
        if let Some(resource) = literal {
            for target in &mut self.targets {
                if target.resource == resource && matches(&actions, &target.action) {
                    target.own.add(index, rule)?;
                }
            }
            return Ok(());
        }
        for ((action, kind), head) in heads {
            let of_type = match &resources {
                ResourceConstraint::Is(name) => name.to_string() == kind.as_str(),
                _ => true,
            };
            if of_type && matches(&actions, &schema::action(*action)?) {
                match rule.blind {
                    true => self.heads[*head].blind.add(index, rule)?,
                    false => sighted[*head].push(index),
                }
            }
        }
        Ok(())
    }

    /// Puts the rules that look at the resource where they can hold, asking their guards about
    /// every grant.
    pub(super) fn file_by_guard(
        &mut self,
        rules: &[Rule],
        sighted: Vec<Vec<usize>>,
    ) -> Result<(), String> {
        let unknown = Facts::unknown();
        let context = Asked::about(self, &unknown).context(self)?.clone();
        let (mut questions, mut copies) = (MOST_QUESTIONS, MOST_COPIES);
        let mut guards: BTreeMap<usize, Option<Guard>> = BTreeMap::new();
        for (head, filed) in sighted.into_iter().enumerate() {
            let targets: Vec<usize> = (0..self.targets.len())
                .filter(|target| self.targets[*target].head == head)
                .collect();
            let asked = filed.len().saturating_mul(targets.len());
            let affordable = targets.len() > 1 && asked <= questions;
            let mut set = PolicySet::new();
            let mut guarded = BTreeSet::new();
            for index in filed.iter().filter(|_| affordable) {
                let guard = guards
                    .entry(*index)
                    .or_insert_with(|| guard::of(&rules[*index]));
                if let Some(guard) = guard {
                    set.add(guard.question.clone())
                        .map_err(|error| error.to_string())?;
                    guarded.insert(*index);
                }
            }
            if guarded.is_empty() {
                for index in filed {
                    self.heads[head].sighted.add(index, &rules[index])?;
                }
                continue;
            }
            questions -= asked;
            // For each rule the grants for which it can hold, and what of it to ask. A guard that
            // fails decides nothing.
            let mut reached: BTreeMap<usize, Vec<(usize, &Policy)>> = BTreeMap::new();
            for target in &targets {
                let request = self.request(&self.targets[*target], &context, false)?;
                let response = self
                    .authorizer
                    .is_authorized(&request, &set, &self.entities);
                for id in response.diagnostics().reason() {
                    let index = index_of(id).ok_or("a guard has lost its rule")?;
                    let guard = guards.get(&index).and_then(Option::as_ref);
                    let policy = guard.map_or(&rules[index].policy, |guard| &guard.rest);
                    reached.entry(index).or_default().push((*target, policy));
                }
                for AuthorizationError::PolicyEvaluationError(error) in
                    response.diagnostics().errors()
                {
                    let index = index_of(error.policy_id()).ok_or("a guard has lost its rule")?;
                    let whole = (*target, &rules[index].policy);
                    reached.entry(index).or_default().push(whole);
                }
            }
            for index in filed {
                let rule = &rules[index];
                let of_rule = reached.remove(&index).unwrap_or_default();
                let all = !guarded.contains(&index) || of_rule.len() == targets.len();
                if all || of_rule.len() > copies {
                    self.heads[head].sighted.add(index, rule)?;
                    continue;
                }
                copies -= of_rule.len();
                for (target, policy) in of_rule {
                    self.targets[target].own.put(index, rule, policy)?;
                }
            }
        }
        Ok(())
    }
}

fn matches(constraint: &ActionConstraint, action: &EntityUid) -> bool {
    match constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid == action,
        ActionConstraint::In(uids) => uids.contains(action),
    }
}
