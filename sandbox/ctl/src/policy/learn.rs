//! `sandboxctl policy learn`: from an unknown program to a proposal of its policy.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::policy::Bundle;
use ::policy::learn::{self, Observation};
use casemate::observe::{self, Observed};
use clap::Args;
use serde_json::json;

use crate::failure::Failure;

/// The first words of a proposal: a file that begins with them may be written over.
const PROPOSED: &str = "# Proposed from ";

#[derive(Args)]
pub struct Learn {
    /// Where to write the proposed policy. Only a proposal is written over.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Keep what was seen in this file, and add to what it has from earlier runs.
    #[arg(long, value_name = "FILE")]
    seen: Option<PathBuf>,
    /// Write cases for `policy test` here, that say what the proposal promises.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Name of the policy. [default: that of the program]
    #[arg(long)]
    name: Option<String>,
    /// A folder below which the program may write; may be given several times.
    #[arg(long, value_name = "DIR")]
    writable: Vec<PathBuf>,
    /// A variable of the program's environment, which has no others but PATH.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Seconds after which the program is killed.
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// Print what was seen as JSON.
    #[arg(long)]
    json: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a variable is written `NAME=VALUE`".to_owned()),
    }
}

impl Learn {
    pub fn run(self) -> Result<ExitCode, Failure> {
        self.may_write()?;
        let mut known = self.known()?;
        eprintln!(
            "sandboxctl: watching `{}`, which is not confined to least privilege",
            self.command.join(" ").escape_debug()
        );
        let (observation, code) = observe::observe(&self.observed()?).map_err(|error| {
            Failure::from(error).hint(
                "ptrace(2) must be allowed here, and the program must exist; `sandboxctl doctor` tells more",
            )
        })?;
        known.merge(&observation);
        if let Some(path) = &self.seen {
            write(path, &serde_json::to_string_pretty(&known)?)?;
        }
        let name = self.name();
        let proposal = observe::given(|given| known.propose(&name, given));
        // What is proposed must be a policy.
        let bundle = Bundle::parse(&proposal, &self.output.display().to_string());
        write(&self.output, &proposal)?;
        let warnings = match &bundle {
            Ok(bundle) => {
                if let Some(path) = &self.cases {
                    write(path, &learn::cases(bundle))?;
                }
                bundle.lint().len()
            }
            Err(error) => {
                return Err(Failure::new(format!(
                    "what was seen makes no policy yet\n{}",
                    error.to_string().trim_end()
                ))
                .hint(format!("correct it in `{}`", self.output.display())));
            }
        };
        if self.json {
            let told = json!({
                "policy": self.output, "name": name, "exit": code, "runs": known.runs,
                "warnings": warnings, "observation": known,
            });
            println!("{}", serde_json::to_string_pretty(&told)?);
        } else {
            let runs = if known.runs == 1 { "run" } else { "runs" };
            println!(
                "{}: proposed from {} {runs}; the program exited with {code}",
                self.output.display(),
                known.runs
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn observed(&self) -> Result<Observed, Failure> {
        let mut env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        env.extend(self.env.iter().cloned());
        let writable = self.writable.iter().map(fs::canonicalize);
        let writable = writable
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::caused("a folder of `--writable` cannot be used", &error))?;
        Ok(Observed {
            command: self.command.clone(),
            env,
            cwd: std::env::current_dir()?,
            writable,
            time: self.time.map(Duration::from_secs),
        })
    }

    /// What earlier runs showed.
    fn known(&self) -> Result<Observation, Failure> {
        let Some(path) = self.seen.as_ref().filter(|path| path.exists()) else {
            return Ok(Observation::default());
        };
        let text = super::read(path)?;
        let known: Observation = serde_json::from_str(&text).map_err(|error| {
            Failure::caused(format!("`{}` holds no observation", path.display()), &error)
        })?;
        if known.command.first() != self.command.first() {
            return Err(
                Failure::new(format!("`{}` is about another program", path.display()))
                    .hint("keep what each program does in a file of its own"),
            );
        }
        Ok(known)
    }

    /// Refuses to write over what a person wrote.
    fn may_write(&self) -> Result<(), Failure> {
        match fs::read_to_string(&self.output) {
            Ok(text) if text.starts_with(PROPOSED) => Ok(()),
            Ok(_) => Err(Failure::new(format!(
                "`{}` exists, and is no proposal",
                self.output.display()
            ))
            .hint("choose another name for `--output`")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::caused(
                format!("cannot write `{}`", self.output.display()),
                &error,
            )),
        }
    }

    fn name(&self) -> String {
        let program = self.command.first().map_or("", String::as_str);
        let file = Path::new(program).file_stem().unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = file.to_string_lossy().chars().map(plain).take(64).collect();
        self.name.clone().unwrap_or(match name.is_empty() {
            true => "learned".to_owned(),
            false => name,
        })
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut file = fs::File::create(path)
        .map_err(|error| Failure::caused(format!("cannot write `{}`", path.display()), &error))?;
    file.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        file.write_all(b"\n")?;
    }
    Ok(())
}
