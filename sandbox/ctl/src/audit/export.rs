//! `sandboxctl audit export`: the records of a verified log, for other systems.

use std::process::ExitCode;

use ::vault::audit::Entry;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Verify, query};
use crate::failure::Failure;

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    verify: Verify,
    /// One JSON object a line: the record as it is, or an event of the Open Cybersecurity Schema
    /// Framework.
    #[arg(long, value_enum, default_value_t = Form::Jsonl)]
    format: Form,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Jsonl,
    Ocsf,
}

impl Export {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        for entry in self.verify.verified()?.records() {
            let entry = entry?;
            match self.format {
                Form::Jsonl => println!("{}", query::line(&entry)),
                Form::Ocsf => println!("{}", ocsf(&entry)),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An event class and its activity, in the numbers of OCSF 1.3.
struct Class {
    uid: u32,
    activity: u32,
    /// 1 success, 2 failure, 0 unknown.
    status: u32,
    /// 1 informational, 2 low, 3 medium, 4 high.
    severity: u32,
}

/// What a record is in the taxonomy of OCSF.
fn class(kind: &str, payload: &Value) -> Class {
    let (uid, activity, status, severity) = match kind {
        // Application Lifecycle: start, stop.
        "opened" | "launching" | "prepared" => (6002, 3, 1, 1),
        "closed" => (6002, 4, 1, 1),
        // Process Activity: launch, terminate, other.
        "started" => (1007, 1, 1, 1),
        "ended" => (1007, 2, 1, 1),
        "kill" => (1007, 99, 1, 2),
        // Authentication: logon. A machine shows what it is.
        "attested" => (3002, 1, 1, 1),
        "not-attested" => (3002, 1, 2, 4),
        // Authorize Session: assign privileges.
        "decided" => (3003, 1, 1, 1),
        // API Activity: read, update.
        "releasing" => (6003, 2, 0, 1),
        "released" => (6003, 2, 1, 1),
        "not-released" => (6003, 2, 2, 3),
        "committed" => (6003, 3, 1, 1),
        "lost" => (6003, 3, 2, 3),
        "adjusting" => (6003, 3, 0, 2),
        "adjusted" => (6003, 3, 1, 2),
        "not-adjusted" => (6003, 3, 2, 4),
        // Detection Finding: create, close.
        "signal" if payload["holds"] == false => (2004, 3, 1, 1),
        "signal" => (2004, 1, 1, 3),
        // Base Event.
        _ => (0, 99, 0, 1),
    };
    Class {
        uid,
        activity,
        status,
        severity,
    }
}

/// A record as an event. What OCSF has no attribute for is in `unmapped`, whole.
fn ocsf(entry: &Entry) -> Value {
    let record = &entry.record;
    let (kind, payload) = (&*record.kind, &record.payload);
    let Class {
        uid,
        activity,
        status,
        severity,
    } = class(kind, payload);
    let mut event = json!({
        "class_uid": uid,
        "category_uid": uid / 1000,
        "activity_id": activity,
        "type_uid": uid * 100 + activity,
        "severity_id": severity,
        "status_id": status,
        "time": u64::try_from(record.time.as_millis()).unwrap_or(u64::MAX),
        "message": kind,
        "metadata": {
            "version": "1.3.0",
            "product": { "name": "Casemate", "vendor_name": "Casemate" },
            "log_name": entry.origin,
            "uid": format!("{}#{}", entry.origin, entry.seq),
            "sequence": entry.seq,
        },
        "unmapped": payload,
    });
    // What the classes require.
    let service = json!({ "process": { "name": "casemate" } });
    match uid {
        1007 => {
            event["actor"] = service;
            event["device"] = json!({ "type_id": 0 });
            event["process"] = json!({ "name": "workload" });
        }
        2004 => {
            let title = payload["sensor"].as_str().unwrap_or(kind);
            event["finding_info"] = json!({
                "title": title, "uid": format!("{}#{}", entry.origin, entry.seq),
                "desc": payload["detail"],
            });
            event["risk_score"] = payload["risk"].clone();
        }
        3002 | 3003 => event["user"] = json!({ "name": "workload", "type_id": 3 }),
        6002 => event["app"] = json!({ "name": "casemate", "vendor_name": "Casemate" }),
        6003 => {
            event["actor"] = service;
            event["api"] = json!({ "operation": kind });
            event["src_endpoint"] = json!({ "name": "localhost" });
        }
        _ => {}
    }
    event
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::vault::audit::Record;

    use super::*;

    fn event(kind: &'static str, payload: Value) -> Value {
        ocsf(&Entry {
            seq: 7,
            boot: [0; 16],
            origin: "casemate/run".to_owned(),
            record: Record::new(kind, Duration::from_millis(1_700_000_000_123), 1, payload),
        })
    }

    #[test]
    fn a_signal_is_a_finding_with_everything_that_was_recorded() {
        let payload = json!({ "sensor": "denied-syscall", "detail": "mount", "risk": 25 });
        let event = event("signal", payload.clone());
        assert_eq!(event["class_uid"], 2004);
        assert_eq!(event["category_uid"], 2);
        assert_eq!(event["type_uid"], 200_401);
        assert_eq!(event["time"], 1_700_000_000_123u64);
        assert_eq!(event["finding_info"]["title"], "denied-syscall");
        assert_eq!(event["risk_score"], 25);
        assert_eq!(event["unmapped"], payload);
        assert_eq!(event["metadata"]["uid"], "casemate/run#7");
    }

    #[test]
    fn every_kind_of_record_has_a_consistent_type() {
        for kind in [
            "opened", "started", "attested", "decided", "released", "signal", "other",
        ] {
            let event = event(kind, json!({}));
            let number = |field: &str| event[field].as_u64().unwrap_or(u64::MAX);
            let class = number("class_uid");
            assert_eq!(number("category_uid"), class / 1000, "{kind}");
            assert_eq!(
                number("type_uid"),
                class * 100 + number("activity_id"),
                "{kind}"
            );
        }
    }
}
