//! A policy bundle: one file, read strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::decide::Engine;
use crate::decision::{Decision, Verdict};
use crate::diagnostic::{Diagnostic, Severity, nearest, position};
use crate::diff::Diff;
use crate::explain::Explanation;
use crate::facts::Facts;
use crate::grant::{Grant, Lever};
use crate::rules::Rule;
use crate::tables::Tables;
use crate::{diff, explain, lint, reader, rules, schema};

/// A policy that was read without an error: its tables are sane, its rules fit the schema.
///
/// Only [`Bundle::parse`] makes one. Cheap to clone.
#[derive(Clone)]
pub struct Bundle(Arc<Inner>);

struct Inner {
    source: String,
    included: Vec<(String, String)>,
    digest: [u8; 32],
    version: u64,
    name: String,
    tables: Tables,
    grants: Vec<Grant>,
    rules: Vec<Rule>,
    engine: Engine,
    rules_span: Range<usize>,
    warnings: Vec<Diagnostic>,
}

impl Bundle {
    /// The longest file that is read, in bytes.
    pub const MAX_LEN: usize = 1 << 20;

    /// The most grants that tables may amount to.
    pub const MAX_GRANTS: usize = 4096;

    /// Reads a policy file; `file_name` is for messages only.
    ///
    /// # Errors
    ///
    /// [`BundleError`] with every problem that was found.
    pub fn parse(source: &str, file_name: &str) -> Result<Bundle, BundleError> {
        let nothing = |_: &str| Err("only one file is read here".to_owned());
        Self::parse_with(source, file_name, &nothing)
    }

