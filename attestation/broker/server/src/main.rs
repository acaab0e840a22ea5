//! `casemate-broker`: holds keys, and releases them to guests that prove what they are.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use attestation::{Hex, UnixTime};
use broker_server::admin::{self, Ask};
use broker_server::config::Config;
use broker_server::http;
use broker_server::journal::{Event, Journal};
use broker_server::server::{self, note};
use broker_server::service::{Service, described};
use broker_server::store::{self, AnyStore};
use clap::{Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};

/// How long those who watch the store may take to notice the end.
const LAST_WATCH: Duration = Duration::from_secs(8);

/// Descriptors beside those of connections: logs, the store, the operator's callers.
const OWN_FILES: u64 = 64;

/// Release keys to attested guests, and to nobody else.
#[derive(Parser)]
#[command(name = "casemate-broker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve guests, as a configuration file says.
    Serve {
        /// The configuration file.
        config: PathBuf,
        /// Believe evidence of a simulated TEE too. Anybody can forge it.
        #[arg(long)]
        dangerously_accept_simulated: bool,
        /// Keep sessions and revocations here, whatever the configuration says: a file, or `etcd://…`.
        #[arg(long, value_name = "STORE")]
        store: Option<String>,
    },
    /// Check a configuration file, and everything that it names.
    Check {
        /// The configuration file.
        config: PathBuf,
    },
    /// List the secrets of a running broker, and for whom each is.
    List {
        /// The broker's Unix socket.
        #[arg(long, value_name = "SOCKET")]
        admin: PathBuf,
    },
    /// Release a secret to nobody any more, for good.
    Revoke {
        /// The broker's Unix socket.
        #[arg(long, value_name = "SOCKET")]
        admin: PathBuf,
        /// Name of the secret: REPO/TYPE/TAG.
        resource: String,
        /// The reason, for the record.
        #[arg(long)]
        why: String,
    },
    /// Believe evidence by other reference values from now on, at every replica.
    Reference {
        /// The broker's Unix socket.
        #[arg(long, value_name = "SOCKET")]
        admin: PathBuf,
        /// The reference values; those of the configuration again, if there is no such file named.
        values: Option<PathBuf>,
        /// The reason, for the record.
        #[arg(long)]
        why: String,
    },
    /// Take a revocation back.
    Restore {
        /// The broker's Unix socket.
        #[arg(long, value_name = "SOCKET")]
        admin: PathBuf,
        /// Name of the secret: REPO/TYPE/TAG.
        resource: String,
        /// The reason, for the record.
        #[arg(long)]
        why: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve {
            config,
            dangerously_accept_simulated,
            store,
        } => serve(&config, dangerously_accept_simulated, store),
        Command::Check { config } => Config::read(&config, false).map(drop).map_err(Into::into),
        Command::List { admin } => ask(&admin, &Ask::List {}),
        Command::Revoke {
            admin,
            resource,
            why,
        } => ask(&admin, &Ask::Revoke { resource, why }),
        Command::Reference { admin, values, why } => {
            let values = values.map(std::fs::read_to_string).transpose();
            values
                .map_err(Into::into)
                .and_then(|values| ask(&admin, &Ask::Reference { values, why }))
        }
        Command::Restore {
            admin,
            resource,
            why,
        } => ask(&admin, &Ask::Restore { resource, why }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("{}", described(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path, accept_simulated: bool, store: Option<String>) -> Result<(), Box<dyn Error>> {
    // Before a key is read: what this process holds is nobody else's to look at.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, nothing)?;
    rustix::thread::set_no_new_privs(true)?;
    let mut config = Config::read(path, accept_simulated)?;
    make_room(config.limits.connections)?;
    if let Some(store) = store {
        config.store = store;
    }
    if accept_simulated {
        note(format_args!(
            "simulated evidence is accepted: it proves nothing"
        ));
    }
    let (journal, revoked) = Journal::open(&config.log, &config.log_key)?;
    journal.write(&Event::Serving {
        casemate: env!("CARGO_PKG_VERSION"),
        config: &config.digest,
    })?;
    note(format_args!("log key {}", Hex(journal.public_key())));
    // What replicas share may say otherwise by now.
    let begun = !config.store.contains("://") && !config.base.join(&config.store).exists();
    let store = store::at(&config.store, &config.base)?;
    let revoked = if begun { revoked } else { BTreeSet::new() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(config.limits.appraisals + 16)
        .enable_all()
        .build()?;
    let service = runtime.block_on(run(config, store, journal, revoked))?;
    // Whatever is under way comes to its end here; nobody but us has the service then.
    drop(runtime);
    // Those who watch the store have been told; they hold the service until they have heard.
    let deadline = std::time::Instant::now() + LAST_WATCH;
    while Arc::strong_count(&service) > 1 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(service) = Arc::into_inner(service) {
        let journal = service.into_journal();
        journal.write(&Event::Closed)?;
        journal.close()?;
    }
    Ok(())
}

/// Has the system give a descriptor to each connection, if this user may have so many.
fn make_room(connections: usize) -> Result<(), Box<dyn Error>> {
    let needed = connections as u64 + OWN_FILES;
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    if files.current.is_some_and(|now| now < needed) {
        files.current = Some(files.maximum.map_or(needed, |most| most.min(needed)));
        rustix::process::setrlimit(Resource::Nofile, files)?;
    }
    if files.current.is_some_and(|now| now < needed) {
        note(format_args!(
            "fewer files can be open than `connections` asks for: raise the limit to {needed}"
        ));
    }
    Ok(())
}

/// Serves until a Unix signal asks for an end.
async fn run(
    config: Config,
    store: AnyStore,
    journal: Journal,
    revoked: BTreeSet<String>,
) -> Result<Arc<Service>, Box<dyn Error>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (tls, limits) = (Arc::clone(&config.tls), config.limits);
    let operator = admin::bind(&config.admin)?;
    let admin_path = config.admin.clone();
    let listener = server::listen(config.listen).await?;
    note(format_args!("listens on {}", listener.local_addr()?));
    let service = Arc::new(Service::new(config, store, journal)?);
    service.adopt(&revoked, now())?;
    let (news, endorsements) = (Arc::clone(&service), Arc::clone(&service));
    thread::Builder::new()
        .name("news".into())
        .spawn(move || news.watch(now))?;
    let watch = move || endorsements.watch_endorsements(now);
    thread::Builder::new()
        .name("endorsements".into())
        .spawn(watch)?;
    tokio::spawn(admin::serve(operator, Arc::clone(&service)));
    let router = http::router(Arc::clone(&service));
    let ended = Arc::clone(&service);
    let end = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        ended.end();
    };
    server::serve(listener, tls, router, limits, end).await;
    note(format_args!("ends"));
    let _ = std::fs::remove_file(admin_path);
    Ok(service)
}

fn now() -> UnixTime {
    UnixTime::from(SystemTime::now())
}

/// Asks a running broker, and prints its answer.
fn ask(admin: &Path, ask: &Ask) -> Result<(), Box<dyn Error>> {
    let mut stream = UnixStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let reply: serde_json::Value = serde_json::from_str(&line)?;
    if let Some(why) = reply["error"].as_str() {
        return Err(why.to_owned().into());
    }
    println!("{}", serde_json::to_string_pretty(&reply)?);
    Ok(())
}
