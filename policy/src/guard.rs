//! What a rule's conditions need of the resource, whatever the facts.
//!
//! Of `resource.port == 443 && context.risk >= 20` the guard is `resource.port == 443`: where it
//! does not hold the rule cannot either, and need never be evaluated. A guard is an upper bound,
//! made from the rule as Cedar parsed it by putting the more permissive answer in the place of
//! each part that looks at the context.

use cedar_policy::{Policy, PolicyId};
use serde_json::{Value, json};

use crate::rules::Rule;

/// The most conjunctions and disjunctions in a rule that gets a guard; keeps the recursion shallow.
const MOST_OPERATORS: usize = 32;

/// A `permit` that is satisfied wherever the rule's conditions can be, or cannot be evaluated.
///
/// There is none if the conditions could fail under some facts: then whoever evaluates the rule
/// has to see the failure.
pub(crate) fn of(rule: &Rule) -> Option<Policy> {
    let operators = rule.text.matches("&&").count() + rule.text.matches("||").count();
    if operators > MOST_OPERATORS {
        return None;
    }
    let mut policy = rule.policy.to_json().ok()?;
    let conditions = policy.get_mut("conditions")?.as_array_mut()?;
    let mut says_something = false;
    for condition in conditions.iter_mut() {
        let bound = match condition.get("kind")?.as_str()? {
            "when" => Bound::Upper,
            "unless" => Bound::Lower,
            _ => return None,
        };
        let body = condition.get_mut("body")?;
        if !cannot_fail(body) {
            return None;
        }
        let bounded = bounded(body, bound);
        says_something |= bounded.get("Value").is_none();
        *body = bounded;
    }
    if !says_something {
        return None;
    }
    let guard = json!({
        "effect": "permit",
        "principal": { "op": "All" },
        "action": { "op": "All" },
        "resource": { "op": "All" },
        "conditions": conditions,
    });
    let id = PolicyId::new(AsRef::<str>::as_ref(rule.policy.id()));
    Policy::from_json(Some(id), guard).ok()
}

/// From which side an expression is approached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// True wherever the expression can be.
    Upper,
    /// False wherever the expression can be.
    Lower,
}

impl Bound {
    fn other(self) -> Self {
        match self {
            Bound::Upper => Bound::Lower,
            Bound::Lower => Bound::Upper,
        }
    }
}

/// The bound of a boolean expression that does not look at the context.
fn bounded(expression: &Value, bound: Bound) -> Value {
    if !looks_at_context(expression) {
        return expression.clone();
    }
    let unknown = json!({ "Value": bound == Bound::Upper });
    let Some((operator, parts)) = operation(expression) else {
        return unknown;
    };
    let part = |name: &str| parts.get(name);
    match operator {
        "&&" | "||" => match (part("left"), part("right")) {
            (Some(left), Some(right)) => {
                json!({ operator: { "left": bounded(left, bound), "right": bounded(right, bound) } })
            }
            _ => unknown,
        },
        "!" => match part("arg") {
            Some(arg) => json!({ "!": { "arg": bounded(arg, bound.other()) } }),
            None => unknown,
        },
        _ => unknown,
    }
}

/// The operator of an expression, and its operands.
fn operation(expression: &Value) -> Option<(&str, &Value)> {
    let object = expression.as_object().filter(|object| object.len() == 1)?;
    object
        .iter()
        .next()
        .map(|(operator, parts)| (operator.as_str(), parts))
}

fn looks_at_context(expression: &Value) -> bool {
    match expression {
        Value::Object(parts) => {
            parts.get("Var").is_some_and(|var| var == "context")
                || parts.values().any(looks_at_context)
        }
        Value::Array(parts) => parts.iter().any(looks_at_context),
        _ => false,
    }
}

/// Whether an expression that passed strict validation has a value under all facts.
///
/// What can fail in spite of it is arithmetic, which overflows, and functions of extensions, which
/// read strings. All that is not known to be harmless counts as failing.
fn cannot_fail(expression: &Value) -> bool {
    let Some((operator, parts)) = operation(expression) else {
        return false;
    };
    let part = |name: &str| parts.get(name).is_some_and(cannot_fail);
    match operator {
        "Value" | "Var" => true,
        "!" | "isEmpty" => part("arg"),
        "&&" | "||" | "==" | "!=" | "in" | "<" | "<=" | ">" | ">=" | "contains" | "containsAll"
        | "containsAny" => part("left") && part("right"),
        "." | "has" | "like" => part("left"),
        "is" => part("left") && parts.get("in").is_none_or(cannot_fail),
        "Set" => parts
            .as_array()
            .is_some_and(|elements| elements.iter().all(cannot_fail)),
        _ => false,
    }
}
