//! From facts to a decision.
//!
//! Rules are sliced when a bundle is loaded, by what their heads can match, so that a decision
//! evaluates each rule as seldom as possible: rules about everything once per decision, rules
//! about an action and a type of resource once for all grants of that kind (unless they look at
//! the resource), rules about one resource for its grants only. A rule whose conditions cannot hold
//! for some resources, whatever the facts (`guard`), is evaluated for the others only.
//!
//! A grant holds if some `permit` about it is satisfied, no `forbid` is, and no `forbid` failed to
//! evaluate. This is Cedar's own rule but for the last part: Cedar skips what fails.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Context, Decision as CedarDecision, Entities,
    EntityUid, Policy, PolicySet, Request, ResourceConstraint, RestrictedExpression, Schema,
};

use crate::decision::{Decision, Denial, Permission, Reason, ReasonKind};
use crate::facts::Facts;
use crate::grant::{Action, Grant, ResourceType};
use crate::guard::{self, Guard};
use crate::rules::Rule;
use crate::schema;

/// The rules of a bundle, sliced and ready to be asked about its grants.
#[derive(Debug)]
pub(crate) struct Engine {
    schema: Schema,
    authorizer: Authorizer,
    principal: EntityUid,
    entities: Entities,
    rules: Vec<RuleName>,
    /// Rules about every grant, which look at the context only.
    global: Part,
    heads: Vec<Head>,
    /// One for each grant, in the same order.
    targets: Vec<Target>,
    /// Strings that rules mention: what an unknown gap may be.
    words: BTreeSet<String>,
    /// The line on which the rules begin.
    line: usize,
}

/// The most pairs of a rule and a grant whose guard is evaluated when a bundle is loaded.
const MOST_QUESTIONS: usize = 1 << 18;
/// The most copies of rules that are kept for single grants.
const MOST_COPIES: usize = 1 << 16;

/// What reasons are made of.
#[derive(Debug)]
struct RuleName {
    name: String,
    line: usize,
    text: String,
    permits: bool,
}

/// All grants of one action on one type of resource.
#[derive(Debug)]
struct Head {
    /// Rules that look at the context only.
    blind: Part,
    /// Rules that look at the resource, too, and can hold for every one of them.
    sighted: Part,
}

/// A grant as Cedar sees it.
#[derive(Debug)]
struct Target {
    grant: Grant,
    head: usize,
    action: EntityUid,
    resource: EntityUid,
    /// Rules that can hold for this very resource, and not for every one of its type.
    own: Part,
}

/// Rules that are evaluated together.
#[derive(Debug, Default)]
struct Part {
    set: PolicySet,
    /// Those of them that permit.
    permits: Vec<usize>,
}

/// What became of the rules of one or several parts.
#[derive(Clone, Debug, Default)]
struct Outcome {
    permitted: BTreeSet<usize>,
    forbidden: BTreeSet<usize>,
    errored: BTreeSet<usize>,
    /// Permits that were asked.
    candidates: BTreeSet<usize>,
    /// Whether a rule forbade or failed that is not known by its id.
    lost: bool,
}

impl Engine {
    pub(crate) fn new(
        schema: Schema,
        name: &str,
        grants: &[Grant],
        rules: &[Rule],
        line: usize,
    ) -> Result<Self, String> {
        let principal = schema::workload(name)?;
        let entities = schema::entities(&schema, &principal, name, grants)?;
        let mut heads: BTreeMap<(Action, ResourceType), usize> = BTreeMap::new();
        for grant in grants {
            let next = heads.len();
            heads
                .entry((grant.action, grant.resource.kind()))
                .or_insert(next);
        }
        let mut engine = Engine {
            authorizer: Authorizer::new(),
            global: Part::default(),
            heads: heads
                .iter()
                .map(|_| Head {
                    blind: Part::default(),
                    sighted: Part::default(),
                })
                .collect(),
            targets: grants
                .iter()
                .map(|grant| {
                    Ok(Target {
                        head: heads[&(grant.action, grant.resource.kind())],
                        action: schema::action(grant.action)?,
                        resource: schema::resource(&grant.resource)?,
                        own: Part::default(),
                        grant: grant.clone(),
                    })
                })
                .collect::<Result<_, String>>()?,
            words: rules
                .iter()
                .flat_map(|rule| rule.words.iter().cloned())
                .collect(),
            rules: rules
                .iter()
                .map(|rule| RuleName {
                    name: rule.name.clone(),
                    line: rule.line,
                    text: rule.text.clone(),
                    permits: rule.permits,
                })
                .collect(),
            schema,
            principal,
            entities,
            line,
        };
        let mut sighted = vec![Vec::new(); heads.len()];
        for (index, rule) in rules.iter().enumerate() {
            engine.file(index, rule, &heads, &mut sighted)?;
        }
        engine.file_by_guard(rules, sighted)?;
        // A request that does not fit the schema is found now, not when it is needed.
        let context = engine.context(&Facts::unknown())?;
        for target in &engine.targets {
            engine.request(target, &context, true)?;
        }
        Ok(engine)
    }

