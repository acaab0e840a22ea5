//! `sandboxctl policy`: check a policy, explain what it decides, compare it with another, test it;
//! propose one from what a program does; decide a recorded run again; sign.

mod import;
mod learn;
mod replay;
mod sign;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::policy::{Bundle, BundleError, Cases, Diagnostic, Facts, Lever, Severity};
use casemate::doctor::{Doctor, Status};
use casemate::enforcement::PROTECTIONS;
use casemate::refusal::{self, Refusal};
pub use sign::note_beside;

use clap::{Args, Subcommand};
use guest_agent::assembly::included_from;
use serde_json::json;

use crate::failure::Failure;

#[derive(Subcommand)]
pub enum Policy {
    /// Read a policy as strictly as `run` does, and warn about what it probably does not mean.
    Check(Check),
    /// Tell for each grant which rule decides it, and what would change that.
    Explain(Explain),
    /// Tell what a newer policy grants differently, and whether it grants at most as much.
    ///
    /// Exits with 0 when both grant the same under all facts, 1 when they do not (or when there
    /// are too many facts to tell), 2 on errors.
    Diff(Diff),
    /// Decide the cases of a file, compare with what it expects, and name rules never reached.
    ///
    /// Exits with 0 when every case holds, 1 when one does not, 2 on errors.
    Test(Test),
    /// Run a program, watch what it does, and propose the least policy that allows it.
    ///
    /// The program is NOT confined to least privilege while it is watched: it runs as this user,
    /// gains no privileges, and writes only below `--writable` (and in /tmp), but reads and connects
    /// as it likes. Run what you do not trust at all on a machine that holds nothing.
    ///
    /// Exits with 0 when the proposal was written, whatever the program's own exit code, which is told.
    Learn(learn::Learn),
    /// Decide a recorded run again from its recorded facts: under its own policy, or under another.
    ///
    /// Exits with 0 when every decision is the same, 1 when one is not, 2 on errors.
    Replay(replay::Replay),
    /// Make a key that vouches for policies.
    Key(sign::Key),
    /// Vouch for a policy: writes a signed note beside it.
    Sign(sign::Sign),
    /// Check that trusted keys vouch for a policy, and that it is not older than one before it.
    ///
    /// Exits with 0 when they do, 1 when they do not, 2 on errors.
    Verify(sign::Verify),
    /// Print the JSON Schema of policy files, or the Cedar schema of their rules, for editors.
    Schema(Schema),
    /// Print a `[syscalls]` table that allows what a Docker or OCI seccomp profile does.
    ImportSeccomp(import::ImportSeccomp),
}

#[derive(Args)]
pub struct Schema {
    /// Print the schema of the rules.
    #[arg(long)]
    rules: bool,
    /// Print as JSON. The schema of the rules becomes one string.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Check {
    /// The policy file.
    policy: PathBuf,
    /// Print findings as JSON.
    #[arg(long)]
    json: bool,
    /// Warn too about rules that this host cannot enforce while the workload runs.
    #[arg(long)]
    host: bool,
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
}

#[derive(Args)]
pub struct Explain {
    /// The policy file.
    policy: PathBuf,
    /// Facts as JSON (`-` for standard input); what they leave out is unknown.
    #[arg(long, value_name = "FILE", conflicts_with = "risk")]
    facts: Option<PathBuf>,
    /// Instead of a file of facts: those of the last decision in this log of a run.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["risk", "facts"])]
    log: Option<PathBuf>,
    /// Of the log: the last decision up to the record of this number (`audit show` numbers them).
    #[arg(long, value_name = "N", requires = "log")]
    at: Option<u64>,
    /// Instead of a file of facts: good evidence, and this risk.
    #[arg(long, value_name = "0..100", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    risk: u8,
    /// Print the explanation as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Diff {
    /// The older policy file.
    old: PathBuf,
    /// The newer policy file.
    new: PathBuf,
    /// Print the differences as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = CASES)]
pub struct Test {
    /// The policy file.
    policy: PathBuf,
    /// The file of cases (TOML).
    cases: PathBuf,
    /// Print outcomes and coverage as JSON.
    #[arg(long)]
    json: bool,
}

const CASES: &str = "\
A case, in which facts that are not said are unknown (`policy explain` names the grants):

