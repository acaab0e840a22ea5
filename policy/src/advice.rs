//! What to write instead of a rule that Cedar does not take: in the words of these policies, which Cedar
//! does not know.

use crate::diagnostic::nearest;
use crate::grant::Action;
use crate::schema;

/// Advice on what Cedar says about a piece of a rule; else Cedar's own, if it has any.
pub(crate) fn on(written: &str, message: &str, own: Option<String>) -> Option<String> {
    let quoted = message.split('`').nth(1).unwrap_or_default();
    let ours = if let Some(name) = message.strip_prefix("invalid variable: ") {
        on_variable(name)
    } else if message.starts_with("unrecognized action") {
        Some(on_action(written))
    } else if message.starts_with("expected an entity uid") {
        let word = quoted.trim_matches('"');
        nearest(word, ACTIONS).map(|near| format!("did you mean `Action::\"{near}\"`?"))
    } else if message.starts_with("unrecognized entity type") {
        Some(format!(
            "resources are `{}`; `principal` is always the workload",
            KINDS.join("`, `")
        ))
    } else if message.contains("expected Long but saw String") {
        Some("numbers are written without quotes; `evidence_age` is in seconds".to_owned())
    } else if message.contains("types Bool and String") {
        Some("`true` and `false` are written without quotes".to_owned())
    } else if message.contains("types String and Set<String>") {
        Some("ask a set what it has: `context.gaps.contains(\"landlock\")`".to_owned())
    } else if message.contains("attribute") {
        on_attribute(written)
    } else if message.starts_with("unexpected token") {
        on_token(quoted)
    } else {
        None
    };
    ours.or(own.map(|own| match own.split_once("`, ") {
        // Cedar numbers the rules as we do not.
        Some((start, rest)) if start.starts_with("for policy `") => rest.to_owned(),
        _ => own,
    }))
}

const ACTIONS: [&str; 7] = {
    let mut names = [""; 7];
    let mut at = 0;
    while at < names.len() {
        names[at] = Action::ALL[at].as_str();
        at += 1;
    }
    names
};
const KINDS: [&str; 5] = ["Path", "Endpoint", "Vault", "Tier", "Session"];

fn on_variable(name: &str) -> Option<String> {
    let near = nearest(name, schema::CONTEXT)?;
    Some(format!("facts are in the context: `context.{near}`"))
}

fn on_action(written: &str) -> String {
    let name = written.trim_start_matches("Action::").trim_matches('"');
    match nearest(name, ACTIONS) {
        Some(near) => format!("did you mean `Action::\"{near}\"`?"),
        None => format!("actions are `{}`", ACTIONS.join("`, `")),
    }
}

/// What may have been meant by a fact that there is not.
fn on_attribute(written: &str) -> Option<String> {
    let name = written.rsplit('.').next()?.trim();
    match nearest(name, schema::CONTEXT) {
        Some(near) if near != name => Some(format!("did you mean `{near}`?")),
        _ if written.starts_with("context") => Some(format!(
            "the context has `{}`",
            schema::CONTEXT.join("`, `")
        )),
        _ => None,
    }
}

fn on_token(token: &str) -> Option<String> {
    let advice = match token {
        "and" | "&" => "`and` is written `&&`",
        "or" | "|" => "`or` is written `||`",
        "not" => "`not` is written `!`",
        "context" => "conditions stand in braces: `when { context.risk >= 20 }`",
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => "numbers are whole in rules",
        _ => return None,
    };
    Some(advice.to_owned())
}
