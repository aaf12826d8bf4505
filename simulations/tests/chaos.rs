//! Half a minute of chaos with a fixed seed: real processes, no promise broken.

use std::process::Command;

use serde_json::Value;

#[test]
fn half_a_minute_of_chaos_breaks_no_promise() {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall-sim"))
        .args(["chaos", "--minutes", "0.5", "--seed", "1", "-o", "json"])
        .output()
        .unwrap();
    let (told, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{told}\n{complaint}");
    let summary: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(summary["violations"], Value::Array(Vec::new()));
    for fault in [
        "kill -9 coordinator",
        "stop coordinator",
        "cut link",
        "cut link to coordinator",
        "bad weather",
        "agent's index damaged",
        "journal damaged",
        "old backup restored",
        "rollouts",
        "rollbacks by the operator",
    ] {
        assert!(
            summary["counts"][fault].as_u64() > Some(0),
            "{fault:?} never happened: {summary}"
        );
    }
    assert!(summary["answered"].as_u64() > Some(1_000), "{summary}");
}
