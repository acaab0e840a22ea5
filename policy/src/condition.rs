//! Conditions that compare facts with literals, compiled.
//!
//! Most rules look like `context.risk >= 20 && context.tcb != "up-to-date"`. Cedar takes about a
//! microsecond for each; what is compiled here takes nanoseconds. Only what a rule says after its
//! head passed strict validation is compiled, and only shapes whose meaning has no corner: no
//! pattern, no arithmetic, no extension. All else is left to Cedar, and a property test holds the
//! two together.

use cedar_policy::Policy;
use serde_json::Value;

use crate::facts::{Facts, Tcb, Tier};

/// The facts as rules see them.
#[derive(Debug)]
pub(crate) struct View<'a> {
    risk: i64,
    age: i64,
    tier: Tier,
    tcb: Tcb,
    simulated: bool,
    debug: bool,
    gaps: Vec<&'a str>,
}

impl<'a> View<'a> {
    /// `words` are the strings that rules mention: what an unknown gap may be.
    pub(crate) fn of(facts: &'a Facts, words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut gaps: Vec<&str> = facts.gaps.iter().map(String::as_str).collect();
        if facts.gaps.contains(Facts::UNKNOWN_GAP) {
            gaps.extend(words);
            gaps.sort_unstable();
            gaps.dedup();
        }
        View {
            risk: facts.risk_points(),
            age: facts.age_seconds(),
            tier: facts.tier,
            tcb: facts.tcb,
            simulated: facts.simulated.unwrap_or(true),
            debug: facts.debug.unwrap_or(true),
            gaps,
        }
    }

    /// The gaps, sorted.
    pub(crate) fn gaps(&self) -> &[&'a str] {
        &self.gaps
    }

    fn has_gap(&self, gap: &str) -> bool {
        self.gaps.binary_search(&gap).is_ok()
    }
}

/// What a rule asks of the facts after its head matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always(bool),
    Number(Number, Order, i64),
    /// One of these.
    Tier(Vec<Tier>),
    Tcb(Vec<Tcb>),
    Simulated,
    Debug,
    Gap(String),
    NoGap,
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

/// A fact that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Risk,
    Age,
}

/// How a number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Equal,
    Less,
    AtMost,
}

impl Condition {
    /// The conditions of a rule, if all of them can be compiled.
    pub(crate) fn of(policy: &Policy) -> Option<Condition> {
        let json = policy.to_json().ok()?;
        let conditions = json.get("conditions")?.as_array()?.iter();
        let all = conditions.map(|condition| {
            let body = compiled(condition.get("body")?)?;
            match condition.get("kind")?.as_str()? {
                "when" => Some(body),
                "unless" => Some(not(body)),
                _ => None,
            }
        });
        all.collect::<Option<Vec<_>>>().map(Condition::All)
    }

    pub(crate) fn holds(&self, view: &View<'_>) -> bool {
        match self {
            Condition::Always(value) => *value,
            Condition::Number(number, order, literal) => {
                let number = match number {
                    Number::Risk => view.risk,
                    Number::Age => view.age,
                };
                match order {
                    Order::Equal => number == *literal,
                    Order::Less => number < *literal,
                    Order::AtMost => number <= *literal,
                }
            }
            Condition::Tier(some) => some.contains(&view.tier),
            Condition::Tcb(some) => some.contains(&view.tcb),
            Condition::Simulated => view.simulated,
            Condition::Debug => view.debug,
            Condition::Gap(gap) => view.has_gap(gap),
            Condition::NoGap => view.gaps.is_empty(),
            Condition::Not(inner) => !inner.holds(view),
            Condition::All(all) => all.iter().all(|one| one.holds(view)),
            Condition::Any(any) => any.iter().any(|one| one.holds(view)),
        }
    }
}

/// Every string that stands in a rule's conditions, as Cedar read it.
pub(crate) fn words(policy: &Policy) -> Vec<String> {
    fn collect(expression: &Value, words: &mut Vec<String>) {
        match expression {
            Value::Object(parts) => parts.values().for_each(|part| collect(part, words)),
            Value::Array(parts) => parts.iter().for_each(|part| collect(part, words)),
            Value::String(word) => words.push(word.clone()),
            _ => {}
        }
    }
    let mut words = Vec::new();
    if let Ok(json) = policy.to_json() {
        collect(json.get("conditions").unwrap_or(&Value::Null), &mut words);
    }
    words
}

