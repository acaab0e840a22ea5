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

/// The types of entities.
pub(crate) const ENTITY_TYPES: [&str; 6] =
    ["Workload", "Path", "Endpoint", "Vault", "Tier", "Session"];

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
    use crate::grant::ResourceType;

    #[test]
    fn the_schema_and_the_types_of_this_crate_agree() {
        let schema = parse().unwrap();
        for kind in ENTITY_TYPES {
            assert!(
                schema.entity_types().any(|known| known.to_string() == kind),
                "{kind}"
            );
        }
        assert_eq!(schema.actions().count(), Action::ALL.len());
        for one in Action::ALL {
            let uid = action(one).unwrap();
            let of_schema: Vec<String> = schema
                .resources_for_action(&uid)
                .unwrap()
                .map(ToString::to_string)
                .collect();
            for kind in ResourceType::ALL {
                let applies = of_schema.iter().any(|known| known == kind.as_str());
                assert_eq!(applies, one.applies_to(kind), "{one:?} {kind:?}");
            }
        }
    }
}
