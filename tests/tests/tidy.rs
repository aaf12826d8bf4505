//! The few rules of the house that a compiler cannot check.

#![expect(
    clippy::unwrap_used,
    reason = "a checkout that cannot be read fails the test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const CODE_LINES_MAX: usize = 500;
const MAIN_LINES_MAX: usize = 60;
const TEST_LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    rust_files(&root(), &mut found);
    assert!(
        found.len() > 50,
        "only {} files found: looked in the wrong place?",
        found.len()
    );
    found
}

fn is_test_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let list = table["dependencies"].as_table().unwrap();
    assert!(
        !list.is_empty(),
        "{manifest} has no dependencies: read wrongly?"
    );
    list.keys().cloned().collect()
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| path.file_name().is_none_or(|name| name != "tests.rs"))
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .collect();
    assert!(
        silent.is_empty(),
        "files without a module doc at their top: {silent:#?}"
    );
}

#[test]
fn no_room_is_too_long_to_read() {
    let mut long = Vec::new();
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let code = text
            .lines()
            .take_while(|line| *line != "#[cfg(test)]")
            .count();
        let bound = if path.ends_with("main.rs") {
            MAIN_LINES_MAX
        } else if is_test_file(&path) {
            TEST_LINES_MAX
        } else {
            CODE_LINES_MAX
        };
        if code > bound {
            long.push(format!(
                "{} has {code} lines of at most {bound}",
                path.display()
            ));
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn cores_know_no_runtime_socket_disk_or_clock() {
    let allowed: BTreeSet<String> = ["rollcall-shared", "serde", "serde_json", "thiserror"]
        .map(String::from)
        .into();
    for manifest in ["coordinator/core/Cargo.toml", "agent/core/Cargo.toml"] {
        let mut extra: BTreeSet<_> = dependencies(manifest)
            .difference(&allowed)
            .cloned()
            .collect();
        if manifest.starts_with("coordinator") {
            extra.remove("statrs"); // the judge's distributions: functions of numbers
        }
        assert!(
            extra.is_empty(),
            "{manifest} must stay pure, but depends on {extra:?}"
        );
    }
    let words = dependencies("shared/Cargo.toml");
    for banned in [
        "tokio", "quinn", "rustls", "sled", "rusqlite", "rand", "axum",
    ] {
        assert!(
            !words.contains(banned),
            "shared must stay pure, but depends on {banned}"
        );
    }
}

/// It is rebuilt for every mutant, and must not know what the cores must not know.
#[test]
fn the_explorer_knows_the_cores_and_nothing_of_this_machine() {
    let allowed: BTreeSet<String> = [
        "rollcall-shared",
        "rollcall-coordinator-core",
        "rollcall-agent-core",
        "bytes",
        "clap",
        "rand",
        "rand_chacha",
        "serde",
        "serde_json",
    ]
    .map(String::from)
    .into();
    let known = dependencies("simulations/explorer/Cargo.toml");
    let extra: Vec<_> = known.difference(&allowed).collect();
    assert!(extra.is_empty(), "the explorer depends on {extra:?}");
}

#[test]
fn coordinator_and_agent_share_words_and_nothing_else() {
    for (manifest, stranger) in [
        ("coordinator/Cargo.toml", "rollcall-agent"),
        ("coordinator/core/Cargo.toml", "rollcall-agent"),
        ("agent/Cargo.toml", "rollcall-coordinator"),
        ("agent/core/Cargo.toml", "rollcall-coordinator"),
        ("shared/transport/Cargo.toml", "rollcall-agent"),
        ("shared/transport/Cargo.toml", "rollcall-coordinator"),
    ] {
        let known = dependencies(manifest);
        assert!(
            !known.iter().any(|name| name.starts_with(stranger)),
            "{manifest} depends on {stranger}"
        );
    }
}

#[test]
fn one_module_alone_names_bincode() {
    let users: Vec<_> = all_rust_files()
        .into_iter()
        .filter(|path| !path.ends_with("tests/tests/tidy.rs"))
        .filter(|path| fs::read_to_string(path).unwrap().contains("bincode::"))
        .collect();
    assert_eq!(users, [root().join("shared/src/codec.rs")]);
}
