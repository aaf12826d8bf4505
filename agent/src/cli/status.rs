//! `rollcall-agent status`: asks the agent on this machine.
//!
//! A line for each model; below, where versions are being prepared, one for each of them:
//! its phase (queued, fetching, verifying, loading, warming_up), since when, and its bytes
//! that are here, of all. `-o json` is the status page as it is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use comfy_table::{Table, presets};
use rollcall_shared::time::Timestamp;
use serde_json::Value;

use super::{CliError, Output, OutputArg, block_on};
use crate::config::Config;

/// An agent on the same machine answers at once or not at all.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The agent's HTTP port
    #[arg(
        long,
        default_value = "http://127.0.0.1:8080",
        conflicts_with = "config"
    )]
    url: String,
    /// Ask the agent of this configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArg,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let url = match &self.config {
            Some(path) => {
                let config = Config::read(path).map_err(|e| CliError::Failed(e.into()))?;
                format!("http://{}", config.http)
            }
            None => self.url.trim_end_matches('/').to_owned(),
        };
        let status = block_on(ask(&url)).map_err(CliError::Failed)??;
        match self.output.get() {
            Output::Json => {
                let text = serde_json::to_string_pretty(&status);
                println!("{}", text.context("the status").map_err(CliError::Failed)?);
            }
            Output::Table => {
                print_table(&status);
                if let Some(table) = preparing(&status) {
                    println!("\n{table}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn ask(url: &str) -> Result<Value, CliError> {
    // reqwest wants a TLS provider even for plain HTTP. Installed twice: the first stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .build()
        .context("no HTTP client")
        .map_err(CliError::Failed)?;
    let unreachable = |error: reqwest::Error| {
        CliError::Unreachable(anyhow!(error).context(format!(
            "no agent answers at {url}: is it running? Give --config FILE or --url URL"
        )))
    };
    let response = client
        .get(format!("{url}/rollcall/v1/status"))
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(unreachable)?;
    response.json().await.map_err(unreachable)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

fn print_table(status: &Value) {
    let connected = status["connected"] == Value::Bool(true);
    let coordinator = if connected {
        "connected"
    } else {
        "no coordinator in sight"
    };
    let grpc = match &status["grpc"] {
        Value::String(address) => format!("gRPC at {address}, "),
        _ => String::new(),
    };
    println!(
        "{}: {coordinator}, {grpc}cache {} bytes",
        text(&status["node"]),
        status["cache"]["bytes"]
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "MODEL",
        "GENERATION",
        "STABLE",
        "CANDIDATE",
        "MODE",
        "LEASE LEFT",
        "SERVING",
        "WAITING",
    ]);
    for model in status["models"].as_array().into_iter().flatten() {
        let serving: Vec<_> = model["serving"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|serving| format!("{} ({})", text(&serving["version"]), text(&serving["role"])))
            .collect();
        let lease = match &model["lease_left_ms"] {
            Value::Number(left) => format!("{left} ms"),
            other => text(other),
        };
        let waiting = model["waiting"].as_array().map_or(0, Vec::len);
        let waiting: Vec<_> = (0..waiting)
            .map(|i| text(&model["waiting"][i]["on"]))
            .collect();
        table.add_row([
            text(&model["model"]),
            text(&model["generation"]),
            text(&model["stable"]),
            text(&model["candidate"]),
            text(&model["mode"]),
            lease,
            serving.join(", "),
            waiting.join(", "),
        ]);
    }
    println!("{table}");
}

/// How far the versions are that are being prepared; `None`: there are none.
fn preparing(status: &Value) -> Option<Table> {
    let lines = status["preparing"].as_array()?;
    if lines.is_empty() {
        return None;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["PREPARING", "PHASE", "PHASE SINCE", "SINCE", "BYTES HERE"]);
    for line in lines {
        table.add_row([
            format!("{}@{}", text(&line["model"]), text(&line["version"])),
            text(&line["phase"]),
            moment(&line["phase_since"]),
            moment(&line["since"]),
            share(&line["bytes"]),
        ]);
    }
    Some(table)
}

/// To the millisecond.
fn moment(value: &Value) -> String {
    let at = value.as_str().and_then(|at| at.parse::<Timestamp>().ok());
    at.map_or_else(|| text(value), |at| at.to_string())
}

fn share(bytes: &Value) -> String {
    let (Some(here), Some(total)) = (bytes["here"].as_u64(), bytes["total"].as_u64()) else {
        return text(&Value::Null);
    };
    // Of nothing, all is here. Never rounded up: 100 % is the whole.
    let percent = (u128::from(here) * 100).checked_div(total.into());
    format!("{here} of {total} ({} %)", percent.unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_being_prepared_is_shown_with_its_phase_and_bytes() {
        let line = |phase: &str, bytes: Value| {
            json!({"model": "digits", "version": "2.0.0", "digest": "00", "phase": phase,
                "since": "2026-01-15T16:00:00.123456789Z",
                "phase_since": "2026-01-15T16:00:07Z", "bytes": bytes})
        };
        let bytes = json!({"here": 199, "total": 200});
        let lines = [line("queued", Value::Null), line("fetching", bytes)];
        let table = preparing(&json!({ "preparing": lines })).unwrap();
        let cells = |row| {
            let row: &comfy_table::Row = table.row(row).unwrap();
            row.cell_iter().map(|c| c.content()).collect::<Vec<_>>()
        };
        let [since, phase_since] = ["2026-01-15T16:00:00.123Z", "2026-01-15T16:00:07.000Z"];
        assert_eq!(
            cells(0),
            ["digits@2.0.0", "queued", phase_since, since, "-"]
        );
        assert_eq!(
            cells(1)[1..],
            ["fetching", phase_since, since, "199 of 200 (99 %)"]
        );
        assert!(preparing(&json!({ "preparing": [] })).is_none());
        assert!(preparing(&json!({})).is_none(), "an older agent's page");
    }
}
