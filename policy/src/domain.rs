//! The facts between which the rules of a bundle can tell a difference.
//!
//! A rule sees risk only through the numbers it mentions, words only through those it names, so
//! that a few values stand for all. Searching them shows what a bundle can and cannot grant.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::facts::{Facts, Tcb, Tier};
use crate::rules::Rule;

/// Values of each fact, from best to worst, that stand for all others.
///
/// A fact that no rule mentions has its best value only.
#[derive(Debug)]
pub(crate) struct Domain {
    axes: [Vec<Value>; 7],
    exact: bool,
}

/// One value of one fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Risk(u8),
    Tier(Tier),
    Tcb(Tcb),
    Simulated(bool),
    Debug(bool),
    Age(Option<Duration>),
    Gaps(BTreeSet<String>),
}

impl Value {
    /// What these facts have of the kind of another value.
    pub(crate) fn of(facts: &Facts, kind: &Value) -> Value {
        match kind {
            Value::Risk(_) => Value::Risk(facts.risk),
            Value::Tier(_) => Value::Tier(facts.tier),
            Value::Tcb(_) => Value::Tcb(facts.tcb),
            Value::Simulated(_) => Value::Simulated(facts.simulated.unwrap_or(true)),
            Value::Debug(_) => Value::Debug(facts.debug.unwrap_or(true)),
            Value::Age(_) => Value::Age(facts.evidence_age),
            Value::Gaps(_) => Value::Gaps(facts.gaps.clone()),
        }
    }

    /// The same facts but for this one.
    pub(crate) fn replaced_in(&self, facts: &Facts) -> Facts {
        let mut facts = facts.clone();
        match self.clone() {
            Value::Risk(risk) => facts.risk = risk,
            Value::Tier(tier) => facts.tier = tier,
            Value::Tcb(tcb) => facts.tcb = tcb,
            Value::Simulated(simulated) => facts.simulated = Some(simulated),
            Value::Debug(debug) => facts.debug = Some(debug),
            Value::Age(age) => facts.evidence_age = age,
            Value::Gaps(gaps) => facts.gaps = gaps,
        }
        facts
    }
}

impl Domain {
    /// The most gaps that are told apart.
    const MOST_GAPS: usize = 6;

    /// Between what the rules of one bundle tell apart; of gaps each alone, and all of them.
    pub(crate) fn of(bundle: &Bundle) -> Self {
        Self::between(&bundle.rules().iter().collect::<Vec<_>>(), false)
    }

    /// Between what the rules of either bundle tell apart, with every combination of gaps.
    pub(crate) fn of_both(one: &Bundle, other: &Bundle) -> Self {
        let rules = one.rules().iter().chain(other.rules());
        Self::between(&rules.collect::<Vec<_>>(), true)
    }

    fn between(rules: &[&Rule], every_gap: bool) -> Self {
        let about = |name: &'static str| {
            rules
                .iter()
                .filter(move |rule| rule.mentions.contains(name))
        };
        let mentioned = |name| about(name).next().is_some();
        let numbers = |name| -> BTreeSet<i64> {
            let beside = |n: i64| [n.saturating_sub(1), n, n.saturating_add(1)];
            about(name)
                .flat_map(|rule| &rule.numbers)
                .flat_map(|n| beside(*n))
                .collect()
        };
        let words = |name| -> BTreeSet<&str> {
            about(name)
                .flat_map(|rule| &rule.words)
                .map(String::as_str)
                .collect()
        };
        let flags = |name| {
            if mentioned(name) {
                vec![false, true]
            } else {
                vec![false]
            }
        };

