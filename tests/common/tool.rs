//! Tools that tests run and this project does not bring: `tests/requirements.txt` lists them.

use std::path::PathBuf;

/// The tool of this name from where the reader of the formats is; `None`, and a word about it, without it.
pub fn tool(name: &str) -> Option<PathBuf> {
    let python = std::env::var_os("CASEMATE_PYTHON").map(PathBuf::from);
    let tool = python.map(|python| python.with_file_name(name));
    match tool.filter(|tool| tool.exists()) {
        Some(tool) => Some(tool),
        None if std::env::var_os("CI").is_some() => {
            panic!("CASEMATE_PYTHON must name a Python with what tests/requirements.txt lists")
        }
        None => {
            println!(
                "skipped: no `{name}`: CASEMATE_PYTHON names no Python with tests/requirements.txt"
            );
            None
        }
    }
}
