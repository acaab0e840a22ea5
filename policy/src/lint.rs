//! What is allowed in a bundle and probably not meant.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use crate::bundle::Bundle;
use crate::decision::{Decision, Reason, ReasonKind};
use crate::diagnostic::{Diagnostic, Severity};
use crate::domain::{Domain, Value};
use crate::facts::{Facts, Tcb, Tier};
use crate::grant::{Grant, Lever};
use crate::rules::Rule;

/// Finds what is probably not meant, in the order of the file.
pub(crate) fn lint(bundle: &Bundle) -> Vec<Diagnostic> {
    let mut linter = Linter {
        bundle,
        findings: Vec::new(),
    };
    linter.noticed_while_reading();
    linter.rules_without_grants();
    linter.unreachable_thresholds();
    linter.nothing_stops();
    linter.gaps_of_its_own();
    linter.search();
    let mut findings = linter.findings;
    findings.sort_by(|a, b| (a.span.start, &a.message).cmp(&(b.span.start, &b.message)));
    findings
}

/// Finds rules about levers that are lacking.
pub(crate) fn levers(bundle: &Bundle, lacking: &BTreeMap<Lever, String>) -> Vec<Diagnostic> {
    let moving = bundle
        .rules()
        .iter()
        // What holds from the start to the end needs no lever.
        .filter(|rule| !rule.permits && !rule.mentions.is_empty());
    let mut found = Vec::new();
    for rule in moving {
        let about = bundle.grants().iter().filter(|grant| rule.is_about(grant));
        let levers: BTreeMap<Lever, &Grant> = about
            .filter_map(|grant| Some((grant.lever()?, grant)))
            .filter(|(lever, _)| lacking.contains_key(lever))
            .collect();
        for (lever, grant) in levers {
            let message = format!("this host cannot take `{grant}` back while the workload runs");
            let diagnostic = Diagnostic::new(
                Severity::Warning,
                bundle.source(),
                rule.span.clone(),
                message,
            );
            found.push(diagnostic.with_help(&lacking[&lever]));
        }
    }
    found
}

struct Linter<'a> {
    bundle: &'a Bundle,
    findings: Vec<Diagnostic>,
}

/// The most rules and grants that are gone through in search of surprises.
const BUDGET: usize = 100_000;
/// The most facts that are decided about in search of surprises.
const MOST_POINTS: usize = 4096;

