//! Candidates that misbehave in their engine are really run, and nobody's request is lost.
//! No figure is asserted.

#![expect(
    clippy::unwrap_used,
    reason = "a program that cannot be run fails the test"
)]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Two, so that a trial follows upon a trial.
const ROUNDS: u64 = 2;

fn isolation(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-sim"));
    command
        .args(["isolation", "--rounds", &ROUNDS.to_string()])
        .args(["--rate", "1000", "--lasting", "300"])
        .args(arguments);
    support::json(&command.args(["-o", "json"]).output().unwrap())
}

fn count(finding: &Value, of: &str, what: &str) -> u64 {
    finding[of][what].as_u64().unwrap()
}

/// What clients saw is what the agent counted.
fn assert_adds_up(finding: &Value) {
    let answers = |what| count(finding, "answers", what);
    let agent = |what| count(finding, "agent", what);
    let [stable, candidate, fallback] = ["by_stable", "by_candidate", "by_fallback"].map(answers);
    assert_eq!(answers("unanswered"), 0, "{finding}");
    assert_eq!(answers("sent"), stable + candidate + fallback, "{finding}");
    assert_eq!(agent("stable_requests"), stable + fallback, "{finding}");
    assert_eq!(agent("stable_failures"), 0, "{finding}");
    match finding["trial"]["usage"].as_str() {
        None => assert_eq!(agent("candidate_requests"), 0, "{finding}"),
        Some("canary") => {
            let failed = agent("candidate_errors") + agent("candidate_timeouts");
            assert!(candidate + fallback > 0, "{finding}");
            assert_eq!(agent("candidate_requests"), candidate + failed, "{finding}");
            assert!(fallback >= failed, "{finding}");
        }
        Some(_) => {
            assert_eq!(candidate + fallback, 0, "{finding}");
            assert!(
                agent("candidate_requests") + agent("shed") <= stable,
                "{finding}"
            );
        }
    }
}

#[test]
fn stable_answers_whatever_a_candidate_does_in_its_engine_and_the_counts_add_up() {
    let figures = isolation(&[]);
    let findings = figures["findings"].as_array().unwrap();
    let trials: BTreeSet<String> = findings
        .iter()
        .map(|finding| finding["trial"].to_string())
        .collect();
    assert_eq!(
        trials.len(),
        1 + 2 * 9,
        "none, and nine as shadow and as canary"
    );
    for finding in findings {
        assert_adds_up(finding);
        assert!(finding["tried"]["p99_ms"].as_f64().unwrap() > 0.0);
    }
    let of = |behaviour: &str, usage: &str| {
        let trial = serde_json::json!({ "behaviour": behaviour, "usage": usage });
        findings
            .iter()
            .find(|finding| finding["trial"] == trial)
            .unwrap()
    };
    // They did what they are there for.
    assert!(count(of("hangs", "shadow"), "agent", "shed") > 0);
    assert!(count(of("slow", "canary"), "answers", "by_candidate") > 0);
    for behaviour in ["fails", "panics"] {
        let canary = of(behaviour, "canary");
        assert_eq!(count(canary, "answers", "by_candidate"), 0);
        assert_eq!(count(canary, "agent", "breaker_openings"), ROUNDS);
    }
}

#[test]
fn some_candidates_can_be_asked_for() {
    let figures = isolation(&["--behaviours", "good", "--usages", "canary"]);
    let trials = figures["findings"].as_array().unwrap();
    let trials: Vec<_> = trials.iter().map(|finding| &finding["trial"]).collect();
    let good = serde_json::json!({ "behaviour": "good", "usage": "canary" });
    assert_eq!(trials, [&Value::Null, &good]);
}