        let mut risk = BTreeSet::from([0]);
        if mentioned("risk") {
            risk.extend(
                numbers("risk")
                    .into_iter()
                    .filter_map(|n| u8::try_from(n).ok())
                    .filter(|n| *n <= 100),
            );
            risk.insert(100);
        }
        let mut ages = BTreeSet::from([0]);
        ages.extend(
            numbers("evidence_age")
                .into_iter()
                .filter_map(|n| u64::try_from(n).ok()),
        );
        let ages = ages
            .into_iter()
            .map(|age| Value::Age(Some(Duration::from_secs(age))));
        let no_age = mentioned("evidence_age").then_some(Value::Age(None));
        let gap_words = words("gaps");
        let every_gap = every_gap && gap_words.len() <= Self::MOST_GAPS;
        let all: BTreeSet<String> = gap_words
            .iter()
            .copied()
            .take(Self::MOST_GAPS)
            .map(str::to_owned)
            .collect();
        let mut gaps = vec![BTreeSet::new()];
        if mentioned("gaps") && every_gap {
            gaps = combinations_of(&all);
        } else if mentioned("gaps") {
            gaps.extend(all.iter().map(|gap| BTreeSet::from([gap.clone()])));
            gaps.push(
                all.into_iter()
                    .chain([Facts::UNKNOWN_GAP.to_owned()])
                    .collect(),
            );
        }
        Domain {
            axes: [
                risk.into_iter().map(Value::Risk).collect(),
                told_apart(Tier::ALL, Tier::as_str, mentioned("tier"), &words("tier"))
                    .into_iter()
                    .map(Value::Tier)
                    .collect(),
                told_apart(Tcb::ALL, Tcb::as_str, mentioned("tcb"), &words("tcb"))
                    .into_iter()
                    .map(Value::Tcb)
                    .collect(),
                flags("simulated")
                    .into_iter()
                    .map(Value::Simulated)
                    .collect(),
                flags("debug").into_iter().map(Value::Debug).collect(),
                ages.chain(no_age).collect(),
                gaps.into_iter().map(Value::Gaps).collect(),
            ],
            exact: rules.iter().all(|rule| rule.plain) && (every_gap || !mentioned("gaps")),
        }
    }

    /// Whether the rules decide about all facts as they do about some combination of this domain.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// The values of each fact, from best to worst.
    pub(crate) fn axes(&self) -> &[Vec<Value>] {
        &self.axes
    }

    /// How many combinations there are.
    pub(crate) fn size(&self) -> usize {
        self.axes
            .iter()
            .fold(1, |size, axis| size.saturating_mul(axis.len()))
    }

    /// Every combination.
    pub(crate) fn combinations(&self) -> impl Iterator<Item = Facts> {
        (0..self.size()).map(|index| self.combination(index))
    }

    /// The combination of this number, below [`Domain::size`].
    pub(crate) fn combination(&self, index: usize) -> Facts {
        let mut rest = index;
        self.axes.iter().fold(Facts::unknown(), |facts, axis| {
            let value = &axis[rest % axis.len()];
            rest /= axis.len();
            value.replaced_in(&facts)
        })
    }

    /// What these facts have that is not the best of its kind.
    pub(crate) fn short_of_best<'a>(&'a self, facts: &'a Facts) -> impl Iterator<Item = &'a Value> {
        self.axes.iter().flat_map(|axis| {
            axis.iter()
                .skip(1)
                .filter(|value| value.replaced_in(facts) == *facts)
        })
    }

    /// Combinations that differ in one fact from the best or the worst.
    pub(crate) fn edges(&self) -> impl Iterator<Item = Facts> {
        let corner = |pick: fn(&[Value]) -> Option<&Value>| {
            let values = self.axes.iter().filter_map(|axis| pick(axis));
            values.fold(Facts::unknown(), |facts, value| value.replaced_in(&facts))
        };
        let corners = [corner(<[Value]>::first), corner(<[Value]>::last)];
        corners.into_iter().flat_map(|corner| {
            self.axes
                .iter()
                .flatten()
                .map(move |value| value.replaced_in(&corner))
        })
    }
}

/// Every set of these gaps, without and with one that no rule names, and the unknown.
fn combinations_of(all: &BTreeSet<String>) -> Vec<BTreeSet<String>> {
    let mut other = "another".to_owned();
    while all.contains(&other) || other == Facts::UNKNOWN_GAP {
        other.push('-');
    }
    let mut sets = vec![BTreeSet::new()];
    for gap in all.iter().chain([&other]) {
        let with: Vec<BTreeSet<String>> = sets
            .iter()
            .map(|set| set | &BTreeSet::from([gap.clone()]))
            .collect();
        sets.extend(with);
    }
    let unknown = BTreeSet::from([Facts::UNKNOWN_GAP.to_owned()]);
    if !sets.contains(&unknown) {
        sets.push(unknown);
    }
    sets
}

/// The best value, the worst, those that rules name, and one that no rule names.
fn told_apart<T: Copy + PartialEq>(
    all: &[T],
    name: fn(T) -> &'static str,
    mentioned: bool,
    words: &BTreeSet<&str>,
) -> Vec<T> {
    if !mentioned {
        return all.first().copied().into_iter().collect();
    }
    // A pattern may match any of them.
    let patterns = words.iter().any(|word| word.contains('*'));
    let named = |value: T| patterns || words.contains(name(value));
    let other = all.iter().copied().find(|value| !named(*value));
    all.iter()
        .copied()
        .enumerate()
        .filter(|(at, value)| {
            *at == 0 || *at + 1 == all.len() || named(*value) || other == Some(*value)
        })
        .map(|(_, value)| value)
        .collect()
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Risk(risk) => write!(f, "risk {risk}"),
            Value::Tier(tier) => write!(f, "tier \"{tier}\""),
            Value::Tcb(tcb) => write!(f, "tcb \"{tcb}\""),
            Value::Simulated(value) => write!(f, "simulated {value}"),
            Value::Debug(value) => write!(f, "debug {value}"),
            Value::Age(Some(age)) => write!(f, "evidence_age {}", age.as_secs()),
            Value::Age(None) => f.write_str("no evidence"),
            Value::Gaps(gaps) if gaps.is_empty() => f.write_str("no gaps"),
            Value::Gaps(gaps) => {
                let gaps: Vec<&str> = gaps.iter().map(String::as_str).collect();
                write!(f, "gaps `{}`", gaps.join("`, `"))
            }
        }
    }
}
