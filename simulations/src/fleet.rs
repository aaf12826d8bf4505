//! How fast a rollback spreads, over real QUIC with mutual TLS on loopback: the
//! coordinator in a process of its own, and in this one as many agents as asked
//! for. They are the shipping core, driver and link; only the engine is fake and
//! the state is kept in memory.
//!
//! Two moments are measured for every agent and round, from `decided_at`, the
//! coordinator's own word of when it decided: the route swapped (on this machine
//! both processes read the same clock), and the receipt in the coordinator's hand.
//!
//! Both ends share this machine's cores, so the figures are upper bounds. Ten thousand
//! agents on machines of their own would take none from the coordinator: one thread
//! receives for all of them and swaps, and what they do besides has the lowest priority.

pub(crate) mod agents;
pub(crate) mod figures;
pub mod versus;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rollcall_shared::time::Timestamp;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::multicall::Programs;
use crate::relay::{Relay, Weather};
use agents::{Agents, Seen};
pub use figures::Figures;
use figures::Round;

/// The model that the rounds roll back.
pub(crate) const MODEL: &str = "digits";
pub(crate) const STABLE: &str = "1.0.0";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many agents.
    pub agents: u32,
    /// How many rollbacks.
    pub rounds: u32,
    /// Packets lost each way, in percent.
    pub loss_percent: f64,
    /// How long every packet takes, one way.
    pub delay: Duration,
    /// How long the network is cut when the rollback is decided; zero: not at all.
    pub outage: Duration,
}

/// Measures.
///
/// # Errors
/// When the fleet does not come up, or a round does not come to its end.
pub async fn run(options: &Options, programs: Programs, progress: &ProgressBar) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(programs, dir.path(), None).await?;
    progress.set_message("enrolling");
    let identities = agents::enroll(&cluster.coordinator_dir(), options.agents)?;
    cluster.begin().await?;
    let server = cluster
        .coordinator_pid()
        .context("the coordinator does not run")?;
    let idle_bytes = figures::resident_bytes(server)?;

    let network = Relay::start(cluster.quic(), 7).await?;
    let direct = options.loss_percent == 0.0 && options.delay.is_zero() && options.outage.is_zero();
    let target = if direct {
        cluster.quic()
    } else {
        network.address()
    };
    progress.set_message("connecting");
    let connecting = tokio::time::Instant::from_std(now());
    let agents = Agents::start(identities, target, None).await?;
    agents.until(options.agents, Seen::Connected).await?;
    let handshakes_per_s = f64::from(options.agents) / connecting.elapsed().as_secs_f64();
    let connected_bytes = figures::resident_bytes(server)?;
    agents.yield_to_others().await?;

    push(&cluster, STABLE)?;
    start(&cluster, dir.path(), STABLE, "0s")?;
    agents
        .until(options.agents, Seen::Stable(STABLE.parse()?))
        .await?;
    network.set(weather(options));
    progress.set_length(u64::from(options.rounds));
    progress.set_message("rolling back");
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        rounds.push(measure(options, &cluster, &agents, &network, dir.path(), round).await?);
        progress.inc(1);
    }
    let server_bytes = connected_bytes.saturating_sub(idle_bytes) / u64::from(options.agents);
    Ok(Figures::of(options, handshakes_per_s, server_bytes, rounds))
}

/// What lies between the agents and the coordinator.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 1,000"
)]
fn weather(options: &Options) -> Weather {
    Weather {
        loss_permille: (options.loss_percent * 10.0) as u32,
        delay: options.delay,
        ..Weather::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures wall time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

pub(crate) fn push(cluster: &Cluster, version: &str) -> Result<()> {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits/1.0.0/model.onnx");
    let path = model.to_str().context("the checkout's path is not UTF-8")?;
    cluster.print(&[
        "version",
        "push",
        path,
        "--model",
        MODEL,
        "--version",
        version,
    ])?;
    Ok(())
}

pub(crate) fn start(cluster: &Cluster, dir: &Path, version: &str, watch: &str) -> Result<()> {
    let plan = dir.join("plan.toml");
    std::fs::write(
        &plan,
        format!(
            "model = \"{MODEL}\"\ncandidate = \"{version}\"\nstrategy = \"direct\"\nlease = \"30s\"\n\
             [policy]\ncheck_every = \"500ms\"\n[[stage]]\nname = \"full\"\nmode = \"full\"\nwatch = \"{watch}\"\n"
        ),
    )?;
    cluster.print(&["rollout", "start", plan.to_str().context("not UTF-8")?])?;
    Ok(())
}

/// How long a coordinator must have been calm, and how long that may take.
const CALM: Duration = Duration::from_millis(100);
const CALM_PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the coordinator has digested the rollout before: a rollback that races
/// with ten thousand receipts of what it takes back is not what is measured here.
/// Heartbeats go on, and leave it calm: they take a quarter of a core at most.
async fn calm(coordinator: u32) -> Result<()> {
    let becomes_calm = async {
        loop {
            let before = figures::cpu(coordinator)?;
            tokio::time::sleep(CALM).await;
            if figures::cpu(coordinator)?.saturating_sub(before) < CALM / 2 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(CALM_PATIENCE, becomes_calm)
        .await
        .context("the coordinator does not become calm between rounds")?
}

/// One version pushed, rolled out to everybody, and taken back.
async fn measure(
    options: &Options,
    cluster: &Cluster,
    agents: &Agents,
    network: &Relay,
    dir: &Path,
    round: u32,
) -> Result<Round> {
    let version = format!("1.0.{round}");
    push(cluster, &version)?;
    start(cluster, dir, &version, "1h")?;
    agents
        .until(options.agents, Seen::Candidate(version.parse()?))
        .await?;

    let server = cluster
        .coordinator_pid()
        .context("the coordinator does not run")?;
    calm(server).await?;
    let cpu_before = figures::cpu(server)?;
    let outage = options.outage;
    if !outage.is_zero() {
        network.cut(true);
    }
    let heal = async {
        tokio::time::sleep(outage).await;
        network.cut(false);
    };
    let command = cluster.operator(&[
        "rollback", MODEL, "--reason", "measured", "--wait", "60s", "-o", "json",
    ]);
    let rollback = tokio::task::spawn_blocking(move || crate::cluster::run(command));
    let (rollback, ()) = tokio::join!(rollback, heal);
    let rollback: Value = serde_json::from_str(&rollback??)?;
    let decided_at: Timestamp = rollback["decided_at"]
        .as_str()
        .context("no decided_at")?
        .parse()?;
    agents
        .until(options.agents, Seen::Stable(STABLE.parse()?))
        .await?;
    let cpu = figures::cpu(server)?.saturating_sub(cpu_before);
    let from = decided_at + outage;
    let swapped = agents
        .swapped_at()
        .into_iter()
        .map(|at| at.since(from))
        .collect();
    Round::new(swapped, cpu, &rollback, outage)
}
