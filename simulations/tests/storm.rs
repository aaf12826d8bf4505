//! The storm and the bad neighbours run and keep their promises. No figure is asserted.

#![expect(
    clippy::unwrap_used,
    reason = "a program that cannot be run fails the test"
)]

mod support;

use std::process::Command;

fn figures(arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-sim"));
    support::json(
        &command
            .args(arguments)
            .args(["-o", "json"])
            .output()
            .unwrap(),
    )
}

#[test]
fn a_fleet_comes_back_to_a_killed_coordinator_and_stable_was_never_missing() {
    let figures = figures(&["storm", "--agents", "40", "--rounds", "2"]);
    assert_eq!(figures["stable_lost"], 0);
    assert_eq!(figures["leases_invented"], 0);
    assert!(figures["handshakes"]["admitted"].as_u64().unwrap() >= 2 * 40);
    for name in ["floor_ms", "storm_to_floor", "coordinator_cpu_ms"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name} in {figures}");
    }
}

#[test]
fn a_rollback_reaches_everybody_in_spite_of_every_bad_neighbour() {
    let figures = figures(&[
        "hostile",
        "--agents",
        "20",
        "--attackers",
        "2",
        "--rounds",
        "1",
    ]);
    let findings = figures["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 9);
    for finding in findings {
        assert!(finding["attacked"]["p99_ms"].as_f64().unwrap() > 0.0);
        assert!(finding["acts_per_s"].as_f64().unwrap() > 0.0, "{finding}");
    }
}
