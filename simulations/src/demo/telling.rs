//! What the demo says of what Rollcall answered.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;

/// The finding that decided a withdrawn rollout, in words.
pub(super) fn decisive(rollout: &Value) -> Result<String> {
    let findings = rollout["verdict"]["findings"]
        .as_array()
        .context("the rollout has no verdict")?;
    let fails: Vec<_> = findings
        .iter()
        .filter(|finding| finding["outcome"] == "fail")
        .map(|finding| {
            format!(
                "{} ({:.4} over {} requests{})",
                finding["rule"].as_str().unwrap_or_default(),
                finding["candidate"].as_f64().unwrap_or(f64::NAN),
                finding["candidate_samples"],
                evidence(finding)
            )
        })
        .collect();
    ensure!(
        !fails.is_empty(),
        "a withdrawal without a failed rule: {rollout}"
    );
    Ok(format!("broken: {}", fails.join("; ")))
}

/// How strong the evidence is, and from where on it is proof.
fn evidence(finding: &Value) -> String {
    let power = |name: &str| finding["test"][name].as_f64().map(f64::exp);
    match (power("log_e"), power("log_e_needed")) {
        (Some(seen), Some(needed)) => format!("; e-value {seen:.1e}, proof from {needed:.1e}"),
        _ => String::new(),
    }
}

/// Who answered a rollback, and how fast, in words.
pub(super) fn receipts(rollback: &Value) -> String {
    let propagation = &rollback["propagation_ms"];
    let of = |name: &str| propagation[name].as_f64().unwrap_or(f64::NAN);
    let count = |name: &str| rollback["receipts"][name].as_array().map_or(0, Vec::len);
    format!(
        "{} of {} receipts: p50 {:.1} ms, p99 {:.1} ms, last {} {:.1} ms; fenced by lease {}, silent {}",
        rollback["receipts"]["received"],
        rollback["receipts"]["expected"],
        of("p50"),
        of("p99"),
        rollback["last_node"].as_str().unwrap_or("-"),
        of("max"),
        count("fenced"),
        count("silent")
    )
}

/// Prints commands to play with and waits for Ctrl-C.
pub(super) async fn keep_running(cluster: &Cluster, dir: &Path) -> Result<()> {
    let rollcall = format!(
        "ROLLCALL_CONFIG_DIR={} cargo run -q --release --bin rollcall --",
        dir.join("operator").display()
    );
    println!(
        "\nEverything keeps running (Ctrl-C ends it). To play with it, in another terminal:\n"
    );
    for command in [
        "status",
        "agent list",
        "rollout list",
        "version list",
        "rollback digits --reason \"trying it\"",
        "audit log",
    ] {
        println!("  {rollcall} {command}");
    }
    println!("  curl http://{}/v2/models/digits", cluster.agents[0]);
    println!("  curl http://{}/rollcall/v1/status", cluster.agents[0]);
    tokio::signal::ctrl_c().await?;
    Ok(())
}
