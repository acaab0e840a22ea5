//! One value at a time: taken from its table, checked, or noted as a problem.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::Reader;
use crate::diagnostic::is_invisible;
use crate::units;

/// A table with its name in messages and its place.
pub(super) struct Section<'t, 's> {
    pub(super) place: String,
    pub(super) span: Range<usize>,
    pub(super) table: &'t DeTable<'s>,
}

impl<'t, 's> Section<'t, 's> {
    /// The value of a key, and its place.
    pub(super) fn get(&self, key: &str) -> Option<(Range<usize>, &'t DeValue<'s>)> {
        self.table
            .get(key)
            .map(|value| (value.span(), value.get_ref()))
    }

    /// Where a key of this table is, for messages; nothing to say at the top.
    pub(super) fn in_words(&self) -> String {
        match self.place.as_str() {
            "" => String::new(),
            place => format!(" in `[{place}]`"),
        }
    }
}

impl<'s> Reader<'s> {
    /// A table within a table.
    pub(super) fn section<'t>(
        &mut self,
        parent: &Section<'t, 's>,
        key: &str,
    ) -> Option<Section<'t, 's>> {
        let (span, value) = parent.get(key)?;
        self.subsection(parent, key, span, value)
    }

    pub(super) fn subsection<'t>(
        &mut self,
        parent: &Section<'_, 's>,
        key: &str,
        span: Range<usize>,
        value: &'t DeValue<'s>,
    ) -> Option<Section<'t, 's>> {
        match value {
            DeValue::Table(table) => {
                let place = match parent.place.as_str() {
                    "" => key.to_owned(),
                    place => format!("{place}.{key}"),
                };
                Some(Section { place, span, table })
            }
            other => {
                let helpful = self.wrong(span, key, "a table", other);
                match parent.place.as_str() {
                    "data" => helpful.help("`{ vault = \"customers.vault\", at = \"/data\" }`"),
                    "risk" => helpful.help("`{ adds = 10, half-life = \"60s\" }`"),
                    _ => {}
                }
                None
            }
        }
    }

    /// A string, if the key is there.
    pub(super) fn string<'t>(
        &mut self,
        section: &Section<'t, 's>,
        key: &str,
    ) -> Option<(Range<usize>, &'t str)> {
        let (span, value) = section.get(key)?;
        if let DeValue::String(text) = value {
            return Some((span, text));
        }
        self.wrong(span, key, "a string", value);
        None
    }

    /// A string that has to be there.
    pub(super) fn needed<'t>(
        &mut self,
        section: &Section<'t, 's>,
        key: &str,
        help: &str,
    ) -> Option<(Range<usize>, &'t str)> {
        if section.get(key).is_none() {
            self.missing(section, key, help);
        }
        self.string(section, key)
    }

    pub(super) fn array<'t>(
        &mut self,
        section: &Section<'t, 's>,
        key: &str,
    ) -> Option<Vec<(Range<usize>, &'t DeValue<'s>)>> {
        let (span, value) = section.get(key)?;
        if let DeValue::Array(entries) = value {
            return Some(
                entries
                    .iter()
                    .map(|entry| (entry.span(), entry.get_ref()))
                    .collect(),
            );
        }
        self.wrong(span, key, "an array", value);
        None
    }

    pub(super) fn strings<'t>(
        &mut self,
        section: &Section<'t, 's>,
        key: &str,
    ) -> Option<Vec<(Range<usize>, &'t str)>> {
        let mut texts = Vec::new();
        for (span, entry) in self.array(section, key)? {
            match entry {
                DeValue::String(text) => texts.push((span, text.as_ref())),
                other => {
                    self.wrong(span, key, "strings", other);
                }
            }
        }
        Some(texts)
    }

    pub(super) fn integer(
        &mut self,
        section: &Section<'_, 's>,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        let (span, value) = section.get(key)?;
        let DeValue::Integer(integer) = value else {
            self.wrong(span, key, "an integer", value);
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (least, most) = range.into_inner();
                self.error(span, format!("`{key}` is not between {least} and {most}"));
                None
            }
        }
    }

    pub(super) fn duration(&mut self, section: &Section<'_, 's>, key: &str) -> Option<Duration> {
        let (span, text) = self.string(section, key)?;
        let duration = units::duration(text).filter(|duration| !duration.is_zero());
        if duration.is_none() {
            self.error(span, format!("`{}` is not a duration", text.escape_debug()))
                .help(units::DURATION_HELP);
        }
        duration
    }

    /// A name that can stand in paths, messages and logs.
    pub(super) fn name(&mut self, span: Range<usize>, text: &str) -> Option<String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(plain) {
            self.error(span, format!("`{}` is not a name", text.escape_debug()))
                .help("up to 64 of letters, digits, `-`, `_` and `.`, not beginning with `.`");
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn no_nul(&mut self, span: Range<usize>, text: &str) -> Option<String> {
        if text.contains('\0') {
            self.error(span, "a NUL character cannot be passed to a program");
            return None;
        }
        Some(text.to_owned())
    }

    /// A path on the host: relative ones are below the folder of the file.
    pub(super) fn host_path(&mut self, span: Range<usize>, text: &str) -> Option<PathBuf> {
        let path = Path::new(text);
        let why = if text.is_empty() {
            "it is empty"
        } else if text.contains('\0') {
            "it contains a NUL character"
        } else if text.chars().any(|c| c.is_control() || is_invisible(c)) {
            "it contains invisible characters"
        } else if path.components().any(|part| part == Component::ParentDir) {
            "it contains `..`"
        } else {
            return Some(path.to_owned());
        };
        self.error(
            span,
            format!("`{}` is not a path: {why}", text.escape_debug()),
        )
        .help("write an absolute path, or one below the folder of this file");
        None
    }

    /// A path in the sandbox: absolute, and spelled in the one way it can be.
    pub(super) fn sandbox_path(&mut self, span: Range<usize>, text: &str) -> Option<PathBuf> {
        let mut parts = text.split('/');
        let absolute = parts.next() == Some("") && text.starts_with('/');
        let why = if !absolute {
            "it is not absolute"
        } else if text.contains('\0') {
            "it contains a NUL character"
        } else if text.chars().any(|c| c.is_control() || is_invisible(c)) {
            "it contains invisible characters"
        } else if parts.clone().any(|part| part == "..") {
            "it contains `..`"
        } else if text != "/" && parts.any(|part| part.is_empty() || part == ".") {
            "it is not in its shortest form"
        } else {
            return Some(PathBuf::from(text));
        };
        self.error(
            span,
            format!(
                "`{}` is not a path in the sandbox: {why}",
                text.escape_debug()
            ),
        )
        .help("write an absolute path without `.`, `..`, `//` or a slash at the end: `/app`");
        None
    }

    /// Notes a mount point and refuses the second one at the same place.
    pub(super) fn mount(&mut self, span: Range<usize>, at: &Path, by: &'static str) {
        if let Some(other) = self.mounts.insert(at.to_owned(), by) {
            let message = format!("`{}` is already given by `{other}`", at.display());
            self.error(span, message)
                .help("each path in the sandbox has one entry; `write` includes reading");
        }
    }
}
