//! From facts to a decision.
//!
//! Rules are sliced when a bundle is loaded, by what their heads can match, so that a decision
//! evaluates each rule as seldom as possible: rules about everything once per decision, rules
//! about an action and a type of resource once for all grants of that kind (unless they look at
//! the resource), rules about one resource for its grants only. A rule whose conditions cannot hold
//! for some resources, whatever the facts (`guard`), is evaluated for the others only. What is left
//! to evaluate is compiled, if it compares facts with literals (`condition`); else Cedar does it.
//!
//! A grant holds if some `permit` about it is satisfied, no `forbid` is, and no `forbid` failed to
//! evaluate. This is Cedar's own rule but for the last part: Cedar skips what fails.

mod asked;
mod filing;
mod part;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::{Authorizer, Context, Entities, EntityUid, Request, Schema};

use self::asked::Asked;
use self::part::{Outcome, Part};
use crate::decision::{Decision, Denial, Permission, Reason, ReasonKind, Verdict};
use crate::facts::Facts;
use crate::grant::{Action, Grant, ResourceType};
use crate::rules::Rule;
use crate::{condition, schema};

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

/// What reasons are made of.
#[derive(Debug)]
struct RuleName {
    name: Arc<str>,
    line: usize,
    text: Arc<str>,
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

/// What the rules say that are the same for all grants of a head.
struct Shared {
    outcome: Outcome,
    /// The verdict, if no other rule has a say and it is the same for each grant.
    verdict: Option<Verdict>,
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
                .flat_map(|rule| match rule.is_shallow() {
                    true => condition::words(&rule.policy),
                    false => rule.words.iter().cloned().collect(),
                })
                .collect(),
            rules: rules
                .iter()
                .map(|rule| RuleName {
                    name: rule.name.as_str().into(),
                    line: rule.line,
                    text: rule.text.as_str().into(),
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
        let unknown = Facts::unknown();
        let asked = Asked::about(&engine, &unknown);
        for target in &engine.targets {
            engine.request(target, asked.context(&engine)?, true)?;
        }
        drop(asked);
        Ok(engine)
    }

    /// How many rules a decision evaluates, and grants it goes through.
    pub(crate) fn cost(&self) -> usize {
        // A compiled rule costs next to nothing.
        let rules = |part: &Part| part.set.num_of_policies() + part.len() / 64;
        let blind: usize = self.heads.iter().map(|head| rules(&head.blind)).sum();
        let each =
            |target: &Target| 1 + rules(&self.heads[target.head].sighted) + rules(&target.own);
        rules(&self.global) + blind + self.targets.iter().map(each).sum::<usize>()
    }

    /// Decides about every grant.
    pub(crate) fn decide(&self, facts: &Facts) -> Decision {
        let mut decision = Decision {
            granted: BTreeSet::new(),
            denied: Vec::new(),
            permitted: Vec::new(),
        };
        let asked = Asked::about(self, facts);
        let mut heads: Vec<Option<Result<Shared, String>>> =
            self.heads.iter().map(|_| None).collect();
        let mut global = None;
        for target in &self.targets {
            let shared =
                heads[target.head].get_or_insert_with(|| self.shared(target, &asked, &mut global));
            let Verdict { granted, because } = self.verdict(target, &asked, shared);
            let grant = target.grant.clone();
            match granted {
                true => {
                    decision.granted.insert(grant.clone());
                    decision.permitted.push(Permission { grant, because });
                }
                false => decision.denied.push(Denial { grant, because }),
            }
        }
        decision
    }

    /// Decides about one grant; none if the tables do not have it.
    pub(crate) fn decide_about(&self, facts: &Facts, grant: &Grant) -> Option<Verdict> {
        let at = self
            .targets
            .binary_search_by(|target| target.grant.cmp(grant));
        let target = self.targets.get(at.ok()?)?;
        let asked = Asked::about(self, facts);
        let shared = self.shared(target, &asked, &mut None);
        Some(self.verdict(target, &asked, &shared))
    }

    /// Asks what does not depend on which grant of a head it is.
    fn shared(
        &self,
        target: &Target,
        asked: &Asked<'_>,
        global: &mut Option<Result<Outcome, String>>,
    ) -> Result<Shared, String> {
        let global = global.get_or_insert_with(|| self.global.ask(self, target, asked));
        let mut outcome = global.clone()?;
        outcome.merge(&self.heads[target.head].blind.ask(self, target, asked)?);
        let verdict = self.conclude(&outcome);
        Ok(Shared { outcome, verdict })
    }

    fn verdict(
        &self,
        target: &Target,
        asked: &Asked<'_>,
        shared: &Result<Shared, String>,
    ) -> Verdict {
        let sighted = &self.heads[target.head].sighted;
        let verdict = match (
            shared,
            sighted.ask(self, target, asked),
            target.own.ask(self, target, asked),
        ) {
            (Err(why), _, _) => Some(self.failure(why)),
            (_, Err(why), _) | (_, _, Err(why)) => Some(self.failure(&why)),
            (Ok(shared), Ok(mut outcome), Ok(own)) => {
                outcome.merge(&own);
                if outcome == Outcome::default() {
                    shared.verdict.clone()
                } else {
                    outcome.merge(&shared.outcome);
                    self.conclude(&outcome)
                }
            }
        };
        verdict.unwrap_or_else(|| Verdict {
            granted: false,
            because: Arc::new([Reason {
                rule: Arc::from(""),
                line: self.line,
                text: format!("no rule permits `{}`", target.grant).into(),
                kind: ReasonKind::NotPermitted,
            }]),
        })
    }

    /// What follows from what became of all rules; none if no rule is about the grant.
    fn conclude(&self, outcome: &Outcome) -> Option<Verdict> {
        if outcome.lost {
            return Some(self.failure("an unknown rule stands against it"));
        }
        let errored_forbid = outcome
            .errored
            .iter()
            .any(|rule| !self.rules[*rule].permits);
        let stands = !outcome.forbidden.is_empty() || errored_forbid;
        if !stands && !outcome.permitted.is_empty() {
            let because = self.reasons(&outcome.permitted, ReasonKind::Permitted);
            return Some(Verdict {
                granted: true,
                because: because.collect(),
            });
        }
        let mut because: Vec<Reason> = self
            .reasons(&outcome.forbidden, ReasonKind::Forbidden)
            .chain(self.reasons(&outcome.errored, ReasonKind::Errored))
            .collect();
        if !stands {
            let unsatisfied: Vec<usize> = outcome
                .candidates
                .iter()
                .copied()
                .filter(|rule| outcome.errored.binary_search(rule).is_err())
                .collect();
            because.extend(self.reasons(&unsatisfied, ReasonKind::NotPermitted));
        }
        (!because.is_empty()).then(|| Verdict {
            granted: false,
            because: because.into(),
        })
    }

    fn reasons<'a>(
        &'a self,
        rules: &'a [usize],
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

    fn failure(&self, why: &str) -> Verdict {
        Verdict {
            granted: false,
            because: Arc::new([Reason {
                rule: Arc::from(""),
                line: self.line,
                text: format!("the facts could not be put to the rules: {why}").into(),
                kind: ReasonKind::Errored,
            }]),
        }
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
}

#[cfg(test)]
mod tests;
