//! The sample configurations say the truth: they are read, and what they show as
//! defaults are the defaults.

#![expect(
    clippy::unwrap_used,
    reason = "a checkout that cannot be read fails the test"
)]

use std::path::{Path, PathBuf};

use rollcall_agent::config::Config as AgentConfig;
use rollcall_coordinator::config::Config as CoordinatorConfig;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

/// The sample with every commented setting switched on.
fn uncommented(name: &str, folder: &Path) -> PathBuf {
    let text = std::fs::read_to_string(sample(name)).unwrap();
    let is_setting = |rest: &str| rest.split(" = ").count() == 2 && !rest.contains('.');
    let mut switched_on = 0;
    let lines: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) => {
                switched_on += 1;
                rest
            }
            Some(_) | None => line,
        })
        .collect();
    assert!(switched_on > 5, "{name} shows hardly any default");
    let path = folder.join(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn the_coordinators_sample_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let sample = CoordinatorConfig::read(&sample("coordinator.toml")).unwrap();
    let spelt_out =
        CoordinatorConfig::read(&uncommented("coordinator.toml", folder.path())).unwrap();
    assert_eq!(sample, spelt_out);
}

#[test]
fn the_agents_sample_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let sample = AgentConfig::read(&sample("agent.toml")).unwrap();
    let spelt_out = AgentConfig::read(&uncommented("agent.toml", folder.path())).unwrap();
    assert_eq!(sample, spelt_out);
}
