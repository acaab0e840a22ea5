//! Whether a rule compares facts with literals only.
//!
//! Then the literals cut the values of each fact into ranges that the rule cannot see into, and a
//! search over one value of each range is a search over all.

use crate::lexer::{Kind, Token};

/// Whether every use of the context is one from which its literals can be read off.
pub(crate) fn is_plain(text: &str, body: &[Token]) -> bool {
    let word = |at: Option<usize>| {
        at.and_then(|at| body.get(at))
            .map_or("", |token| token.of(text))
    };
    let kind = |at: Option<usize>| at.and_then(|at| body.get(at)).map(|token| token.kind);
    let compares = |at: Option<usize>| ["==", "!=", "<", "<=", ">", ">="].contains(&word(at));
    // The end of a list of literals that begins here.
    let list_end = |at: usize| {
        let rest = body.get(at + 1..)?;
        let length = rest.iter().position(|token| {
            !matches!(token.kind, Kind::Text | Kind::Number) && token.of(text) != ","
        })?;
        (word(Some(at)) == "[" && rest[length].of(text) == "]").then_some(at + 1 + length)
    };
    let list_start = |end: usize| {
        let from = body[..end]
            .iter()
            .rposition(|token| token.of(text) == "[")?;
        (list_end(from) == Some(end)).then_some(from)
    };
    let escapes = body
        .iter()
        .any(|token| token.kind == Kind::Text && token.of(text).contains('\\'));
    let plain = |at: usize| {
        let (back, next) = (|by| at.checked_sub(by), |by| Some(at + by));
        if word(next(1)) != "." {
            return false;
        }
        let literal = match word(next(2)) {
            "simulated" | "debug" => return true,
            "risk" | "evidence_age" => Kind::Number,
            "tier" | "tcb" => Kind::Text,
            "gaps" => {
                let method = word(next(4));
                return word(next(3)) == "."
                    && match method {
                        "isEmpty" => true,
                        "contains" => kind(next(6)) == Some(Kind::Text) && word(next(7)) == ")",
                        "containsAll" | "containsAny" => {
                            list_end(at + 6).is_some_and(|end| word(Some(end + 1)) == ")")
                        }
                        _ => false,
                    };
            }
            _ => return false,
        };
        let after = compares(next(3)) && kind(next(4)) == Some(literal);
        let like = word(next(3)) == "like" && literal == Kind::Text;
        let before = compares(back(1)) && kind(back(2)) == Some(literal);
        let listed = word(back(1)) == "("
            && word(back(2)) == "contains"
            && word(back(3)) == "."
            && back(4).and_then(list_start).is_some();
        after || like || before || listed
    };
    !escapes
        && (0..body.len())
            .filter(|at| word(Some(*at)) == "context" && body[*at].kind == Kind::Word)
            .all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokens;

    #[test]
    fn only_comparisons_with_literals_are_plain() {
        for (plain, text) in [
            (true, "context.risk >= 20 && 40 > context.risk"),
            (
                true,
                "[\"a\", \"b\"].contains(context.tcb) || context.tier like \"w*\"",
            ),
            (
                true,
                "context.gaps.containsAny([\"a\"]) && !context.gaps.isEmpty()",
            ),
            (true, "context.debug || resource.port == 443"),
            (false, "context.risk >= resource.port"),
            (false, "context.risk < context.evidence_age"),
            (false, "context.gaps.contains(context.tcb)"),
            (false, "[\"a\", resource.name].contains(context.tcb)"),
            (false, "context.tier == \"n\\u{6f}ne\""),
            (false, "context has risk"),
        ] {
            assert_eq!(is_plain(text, &tokens(text)), plain, "{text}");
        }
    }
}
