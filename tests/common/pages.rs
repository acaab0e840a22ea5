//! What tests need that hold a page of the documentation against the source.

use std::path::{Path, PathBuf};

/// Every Rust source below these folders, but for the tests that hold pages.
pub fn source(folders: impl IntoIterator<Item = PathBuf>) -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|it| it == "rs")
                && !path.ends_with("tests/pages.rs")
            {
                *text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    for folder in folders {
        collect(&folder, &mut text);
    }
    text
}

/// What is in backticks.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
