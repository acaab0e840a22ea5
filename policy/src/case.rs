//! Tests of policies: facts, and what is expected to be granted and denied under them.
//!
//! ```toml
//! [facts]                                      # of every case that does not say otherwise
//! tier = "affirming"
//! tcb = "up-to-date"
//!
//! [[case]]
//! name = "data is withdrawn at risk 20"
//! facts = { risk = 20 }                        # what is said nowhere is unknown: it has its worst value
//! expect = { granted = ["proceed", "live"], denied = ["read vault customers"] }
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::bundle::{Bundle, BundleError};
use crate::decision::{Reason, ReasonKind};
use crate::diagnostic::{Diagnostic, Severity};
use crate::grant::Grant;
use crate::reader::{self, CaseContents};

/// A file of cases that was read without an error: every grant it names is one of the bundle.
#[derive(Clone, Debug)]
pub struct Cases(Vec<CaseContents>);

impl Cases {
    /// Reads a file of cases about a bundle; `file_name` is for messages only.
    ///
    /// # Errors
    ///
    /// [`CasesError`] with every problem that was found.
    pub fn parse(source: &str, file_name: &str, bundle: &Bundle) -> Result<Cases, CasesError> {
        let refuse = |problems| CasesError(BundleError::new(source, file_name, problems));
        if source.len() > Bundle::MAX_LEN {
            let message = format!("the file is longer than {} bytes", Bundle::MAX_LEN);
            let problem = Diagnostic::new(Severity::Error, source, 0..0, message);
            return Err(refuse(vec![problem]));
        }
        reader::read_cases(source, bundle.grants())
            .map(Cases)
            .map_err(refuse)
    }

    /// Decides every case and compares.
    ///
    /// The bundle may be another one than the cases were read for, such as its successor. A grant
    /// that its tables do not have is denied, for no reason.
    pub fn run(&self, bundle: &Bundle) -> Report {
        let mut decided: BTreeMap<&str, usize> = BTreeMap::new();
        let mut outcomes = Vec::new();
        let decisions: Vec<_> = self
            .0
            .iter()
            .map(|case| bundle.decide(&case.facts))
            .collect();
        for (case, decision) in self.0.iter().zip(&decisions) {
            let mut wrong = Vec::new();
            for (grant, expected) in &case.expected {
                let because = decision.because(grant);
                for reason in because {
                    if reason.kind != ReasonKind::NotPermitted {
                        *decided.entry(&*reason.rule).or_default() += 1;
                    }
                }
                if decision.grants(grant) != *expected {
                    wrong.push(Wrong {
                        grant: grant.clone(),
                        granted: !*expected,
                        because: because.to_vec(),
                    });
                }
            }
            outcomes.push(Outcome {
                name: case.name.clone(),
                line: case.line,
                wrong,
            });
        }
        let covered = |rule: &crate::rules::Rule| Covered {
            rule: rule.name.clone(),
            line: rule.line,
            text: rule.text.clone(),
            decided: decided.get(rule.name.as_str()).copied().unwrap_or(0),
        };
        Report {
            outcomes,
            coverage: bundle.rules().iter().map(covered).collect(),
        }
    }
}

/// What became of the cases, and which rules they reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// One for each case, in the order of the file.
    pub outcomes: Vec<Outcome>,
    /// One for each rule, in the order of the file.
    pub coverage: Vec<Covered>,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// The case's name.
    pub name: String,
    /// The line of its file on which it begins.
    pub line: usize,
    /// What was decided otherwise than expected; empty if the case passed.
    pub wrong: Vec<Wrong>,
}

/// A grant about which a case was wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Wrong {
    /// The grant.
    pub grant: Grant,
    /// What was decided: the opposite was expected.
    pub granted: bool,
    /// The rules that decided.
    pub because: Vec<Reason>,
}

/// How often a rule decided about what a case names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Covered {
    /// The rule's `@id`, or `rule 3` for the third one.
    pub rule: String,
    /// The line of the policy file on which the rule begins.
    pub line: usize,
    /// The rule in one line.
    pub text: String,
    /// How often it permitted, forbade or could not be evaluated. Of a rule with 0 the cases would
    /// not notice that it is gone.
    pub decided: usize,
}

impl Report {
    /// Whether every case was decided as expected.
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.wrong.is_empty())
    }

    /// The rules that never decided about anything that a case names.
    pub fn uncovered(&self) -> impl Iterator<Item = &Covered> {
        self.coverage.iter().filter(|rule| rule.decided == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Outcome { name, line, wrong } in &self.outcomes {
            match wrong.is_empty() {
                true => writeln!(f, "ok      {name}")?,
                false => writeln!(f, "FAILED  {name} (line {line})")?,
            }
            for Wrong {
                grant,
                granted,
                because,
            } in wrong
            {
                let (is, should) = match granted {
                    true => ("granted", "denied"),
                    false => ("denied", "granted"),
                };
                writeln!(f, "        {grant}: {is}, and should be {should}")?;
                for reason in because {
                    let (kind, line, text) = (reason.kind, reason.line, &reason.text);
                    match &*reason.rule {
                        "" => writeln!(f, "          {text}")?,
                        rule => writeln!(f, "          {kind} by {rule} (line {line}): {text}")?,
                    }
                }
            }
        }
        let failed = self.outcomes.iter().filter(|one| !one.wrong.is_empty());
        let (failed, all) = (failed.count(), self.outcomes.len());
        writeln!(f, "{} passed, {failed} failed", all - failed)?;
        let reached = self.coverage.len() - self.uncovered().count();
        writeln!(
            f,
            "{reached} of {} rules decided something",
            self.coverage.len()
        )?;
        for rule in self.uncovered() {
            writeln!(
                f,
                "  never: {} (line {}): {}",
                rule.rule, rule.line, rule.text
            )?;
        }
        Ok(())
    }
}

/// Why a file of cases was refused: every problem, each with its place.
///
/// Displayed the way compilers do: place, line, underline, help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CasesError(BundleError);

impl CasesError {
    /// The problems, in the order of the file; never empty.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        self.0.diagnostics()
    }
}
