//! `sandboxctl audit tail` and `audit query`: some records of a verified log.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ::vault::audit::{Entry, Escaped};
use clap::Args;
use serde_json::{Value, json};

use super::Verify;
use crate::failure::Failure;

#[derive(Args)]
pub struct Tail {
    #[command(flatten)]
    verify: Verify,
    /// Records to print.
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    /// Go on with records that are signed for later, until interrupted.
    #[arg(short, long)]
    follow: bool,
}

impl Tail {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let verified = self.verify.verified()?;
        let mut next = verified.size().saturating_sub(self.lines);
        let mut note = String::new();
        loop {
            let verified = self.verify.verified()?;
            for entry in verified.records().skip(next as usize) {
                print(&entry?, self.verify.json);
            }
            next = verified.size();
            if !self.follow {
                return Ok(ExitCode::SUCCESS);
            }
            // Nothing new is vouched for until there is another checkpoint.
            note.replace_range(.., verified.checkpoint().note());
            while self
                .verify
                .stored_note()
                .is_ok_and(|stored| stored == note.as_bytes())
            {
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

#[derive(Args)]
pub struct Query {
    #[command(flatten)]
    verify: Verify,
    /// Only records of this kind; repeat for more.
    #[arg(long)]
    kind: Vec<String>,
    /// Only records whose field holds this, such as `sensor=denied-syscall` or `change.vault=sales`;
    /// of a list, one item is enough. Repeat: all must hold.
    #[arg(long = "where", value_name = "FIELD=VALUE", value_parser = condition)]
    conditions: Vec<(String, String)>,
    /// Only records of this time or later, in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    since: Option<f64>,
    /// Only records before this time, in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    until: Option<f64>,
    /// Only print how many there are.
    #[arg(long)]
    count: bool,
}

fn condition(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(field, _)| !field.is_empty());
    parts
        .map(|(field, value)| (field.to_owned(), value.to_owned()))
        .ok_or_else(|| "write it as `field=value`".to_owned())
}

impl Query {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let mut found = 0u64;
        for entry in self.verify.verified()?.records() {
            let entry = entry?;
            if !self.wants(&entry) {
                continue;
            }
            found += 1;
            if !self.count {
                print(&entry, self.verify.json);
            }
        }
        if self.count {
            println!("{found}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wants(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        let at = record.time.as_secs_f64();
        (self.kind.is_empty() || self.kind.iter().any(|kind| *kind == record.kind))
            && self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
            && self
                .conditions
                .iter()
                .all(|(field, value)| holds(&record.payload, field, value))
    }
}

/// Whether the field at this dotted path is this value, or a list that has it.
fn holds(payload: &Value, field: &str, wanted: &str) -> bool {
    let is = |value: &Value| match value {
        Value::String(text) => text == wanted,
        Value::Array(_) | Value::Object(_) => false,
        scalar => {
            let text = scalar.to_string();
            text == wanted
        }
    };
    let found = field
        .split('.')
        .try_fold(payload, |value, part| value.get(part));
    found.is_some_and(|value| match value {
        Value::Array(items) => items.iter().any(is),
        value => is(value),
    })
}

/// Prints a record on one line, whatever a workload put into it.
pub fn print(entry: &Entry, as_json: bool) {
    let record = &entry.record;
    if as_json {
        println!("{}", line(entry));
    } else {
        let payload = record.payload.to_string();
        println!(
            "{:>5}  {:<13} {}",
            entry.seq,
            record.kind,
            Escaped(&payload)
        );
    }
}

/// A record as JSON.
pub fn line(entry: &Entry) -> Value {
    json!({
        "seq": entry.seq, "kind": entry.record.kind, "at": entry.record.time.as_secs_f64(),
        "payload": entry.record.payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_path_and_in_lists() {
        let payload = json!({ "a": { "b": 7, "c": ["x", "y"] }, "d": true, "e": "7" });
        for (field, value, expected) in [
            ("a.b", "7", true),
            ("a.b", "8", false),
            ("a.c", "y", true),
            ("a.c", "z", false),
            ("d", "true", true),
            ("e", "7", true),
            ("a", "7", false),
            ("f", "", false),
        ] {
            assert_eq!(holds(&payload, field, value), expected, "{field}={value}");
        }
    }
}