  [[case]]
  name = \"data is withdrawn at risk 20\"
  facts = { risk = 20, tier = \"affirming\", tcb = \"up-to-date\" }
  expect = { granted = [\"live\"], denied = [\"read vault customers\"] }";

impl Policy {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Check(check) => check.run(),
            Self::Explain(explain) => explain.run(),
            Self::Diff(diff) => diff.run().map_err(|failure| failure.code(2)),
            Self::Test(test) => test.run().map_err(|failure| failure.code(2)),
            Self::Learn(learn) => learn.run(),
            Self::Replay(replay) => replay.run().map_err(|failure| failure.code(2)),
            Self::Key(key) => key.run(),
            Self::Sign(sign) => sign.run(),
            Self::Verify(verify) => verify.run().map_err(|failure| failure.code(2)),
            Self::Schema(schema) => schema.run(),
            Self::ImportSeccomp(import) => import.run(),
        }
    }
}

impl Schema {
    fn run(self) -> Result<ExitCode, Failure> {
        match (self.rules, self.json) {
            (false, _) => print!("{}", ::policy::BUNDLE_SCHEMA),
            (true, false) => print!("{}", ::policy::SCHEMA),
            (true, true) => println!("{}", json!(::policy::SCHEMA)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Check {
    fn run(self) -> Result<ExitCode, Failure> {
        let source = read(&self.policy)?;
        let name = self.policy.display().to_string();
        let found = match parse(&self.policy, &source) {
            Ok(bundle) => self.findings(&bundle),
            Err(error) => error.diagnostics().to_vec(),
        };
        let errors = found.iter().any(|one| one.severity == Severity::Error);
        if self.json {
            let found: Vec<_> = found
                .iter()
                .map(|d| {
                    json!({
                        "severity": d.severity.to_string(), "line": d.line, "column": d.column,
                        "message": d.message, "help": d.help,
                    })
                })
                .collect();
            println!("{}", serde_json::to_string_pretty(&found)?);
        } else {
            for diagnostic in &found {
                println!("{}", diagnostic.render(&source, &name));
            }
            let count = |severity| found.iter().filter(|d| d.severity == severity).count();
            match (count(Severity::Error), count(Severity::Warning)) {
                (0, 0) => println!("{name}: nothing to complain about"),
                (errors, warnings) => println!(
                    "{name}: {}, {}",
                    several(errors, "error"),
                    several(warnings, "warning")
                ),
            }
        }
        let failed = errors || (self.strict && !found.is_empty());
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// What is wrong or suspicious about a policy that could be read: errors first.
    fn findings(&self, bundle: &Bundle) -> Vec<Diagnostic> {
        let told = |severity| {
            move |Refusal { entry, why, .. }: Refusal| bundle.told_of(severity, &entry, why)
        };
        let refused = refusal::anywhere(bundle).into_iter();
        let mut found: Vec<Diagnostic> = refused.map(told(Severity::Error)).collect();
        found.extend(bundle.unknown_gaps(&PROTECTIONS));
        if self.host {
            let base = self.policy.parent().unwrap_or(Path::new(""));
            let missing = refusal::here(bundle, base).into_iter();
            found.extend(missing.map(told(Severity::Warning)));
            found.extend(bundle.lint_levers(&lacking()));
        }
        found.extend(bundle.lint());
        found.sort_by_key(|one| (one.severity != Severity::Error, one.span.start));
        found
    }
}

impl Explain {
    fn run(self) -> Result<ExitCode, Failure> {
        let bundle = load(&self.policy)?;
        let recorded = match &self.log {
            Some(log) => Some(replay::facts_at(log, self.at)?),
            None => None,
        };
        let facts = match (&self.facts, recorded) {
            (_, Some(facts)) => facts,
            (Some(path), None) => {
                let text = if path.as_os_str() == "-" {
                    std::io::read_to_string(std::io::stdin())?
                } else {
                    read(path)?
                };
                serde_json::from_str(&text).map_err(|error| {
                    Failure::caused(format!("`{}` holds no facts", path.display()), &error)
                })?
            }
            (None, None) => Facts {
                risk: self.risk,
                ..Facts::best()
            },
        };
        let explanations = bundle.explain(&facts);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&explanations)?);
        } else {
            explanations
                .iter()
                .for_each(|explanation| print!("{explanation}"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    fn run(self) -> Result<ExitCode, Failure> {
        let diff = load(&self.old)?.diff(&load(&self.new)?);
        if self.json {
            let mut value = serde_json::to_value(&diff)?;
            value["equal"] = diff.is_equal().into();
            value["narrowing"] = diff.is_narrowing().into();
            println!("{}", serde_json::to_string_pretty(&value)?);
        } else {
            print!("{diff}");
        }
        Ok(match diff.is_equal() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

impl Test {
    fn run(self) -> Result<ExitCode, Failure> {
        let bundle = load(&self.policy)?;
        let source = read(&self.cases)?;
        let cases =
            Cases::parse(&source, &self.cases.display().to_string(), &bundle).map_err(|error| {
                let problems = error.to_string();
                Failure::new(format!("the cases have mistakes\n{}", problems.trim_end()))
            })?;
        let report = cases.run(&bundle);
        if self.json {
            let mut value = serde_json::to_value(&report)?;
            value["passed"] = report.passed().into();
            println!("{}", serde_json::to_string_pretty(&value)?);
        } else {
            print!("{report}");
        }
        Ok(match report.passed() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

/// `1 error`, `2 errors`.
fn several(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// What each lever needs of the host: all of one of these, in the words of `doctor`.
const NEEDS: [(Lever, &[&[&str]]); 5] = [
    (Lever::Freeze, &[&["cgroup-freeze"]]),
    (
        Lever::Resources,
        &[&["cgroup-memory", "cgroup-pids", "cgroup-cpu"]],
    ),
    (Lever::Data, &[&["fuse-device"]]),
    (Lever::Network, &[&["seccomp-listener"]]),
    // Asked for at each start, or taken for good by a further filter.
    (
        Lever::Exec,
        &[&["seccomp-listener"], &["ptrace-child", "seccomp-tsync"]],
    ),
];

/// The levers that this host lacks, and why.
fn lacking() -> BTreeMap<Lever, String> {
    let findings = Doctor::probe();
    let missing = |id: &&str| {
        let found = findings.iter().find(|finding| finding.id == *id)?;
        (found.status == Status::Missing).then(|| format!("{}: {}", found.id, found.means))
    };
    let lacking = NEEDS.into_iter().filter_map(|(lever, ways)| {
        let obstacles = ways.iter().map(|ids| ids.iter().find_map(missing));
        let obstacles: Option<Vec<String>> = obstacles.collect();
        Some((lever, obstacles?.join("; ")))
    });
    lacking.collect()
}

/// Reads and parses a policy file.
pub fn load(path: &Path) -> Result<Bundle, Failure> {
    let source = read(path)?;
    parse(path, &source).map_err(|error| {
        // The error's own text shows each place in the file.
        Failure::new(format!(
            "the policy has mistakes\n{}",
            error.to_string().trim_end()
        ))
    })
}

/// Parses a policy, and the files beside it that it includes.
fn parse(path: &Path, source: &str) -> Result<Bundle, BundleError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    Bundle::parse_with(source, &path.display().to_string(), &included_from(folder))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::caused(format!("cannot read `{}`", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_levers_need_is_what_the_doctor_looks_for() {
        let findings = Doctor::probe();
        for id in NEEDS.into_iter().flat_map(|(_, ways)| ways.concat()) {
            assert!(findings.iter().any(|finding| finding.id == id), "{id}");
        }
    }
}