impl Linter<'_> {
    fn noticed_while_reading(&mut self) {
        for warning in self.bundle.warnings() {
            let mut warning = warning.clone();
            if warning.message.contains("impossible") {
                warning.message = "this rule can never hold".to_owned();
                warning.help = Some("its head and its conditions exclude each other".to_owned());
            }
            self.findings.push(warning);
        }
    }

    fn rules_without_grants(&mut self) {
        for rule in self.bundle.rules() {
            let already = self
                .findings
                .iter()
                .any(|finding| finding.span == rule.span);
            if !already
                && !self
                    .bundle
                    .grants()
                    .iter()
                    .any(|grant| rule.is_about(grant))
            {
                self.warn(
                    rule.span.clone(),
                    "this rule is about nothing that a table lists",
                )
                .help = Some("add an entry to the table, or leave the rule out".to_owned());
            }
        }
    }

    fn unreachable_thresholds(&mut self) {
        let risk = &self.bundle.tables().risk;
        // With a half-life signals add up; without one a sensor is on or off. Reports of others name
        // points of their own, which add up too. An operator can add any, to any policy: that is for
        // emergencies, and no plan.
        let most = risk.iter().map(|(name, entry)| match entry.half_life {
            _ if entry.adds == 0 => u32::from(entry.floor),
            None if name != "external" => u32::from(entry.adds.min(entry.cap).max(entry.floor)),
            _ => u32::from(entry.cap),
        });
        let most = most.sum::<u32>().min(100);
        let mut seen = BTreeSet::new();
        for rule in self.bundle.rules() {
            for (threshold, span) in &rule.thresholds {
                if *threshold > i64::from(most) && seen.insert(span.start) {
                    let message = format!("risk never reaches {threshold} by itself");
                    self.warn(span.clone(), message).help = Some(format!(
                        "the sensors in `[risk]` add at most {most}; more comes from an operator only"
                    ));
                }
            }
        }
    }

    fn nothing_stops(&mut self) {
        let worst = self.bundle.decide(&Facts::unknown());
        if worst.proceed() && worst.live() {
            self.warn(self.bundle.rules_span(), "nothing ever freezes or stops this workload").help = Some(
                "forbid (principal, action == Action::\"live\", resource) when { context.risk >= 80 };"
                    .to_owned(),
            );
        }
    }

    /// A vault that nothing remembers is a gap from the start, on any host.
    fn gaps_of_its_own(&mut self) {
        let tables = self.bundle.tables();
        let Some(entry) = tables
            .risk
            .get("enforcement-gap")
            .filter(|entry| entry.adds > 0)
        else {
            return;
        };
        let mut data = tables.data.iter();
        if let Some((name, _)) = data.find(|(_, data)| data.anchor.is_none()) {
            let message = format!("`enforcement-gap` adds {} from the start", entry.adds);
            let span = self.bundle.entry_span("enforcement-gap");
            self.warn(span, message).help = Some(format!(
                "nothing remembers the latest commit of `{name}`, which is the gap `freshness`: give it an `anchor`"
            ));
        }
    }

    /// Looks at all facts that rules can tell apart, or at some if they are too many.
    fn search(&mut self) {
        let domain = Domain::of(self.bundle);
        let affordable = (BUDGET / self.bundle.cost().max(1)).clamp(2, MOST_POINTS);
        let complete = domain.size() <= affordable;
        let points: Vec<Facts> = match complete {
            true => domain.combinations().collect(),
            false => domain.edges().take(affordable).collect(),
        };
        let decisions: Vec<Decision> = points
            .iter()
            .map(|facts| self.bundle.decide(facts))
            .collect();
        if complete {
            self.never_granted(&decisions);
            self.without_effect(&decisions, domain.is_exact());
        }
        self.worse_grants_more(&domain, &points, &decisions, affordable);
    }

    fn never_granted(&mut self, decisions: &[Decision]) {
        for grant in self.bundle.grants() {
            if decisions.iter().any(|decision| decision.grants(grant)) {
                continue;
            }
            let span = self.bundle.entry_span(&grant.resource.id());
            // A rule that stands against it under all facts contradicts whatever permits it.
            let always = decisions.first().and_then(|first| {
                first.because(grant).iter().find(|reason| {
                    reason.kind == ReasonKind::Forbidden
                        && decisions
                            .iter()
                            .all(|decision| decision.because(grant).contains(reason))
                })
            });
            let help = match always {
                Some(reason) => format!(
                    "{} (line {}) forbids it under all facts: change that, or leave the entry out",
                    reason.rule, reason.line
                ),
                None => "add a `permit` about it, or leave the entry out".to_owned(),
            };
            self.warn(
                span,
                format!("`{grant}` is never granted, whatever the facts"),
            )
            .help = Some(help);
        }
    }

    /// Finds rules that never decide anything, and those that only repeat what another says.
    fn without_effect(&mut self, decisions: &[Decision], exact: bool) {
        let names: HashMap<&str, usize> = self
            .bundle
            .rules()
            .iter()
            .enumerate()
            .map(|(at, rule)| (rule.name.as_str(), at))
            .collect();
        // For each rule that decided, the rules that did the same whenever it did.
        let mut beside: HashMap<usize, BTreeSet<usize>> = HashMap::new();
        let mut seen: HashSet<*const Reason> = HashSet::new();
        for decision in decisions {
            let denied = decision.denied.iter().map(|denial| &denial.because);
            let permitted = decision.permitted.iter().map(|one| &one.because);
            for because in denied.chain(permitted) {
                // Grants share what was decided about them alike.
                if !seen.insert(because.as_ptr()) {
                    continue;
                }
                let acted: BTreeSet<usize> = because
                    .iter()
                    .filter(|reason| reason.kind != ReasonKind::NotPermitted)
                    .filter_map(|reason| names.get(&*reason.rule).copied())
                    .collect();
                for rule in &acted {
                    let others = beside.entry(*rule).or_insert_with(|| acted.clone());
                    *others = &*others & &acted;
                }
            }
        }
        if !exact {
            return;
        }
        for (at, rule) in self.bundle.rules().iter().enumerate() {
            let about = self
                .bundle
                .grants()
                .iter()
                .any(|grant| rule.is_about(grant));
            if !about || self.findings.iter().any(|one| one.span == rule.span) {
                continue;
            }
            let Some(others) = beside.get(&at) else {
                let message = match rule.permits {
                    true => "this rule grants nothing: what it permits is always forbidden",
                    false => "this rule never holds, whatever the facts",
                };
                self.warn(rule.span.clone(), message).help =
                    Some("correct its conditions, or leave it out".to_owned());
                continue;
            };
            // Of two rules that say the same, the later one is the repetition.
            let covers = |other: &&usize| {
                let mutual = beside.get(other).is_some_and(|of| of.contains(&at));
                **other != at && (!mutual || **other < at)
            };
            if let Some(other) = others.iter().find(covers) {
                let other = &self.bundle.rules()[*other];
                let help = format!("leave one out, or see whether {} says too much", other.name);
                let message = format!(
                    "this rule changes nothing: whenever it holds, {} (line {}) does too",
                    other.name, other.line
                );
                self.warn(rule.span.clone(), message).help = Some(help);
            }
        }
    }

    /// Finds grants that are denied under some facts and hold when one fact gets worse.
    fn worse_grants_more(
        &mut self,
        domain: &Domain,
        points: &[Facts],
        decisions: &[Decision],
        affordable: usize,
    ) {
        let known: HashMap<&Facts, usize> = points
            .iter()
            .enumerate()
            .map(|(at, facts)| (facts, at))
            .collect();
        let mut blamed: BTreeSet<(&'static str, usize)> = BTreeSet::new();
        let mut steps = 0;
        for (better, decision) in points.iter().zip(decisions) {
            for axis in domain.axes() {
                for (name, worse) in worse_than(better, axis) {
                    let facts = worse.replaced_in(better);
                    let fresh;
                    let after = match known.get(&facts) {
                        Some(at) => &decisions[*at],
                        // Only where not all combinations were decided before.
                        None => {
                            steps += 1;
                            if steps > affordable {
                                return;
                            }
                            fresh = self.bundle.decide(&facts);
                            &fresh
                        }
                    };
                    for grant in after.granted.difference(&decision.granted) {
                        let rule = decision.because(grant).first().and_then(|reason| {
                            self.bundle
                                .rules()
                                .iter()
                                .find(|rule| *rule.name == *reason.rule)
                        });
                        let span =
                            rule.map_or(self.bundle.rules_span(), |rule: &Rule| rule.span.clone());
                        if blamed.insert((name, span.start)) {
                            let message = format!("a worse `{name}` grants more: `{grant}`");
                            let help = format!(
                                "denied with {}, granted with {}",
                                told(name, better),
                                told(name, &facts)
                            );
                            self.warn(span, message).help = Some(help);
                        }
                    }
                }
            }
        }
    }

    fn warn(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        let at = self.findings.len();
        let source = self.bundle.source();
        self.findings
            .push(Diagnostic::new(Severity::Warning, source, span, message));
        &mut self.findings[at]
    }
}

