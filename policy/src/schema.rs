//! The schema that rules are validated against, and the names in it.

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};

use crate::grant::{Action, Resource};

/// The schema in Cedar's own syntax, for editors and for people.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The attributes of the context, in the order of the schema.
pub(crate) const CONTEXT: [&str; 7] = [
    "risk",
    "tier",
    "tcb",
    "simulated",
    "debug",
    "evidence_age",
    "gaps",
];

/// Parses the schema; fails only if this crate was built with a broken one.
pub(crate) fn parse() -> Result<Schema, String> {
    Schema::from_cedarschema_str(SCHEMA)
        .map(|(schema, _)| schema)
        .map_err(|error| error.to_string())
}

/// The entity that stands for the workload of the bundle of this name.
pub(crate) fn workload(name: &str) -> Result<EntityUid, String> {
    uid("Workload", name)
}

/// The entity of an action.
pub(crate) fn action(action: Action) -> Result<EntityUid, String> {
    uid("Action", action.as_str())
}

/// The entity of a resource.
pub(crate) fn resource(resource: &Resource) -> Result<EntityUid, String> {
    uid(resource.kind().as_str(), &resource.id())
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, String> {
    let kind: EntityTypeName = kind
        .parse()
        .map_err(|error: cedar_policy::ParseErrors| error.to_string())?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_schema_has_the_actions_and_the_context_of_this_crate() {
        let schema = parse().unwrap();
        let mut ours: Vec<String> = Action::ALL
            .into_iter()
            .map(|one| action(one).unwrap().to_string())
            .collect();
        let mut of_schema: Vec<String> = schema.actions().map(ToString::to_string).collect();
        ours.sort();
        of_schema.sort();
        assert_eq!(ours, of_schema);
        for name in CONTEXT {
            assert!(SCHEMA.contains(&format!("    {name}: ")), "{name}");
        }
        assert_eq!(SCHEMA.matches("context: Facts").count(), Action::ALL.len());
    }
}
