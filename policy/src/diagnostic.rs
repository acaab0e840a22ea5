//! A problem in a policy file, with its place, rendered the way compilers do.

use std::fmt;
use std::ops::Range;

/// How much a [`Diagnostic`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The bundle is refused.
    Error,
    /// The bundle loads, and probably does not mean what its author meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

/// One thing to say about a policy file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether the bundle is refused for it.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// The bytes of the file it is about.
    pub span: Range<usize>,
    /// What to write instead. May span several lines.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn new(
        severity: Severity,
        source: &str,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        let start = floor_char_boundary(source, span.start);
        let end = floor_char_boundary(source, span.end).max(start);
        let (line, column) = position(source, start);
        // Messages quote the file, and are printed on terminals.
        let message = printable(&message.into());
        Diagnostic {
            severity,
            message,
            line,
            column,
            span: start..end,
            help: None,
        }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Renders the diagnostic over the source it was made for: place, line, underline, help.
    pub fn render<'a>(&'a self, source: &'a str, file_name: &'a str) -> impl fmt::Display + 'a {
        Rendered {
            diagnostic: self,
            source,
            file_name,
        }
    }
}

struct Rendered<'a> {
    diagnostic: &'a Diagnostic,
    source: &'a str,
    file_name: &'a str,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic {
            severity,
            message,
            line,
            column,
            span,
            help,
        } = self.diagnostic;
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{severity}: {message}")?;
        writeln!(f, "{margin}--> {}:{line}:{column}", self.file_name)?;

        let (before, rest) = self.source.split_at(span.start.min(self.source.len()));
        let begun = before.rsplit('\n').next().unwrap_or_default();
        let ended = rest.split(['\n', '\r']).next().unwrap_or_default();
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", printable(&format!("{begun}{ended}")))?;
        // A tab before the caret stays a tab, so that the caret stands below its character.
        let indent: String = begun
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let width = ended
            .char_indices()
            .take_while(|(at, _)| *at < span.len())
            .count()
            .max(1);
        writeln!(f, "{margin} | {indent}{}", "^".repeat(width))?;

        if let Some(help) = help {
            let mut lines = help.lines();
            writeln!(f, "{margin} = help: {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(f, "{margin}         {line}")?;
            }
        }
        Ok(())
    }
}

/// The text without characters that would command a terminal; tabs stay.
fn printable(text: &str) -> String {
    let plain = |c: char| {
        if c.is_control() && c != '\t' || is_invisible(c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(plain).collect()
}

/// Whether a character hides text from its reader or shows it in another order than a parser sees.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The line and column, both from 1 and the column in characters, of a byte offset.
pub(crate) fn position(source: &str, offset: usize) -> (usize, usize) {
    let before = &source[..floor_char_boundary(source, offset)];
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let begun = before.rsplit('\n').next().unwrap_or_default();
    (line, begun.chars().count() + 1)
}

fn floor_char_boundary(source: &str, offset: usize) -> usize {
    let mut offset = offset.min(source.len());
    while !source.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The known word most like `word`, if one is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are not typing mistakes, and the comparison is quadratic.
    if word.len() > 64 {
        return None;
    }
    let plain = word.to_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|candidate| {
            (
                distance(&plain, &candidate.to_lowercase().replace('_', "-")),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The edits (insert, delete, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_its_character() {
        let source = "a = 1\n\tb = \"ü\" # c\n";
        let at = source.find('"').unwrap_or_default();
        let diagnostic =
            Diagnostic::new(Severity::Error, source, at..at + 4, "no").with_help("x\ny");
        assert_eq!((diagnostic.line, diagnostic.column), (2, 6));
        assert_eq!(
            diagnostic.render(source, "p.toml").to_string(),
            "error: no\n --> p.toml:2:6\n  |\n2 | \tb = \"ü\" # c\n  | \t    ^^^\n  = help: x\n          y\n"
        );
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        assert_eq!(nearest("memroy", ["memory", "pids"]), Some("memory"));
        assert_eq!(
            nearest("evidence-age", ["evidence_age"]),
            Some("evidence_age")
        );
        assert_eq!(nearest("zebra", ["memory", "pids"]), None);
    }
}
