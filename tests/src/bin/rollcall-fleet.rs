//! A fleet of one node that answers for `digits`, for clients that are no Rust programs.
//!
//! Says on one line of JSON where it answers, and ends, processes and files, when its
//! standard input does. See `tests/clients/run.sh`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use rollcall_simulations::multicall;
use rollcall_tests::Fleet;
use serde_json::{Value, json};

const MODEL: &str = "digits";
const VERSION: &str = "1.0.0";

fn main() -> ExitCode {
    if let Some(exit) = multicall::dispatch() {
        return exit;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rollcall-fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run() -> Result<()> {
    let programs = std::env::current_exe()?;
    let fleet = Fleet::start(programs.to_str().context("UTF-8 path")?, 1).await?;
    fleet.make_stable(VERSION).await?;
    fleet.until_stable_alone(0, VERSION).await?;
    let http = fleet.cluster.agents[0];
    let status = fleet.http.get(format!("http://{http}/rollcall/v1/status"));
    let status: Value = status.send().await?.json().await?;
    let addresses = json!({
        "http": http, "grpc": status["grpc"], "model": MODEL, "version": VERSION
    });
    println!("{addresses}");
    let until_closed = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(until_closed).await??;
    Ok(())
}
