//! `sandboxctl attest selftest`: the verifier tried on genuine evidence, and on every change of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use ::vault::audit::Escaped;
use attestation::selftest::{Finding, Matrix, Row, Section, Vectors, run};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;

#[derive(Args)]
pub struct Selftest {
    /// Folder of genuine evidence: `snp/`, `tdx/`, `sgx/`, `eventlog/` with the verdicts they should get.
    #[arg(value_name = "FOLDER")]
    vectors: PathBuf,
    /// Print every row, and not only those that are not as expected.
    #[arg(long)]
    all: bool,
    /// Print the rows as JSON, one a line.
    #[arg(long)]
    json: bool,
}

impl Selftest {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let matrix = run(&Vectors::open(&self.vectors)?)?;
        for row in matrix.rows() {
            if self.json {
                println!("{}", in_json(row));
            } else if self.all || row.finding != Finding::AsExpected {
                print(row);
            }
        }
        if !self.json {
            summary(&matrix);
        }
        Ok(if matrix.passes() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn print(row: &Row) {
    println!("{:<8} {}", finding(row.finding), Escaped(&row.case));
    for (label, text) in [
        ("change", &row.change),
        ("expected", &row.expected),
        ("seen", &row.seen),
    ] {
        if !text.is_empty() {
            println!("         {label:<8} {}", Escaped(text));
        }
    }
}

/// One line for each piece of evidence that was changed, and the sums.
fn summary(matrix: &Matrix) {
    let mut changed = BTreeMap::<&str, [usize; 3]>::new();
    for row in matrix.rows() {
        if row.section == Section::Mutation {
            let counts = changed.entry(&row.case).or_default();
            counts[row.finding as usize] += 1;
        }
    }
    println!("{:<62} expected  other  affirmed", "changed");
    for (case, [expected, other, wrong]) in changed {
        let case = Escaped(case).to_string();
        println!("{case:<62} {expected:>8} {other:>6} {wrong:>9}");
    }
    let count = |section, finding| matrix.count(section, finding);
    let sum = |section| {
        let all = [Finding::AsExpected, Finding::OtherReason, Finding::Wrong];
        all.map(|finding| count(section, finding))
            .iter()
            .sum::<usize>()
    };
    println!(
        "genuine: {} of {} got the expected verdict",
        count(Section::Genuine, Finding::AsExpected),
        sum(Section::Genuine),
    );
    println!(
        "changed: {} of {} refused, {} of them for the reason that the change calls for",
        sum(Section::Mutation) - count(Section::Mutation, Finding::Wrong),
        sum(Section::Mutation),
        count(Section::Mutation, Finding::AsExpected),
    );
}

fn in_json(row: &Row) -> serde_json::Value {
    json!({
        "section": match row.section {
            Section::Genuine => "genuine",
            Section::Mutation => "mutation",
        },
        "case": row.case,
        "change": row.change,
        "expected": row.expected,
        "seen": row.seen,
        "finding": finding(row.finding),
    })
}

fn finding(finding: Finding) -> &'static str {
    match finding {
        Finding::AsExpected => "ok",
        Finding::OtherReason => "other",
        Finding::Wrong => "WRONG",
    }
}
