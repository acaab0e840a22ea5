//! The ways in which a file can be wrong, in words.

use std::ops::Range;

use toml::de::DeValue;

use super::Reader;
use super::value::Section;
use crate::diagnostic::{Diagnostic, Severity, nearest};

impl<'s> Reader<'s> {
    pub(super) fn known(&mut self, section: &Section<'_, 's>, keys: &[&str]) {
        for key in section
            .table
            .keys()
            .filter(|key| !keys.contains(&key.get_ref().as_ref()))
        {
            let place = section.in_words();
            let name = key.get_ref();
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
    ) {
        let found = found.type_str();
        let article = if found.starts_with(['a', 'i']) {
            "an"
        } else {
            "a"
        };
        self.error(
            span,
            format!("`{key}` takes {wanted}, not {article} {found}"),
        );
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
