//! The JSON Schema knows the keys that the reader knows, table by table.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

use policy::{BUNDLE_SCHEMA, Bundle, SENSORS};
use serde_json::Value;

fn schema() -> Value {
    serde_json::from_str(BUNDLE_SCHEMA).unwrap()
}

fn keys(table: &Value) -> BTreeSet<String> {
    table["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

/// The keys that the reader says a table can have.
fn known(table: &str) -> BTreeSet<String> {
    const STRANGE: &str = "a-key-that-nobody-would-ever-mean";
    let text = match table {
        "" => format!("{STRANGE} = 1\n"),
        "files.read" => format!("[files]\nread = [{{ {STRANGE} = 1 }}]\n"),
        table => format!("[{table}]\n{STRANGE} = 1\n"),
    };
    let error = Bundle::parse(&text, "p.toml").unwrap_err();
    let told = error
        .diagnostics()
        .iter()
        .find(|one| one.message.contains(STRANGE))
        .unwrap_or_else(|| panic!("{error}"));
    let help = told.help.as_deref().unwrap();
    let list = help.strip_prefix("known are ").unwrap();
    list.split(", ")
        .map(|key| key.trim_matches('`').to_owned())
        .collect()
}

#[test]
fn the_schema_has_the_keys_of_every_table() {
    let schema = schema();
    assert_eq!(keys(&schema), known(""));
    let tables = &schema["properties"];
    for table in [
        "attestation",
        "workload",
        "isolation",
        "files",
        "network",
        "syscalls",
        "rules",
    ] {
        assert_eq!(keys(&tables[table]), known(table), "{table}");
    }
    let reduced = &tables["isolation"]["properties"]["reduced"];
    assert_eq!(keys(reduced), known("isolation.reduced"));
    assert_eq!(
        keys(&tables["data"]["additionalProperties"]),
        known("data.x")
    );
    let of_sensors = SENSORS.map(|sensor| known(&format!("risk.{sensor}")));
    assert_eq!(
        keys(&tables["risk"]["additionalProperties"]),
        of_sensors.into_iter().flatten().collect()
    );
    let place = &schema["$defs"]["fileGrants"]["items"]["anyOf"][1];
    assert_eq!(keys(place), known("files.read"));
}

#[test]
fn the_schema_has_every_sensor_and_every_word() {
    let schema = schema();
    let of = |list: &Value| -> BTreeSet<String> {
        let list = list["enum"].as_array().unwrap().iter();
        list.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let sensors = SENSORS.iter().chain(&["falls-after"]);
    let sensors = sensors.map(|name| (*name).to_owned()).collect();
    assert_eq!(of(&schema["properties"]["risk"]["propertyNames"]), sensors);
    // Each word is accepted by the reader: no other refusal than those of missing tables.
    for (table, key, list) in [
        (
            "attestation",
            "accept",
            &schema["properties"]["attestation"]["properties"]["accept"]["items"],
        ),
        (
            "isolation",
            "backend",
            &schema["properties"]["isolation"]["properties"]["backend"],
        ),
    ] {
        for word in of(list) {
            let value = match key {
                "accept" => format!("[\"{word}\"]"),
                _ => format!("\"{word}\""),
            };
            let text = format!(
                "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n[{table}]\n{key} = {value}\n[rules]\ncedar = \"permit (principal, action, resource);\"\n"
            );
            Bundle::parse(&text, "p.toml").unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
