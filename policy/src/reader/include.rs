//! Tables that several policies share.
//!
//! An included file has `[files]`, `[network]`, `[syscalls]`, `[data]` and `[risk]`, and nothing
//! else: what runs, in what, and under which rules is said in the one file that has the name. Its
//! entries are added to the file's own; the same entry twice is a mistake, so that nobody has to
//! know which one counts.

use std::collections::btree_map::Entry;
use std::ops::Range;
use std::path::{Component, Path};

use toml::de::DeTable;

use super::value::Section;
use super::{Contents, Include, Reader, default_syscalls, parse};
use crate::diagnostic::Diagnostic;
use crate::tables::Tables;

/// The most files that one policy includes.
const MOST_FILES: usize = 16;
/// The most bytes of one of them.
const MOST_BYTES: usize = 1 << 18;

impl<'s> Reader<'s> {
    /// Adds the tables of the included files.
    pub(super) fn include(&mut self, contents: &mut Contents, text_of: &Include<'_>) {
        let include = std::mem::take(&mut contents.include);
        if include.len() > MOST_FILES {
            let span = include[MOST_FILES].span.clone();
            self.error(span, format!("more than {MOST_FILES} files are included"));
            return;
        }
        let mut seen: Vec<&str> = Vec::new();
        for entry in &include {
            let (span, name) = (entry.span.clone(), entry.value.as_str());
            if seen.contains(&name) {
                self.twice(span, name);
                continue;
            }
            seen.push(name);
            let plain = Path::new(name)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if name.is_empty() || !plain || name.contains('\0') {
                self.error(
                    span,
                    format!("`{}` cannot be included", name.escape_debug()),
                )
                .help("name a file beside this one or in a folder below");
                continue;
            }
            match text_of(name) {
                Ok(text) if text.len() > MOST_BYTES => {
                    let message = format!("`{name}` is longer than {MOST_BYTES} bytes");
                    self.error(span, message);
                }
                Ok(text) => {
                    self.shared(contents, span, name, &text);
                    contents.included.push(text);
                }
                Err(why) => {
                    self.error(span, format!("`{name}` cannot be included: {why}"));
                }
            }
        }
        contents.include = include;
    }

    /// Adds the tables of one file; its mistakes are shown in the help of one of ours.
    fn shared(&mut self, contents: &mut Contents, span: Range<usize>, name: &str, text: &str) {
        let shown = |problems: &[Diagnostic]| -> String {
            let shown = problems.iter().take(3);
            shown
                .map(|one| one.render(text, name).to_string())
                .collect()
        };
        let document = match parse(text) {
            Ok(document) => document,
            Err(problems) => {
                self.error(span, format!("`{name}` has mistakes"))
                    .help(&shown(&problems));
                return;
            }
        };
        let mut other = Reader::new(text);
        other.mounts = std::mem::take(&mut self.mounts);
        other.tables(document.get_ref(), &mut contents.tables);
        self.mounts = std::mem::take(&mut other.mounts);
        if !other.problems.is_empty() {
            self.error(span.clone(), format!("`{name}` has mistakes"))
                .help(&shown(&other.problems));
        }
        for warning in &other.warnings {
            self.warn(span.clone(), format!("in `{name}`: {}", warning.message))
                .help(&shown(std::slice::from_ref(warning)));
        }
    }

    fn tables(&mut self, table: &DeTable<'s>, tables: &mut Tables) {
        let root = Section {
            place: String::new(),
            span: 0..0,
            table,
        };
        self.known(&root, &["files", "network", "syscalls", "data", "risk"]);
        if let Some(section) = self.section(&root, "files") {
            let more = self.files(&section);
            tables.files.read.extend(more.read);
            tables.files.write.extend(more.write);
        }
        if let Some(section) = self.section(&root, "network") {
            let more = self.network(&section);
            for endpoint in more.connect {
                if tables.network.connect.contains(&endpoint) {
                    self.elsewhere(&section, &endpoint.to_string());
                } else {
                    tables.network.connect.push(endpoint);
                }
            }
        }
        if let Some(section) = self.section(&root, "syscalls") {
            let more = self.syscalls(&section);
            if more.profile != default_syscalls().profile {
                let message = "an included file cannot choose the profile";
                self.error(section.span.clone(), message);
            }
            let lists = [
                (&mut tables.syscalls.allow, more.allow),
                (&mut tables.syscalls.deny, more.deny),
            ];
            for (names, more) in lists {
                names.extend(more);
                names.sort();
                names.dedup();
            }
        }
        if let Some(section) = self.section(&root, "data") {
            for (name, entry) in self.data(&section) {
                match tables.data.entry(name) {
                    Entry::Occupied(known) => self.elsewhere(&section, known.key()),
                    Entry::Vacant(free) => drop(free.insert(entry)),
                }
            }
        }
        if let Some(section) = self.section(&root, "risk") {
            for (name, entry) in self.risk(&section) {
                match tables.risk.entry(name) {
                    Entry::Occupied(known) => self.elsewhere(&section, known.key()),
                    Entry::Vacant(free) => drop(free.insert(entry)),
                }
            }
        }
    }

    /// Notes an entry that another file has too.
    fn elsewhere(&mut self, section: &Section<'_, 's>, name: &str) {
        let message = format!("`{name}` is in `[{}]` of another file too", section.place);
        self.error(section.span.clone(), message)
            .help("each entry stands in one file");
    }
}
