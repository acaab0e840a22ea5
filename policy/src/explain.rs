//! Why a grant holds or not, and what would have to change.

use std::fmt;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::decision::Reason;
use crate::domain::{Domain, Value};
use crate::facts::Facts;
use crate::grant::Grant;

/// Why a grant holds or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The grant.
    pub grant: Grant,
    /// Whether it holds.
    pub granted: bool,
    /// The rules that decided; never empty.
    pub because: Vec<Reason>,
    /// For a denied grant: changes of a single fact, each of which would grant it, as
    /// `risk < 20` or `tcb = "up-to-date"`; if there is none, one change of several facts of which
    /// none can be left out, as `risk < 20 and tcb = "up-to-date"`. Empty if nothing was found.
    pub would_be_granted_if: Vec<String>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}",
            self.grant,
            if self.granted { "granted" } else { "denied" }
        )?;
        for Reason {
            rule,
            line,
            text,
            kind,
        } in &self.because
        {
            match &**rule {
                "" => writeln!(f, "  {text}")?,
                rule => writeln!(f, "  {kind} by {rule} (line {line}): {text}")?,
            }
        }
        for change in &self.would_be_granted_if {
            writeln!(f, "  would be granted if {change}")?;
        }
        Ok(())
    }
}

/// Explains every grant of a bundle under these facts.
pub(crate) fn explain(bundle: &Bundle, facts: &Facts) -> Vec<Explanation> {
    let decision = bundle.decide(facts);
    let domain = Domain::of(bundle);
    // One decision per value of one fact serves all grants.
    let tried: Vec<Vec<_>> = domain
        .axes()
        .iter()
        .map(|axis| {
            let near = near(axis, facts);
            near.map(|value| (value, bundle.decide(&value.replaced_in(facts))))
                .collect()
        })
        .collect();
    bundle
        .grants()
        .iter()
        .map(|grant| {
            let granted = decision.grants(grant);
            let single = tried.iter().filter(|_| !granted).filter_map(|axis| {
                let holds: Vec<(&Value, bool)> = axis
                    .iter()
                    .map(|(value, decision)| (*value, decision.grants(grant)))
                    .collect();
                change(&holds, facts)
            });
            let mut changes: Vec<String> = single.collect();
            if !granted && changes.is_empty() {
                changes.extend(several(bundle, grant, facts, &domain));
            }
            Explanation {
                grant: grant.clone(),
                granted,
                because: decision.because(grant).to_vec(),
                would_be_granted_if: changes,
            }
        })
        .collect()
}

/// The most combinations of facts that are tried for changes of several.
const MOST_TRIED: usize = 1 << 13;

/// Facts that have to change together, each of them needed.
fn several(bundle: &Bundle, grant: &Grant, facts: &Facts, domain: &Domain) -> Option<String> {
    let grants = |facts: &Facts| {
        bundle
            .decide_about(facts, grant)
            .is_some_and(|verdict| verdict.granted)
    };
    // The first combination has the best of everything.
    let mut point = (0..domain.size().min(MOST_TRIED))
        .map(|index| domain.combination(index))
        .find(grants)?;
    let mut needed = Vec::new();
    for axis in domain.axes() {
        let is = Value::of(facts, axis.first()?);
        let without = is.replaced_in(&point);
        if grants(&without) {
            point = without;
        } else {
            needed.push(axis);
        }
    }
    let told = needed.iter().filter_map(|axis| {
        let holds: Vec<(&Value, bool)> = axis
            .iter()
            .map(|value| (value, grants(&value.replaced_in(&point))))
            .collect();
        change(&holds, facts)
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty() && told.len() == needed.len()).then(|| told.join(" and "))
}

/// The values of an axis to try: all, or of very many the best and those nearest to what is.
fn near<'a>(axis: &'a [Value], facts: &Facts) -> impl Iterator<Item = &'a Value> {
    const MOST: usize = 128;
    let now = axis.partition_point(|value| match value {
        Value::Age(Some(age)) => facts.evidence_age.is_none_or(|now| *age < now),
        _ => false,
    });
    let from = now.saturating_sub(MOST);
    let best = axis.first().filter(|_| from > 0);
    best.into_iter()
        .chain(axis.iter().skip(from).take(2 * MOST))
}

/// The nearest change along one fact that grants, in words.
fn change(holds: &[(&Value, bool)], facts: &Facts) -> Option<String> {
    let first = holds
        .iter()
        .find(|(_, granted)| *granted)
        .map(|(value, _)| *value)?;
    Some(match first {
        Value::Risk(_) => {
            let risk = |value: &Value| match value {
                Value::Risk(risk) => i64::from(*risk),
                _ => 0,
            };
            bound("risk", holds, facts.risk_points(), risk)?
        }
        Value::Age(_) => {
            let age = |value: &Value| match value {
                Value::Age(Some(age)) => i64::try_from(age.as_secs()).unwrap_or(i64::MAX),
                _ => i64::MAX,
            };
            bound("evidence_age", holds, facts.age_seconds(), age)?
        }
        Value::Tier(_) => words("tier", holds),
        Value::Tcb(_) => words("tcb", holds),
        Value::Simulated(value) => format!("simulated = {value}"),
        Value::Debug(value) => format!("debug = {value}"),
        Value::Gaps(gaps) if gaps.is_empty() => "there were no gaps".to_owned(),
        Value::Gaps(gaps) => {
            format!(
                "the gaps were `{}`",
                gaps.iter().cloned().collect::<Vec<_>>().join("`, `")
            )
        }
    })
}

/// The bound that a number would have to keep, as near as possible to what it is.
fn bound(
    name: &str,
    holds: &[(&Value, bool)],
    now: i64,
    number: impl Fn(&Value) -> i64,
) -> Option<String> {
    let granted = || {
        holds
            .iter()
            .filter(|(_, granted)| *granted)
            .map(|(value, _)| number(value))
    };
    let denied = || {
        holds
            .iter()
            .filter(|(_, granted)| !*granted)
            .map(|(value, _)| number(value))
    };
    if let Some(below) = granted().filter(|n| *n < now).max() {
        // The first value above that is denied: a domain has the neighbours of every threshold.
        let bound = denied().filter(|n| *n > below).min().unwrap_or(now);
        return Some(match denied().any(|n| n < below) {
            false => format!("{name} < {bound}"),
            true => format!("{name} = {below}"),
        });
    }
    let above = granted().filter(|n| *n > now).min()?;
    let bound = denied().filter(|n| *n < above).max().unwrap_or(now);
    Some(match denied().any(|n| n > above) {
        false => format!("{name} > {bound}"),
        true => format!("{name} = {above}"),
    })
}

fn words(name: &str, holds: &[(&Value, bool)]) -> String {
    let words: Vec<String> = holds
        .iter()
        .filter(|(_, granted)| *granted)
        .filter_map(|(value, _)| match value {
            Value::Tier(tier) => Some(format!("{name} = \"{tier}\"")),
            Value::Tcb(tcb) => Some(format!("{name} = \"{tcb}\"")),
            _ => None,
        })
        .collect();
    words.join(" or ")
}
