//! The ways in which a file can be wrong, in words.

use std::ops::Range;

use toml::de::DeValue;

use super::Reader;
use super::value::Section;
use crate::diagnostic::{Diagnostic, Severity, nearest};
use crate::units;

/// Keys that take a duration.
const DURATIONS: [&str; 4] = ["time", "max-age", "half-life", "falls-after"];
/// Keys that take a size.
const SIZES: [&str; 3] = ["memory", "volume", "rate"];

impl<'s> Reader<'s> {
    pub(super) fn known(&mut self, section: &Section<'_, 's>, keys: &[&str]) {
        for key in section
            .table
            .keys()
            .filter(|key| !keys.contains(&key.get_ref().as_ref()))
        {
            let place = section.in_words();
            let name = key.get_ref();
            if self.wished(section, key.span(), name) {
                continue;
            }
            let help = match nearest(name, keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", list(keys)),
            };
            self.error(
                key.span(),
                format!("unknown key `{}`{place}", name.escape_debug()),
            )
            .help(&help);
        }
    }

    pub(super) fn missing(&mut self, section: &Section<'_, 's>, key: &str, help: &str) {
        let place = section.in_words();
        let key = key.trim_matches('`');
        self.error(section.span.clone(), format!("missing `{key}`{place}"))
            .help(&format!("add {help}"));
    }

    pub(super) fn wrong(
        &mut self,
        span: Range<usize>,
        key: &str,
        wanted: &str,
        found: &DeValue<'_>,
    ) -> Helpful<'_> {
        let found = found.type_str();
        let article = if found.starts_with(['a', 'i']) {
            "an"
        } else {
            "a"
        };
        let key = key.escape_debug();
        let written = self.source.get(span.clone()).unwrap_or_default();
        let one_line = written.len() <= 64 && !written.contains(['\n', '\r']);
        let help = match (wanted, found) {
            ("a string", "integer" | "float") if DURATIONS.contains(&&*key.to_string()) => {
                Some(units::DURATION_HELP.to_owned())
            }
            ("a string", "integer" | "float") if SIZES.contains(&&*key.to_string()) => {
                Some(units::SIZE_HELP.to_owned())
            }
            (_, "datetime") => None,
            ("an array", "string" | "table") => Some(format!("`{key} = [{written}]`")),
            ("an integer", "string") => Some("leave the quotes out".to_owned()),
            ("a string", "integer" | "float" | "boolean") => {
                Some(format!("put it in quotes: `{key} = \"{written}\"`"))
            }
            _ => None,
        };
        let message = format!("`{key}` takes {wanted}, not {article} {found}");
        let mut helpful = self.error(span, message);
        if let (Some(help), Some(diagnostic)) = (help.filter(|_| one_line), &mut helpful.0) {
            diagnostic.help = Some(help);
        }
        helpful
    }

    pub(super) fn unknown(&mut self, span: Range<usize>, what: &str, word: &str, known: &[&str]) {
        let help = match nearest(word, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", list(known)),
        };
        self.error(span, format!("unknown {what} `{}`", word.escape_debug()))
            .help(&help);
    }

    pub(super) fn twice(&mut self, span: Range<usize>, text: &str) {
        self.error(span, format!("`{text}` occurs twice"));
    }

    pub(super) fn warn(&mut self, span: Range<usize>, message: impl Into<String>) -> Helpful<'_> {
        self.warnings.push(Diagnostic::new(
            Severity::Warning,
            self.source,
            span,
            message,
        ));
        Helpful(self.warnings.last_mut())
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) -> Helpful<'_> {
        self.problems
            .push(Diagnostic::new(Severity::Error, self.source, span, message));
        Helpful(self.problems.last_mut())
    }
}

/// The diagnostic just made, to which help can be added.
pub(super) struct Helpful<'a>(Option<&'a mut Diagnostic>);

impl Helpful<'_> {
    pub(super) fn help(self, text: &str) {
        if let Some(diagnostic) = self.0 {
            diagnostic.help = Some(text.to_owned());
        }
    }
}

pub(super) fn list(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
