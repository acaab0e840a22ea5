//! The schema that rules are validated against, and the names in it.

use std::collections::{BTreeSet, HashSet};

use cedar_policy::{
    Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema,
};

use crate::grant::{Action, Grant, Resource};

/// The schema in Cedar's own syntax, for editors and for people.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The same in Cedar's JSON, which takes a third of the time to read.
const SCHEMA_JSON: &str = include_str!("schema.cedarschema.json");

/// The JSON Schema of a policy file, so that editors complete and check it while it is written. What
/// is stricter than a schema can say is left to [`Bundle::parse`](crate::Bundle::parse).
pub const BUNDLE_SCHEMA: &str = include_str!("policy.schema.json");

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
    Schema::from_json_str(SCHEMA_JSON).map_err(|error| error.to_string())
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

/// The entities of a bundle: its workload and what its grants lead to.
pub(crate) fn entities(
    schema: &Schema,
    principal: &EntityUid,
    name: &str,
    grants: &[Grant],
) -> Result<Entities, String> {
    let word = |word: &str| RestrictedExpression::new_string(word.to_owned());
    let entity = |uid: EntityUid, attributes: Vec<(&str, RestrictedExpression)>| {
        let attributes = attributes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        Entity::new(uid, attributes, HashSet::new()).map_err(|error| error.to_string())
    };
    let mut all = vec![entity(principal.clone(), vec![("name", word(name))])?];
    let resources: BTreeSet<&Resource> = grants.iter().map(|grant| &grant.resource).collect();
    for resource in resources {
        let attributes = match resource {
            Resource::Path(_) => vec![("path", word(&resource.id()))],
            Resource::Endpoint(endpoint) => vec![
                ("host", word(&endpoint.host)),
                ("port", RestrictedExpression::new_long(endpoint.port.into())),
            ],
            Resource::Vault(_) | Resource::FullTier => vec![("name", word(&resource.id()))],
            Resource::Session => Vec::new(),
        };
        all.push(entity(self::resource(resource)?, attributes)?);
    }
    Entities::from_entities(all, Some(schema)).map_err(|error| error.to_string())
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
    fn both_forms_of_the_schema_say_the_same() {
        let (schema, _) = cedar_policy::SchemaFragment::from_cedarschema_str(SCHEMA).unwrap();
        let json: serde_json::Value = serde_json::from_str(SCHEMA_JSON).unwrap();
        let expected = schema.to_json_value().unwrap();
        assert_eq!(json, expected, "it should be:\n{expected:#}");
    }

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