    /// Puts a rule into every part whose grants its head can match; if it looks at the resource,
    /// into the list of each head.
    fn file(
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
    fn file_by_guard(&mut self, rules: &[Rule], sighted: Vec<Vec<usize>>) -> Result<(), String> {
        let context = self.context(&Facts::unknown())?;
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

    /// How many rules a decision evaluates, and grants it goes through.
    pub(crate) fn cost(&self) -> usize {
        let rules = |part: &Part| part.set.num_of_policies();
        let blind: usize = self.heads.iter().map(|head| rules(&head.blind)).sum();
        let each =
            |target: &Target| 1 + rules(&self.heads[target.head].sighted) + rules(&target.own);
        rules(&self.global) + blind + self.targets.iter().map(each).sum::<usize>()
    }

    /// Indices of the rules that can apply to a grant.
    pub(crate) fn rules_about(&self, grant: &Grant) -> BTreeSet<usize> {
        let targets = self.targets.iter().filter(|target| target.grant == *grant);
        let parts = targets.flat_map(|target| {
            let head = &self.heads[target.head];
            [&self.global, &head.blind, &head.sighted, &target.own]
        });
        parts
            .flat_map(|part| part.set.policies())
            // One that cannot be told counts as one that is not there: see who asks.
            .map(|policy| index_of(policy.id()).unwrap_or(usize::MAX))
            .collect()
    }

    /// Decides about every grant.
    pub(crate) fn decide(&self, facts: &Facts) -> Decision {
        let mut decision = Decision {
            granted: BTreeSet::new(),
            denied: Vec::new(),
            permitted: Vec::new(),
        };
        let context = match self.context(facts) {
            Ok(context) => context,
            Err(why) => {
                for target in &self.targets {
                    let because = vec![self.failure(&why)];
                    decision.denied.push(Denial {
                        grant: target.grant.clone(),
                        because,
                    });
                }
                return decision;
            }
        };
        let mut global: Option<Outcome> = None;
        let mut blind: Vec<Option<Outcome>> = vec![None; self.heads.len()];
        for target in &self.targets {
            let outcome = self.request(target, &context, false).map(|request| {
                let head = &self.heads[target.head];
                let global = global.get_or_insert_with(|| self.evaluate(&self.global, &request));
                let blind =
                    blind[target.head].get_or_insert_with(|| self.evaluate(&head.blind, &request));
                let mut outcome = global.clone();
                outcome.merge(blind);
                outcome.merge(&self.evaluate(&head.sighted, &request));
                outcome.merge(&self.evaluate(&target.own, &request));
                outcome
            });
            self.conclude(&mut decision, &target.grant, outcome);
        }
        decision
    }

    fn conclude(&self, decision: &mut Decision, grant: &Grant, outcome: Result<Outcome, String>) {
        let outcome = match outcome {
            Ok(outcome) if outcome.lost => Err("an unknown rule stands against it".to_owned()),
            other => other,
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(why) => {
                let because = vec![self.failure(&why)];
                decision.denied.push(Denial {
                    grant: grant.clone(),
                    because,
                });
                return;
            }
        };
        let errored_forbid = outcome
            .errored
            .iter()
            .any(|rule| !self.rules[*rule].permits);
        if outcome.forbidden.is_empty() && !errored_forbid && !outcome.permitted.is_empty() {
            let because = self
                .reasons(&outcome.permitted, ReasonKind::Permitted)
                .collect();
            decision.granted.insert(grant.clone());
            decision.permitted.push(Permission {
                grant: grant.clone(),
                because,
            });
            return;
        }
        let mut because: Vec<Reason> = self
            .reasons(&outcome.forbidden, ReasonKind::Forbidden)
            .chain(self.reasons(&outcome.errored, ReasonKind::Errored))
            .collect();
        if outcome.forbidden.is_empty() && !errored_forbid {
            let unsatisfied = &outcome.candidates - &outcome.errored;
            because.extend(self.reasons(&unsatisfied, ReasonKind::NotPermitted));
            if because.is_empty() {
                because.push(Reason {
                    rule: String::new(),
                    line: self.line,
                    text: format!("no rule permits `{grant}`"),
                    kind: ReasonKind::NotPermitted,
                });
            }
        }
        decision.denied.push(Denial {
            grant: grant.clone(),
            because,
        });
    }

    fn reasons<'a>(
        &'a self,
        rules: &'a BTreeSet<usize>,
        kind: ReasonKind,
    ) -> impl Iterator<Item = Reason> + 'a {
        rules.iter().map(move |rule| {
            let RuleName {
                name, line, text, ..
            } = &self.rules[*rule];
            Reason {
                rule: name.clone(),
                line: *line,
                text: text.clone(),
                kind,
            }
        })
    }

