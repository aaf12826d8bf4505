//! The propagation benchmark works and says what others read. No figure is asserted.

#![expect(
    clippy::unwrap_used,
    reason = "a program that cannot be run fails the test"
)]

mod support;

use std::process::Command;

fn fleet(arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-sim"));
    command.arg("fleet").args(arguments).args(["-o", "json"]);
    support::json(&command.output().unwrap())
}

#[test]
fn every_agent_of_a_fleet_swaps_and_sends_its_receipt_in_every_round() {
    let figures = fleet(&["--agents", "40", "--rounds", "3"]);
    assert_eq!(
        (&figures["agents"], &figures["rounds"]),
        (&40.into(), &3.into())
    );
    let spread = &figures["propagation_ms"];
    let [p50, p99, max] = ["p50", "p99", "max"].map(|name| spread[name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{figures}");
    for name in [
        "last_agent_ms_median",
        "server_cpu_ms_per_broadcast",
        "handshakes_per_s",
        "server_bytes_per_agent",
    ] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{name} in {figures}");
    }
}

#[test]
fn a_rollback_arrives_through_loss_and_after_an_outage() {
    let figures = fleet(&[
        "--agents", "20", "--rounds", "2", "--loss", "10", "--outage", "1000",
    ]);
    assert_eq!(
        (&figures["loss_pct"], &figures["outage_ms"]),
        (&10.0.into(), &1000.into())
    );
    assert!(
        figures["receipt_ms"]["max"].as_f64().unwrap() > 0.0,
        "{figures}"
    );
}
