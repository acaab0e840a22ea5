//! `sandboxctl vault mount`: a vault as a directory, for as long as the command runs.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use ::vault::fuse::{FuseServer, Mount as Mounted, MountError, serve, serve_volume};
use ::vault::volume::{Limits, Volume};
use ::vault::{Access, Lease, LeaseTerms, Rights};
use casemate::record::hex;
use clap::Args;
use serde_json::json;

use super::At;
use crate::failure::Failure;

#[derive(Args)]
pub struct Mount {
    #[command(flatten)]
    at: At,
    /// Directory to show it at.
    #[arg(value_name = "AT")]
    place: PathBuf,
    /// Let nothing be changed; other commands may write to the vault meanwhile, unseen.
    #[arg(long)]
    read_only: bool,
    /// User, and group, that the files belong to. Others than this process's user can use the mount then.
    /// [default: this process's]
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    owner: Option<(u32, u32)>,
    /// Tell what happens in lines of JSON.
    #[arg(long)]
    json: bool,
}

/// How often it is looked whether somebody has unmounted it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Mount {
    pub fn run(self) -> Result<(), Failure> {
        let access = if self.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        // Before anything is mounted: what cannot be opened leaves nothing behind.
        let vault = self.at.open(access)?;
        let terms = LeaseTerms {
            subject: "mount".into(),
            prefix: String::new(),
            rights: if self.read_only {
                Rights::READ
            } else {
                Rights::WRITE
            },
            expires: None,
        };
        let failed = |error: &dyn std::error::Error| {
            Failure::caused(format!("cannot serve `{}`", self.place.display()), error)
        };
        let (lease, volume) = if self.read_only {
            (vault.lease(terms).map_err(|e| self.at.explain(e))?, None)
        } else {
            let volume = Volume::new(vault, Limits::default()).map_err(|e| self.at.explain(e))?;
            (
                volume.lease(terms).map_err(|e| failed(&e))?,
                Some(Arc::new(volume)),
            )
        };
        let lease = Arc::new(lease);
        lease.on_damage(|damage| {
            let name = ::vault::audit::Escaped(&damage.object);
            eprintln!(
                "sandboxctl: `{name}` was tampered with or damaged: its {}",
                damage.what
            );
        });
        // Signals are waited for from here on, so that none leaves a mount behind.
        let ended = signals()?;
        let us = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let owner = self.owner.unwrap_or(us);
        let (mounted, device) =
            Mounted::new(&self.place, self.read_only, owner.0 != us.0).map_err(|e| failed(&e))?;
        let server = match &volume {
            Some(volume) => serve_volume(device, Arc::clone(volume), Arc::clone(&lease), owner),
            None => serve(device, Arc::clone(&lease), owner),
        };
        let server = server.map_err(|e| failed(&e))?;
        self.tell_mounted();
        wait(&server, &ended);
        self.end(mounted, server, &lease, volume.as_deref())
    }

    /// Unmounts, commits, and says what the vault holds now.
    fn end(
        &self,
        mut mounted: Mounted,
        server: FuseServer,
        lease: &Lease,
        volume: Option<&Volume>,
    ) -> Result<(), Failure> {
        // This has the kernel write what it still holds of mapped files.
        match mounted.unmount() {
            Ok(()) => {}
            Err(MountError::Busy(place)) => eprintln!(
                "sandboxctl: `{}` is in use: what uses it gets errors from now on",
                place.display()
            ),
            Err(error) => eprintln!("sandboxctl: {}", crate::failure::describe(&error)),
        }
        let Some(volume) = volume else {
            drop((mounted, server));
            return Ok(());
        };
        server.invalidate();
        let waiting = volume.uncommitted().bytes;
        if waiting > 1 << 20 && io::stderr().is_terminal() {
            eprintln!("committing {} MiB", waiting >> 20);
        }
        let committed = volume.commit();
        let state = volume.committed();
        lease.revoke();
        let lost = volume.close();
        drop((mounted, server));
        if let Err(error) = committed {
            let message = format!("{} changes were lost", lost.changes);
            return Err(Failure::caused(message, &error).hint(
                "the vault is as it was at the commit before; see whether the disk is full",
            ));
        }
        if let Some((generation, root)) = state {
            self.tell_committed(generation, &hex(&root));
        }
        Ok(())
    }

    fn tell_mounted(&self) {
        let (vault, place) = (self.at.vault.display(), self.place.display());
        if self.json {
            let (vault, at) = (vault.to_string(), place.to_string());
            let told = json!({ "event": "mounted", "vault": vault, "at": at, "read_only": self.read_only });
            println!("{told}");
        } else {
            println!("`{vault}` is mounted at `{place}`; Ctrl-C unmounts it");
        }
    }

    fn tell_committed(&self, generation: u64, root: &str) {
        if self.json {
            let told = json!({ "event": "unmounted", "generation": generation, "root": root });
            println!("{told}");
        } else {
            println!("unmounted, and everything committed\n  root {root}, generation {generation}");
        }
    }
}

/// Hears of the signals that end a command.
fn signals() -> Result<Receiver<()>, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let (sender, ended) = channel();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // A second one finds the command unmounting.
            let _ = sender.send(());
        }
    });
    Ok(ended)
}

/// Until a signal comes, or somebody else unmounts it.
fn wait(server: &FuseServer, ended: &Receiver<()>) {
    while server.is_serving() {
        match ended.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let number = |part: &str| {
        part.parse().map_err(|_| {
            format!(
                "`{}` is no number of a user or group",
                part.escape_default()
            )
        })
    };
    Ok((number(user)?, number(group)?))
}
