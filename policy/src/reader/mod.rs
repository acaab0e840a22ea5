//! From TOML to tables, collecting every problem on the way.

mod cases;
mod include;
mod overbroad;
mod problem;
mod risk;
mod value;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) use self::cases::{CaseContents, read as read_cases};
use self::value::Section;
use crate::diagnostic::{Diagnostic, Severity, is_invisible};
use crate::tables::{
    Access, Attestation, BackendName, Data, Endpoint, FileGrant, Files, Isolation, Network,
    Reduced, Rootfs, Syscalls, Tables, TeeName, Workload,
};
use crate::units;

/// A value and where it stands.
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

/// What a file says, before its rules are read.
pub(crate) struct Contents {
    pub(crate) version: u64,
    pub(crate) name: String,
    pub(crate) tables: Tables,
    pub(crate) rules: Placed<String>,
    /// Other files whose tables belong to this one, as written.
    pub(crate) include: Vec<Placed<String>>,
    /// The text of those files, in their order.
    pub(crate) included: Vec<String>,
    /// What is allowed and probably not meant.
    pub(crate) warnings: Vec<Diagnostic>,
}

/// Gives the text of an included file, or says why it cannot be had.
pub(crate) type Include<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

/// Reads the whole file, and those it includes. On any error the answer is the list of all of them.
pub(crate) fn read(source: &str, text_of: &Include<'_>) -> Result<Contents, Vec<Diagnostic>> {
    let document = parse(source)?;
    let mut reader = Reader::new(source);
    let mut contents = reader.document(document.get_ref());
    if let Some(contents) = &mut contents {
        reader.include(contents, text_of);
    }
    match contents {
        Some(contents) if reader.problems.is_empty() => Ok(contents),
        _ => Err(reader.problems),
    }
}

/// Parses TOML that shows all that is in it.
fn parse(source: &str) -> Result<Spanned<DeTable<'_>>, Vec<Diagnostic>> {
    let hidden: Vec<Diagnostic> = source
        .char_indices()
        .filter(|(_, c)| is_invisible(*c))
        .map(|(at, c)| {
            let message = format!(
                "the invisible character U+{:04X} is not allowed",
                u32::from(c)
            );
            let span = at..at + c.len_utf8();
            Diagnostic::new(Severity::Error, source, span, message)
                .with_help("what people read and what is decided must be the same")
        })
        .take(MOST_HIDDEN)
        .collect();
    if !hidden.is_empty() {
        return Err(hidden);
    }
    let (document, errors) = DeTable::parse_recoverable(source);
    if errors.is_empty() {
        return Ok(document);
    }
    // What was recovered from broken syntax would only give misleading messages, and so does what comes
    // after something that is never closed.
    let mut told: Vec<Diagnostic> = errors.iter().map(|error| syntax(source, error)).collect();
    let open_ended = ["unclosed array", "unclosed inline table"];
    if told
        .iter()
        .any(|one| open_ended.iter().any(|what| one.message.contains(what)))
    {
        told.truncate(1);
        if let Some(first) = told.first_mut() {
            first.help = Some(
                "what was begun before here is not closed: look for a missing `]`, `}` or quote"
                    .to_owned(),
            );
        }
    }
    Err(told)
}

/// The most invisible characters that are pointed at.
const MOST_HIDDEN: usize = 10;

fn syntax(source: &str, error: &toml::de::Error) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    Diagnostic::new(
        Severity::Error,
        source,
        span,
        error.message().trim().replace('\n', ", "),
    )
}

struct Reader<'s> {
    source: &'s str,
    problems: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Mount points so far, and what stands there.
    mounts: BTreeMap<PathBuf, &'static str>,
}

impl<'s> Reader<'s> {
    fn new(source: &'s str) -> Self {
        Reader {
            source,
            problems: Vec::new(),
            warnings: Vec::new(),
            mounts: BTreeMap::new(),
        }
    }