    fn failure(&self, why: &str) -> Reason {
        Reason {
            rule: String::new(),
            line: self.line,
            text: format!("the facts could not be put to the rules: {why}"),
            kind: ReasonKind::Errored,
        }
    }

    fn evaluate(&self, part: &Part, request: &Request) -> Outcome {
        let mut outcome = Outcome::default();
        if part.set.is_empty() {
            return outcome;
        }
        let response = self
            .authorizer
            .is_authorized(request, &part.set, &self.entities);
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
        outcome.candidates.extend(&part.permits);
        outcome
    }

    fn request(
        &self,
        target: &Target,
        context: &Context,
        validate: bool,
    ) -> Result<Request, String> {
        Request::new(
            self.principal.clone(),
            target.action.clone(),
            target.resource.clone(),
            context.clone(),
            validate.then_some(&self.schema),
        )
        .map_err(|error| error.to_string())
    }

    /// The facts as Cedar sees them, checked against the schema.
    fn context(&self, facts: &Facts) -> Result<Context, String> {
        let mut gaps: BTreeSet<&str> = facts.gaps.iter().map(String::as_str).collect();
        if gaps.contains(Facts::UNKNOWN_GAP) {
            gaps.extend(self.words.iter().map(String::as_str));
        }
        let word = |word: &str| RestrictedExpression::new_string(word.to_owned());
        let pairs = [
            ("risk", RestrictedExpression::new_long(facts.risk_points())),
            ("tier", word(facts.tier.as_str())),
            ("tcb", word(facts.tcb.as_str())),
            (
                "simulated",
                RestrictedExpression::new_bool(facts.simulated.unwrap_or(true)),
            ),
            (
                "debug",
                RestrictedExpression::new_bool(facts.debug.unwrap_or(true)),
            ),
            (
                "evidence_age",
                RestrictedExpression::new_long(facts.age_seconds()),
            ),
            (
                "gaps",
                RestrictedExpression::new_set(gaps.into_iter().map(word)),
            ),
        ];
        let context = Context::from_pairs(pairs.map(|(key, value)| (key.to_owned(), value)))
            .map_err(|error| error.to_string())?;
        // Every action of the schema has the same context.
        let action = schema::action(Action::Live)?;
        context
            .validate(&self.schema, &action)
            .map_err(|error| error.to_string())?;
        Ok(context)
    }
}

impl Part {
    fn add(&mut self, index: usize, rule: &Rule) -> Result<(), String> {
        self.put(index, rule, &rule.policy)
    }

    /// Adds a rule in the shape that it has here.
    fn put(&mut self, index: usize, rule: &Rule, policy: &Policy) -> Result<(), String> {
        self.set
            .add(policy.clone())
            .map_err(|error| error.to_string())?;
        if rule.permits {
            self.permits.push(index);
        }
        Ok(())
    }
}

impl Outcome {
    /// Notes a rule that stands against the grant; one that cannot be told must not be forgotten.
    fn note(&mut self, rule: Option<usize>, list: fn(&mut Self) -> &mut BTreeSet<usize>) {
        match rule {
            Some(rule) => {
                list(self).insert(rule);
            }
            None => self.lost = true,
        }
    }

    fn merge(&mut self, other: &Outcome) {
        self.permitted.extend(&other.permitted);
        self.forbidden.extend(&other.forbidden);
        self.errored.extend(&other.errored);
        self.candidates.extend(&other.candidates);
        self.lost |= other.lost;
    }
}

fn index_of(id: &cedar_policy::PolicyId) -> Option<usize> {
    AsRef::<str>::as_ref(id).parse().ok()
}

fn matches(constraint: &ActionConstraint, action: &EntityUid) -> bool {
    match constraint {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid == action,
        ActionConstraint::In(uids) => uids.contains(action),
    }
}

#[cfg(test)]
mod tests;
