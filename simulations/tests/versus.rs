//! The comparison with brokers works, and says what is missing. No figure is asserted.

#![expect(
    clippy::unwrap_used,
    reason = "a program that cannot be run fails the test"
)]

mod support;

use std::process::Command;

use serde_json::Value;

fn fleet(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-sim"));
    command.arg("fleet").args(arguments);
    command
}

fn assert_measured(broker: &Value) {
    let spread = &broker["propagation_ms"];
    let [p50, p99, max] = ["p50", "p99", "max"].map(|name| spread[name].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{broker}");
    for name in [
        "last_ms_median",
        "server_cpu_ms_per_publish",
        "connections_per_s",
    ] {
        assert!(broker[name].as_f64().unwrap() > 0.0, "{name} in {broker}");
    }
    // So few connections may fit in memory that the broker already had.
    assert!(broker["server_bytes_per_connection"].is_u64(), "{broker}");
    let version = broker["version"].as_str().unwrap();
    assert_eq!(version.split('.').count(), 3, "{broker}");
}

#[test]
fn a_missing_broker_is_named_with_its_package_before_anything_is_measured() {
    let mut command = fleet(&["--versus", "redis"]);
    let output = command.env("PATH", "/nowhere").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in ["redis-server", "apt-get install", "fleet-versus.sh"] {
        assert!(said.contains(expected), "{expected} is not in: {said}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn brokers_are_not_compared_with_a_fleet_behind_a_lossy_or_cut_network() {
    for fault in ["--loss", "--outage"] {
        let output = fleet(&["--versus", "nats", fault, "10"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{fault}");
    }
}

#[test]
#[ignore = "run by simulations/fleet-versus.sh --test, which installs the brokers"]
fn every_receiver_of_every_broker_hears_every_message() {
    let brokers = ["nats", "redis", "etcd", "mosquitto"];
    let mut command = fleet(&["--agents", "200", "--rounds", "3", "-o", "json"]);
    let command = command.args(["--versus", &brokers.join(","), "--only-versus"]);
    let figures = support::json(&command.output().unwrap());
    assert_eq!(figures["receivers"], 200);
    for broker in brokers {
        assert_measured(&figures["versus"][broker]);
    }
}

#[test]
#[ignore = "run by simulations/fleet-versus.sh --test, which installs the brokers"]
fn a_fleet_is_compared_with_the_fastest_broker() {
    let arguments = ["--agents", "20", "--rounds", "2", "--versus", "nats,redis"];
    let figures = support::json(&fleet(&arguments).args(["-o", "json"]).output().unwrap());
    let last = |broker: &str| {
        assert_measured(&figures["versus"][broker]);
        figures["versus"][broker]["last_ms_median"]
            .as_f64()
            .unwrap()
    };
    let fastest = last("nats").min(last("redis"));
    let rollcall = figures["last_agent_ms_median"].as_f64().unwrap();
    let ratio = figures["ratio_to_fastest_broker"].as_f64().unwrap();
    assert!((ratio - rollcall / fastest).abs() < 1e-9, "{figures}");
}
