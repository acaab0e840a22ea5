//! `sandboxctl adjust`: orders to a running sandbox.

use std::process::ExitCode;

use casemate::Command;
use casemate::lever::tighten::Tightening;
use casemate::order::EXEC;
use clap::{ArgGroup, Args};
use guest_agent::api::Request;

use crate::failure::Failure;
use crate::status::{Place, ask};
use guest_agent::view::clean;

#[derive(Args)]
#[command(group = ArgGroup::new("order").required(true).multiple(false))]
#[command(
    after_help = "The order is recorded with who gives it and why, before it takes effect. It only tightens: lifting \
it leaves what the policy grants."
)]
pub struct Adjust {
    /// The sandbox: its name in `sandboxctl status`, or the beginning of it.
    id: String,
    /// Raise the risk by so many points (+30), or take back as many of those that operators added
    /// before (-30).
    #[arg(long, value_name = "POINTS", group = "order", allow_hyphen_values = true, value_parser = points)]
    risk: Option<i8>,
    /// Freeze it.
    #[arg(long, group = "order")]
    freeze: bool,
    /// Lift the order to freeze.
    #[arg(long, group = "order")]
    thaw: bool,
    /// Stop it.
    #[arg(long, group = "order")]
    stop: bool,
    /// Take these away: vaults (by name), trees (by their place inside), endpoints (as the policy has
    /// them), `exec` (starting programs).
    #[arg(long, value_name = "NAME", num_args = 1.., group = "order")]
    withdraw: Vec<String>,
    /// Lift the order that took these away.
    #[arg(long, value_name = "NAME", num_args = 1.., group = "order")]
    restore: Vec<String>,
    /// Take these system calls from every task for good; `exec` alone: starting programs.
    #[arg(long, value_name = "CALL", num_args = 1.., group = "order")]
    tighten: Vec<String>,
    /// The reason, for the record.
    #[arg(long, value_name = "TEXT")]
    why: String,
    #[command(flatten)]
    place: Place,
    /// Print how the sandbox is then as JSON.
    #[arg(long)]
    json: bool,
}

fn points(text: &str) -> Result<i8, String> {
    let points = text
        .parse::<i8>()
        .ok()
        .filter(|points| (1..=100).contains(&points.unsigned_abs()));
    points.ok_or_else(|| "write +1 to +100, or -1 to -100".to_owned())
}

impl Adjust {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let one = self.place.one(&self.id)?;
        let order = self.order();
        let request = Request::Adjust {
            session: one.id().to_owned(),
            order: order.clone(),
            why: self.why,
        };
        let answer = ask(&one.socket, &request)?;
        let status = &answer["adjusted"]["status"];
        if self.json {
            println!("{}", serde_json::to_string_pretty(status)?);
        } else {
            let run = status["plan"]["run"].as_str().unwrap_or("?");
            println!(
                "{}: {order}: in force; {}, risk {}",
                clean(one.id()),
                clean(run),
                status["risk"]
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn order(&self) -> Command {
        if let Some(points) = self.risk {
            return Command::Risk(points);
        }
        if !self.withdraw.is_empty() {
            return Command::Withdraw(self.withdraw.iter().cloned().collect());
        }
        if !self.restore.is_empty() {
            return Command::Restore(self.restore.iter().cloned().collect());
        }
        if !self.tighten.is_empty() {
            return Command::Tighten(match &self.tighten[..] {
                [exec] if exec == EXEC => Tightening::Exec,
                calls => Tightening::Calls(calls.iter().cloned().collect()),
            });
        }
        match (self.freeze, self.thaw) {
            (true, _) => Command::Freeze,
            (_, true) => Command::Thaw,
            // clap asks for one of them.
            _ => Command::Stop,
        }
    }
}
