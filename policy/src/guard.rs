//! What a rule's conditions need of the resource, whatever the facts.
//!
//! Of `resource.port == 443 && context.risk >= 20` the guard is `resource.port == 443`: where it
//! does not hold the rule cannot either, and need never be evaluated. A guard is an upper bound,
//! made from the rule as Cedar parsed it by putting the more permissive answer in the place of
//! each part that looks at the context.

use cedar_policy::{Policy, PolicyId};
use serde_json::{Value, json};

use crate::rules::Rule;

/// What is asked about a resource once, and what is left to ask whenever the facts change.
#[derive(Clone)]
pub(crate) struct Guard {
    /// A `permit` that is satisfied wherever the rule's conditions can be.
    pub(crate) question: Policy,
    /// The rule without what the question has answered, where that is satisfied and the head
    /// matches.
    pub(crate) rest: Policy,
}

/// The guard of a rule.
///
/// There is none if the conditions could fail under some facts: then whoever evaluates the rule
/// has to see the failure.
pub(crate) fn of(rule: &Rule) -> Option<Guard> {
    if !rule.is_shallow() {
        return None;
    }
    let mut conditions = rule.policy.to_json().ok()?.get("conditions")?.clone();
    let mut rest = conditions.clone();
    let mut says_something = false;
    let pairs = conditions.as_array_mut()?.iter_mut();
    for (condition, rest) in pairs.zip(rest.as_array_mut()?) {
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
        *rest.get_mut("body")? = unanswered(body, bound);
        *body = bounded;
    }
    if !says_something {
        return None;
    }
    let policy = |effect: &str, conditions: Value| {
        let policy = json!({
            "effect": effect,
            "principal": { "op": "All" },
            "action": { "op": "All" },
            "resource": { "op": "All" },
            "conditions": conditions,
        });
        let id = PolicyId::new(AsRef::<str>::as_ref(rule.policy.id()));
        Policy::from_json(Some(id), policy).ok()
    };
    let effect = if rule.permits { "permit" } else { "forbid" };
    Some(Guard {
        question: policy("permit", conditions)?,
        rest: policy(effect, rest)?,
    })
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

/// The expression without the parts of its outermost chain that do not look at the context: of
/// `a && b` where the upper bound is true, of `a || b` where the lower one is false, each such part
/// has that value.
fn unanswered(expression: &Value, bound: Bound) -> Value {
    let neutral = json!({ "Value": bound == Bound::Upper });
    if !looks_at_context(expression) {
        return neutral;
    }
    let chain = match bound {
        Bound::Upper => "&&",
        Bound::Lower => "||",
    };
    let Some((operator, parts)) = operation(expression).filter(|(name, _)| *name == chain) else {
        return expression.clone();
    };
    match (parts.get("left"), parts.get("right")) {
        (Some(left), Some(right)) => {
            let (left, right) = (unanswered(left, bound), unanswered(right, bound));
            if left == neutral {
                right
            } else if right == neutral {
                left
            } else {
                json!({ operator: { "left": left, "right": right } })
            }
        }
        _ => expression.clone(),
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
