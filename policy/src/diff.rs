//! What two bundles grant differently.
//!
//! Table entries are compared one by one. What rules make of a grant that both bundles have is
//! compared by deciding under every combination of facts that the rules of either can tell apart;
//! where these are too many, or a rule compares facts with more than literals, under a sample,
//! and the result says so.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::bundle::Bundle;
use crate::domain::Domain;
use crate::facts::Facts;
use crate::grant::Grant;
use crate::settings;

/// What a newer bundle grants differently from an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diff {
    /// Grants of table entries that only the newer bundle has.
    pub added: Vec<Grant>,
    /// Grants of table entries that only the older bundle has.
    pub removed: Vec<Grant>,
    /// Grants of both that hold under different facts, in the order of the grants. One that is
    /// gained under some facts and lost under others is listed twice.
    pub flips: Vec<Flip>,
    /// Other entries of the tables that differ.
    pub settings: Vec<Setting>,
    /// Under how many combinations of facts both were decided.
    pub decided: usize,
    /// Whether `flips` is all there is. Else the facts were too many, and a sample was taken.
    pub complete: bool,
}

/// A grant that holds under other facts than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Flip {
    /// The grant.
    pub grant: Grant,
    /// In which direction.
    pub change: Change,
    /// An example: facts under which the bundles disagree, as good as such facts can be.
    pub facts: Facts,
    /// What of these facts is not the best, as `risk 20, tcb "unknown"`; empty if all is.
    pub told: String,
}

/// The direction of a [`Flip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Denied by the older bundle, granted by the newer one.
    Gained,
    /// Granted by the older bundle, denied by the newer one.
    Lost,
}

/// An entry of the tables that is no grant, and differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Setting {
    /// Which, as `isolation.memory`.
    pub place: String,
    /// In the older bundle.
    pub old: String,
    /// In the newer one.
    pub new: String,
    /// Whether it leaves the workload at most as much. Only limits and lists have such an order;
    /// another program, host path, sensor or way of attestation may mean anything.
    pub narrows: bool,
}

impl Diff {
    /// Whether both bundles grant the same under all facts, and this was shown for all of them.
    pub fn is_equal(&self) -> bool {
        let Diff {
            added,
            removed,
            flips,
            settings,
            ..
        } = self;
        self.complete
            && added.is_empty()
            && removed.is_empty()
            && flips.is_empty()
            && settings.is_empty()
    }

    /// Whether the newer bundle grants at most as much as the older one under the same facts.
    ///
    /// False too when it could not be shown, because only a sample of facts was decided about.
    pub fn is_narrowing(&self) -> bool {
        self.complete
            && self.added.is_empty()
            && self.flips.iter().all(|flip| flip.change == Change::Lost)
            && self.settings.iter().all(|setting| setting.narrows)
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for grant in &self.removed {
            writeln!(f, "- {grant}")?;
        }
        for grant in &self.added {
            writeln!(f, "+ {grant}")?;
        }
        for flip in &self.flips {
            let (sign, word) = match flip.change {
                Change::Gained => ('+', "granted"),
                Change::Lost => ('-', "denied"),
            };
            let told = match flip.told.as_str() {
                "" => "with the best facts".to_owned(),
                told => format!("with {told}"),
            };
            writeln!(f, "{sign} {}: {word} {told}", flip.grant)?;
        }
        for Setting {
            place, old, new, ..
        } in &self.settings
        {
            writeln!(f, "~ {place}: {old} -> {new}")?;
        }
        if !self.complete {
            writeln!(
                f,
                "{} combinations of facts were compared, not all: there may be other differences",
                self.decided
            )?;
        }
        let verdict = match (self.is_equal(), self.is_narrowing()) {
            (true, _) => "both grant the same",
            (false, true) => "the newer grants at most as much",
            (false, false) if self.complete => "the newer may grant more",
            (false, false) => "it is not shown that the newer grants at most as much",
        };
        writeln!(f, "{verdict}")
    }
}

/// The most rules and grants that are gone through on each side.
const BUDGET: usize = 400_000;
/// The most facts that are decided about.
const MOST_POINTS: usize = 16_384;

/// Compares an older bundle with a newer one.
pub(crate) fn diff(old: &Bundle, new: &Bundle) -> Diff {
    let (before, after): (BTreeSet<&Grant>, BTreeSet<&Grant>) =
        (old.grants().iter().collect(), new.grants().iter().collect());
    let only = |one: &BTreeSet<&Grant>, other: &BTreeSet<&Grant>| -> Vec<Grant> {
        one.difference(other)
            .map(|grant| (*grant).clone())
            .collect()
    };
    let mut diff = Diff {
        added: only(&after, &before),
        removed: only(&before, &after),
        flips: Vec::new(),
        settings: settings::compare(old, new),
        decided: 0,
        complete: true,
    };
    // The same rules, over the same principal, decide about a grant the same way.
    let texts = |bundle: &'_ Bundle| -> Vec<String> {
        bundle
            .rules()
            .iter()
            .map(|rule| rule.text.clone())
            .collect()
    };
    if old.name() != new.name() || texts(old) != texts(new) {
        let shared: Vec<&Grant> = before.intersection(&after).copied().collect();
        diff.search(old, new, &shared);
    }
    diff
}

impl Diff {
    fn search(&mut self, old: &Bundle, new: &Bundle, shared: &[&Grant]) {
        let domain = Domain::of_both(old, new);
        let cost = old.cost().max(new.cost()).max(1);
        let affordable = (BUDGET / cost).clamp(64, MOST_POINTS);
        let all = domain.size() <= affordable;
        self.complete = all && domain.is_exact();
        let points: Vec<Facts> = match all {
            true => domain.combinations().collect(),
            // The edges first, then as many as can be had, evenly over the rest.
            false => {
                let half = affordable / 2;
                let step = domain.size() / half.max(1);
                let spread = (0..half).map(|n| domain.combination(n * step + n % step.max(1)));
                domain.edges().take(half).chain(spread).collect()
            }
        };
        self.decided = points.len();

        // For each grant and direction, the example that is nearest to the best facts.
        let mut found: Vec<[Option<(usize, &Facts)>; 2]> = vec![[None; 2]; shared.len()];
        for facts in &points {
            let (before, after) = (old.decide(facts), new.decide(facts));
            if before.granted == after.granted {
                continue;
            }
            let far = domain.short_of_best(facts).count();
            for (grant, found) in shared.iter().zip(&mut found) {
                let side = match (before.grants(grant), after.grants(grant)) {
                    (false, true) => 0,
                    (true, false) => 1,
                    _ => continue,
                };
                if found[side].is_none_or(|(known, _)| far < known) {
                    found[side] = Some((far, facts));
                }
            }
        }
        for (grant, found) in shared.iter().zip(found) {
            for (change, example) in [Change::Gained, Change::Lost].into_iter().zip(found) {
                let Some((_, facts)) = example else { continue };
                let told: Vec<String> = domain
                    .short_of_best(facts)
                    .map(ToString::to_string)
                    .collect();
                self.flips.push(Flip {
                    grant: (*grant).clone(),
                    change,
                    facts: facts.clone(),
                    told: told.join(", "),
                });
            }
        }
    }
}