/// The values on an axis that are worse than what the facts have, with the name of the fact.
///
/// Tiers and TCB states are no line from good to bad, but knowing nothing is worse than any.
fn worse_than<'a>(
    facts: &'a Facts,
    axis: &'a [Value],
) -> impl Iterator<Item = (&'static str, &'a Value)> {
    axis.iter().filter_map(|value| {
        let (name, worse) = match value {
            Value::Risk(risk) => ("risk", *risk > facts.risk),
            Value::Age(age) => (
                "evidence_age",
                match (age, facts.evidence_age) {
                    (Some(age), Some(now)) => *age > now,
                    (None, now) => now.is_some(),
                    (Some(_), None) => false,
                },
            ),
            Value::Tier(tier) => ("tier", *tier == Tier::None && facts.tier != *tier),
            Value::Tcb(tcb) => ("tcb", *tcb == Tcb::Unknown && facts.tcb != *tcb),
            Value::Simulated(value) => ("simulated", *value && facts.simulated == Some(false)),
            Value::Debug(value) => ("debug", *value && facts.debug == Some(false)),
            Value::Gaps(gaps) => ("gaps", gaps.is_superset(&facts.gaps) && *gaps != facts.gaps),
        };
        worse.then_some((name, value))
    })
}

fn told(name: &str, facts: &Facts) -> String {
    match name {
        "risk" => format!("risk {}", facts.risk),
        "evidence_age" => match facts.evidence_age {
            Some(age) => format!("evidence_age {}", age.as_secs()),
            None => "no evidence".to_owned(),
        },
        "tier" => format!("tier \"{}\"", facts.tier),
        "tcb" => format!("tcb \"{}\"", facts.tcb),
        "simulated" => format!("simulated {:?}", facts.simulated.unwrap_or(true)),
        "debug" => format!("debug {:?}", facts.debug.unwrap_or(true)),
        _ => format!("{} gaps", facts.gaps.len()),
    }
}
