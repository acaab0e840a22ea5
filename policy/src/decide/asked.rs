//! One set of facts, as rules are asked about it.

use std::cell::OnceCell;

use cedar_policy::{Context, RestrictedExpression};

use super::Engine;
use crate::condition::View;
use crate::facts::Facts;
use crate::grant::Action;
use crate::schema;

/// The facts of one decision. What Cedar needs of them is made when it is first asked.
pub(super) struct Asked<'a> {
    facts: &'a Facts,
    pub(super) view: View<'a>,
    context: OnceCell<Result<Context, String>>,
}

impl<'a> Asked<'a> {
    pub(super) fn about(engine: &'a Engine, facts: &'a Facts) -> Self {
        Asked {
            facts,
            view: View::of(facts, engine.words.iter().map(String::as_str)),
            context: OnceCell::new(),
        }
    }

    /// The facts as Cedar sees them, checked against the schema.
    pub(super) fn context(&self, engine: &Engine) -> Result<&Context, String> {
        let made = self.context.get_or_init(|| self.make(engine));
        made.as_ref().map_err(Clone::clone)
    }

    fn make(&self, engine: &Engine) -> Result<Context, String> {
        let facts = self.facts;
        let word = |word: &str| RestrictedExpression::new_string(word.to_owned());
        let pairs = [
            ("risk", RestrictedExpression::new_long(facts.risk_points())),
            ("tier", word(facts.tier.as_str())),
            ("tcb", word(facts.tcb.as_str())),
            (
                "simulated",
                RestrictedExpression::new_bool(facts.simulated.unwrap_or(true)),
            ),
            (
                "debug",
                RestrictedExpression::new_bool(facts.debug.unwrap_or(true)),
            ),
            (
                "evidence_age",
                RestrictedExpression::new_long(facts.age_seconds()),
            ),
            (
                "gaps",
                RestrictedExpression::new_set(self.view.gaps().iter().map(|gap| word(gap))),
            ),
        ];
        let context = Context::from_pairs(pairs.map(|(key, value)| (key.to_owned(), value)))
            .map_err(|error| error.to_string())?;
        // Every action of the schema has the same context.
        let action = schema::action(Action::Live)?;
        context
            .validate(&engine.schema, &action)
            .map_err(|error| error.to_string())?;
        Ok(context)
    }
}
