//! Cedar's tokens, as far as splitting, linting and abbreviating rules needs them.
//!
//! Follows the lexical grammar of the Cedar policy language reference: identifiers, integers,
//! strings with backslash escapes, `//` comments, punctuation. What a rule means is left to
//! `cedar-policy`.

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word,
    Number,
    /// With its quotes.
    Text,
    Comment,
    /// One of Cedar's operators, or any single other character.
    Mark,
}

/// A token and its bytes in the text it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) span: Range<usize>,
}

impl Token {
    pub(crate) fn of<'a>(&self, text: &'a str) -> &'a str {
        &text[self.span.clone()]
    }
}

/// Splits a text into tokens; total, and every byte that is not white space is in one of them.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let (kind, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if rest.starts_with("//") {
            (Kind::Comment, rest.find('\n').unwrap_or(rest.len()))
        } else if first == '"' {
            (Kind::Text, string_length(rest))
        } else if first.is_ascii_digit() {
            (Kind::Number, run(rest, |c| c.is_ascii_digit()))
        } else if first.is_ascii_alphabetic() || first == '_' {
            (
                Kind::Word,
                run(rest, |c| c.is_ascii_alphanumeric() || c == '_'),
            )
        } else {
            let two = ["==", "!=", "<=", ">=", "&&", "||", "::"];
            let pair = two.iter().any(|mark| rest.starts_with(mark));
            (Kind::Mark, if pair { 2 } else { first.len_utf8() })
        };
        tokens.push(Token {
            kind,
            span: at..at + length,
        });
        at += length;
    }
    tokens
}

/// The length of the string at the start of `rest`; to the end if it is not closed.
fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn run(rest: &str, belongs: impl Fn(char) -> bool) -> usize {
    rest.find(|c| !belongs(c)).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_in_strings_and_comments_are_not_marks() {
        let text = r#"a >= "x;\"+" // ; -"#;
        let kinds: Vec<_> = tokens(text).iter().map(|t| (t.kind, t.of(text))).collect();
        assert_eq!(
            kinds,
            [
                (Kind::Word, "a"),
                (Kind::Mark, ">="),
                (Kind::Text, r#""x;\"+""#),
                (Kind::Comment, "// ; -"),
            ]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_character_is_lost(text in "[a-z0-9 \"\\\\/;\n=!é]{0,40}") {
            let joined: String = tokens(&text).iter().map(|t| t.of(&text)).collect();
            let bare = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(bare(&joined), bare(&text));
        }
    }
}