/// One expression of Cedar's JSON policy format.
fn compiled(expression: &Value) -> Option<Condition> {
    let object = expression.as_object().filter(|object| object.len() == 1)?;
    let (operator, parts) = object.iter().next()?;
    let part = |name: &str| parts.get(name);
    Some(match operator.as_str() {
        "Value" => Condition::Always(parts.as_bool()?),
        "." => match attribute(expression)? {
            "simulated" => Condition::Simulated,
            "debug" => Condition::Debug,
            _ => return None,
        },
        "!" => not(compiled(part("arg")?)?),
        "&&" => Condition::All(vec![compiled(part("left")?)?, compiled(part("right")?)?]),
        "||" => Condition::Any(vec![compiled(part("left")?)?, compiled(part("right")?)?]),
        "==" => compared(parts, Order::Equal)?,
        "!=" => not(compared(parts, Order::Equal)?),
        "<" => compared(parts, Order::Less)?,
        "<=" => compared(parts, Order::AtMost)?,
        // Cedar writes these as their opposites.
        ">" => not(compared(parts, Order::AtMost)?),
        ">=" => not(compared(parts, Order::Less)?),
        "isEmpty" if attribute(part("arg")?)? == "gaps" => Condition::NoGap,
        "contains" => match attribute(part("left")?) {
            Some("gaps") => Condition::Gap(text(part("right")?)?.to_owned()),
            _ => among(texts(part("left")?)?, attribute(part("right")?)?)?,
        },
        "containsAll" => Condition::All(gaps(parts)?),
        "containsAny" => Condition::Any(gaps(parts)?),
        _ => return None,
    })
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

/// A comparison of an attribute of the context with a literal, in either order.
fn compared(parts: &Value, order: Order) -> Option<Condition> {
    let (left, right) = (parts.get("left")?, parts.get("right")?);
    let (name, literal, turned) = match attribute(left) {
        Some(name) => (name, right, false),
        None => (attribute(right)?, left, true),
    };
    let number = match name {
        "risk" => Number::Risk,
        "evidence_age" => Number::Age,
        "tier" | "tcb" if order == Order::Equal => return among(vec![text(literal)?], name),
        "simulated" | "debug" if order == Order::Equal => {
            let is = match name {
                "simulated" => Condition::Simulated,
                _ => Condition::Debug,
            };
            return Some(match literal.get("Value")?.as_bool()? {
                true => is,
                false => not(is),
            });
        }
        _ => return None,
    };
    let literal = literal.get("Value")?.as_i64()?;
    Some(match (order, turned) {
        (order, false) | (order @ Order::Equal, true) => Condition::Number(number, order, literal),
        (Order::Less, true) => not(Condition::Number(number, Order::AtMost, literal)),
        (Order::AtMost, true) => not(Condition::Number(number, Order::Less, literal)),
    })
}

/// Whether a word of the context is one of these.
fn among(words: Vec<&str>, name: &str) -> Option<Condition> {
    Some(match name {
        "tier" => Condition::Tier(named(Tier::ALL, Tier::as_str, &words)),
        "tcb" => Condition::Tcb(named(Tcb::ALL, Tcb::as_str, &words)),
        _ => return None,
    })
}

fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, words: &[&str]) -> Vec<T> {
    let known = all.iter().copied();
    known.filter(|one| words.contains(&name(*one))).collect()
}

/// `context.gaps` on the left, literals on the right.
fn gaps(parts: &Value) -> Option<Vec<Condition>> {
    (attribute(parts.get("left")?)? == "gaps").then_some(())?;
    let words = texts(parts.get("right")?)?.into_iter();
    Some(words.map(|gap| Condition::Gap(gap.to_owned())).collect())
}

/// The name of the attribute in `context.name`.
fn attribute(expression: &Value) -> Option<&str> {
    let access = expression.get(".")?;
    (access.get("left")?.get("Var")? == "context").then_some(())?;
    access.get("attr")?.as_str()
}

fn text(expression: &Value) -> Option<&str> {
    expression.get("Value")?.as_str()
}

fn texts(expression: &Value) -> Option<Vec<&str>> {
    match expression.get("Set") {
        Some(elements) => elements.as_array()?.iter().map(text).collect(),
        // A set of literals may be one literal itself.
        None => {
            let elements = expression.get("Value")?.as_array()?.iter();
            elements.map(Value::as_str).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(conditions: &str) -> Option<Condition> {
        let rule = format!("permit (principal, action, resource) {conditions};");
        Condition::of(&rule.parse().unwrap())
    }

    #[test]
    fn the_usual_conditions_are_compiled() {
        for conditions in [
            "",
            "when { context.risk >= 20 && 40 > context.risk }",
            "when { context.tcb == \"up-to-date\" } unless { context.tier != \"none\" }",
            "when { [\"revoked\", \"unknown\"].contains(context.tcb) || !context.debug }",
            "when { context.gaps.containsAny([\"a\", \"b\"]) || context.gaps.isEmpty() }",
            "when { context.simulated == false && context.evidence_age < 600 }",
        ] {
            assert!(of(conditions).is_some(), "{conditions}");
        }
        for conditions in [
            "when { resource is Path }",
            "when { context.tier like \"w*\" }",
            "when { context.risk < context.evidence_age }",
            "when { context.gaps.contains(context.tcb) }",
        ] {
            assert!(of(conditions).is_none(), "{conditions}");
        }
    }

    #[test]
    fn what_is_compiled_means_what_is_written() {
        let facts = Facts {
            risk: 20,
            ..Facts::unknown()
        };
        let view = View::of(&facts, ["cgroup"]);
        for (conditions, expected) in [
            ("when { context.risk >= 20 }", true),
            ("when { context.risk > 20 }", false),
            ("when { 20 <= context.risk }", true),
            ("when { 20 < context.risk }", false),
            ("when { 21 > context.risk }", true),
            ("unless { context.tcb == \"up-to-date\" }", true),
            ("when { context.gaps.contains(\"cgroup\") }", true),
            ("when { context.gaps.contains(\"data\") }", false),
            ("when { context.gaps.containsAll([]) }", true),
            ("when { context.debug == false }", false),
        ] {
            let holds = of(conditions).unwrap().holds(&view);
            assert_eq!(holds, expected, "{conditions}");
        }
    }
}