    /// Reads a policy file that may include others; `text_of` gives the text of one, by the name that
    /// the file has for it (relative, without `..`), or says why it cannot be had.
    ///
    /// # Errors
    ///
    /// [`BundleError`] with every problem that was found; those of an included file stand in the
    /// help of the entry that includes it.
    pub fn parse_with(
        source: &str,
        file_name: &str,
        text_of: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Bundle, BundleError> {
        let refuse = |diagnostics| Err(BundleError::new(source, file_name, diagnostics));
        if source.len() > Self::MAX_LEN {
            let message = format!("the file is longer than {} bytes", Self::MAX_LEN);
            return refuse(vec![Diagnostic::new(
                Severity::Error,
                source,
                0..0,
                message,
            )]);
        }
        let contents = match reader::read(source, text_of) {
            Ok(contents) => contents,
            Err(problems) => return refuse(problems),
        };
        let broken = |why: String| {
            vec![Diagnostic::new(
                Severity::Error,
                source,
                contents.rules.span.clone(),
                why,
            )]
        };
        let schema = match schema::parse() {
            Ok(schema) => schema,
            Err(why) => return refuse(broken(why)),
        };
        let grants = Grant::all(&contents.tables);
        if grants.len() > Self::MAX_GRANTS {
            let message = format!("the tables have more than {} entries", Self::MAX_GRANTS);
            return refuse(vec![Diagnostic::new(
                Severity::Error,
                source,
                0..0,
                message,
            )]);
        }
        let entities = entities(&contents.name, &grants);
        let read = match rules::read(source, &contents.rules, &schema, &entities) {
            Ok(read) => read,
            Err(problems) => return refuse(problems),
        };
        let (line, _) = position(source, contents.rules.span.start);
        let engine = match Engine::new(schema, &contents.name, &grants, &read.rules, line) {
            Ok(engine) => engine,
            Err(why) => return refuse(broken(why)),
        };
        Ok(Bundle(Arc::new(Inner {
            source: source.to_owned(),
            digest: digest(source, &contents.included),
            included: contents
                .include
                .into_iter()
                .map(|entry| entry.value)
                .zip(contents.included)
                .collect(),
            version: contents.version,
            name: contents.name,
            tables: contents.tables,
            grants,
            rules: read.rules,
            engine,
            rules_span: contents.rules.span,
            warnings: contents.warnings.into_iter().chain(read.warnings).collect(),
        })))
    }

    /// The text it was read from.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The files it includes, each by the name that it has for it, with their texts. Together with
    /// [`Bundle::source`] they make this bundle again.
    pub fn included(&self) -> &[(String, String)] {
        &self.0.included
    }

    /// SHA-256 of the text; of a policy that includes files, over the label
    /// `casemate policy with includes`, a zero byte, and for each text its length (8 bytes, big
    /// endian) and itself.
    pub fn digest(&self) -> [u8; 32] {
        self.0.digest
    }

    /// The version, which only grows from one bundle of a name to the next.
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The tables: the most the workload may ever do.
    pub fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// Everything the tables can grant, in order and without duplicates.
    pub fn grants(&self) -> &[Grant] {
        &self.0.grants
    }

    /// Decides which grants hold under these facts.
    ///
    /// Total and pure: whatever cannot be evaluated is denied.
    pub fn decide(&self, facts: &Facts) -> Decision {
        self.0.engine.decide(facts)
    }

    /// Tells whether the facts can make a difference to a grant: whether some rule that can apply to it
    /// looks at them.
    ///
    /// What never changes needs no lever.
    pub fn may_change(&self, grant: &Grant) -> bool {
        let rules = self.0.engine.rules_about(grant);
        rules.iter().any(|rule| {
            let rule = self.rules().get(*rule);
            rule.is_none_or(|rule| !rule.mentions.is_empty())
        })
    }

    /// Whether one grant holds under these facts: what an enforcement point asks at each access.
    ///
    /// The same as [`Bundle::decide`] says, without the reasons.
    pub fn allows(&self, facts: &Facts, grant: &Grant) -> bool {
        self.0.engine.allows(facts, grant)
    }

    /// Decides about one grant, as [`Bundle::decide`] does, without looking at the others. None if
    /// the tables do not list it: then it does not hold.
    pub fn decide_about(&self, facts: &Facts, grant: &Grant) -> Option<Verdict> {
        self.0.engine.decide_about(facts, grant)
    }

    /// The next age of the evidence, above this one, at which a rule may decide differently.
    ///
    /// Together with [`Risk::next_change`](crate::Risk::next_change) this tells when to decide
    /// again although nothing was signalled.
    pub fn next_age(&self, age: Duration) -> Option<Duration> {
        // Rules see whole seconds, rounded up: the value becomes `n` right after `n - 1`.
        let rules = self
            .rules()
            .iter()
            .filter(|rule| rule.mentions.contains("evidence_age"));
        let numbers = rules
            .flat_map(|rule| &rule.numbers)
            .filter_map(|n| u64::try_from(*n).ok());
        let just = Duration::from_nanos(1);
        numbers
            .flat_map(|n| [n.saturating_sub(1), n])
            .filter_map(|seconds| Duration::from_secs(seconds).checked_add(just))
            .filter(|next| *next > age)
            .min()
    }

    /// Tells for each grant which rules decided and, if it was denied, what would have to change.
    pub fn explain(&self, facts: &Facts) -> Vec<Explanation> {
        explain::explain(self, facts)
    }

    /// Tells what another bundle, the newer one, grants differently.
    pub fn diff(&self, other: &Bundle) -> Diff {
        diff::diff(self, other)
    }

    /// Finds what is allowed in a bundle and probably not meant.
    pub fn lint(&self) -> Vec<Diagnostic> {
        lint::lint(self)
    }

    /// Finds rules that take back, while the workload runs, what a host cannot take back: each lever
    /// that it lacks, and why.
    pub fn lint_levers(&self, lacking: &BTreeMap<Lever, String>) -> Vec<Diagnostic> {
        lint::levers(self, lacking)
    }

    /// Finds rules about gaps that no host can have: those that are none of `known`. A `forbid` about one
    /// would silently never hold, so that these are errors.
    pub fn unknown_gaps(&self, known: &[&str]) -> Vec<Diagnostic> {
        let asked = self.rules().iter().flat_map(|rule| &rule.gaps);
        let strange =
            asked.filter(|(gap, _)| !known.contains(&gap.as_str()) && gap != Facts::UNKNOWN_GAP);
        let told = strange.map(|(gap, span)| {
            let message = format!("there is no gap `{}`", gap.escape_debug());
            let help = match nearest(gap, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("gaps are `{}`", known.join("`, `")),
            };
            Diagnostic::new(Severity::Error, self.source(), span.clone(), message).with_help(help)
        });
        told.collect()
    }

    /// Says something about an entry of a table, where it stands in the file. For what only those know
    /// who have to enforce it.
    pub fn told_of(
        &self,
        severity: Severity,
        entry: &str,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::new(severity, self.source(), self.entry_span(entry), message)
    }

    /// Where the file has an entry, as near as text can tell; else where its rules begin.
    pub(crate) fn entry_span(&self, entry: &str) -> Range<usize> {
        let before_rules = &self.source()[..self.rules_span().start];
        let quoted = |text: String| {
            let at = before_rules.find(&text)?;
            Some(at..at + text.len())
        };
        let keyed = || {
            let at = before_rules.find(&format!("\n{entry} ="))?;
            Some(at + 1..at + 1 + entry.len())
        };
        if entry.is_empty() {
            return self.rules_span();
        }
        quoted(format!("\"{entry}\""))
            .or_else(|| quoted(format!("'{entry}'")))
            .or_else(|| quoted(format!("\"file:{entry}\"")))
            .or_else(keyed)
            .unwrap_or(self.rules_span())
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.0.rules
    }

    /// How many rules and grants a decision goes through.
    pub(crate) fn cost(&self) -> usize {
        self.0.engine.cost()
    }

    /// Where the rules stand in the file.
    pub(crate) fn rules_span(&self) -> Range<usize> {
        self.0.rules_span.clone()
    }

    /// What was noticed while reading.
    pub(crate) fn warnings(&self) -> &[Diagnostic] {
        &self.0.warnings
    }
}

fn digest(source: &str, included: &[String]) -> [u8; 32] {
    if included.is_empty() {
        return Sha256::digest(source.as_bytes()).into();
    }
    let mut hash = Sha256::new();
    hash.update(b"casemate policy with includes\0");
    for text in std::iter::once(source).chain(included.iter().map(String::as_str)) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

/// The entities rules may name, by type and identifier.
pub(crate) fn entities(name: &str, grants: &[Grant]) -> BTreeSet<(String, String)> {
    let resources = grants.iter().map(|grant| &grant.resource);
    resources
        .map(|resource| (resource.kind().as_str().to_owned(), resource.id()))
        .chain([("Workload".to_owned(), name.to_owned())])
        .collect()
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("name", &self.0.name)
            .field("version", &self.0.version)
            .field("grants", &self.0.grants.len())
            .field("rules", &self.0.rules.len())
            .finish_non_exhaustive()
    }
}

/// Why a policy file was refused: every problem, each with its place.
///
/// Displayed the way compilers do: place, line, underline, help.
#[derive(Clone, Debug)]
pub struct BundleError {
    source: String,
    file_name: String,
    diagnostics: Vec<Diagnostic>,
}

impl BundleError {
    /// The most problems that are reported at once.
    const MOST: usize = 100;

    pub(crate) fn new(source: &str, file_name: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
        diagnostics.truncate(Self::MOST);
        // Only the beginning of a file that is too long is kept to point into.
        let mut kept = source.len().min(Bundle::MAX_LEN);
        while !source.is_char_boundary(kept) {
            kept -= 1;
        }
        BundleError {
            source: source[..kept].to_owned(),
            file_name: file_name.to_owned(),
            diagnostics,
        }
    }

    /// The problems, in the order of the file; never empty.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{}", diagnostic.render(&self.source, &self.file_name))?;
        }
        let problems = match self.diagnostics.len() {
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        };
        write!(f, "{}: {problems}", self.file_name)
    }
}

impl std::error::Error for BundleError {}