    fn document(&mut self, table: &DeTable<'s>) -> Option<Contents> {
        let root = Section {
            place: String::new(),
            span: 0..0,
            table,
        };
        self.known(
            &root,
            &[
                "version",
                "name",
                "include",
                "attestation",
                "workload",
                "isolation",
                "files",
                "network",
                "syscalls",
                "data",
                "risk",
                "rules",
            ],
        );
        let version = self.integer(&root, "version", 0..=i64::MAX as u64);
        if version.is_none() && root.get("version").is_none() {
            self.missing(&root, "version", "a number that only grows: `version = 1`");
        }
        let name = self
            .string(&root, "name")
            .and_then(|(span, name)| self.name(span, name));
        if root.get("name").is_none() {
            self.missing(&root, "name", "`name = \"my-workload\"`");
        }

        let include = self.strings(&root, "include").unwrap_or_default();
        let include = include.into_iter().map(|(span, text)| Placed {
            value: text.to_owned(),
            span,
        });
        let include = include.collect();

        let attestation = self
            .section(&root, "attestation")
            .map(|s| self.attestation(&s));
        let workload = match self.section(&root, "workload") {
            Some(section) => self.workload(&section),
            None => {
                if root.get("workload").is_none() {
                    self.missing(
                        &root,
                        "[workload]",
                        "[workload]\ncommand = [\"/usr/bin/true\"]",
                    );
                }
                None
            }
        };
        let isolation = self.section(&root, "isolation").map(|s| self.isolation(&s));
        let files = self.section(&root, "files").map(|s| self.files(&s));
        let network = self.section(&root, "network").map(|s| self.network(&s));
        let syscalls = self.section(&root, "syscalls").map(|s| self.syscalls(&s));
        let data = self.section(&root, "data").map(|s| self.data(&s));
        let risk = self.section(&root, "risk").map(|s| self.risk(&s));
        let (risk, risk_falls_after) = risk.unwrap_or_else(risk::default);
        let rules = self.rules(&root);

        Some(Contents {
            version: version?,
            name: name?,
            tables: Tables {
                attestation: attestation.unwrap_or_default(),
                workload: workload?,
                isolation: isolation.unwrap_or_else(default_isolation),
                files: files.unwrap_or_default(),
                network: network.unwrap_or_default(),
                syscalls: syscalls.unwrap_or_else(default_syscalls),
                data: data.unwrap_or_default(),
                risk,
                risk_falls_after,
            },
            rules: rules?,
            include,
            included: Vec::new(),
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    fn attestation(&mut self, section: &Section<'_, 's>) -> Attestation {
        self.known(
            section,
            &["accept", "max-age", "reference-values", "endorsements"],
        );
        let names = TeeName::ALL.map(TeeName::as_str);
        let mut accept = Vec::new();
        for (span, text) in self.strings(section, "accept").unwrap_or_default() {
            match TeeName::ALL.into_iter().find(|tee| tee.as_str() == text) {
                Some(tee) if accept.contains(&tee) => self.twice(span, text),
                Some(tee) => {
                    if tee == TeeName::Simulated {
                        self.warn(span, "`simulated` evidence proves nothing, and is accepted")
                            .help("leave it out where data is real");
                    }
                    accept.push(tee);
                }
                None => self.unknown(span, "kind of evidence", text, &names),
            }
        }
        Attestation {
            accept,
            max_age: self.duration(section, "max-age"),
            reference_values: self
                .string(section, "reference-values")
                .and_then(|(span, text)| self.host_path(span, text)),
            endorsements: self
                .string(section, "endorsements")
                .and_then(|(span, text)| self.host_path(span, text)),
        }
    }

    fn workload(&mut self, section: &Section<'_, 's>) -> Option<Workload> {
        self.known(section, &["command", "rootfs", "env", "cwd"]);
        let command = match section.get("command") {
            None => {
                self.missing(section, "command", "`command = [\"/usr/bin/true\"]`");
                None
            }
            Some((span, _)) => self.strings(section, "command").and_then(|words| {
                if words.first().is_none_or(|(_, program)| program.is_empty()) {
                    self.error(span, "`command` names no program")
                        .help("`command = [\"/usr/bin/true\"]`");
                    return None;
                }
                words
                    .into_iter()
                    .map(|(span, word)| self.no_nul(span, word))
                    .collect()
            }),
        };
        let rootfs = match self.string(section, "rootfs") {
            None | Some((_, "host")) => Rootfs::Host,
            Some((span, text)) => {
                let path = self.host_path(span.clone(), text).unwrap_or_default();
                self.warn_of_path(span, &path, false);
                Rootfs::Path(path)
            }
        };
        let cwd = match self.string(section, "cwd") {
            None => Some(PathBuf::from("/")),
            Some((span, text)) => self.sandbox_path(span, text),
        };
        let mut env = BTreeMap::new();
        if let Some(table) = self.section(section, "env") {
            for (key, value) in table.table.iter() {
                let name = key.get_ref().as_ref();
                if name.is_empty() || name.contains(['=', '\0']) {
                    self.error(
                        key.span(),
                        format!("`{}` cannot be the name of a variable", name.escape_debug()),
                    );
                }
                match value.get_ref().as_str() {
                    Some(text) => {
                        let text = self.no_nul(value.span(), text).unwrap_or_default();
                        env.insert(name.to_owned(), text);
                    }
                    None => {
                        self.wrong(value.span(), name, "a string", value.get_ref());
                    }
                }
            }
        }
        Some(Workload {
            command: command?,
            rootfs,
            env,
            cwd: cwd?,
        })
    }

    fn isolation(&mut self, section: &Section<'_, 's>) -> Isolation {
        self.known(
            section,
            &["backend", "memory", "pids", "cpu", "time", "reduced"],
        );
        let mut isolation = default_isolation();
        if let Some((span, text)) = self.string(section, "backend") {
            match BackendName::ALL
                .into_iter()
                .find(|name| name.as_str() == text)
            {
                Some(backend) => isolation.backend = backend,
                None => self.unknown(
                    span,
                    "backend",
                    text,
                    &BackendName::ALL.map(BackendName::as_str),
                ),
            }
        }
        let full = self.limits(section);
        isolation.memory = full.memory.unwrap_or(isolation.memory);
        isolation.pids = full.pids.unwrap_or(isolation.pids);
        isolation.cpu = full.cpu.unwrap_or(isolation.cpu);
        isolation.time = self.duration(section, "time");
        if let Some(section) = self.section(section, "reduced") {
            self.known(&section, &["memory", "pids", "cpu"]);
            let reduced = self.limits(&section);
            let more = [
                (
                    "memory",
                    reduced
                        .memory
                        .is_some_and(|reduced| reduced > isolation.memory),
                ),
                (
                    "pids",
                    reduced.pids.is_some_and(|reduced| reduced > isolation.pids),
                ),
                (
                    "cpu",
                    reduced.cpu.is_some_and(|reduced| reduced > isolation.cpu),
                ),
            ];
            for (key, _) in more.into_iter().filter(|(_, more)| *more) {
                let span = section
                    .get(key)
                    .map_or(section.span.clone(), |(span, _)| span);
                self.error(
                    span,
                    format!("the reduced tier has more `{key}` than the full one"),
                );
            }
            isolation.reduced = Some(reduced);
        }
        isolation
    }

    fn limits(&mut self, section: &Section<'_, 's>) -> Reduced {
        let memory = self.string(section, "memory").and_then(|(span, text)| {
            let size = units::size(text).filter(|size| *size > 0);
            if size.is_none() {
                self.error(span, format!("`{text}` is not a size"))
                    .help(units::SIZE_HELP);
            }
            size
        });
        Reduced {
            memory,
            pids: self.integer(section, "pids", 1..=4_194_304),
            cpu: self.cores(section),
        }
    }

    fn cores(&mut self, section: &Section<'_, 's>) -> Option<f64> {
        let (span, value) = section.get("cpu")?;
        let text = match value {
            DeValue::Float(float) => float.as_str(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            other => {
                self.wrong(span, "cpu", "a number of cores", other);
                return None;
            }
        };
        // Below a hundredth of a core the kernel's quota has no meaning; NaN fails the range too.
        match text.parse::<f64>() {
            Ok(cores) if (0.01..=4096.0).contains(&cores) => Some(cores),
            _ => {
                self.error(span, format!("`{text}` is not a number of cores"))
                    .help("write a number from 0.01 to 4096: `cpu = 1.5`");
                None
            }
        }
    }

    fn files(&mut self, section: &Section<'_, 's>) -> Files {
        self.known(section, &["read", "write"]);
        Files {
            read: self.file_grants(section, "read"),
            write: self.file_grants(section, "write"),
        }
    }

    fn file_grants(&mut self, section: &Section<'_, 's>, key: &str) -> Vec<FileGrant> {
        let mut grants = Vec::new();
        for (span, entry) in self.array(section, key).unwrap_or_default() {
            let grant = match entry {
                DeValue::String(text) if self.beside(span.clone(), text) => None,
                DeValue::String(text) => {
                    self.sandbox_path(span.clone(), text).map(|at| FileGrant {
                        from: at.clone(),
                        at,
                    })
                }
                DeValue::Table(table) => {
                    let entry = Section {
                        place: format!("{}.{key}", section.place),
                        span: span.clone(),
                        table,
                    };
                    self.known(&entry, &["from", "at"]);
                    let from = self.needed(&entry, "from", "`from = \"./on/the/host\"`");
                    let from = from.and_then(|(span, text)| self.host_path(span, text));
                    let at = self.needed(&entry, "at", "`at = \"/in/the/sandbox\"`");
                    let at = at.and_then(|(span, text)| self.sandbox_path(span, text));
                    from.zip(at).map(|(from, at)| FileGrant { from, at })
                }
                other => {
                    self.wrong(span.clone(), key, "a path or `{ from = …, at = … }`", other);
                    None
                }
            };
            if let Some(grant) = grant {
                self.mount(span.clone(), &grant.at, "[files]");
                self.warn_of_path(span, &grant.from, key == "write");
                grants.push(grant);
            }
        }
        grants
    }

    fn network(&mut self, section: &Section<'_, 's>) -> Network {
        self.known(section, &["connect"]);
        let mut connect: Vec<Endpoint> = Vec::new();
        for (span, text) in self.strings(section, "connect").unwrap_or_default() {
            match text.parse::<Endpoint>() {
                Ok(endpoint) if connect.contains(&endpoint) => self.twice(span, text),
                Ok(endpoint) => {
                    self.warn_of_host(span, &endpoint.host);
                    connect.push(endpoint);
                }
                Err(why) => {
                    self.error(
                        span,
                        format!("`{}` is not an endpoint: {why}", text.escape_debug()),
                    )
                    .help(&match text.split_once("://") {
                        Some((_, rest)) => {
                            let host = rest.split(['/', ':', '?']).next().unwrap_or_default();
                            format!("name host and port: `{}:443`", host.escape_debug())
                        }
                        None => "write `host:port`, `10.0.0.5:5432` or `[::1]:443`".to_owned(),
                    });
                }
            }
        }
        Network { connect }
    }

    fn syscalls(&mut self, section: &Section<'_, 's>) -> Syscalls {
        self.known(section, &["profile", "allow", "deny"]);
        let mut syscalls = default_syscalls();
        if let Some((span, text)) = self.string(section, "profile") {
            if text.is_empty() {
                self.error(span, "`profile` is empty")
                    .help("`profile = \"default\"`");
            }
            syscalls.profile = text.to_owned();
        }
        syscalls.allow = self.call_names(section, "allow");
        syscalls.deny = self.call_names(section, "deny");
        syscalls
    }

    fn call_names(&mut self, section: &Section<'_, 's>, key: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        for (span, text) in self.strings(section, key).unwrap_or_default() {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                self.error(
                    span,
                    format!(
                        "`{}` cannot be the name of a system call",
                        text.escape_debug()
                    ),
                );
            } else if !names.insert(text.to_owned()) {
                self.twice(span, text);
            }
        }
        names.into_iter().collect()
    }

    fn uri(&mut self, entry: &Section<'_, 's>, key: &str, example: &str) -> Option<String> {
        let (span, text) = self.string(entry, key)?;
        if text
            .split_once(':')
            .is_none_or(|(scheme, rest)| scheme.is_empty() || rest.is_empty())
        {
            self.error(span, format!("`{key}` is not a URI"))
                .help(&format!("`{key} = \"{example}\"`"));
            return None;
        }
        self.no_nul(span, text)
    }

    fn data(&mut self, section: &Section<'_, 's>) -> BTreeMap<String, Data> {
        let mut data = BTreeMap::new();
        for (key, value) in section.table.iter() {
            let name = self.name(key.span(), key.get_ref());
            let Some(entry) =
                self.subsection(section, key.get_ref(), value.span(), value.get_ref())
            else {
                continue;
            };
            self.known(&entry, &["vault", "at", "access", "key", "anchor"]);
            let vault = self.needed(&entry, "vault", "`vault = \"customers.vault\"`");
            let vault = vault.and_then(|(span, text)| self.host_path(span, text));
            let at = self.needed(&entry, "at", "`at = \"/data\"`");
            let at = at.and_then(|(span, text)| {
                let at = self.sandbox_path(span.clone(), text)?;
                self.mount(span, &at, "[data]");
                Some(at)
            });
            let access = match self.string(&entry, "access") {
                None | Some((_, "read")) => Access::Read,
                Some((_, "read-write")) => Access::ReadWrite,
                Some((span, text)) => {
                    self.unknown(span, "access", text, &["read", "read-write"]);
                    Access::Read
                }
            };
            let key = self.uri(&entry, "key", "file:customers.key");
            let anchor = self.uri(&entry, "anchor", "tpm:0x01800001");
            if let (Some(name), Some(vault), Some(at)) = (name, vault, at) {
                data.insert(
                    name,
                    Data {
                        vault,
                        at,
                        access,
                        key,
                        anchor,
                    },
                );
            }
        }
        data
    }

    fn rules(&mut self, root: &Section<'_, 's>) -> Option<Placed<String>> {
        const EXAMPLE: &str = "the least there is:\n[rules]\ncedar = \"\"\"\npermit (principal, action, resource);\nforbid (principal, action == Action::\"live\", resource) when { context.risk >= 80 };\n\"\"\"";
        if root.get("rules").is_none() {
            self.error(0..0, "missing `[rules]`: without rules nothing is granted")
                .help(EXAMPLE);
            return None;
        }
        let section = self.section(root, "rules")?;
        self.known(&section, &["cedar"]);
        if section.get("cedar").is_none() {
            self.error(
                section.span.clone(),
                "missing `cedar` in `[rules]`: without rules nothing is granted",
            )
            .help(EXAMPLE);
            return None;
        }
        let (span, text) = self.string(&section, "cedar")?;
        Some(Placed {
            value: text.to_owned(),
            span,
        })
    }
}

fn default_isolation() -> Isolation {
    Isolation {
        backend: BackendName::Container,
        memory: 512 << 20,
        pids: 64,
        cpu: 1.0,
        time: None,
        reduced: None,
    }
}

fn default_syscalls() -> Syscalls {
    Syscalls {
        profile: "default".to_owned(),
        allow: Vec::new(),
        deny: Vec::new(),
    }
}
