//! `sandboxctl status`: the sandboxes that run, and how each of them is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate::lever::tighten::Tightening;
use clap::Args;
use guest_agent::api::Request;
use guest_agent::control::{self, Found};
use serde_json::Value;

use crate::failure::Failure;
use guest_agent::view::clean;

#[derive(Args)]
pub struct Status {
    /// Only this sandbox: its name, or the beginning of it.
    id: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Print what the sandboxes say as JSON.
    #[arg(long)]
    json: bool,
}

/// Where the sandboxes are asked.
#[derive(Args)]
pub struct Place {
    /// Ask this socket, such as that of a guest agent, instead of those of this user's own sandboxes.
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
}

impl Place {
    /// The sandboxes there, with how each of them is if that is wanted.
    pub fn sessions(&self, detail: bool) -> Result<Vec<Found>, Failure> {
        let Some(socket) = &self.socket else {
            return Ok(control::sessions(detail)?);
        };
        let answer = control::ask(socket, &Request::Status { detail })?;
        Ok(control::listed(socket, &answer))
    }

    /// The one sandbox of this name, or of a name that begins so.
    pub fn one(&self, id: &str) -> Result<Found, Failure> {
        let mut found = matching(self.sessions(false)?, id);
        match found.len() {
            0 => Err(Failure::new(format!("there is no sandbox `{id}` of yours"))
                .hint("`sandboxctl status` lists those that run")),
            1 => Ok(found.remove(0)),
            _ => {
                let names: Vec<_> = found.iter().map(|one| format!("`{}`", one.id())).collect();
                Err(Failure::new(format!(
                    "`{id}` could be {}",
                    names.join(" or ")
                )))
            }
        }
    }
}

fn matching(mut found: Vec<Found>, id: &str) -> Vec<Found> {
    if found.iter().any(|one| one.id() == id) {
        found.retain(|one| one.id() == id);
    } else {
        found.retain(|one| one.id().starts_with(id));
    }
    found
}

impl Status {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let mut found = self.place.sessions(true)?;
        if let Some(id) = &self.id {
            found = matching(found, id);
            if found.is_empty() {
                return Err(Failure::new(format!("there is no sandbox `{id}` of yours")));
            }
        }
        if self.json {
            let all: Vec<&Value> = found.iter().map(|one| &one.listed).collect();
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(ExitCode::SUCCESS);
        }
        if found.is_empty() {
            println!("no sandbox runs");
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        for one in &found {
            println!("{}", text(one, now.as_secs()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A sandbox in words.
fn text(one: &Found, now: u64) -> String {
    let listed = &one.listed;
    let since = now.saturating_sub(listed["since"].as_u64().unwrap_or(now));
    let mut lines = vec![format!("{}  since {}", clean(one.id()), age(since))];
    let mut line = |label: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {label:<9} {text}"));
        }
    };
    if let Some(log) = listed["log"].as_str() {
        line("log", clean(log));
    }
    let status = &listed["status"];
    if status.is_null() {
        line("", "it does not say how it is".into());
        return lines.join("\n");
    }
    let plan = &status["plan"];
    let mut state = format!("{}, {} limits", word(&plan["run"]), word(&plan["tier"]));
    if status["started"] != true {
        state = "not started yet".into();
    }
    line("plan", state);
    line("data", names(&plan["data"]));
    let files = plan["files"].as_object().into_iter().flatten();
    let files: Vec<_> = files
        .map(|(at, may)| format!("{} ({})", clean(at), word(may)))
        .collect();
    line("files", files.join(", "));
    line("connect", names(&plan["connect"]));
    if plan["exec"] == false {
        line("exec", "no program can be started".into());
    }
    let tightened = plan["tightened"].as_array().into_iter().flatten();
    for what in tightened {
        let what = serde_json::from_value::<Tightening>(what.clone())
            .map_or_else(|_| what.to_string(), |what| what.to_string());
        line("taken", format!("{}, for good", clean(&what)));
    }
    let parts = status["parts"].as_object().into_iter().flatten();
    let parts: Vec<_> = parts
        .map(|(name, points)| format!("{} {points}", clean(name)))
        .collect();
    let parts = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    line("risk", format!("{}{parts}", status["risk"]));
    line("evidence", evidence(&status["evidence"]));
    line("gaps", names(&status["gaps"]));
    for order in orders(&status["orders"]) {
        line("order", clean(&order));
    }
    let read = status["read"].as_object().into_iter().flatten();
    let read: Vec<_> = read
        .map(|(name, bytes)| format!("{bytes} bytes of {}", clean(name)))
        .collect();
    line("read", read.join(", "));
    for recent in status["recent"].as_array().into_iter().flatten() {
        let ago = now.saturating_sub(recent["at"].as_f64().unwrap_or_default() as u64);
        if let Some(what) = crate::timeline::words(&recent["record"]) {
            line("", format!("{:>7} ago  {}", age(ago), clean(&what)));
        }
    }
    lines.join("\n")
}

fn evidence(evidence: &Value) -> String {
    if evidence.is_null() {
        return "none that is believed".into();
    }
    let proves = if evidence["simulated"] == true {
        " (proves nothing)"
    } else {
        ""
    };
    format!(
        "{}{proves}, {} old; tier {}, tcb {}",
        word(&evidence["tee"]),
        age(evidence["age"].as_u64().unwrap_or_default()),
        word(&evidence["tier"]),
        word(&evidence["tcb"])
    )
}

/// The orders that stand, each in words.
fn orders(orders: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for (key, word) in [("frozen", "freeze"), ("stopped", "stop")] {
        if let Some(words) = orders[key].as_str() {
            all.push(format!("{word}, {words}"));
        }
    }
    for (name, words) in orders["withdrawn"].as_object().into_iter().flatten() {
        all.push(format!(
            "withdraw {name}, {}",
            words.as_str().unwrap_or_default()
        ));
    }
    all
}

fn word(value: &Value) -> String {
    clean(value.as_str().unwrap_or("?"))
}

fn names(value: &Value) -> String {
    let names = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    clean(&names.collect::<Vec<_>>().join(", "))
}

/// A time in its greatest unit.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Asks a sandbox's own socket.
pub fn ask(socket: &Path, request: &Request) -> Result<Value, Failure> {
    Ok(control::ask(socket, request)?)
}
