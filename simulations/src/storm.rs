//! A reconnect storm: the coordinator is killed under a whole fleet and started again at
//! once on the same port, while every node serves a stable version and a candidate is on
//! trial under a short lease. An operator rolls it back as soon as the new process answers.
//!
//! Agents are the shipping core, driver and link ([`crate::fleet`]), the coordinator is a
//! process of its own. Beside the storm, in the same run, stands the least that it can cost:
//! as many bare handshakes ([`floor`]). Both ends share this machine's cores.
//!
//! Two promises are checked on the way: stable is never missing from a route, and no route
//! goes by a lease that a dead coordinator cannot have renewed.

mod figures;
pub(crate) mod floor;
mod witness;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use indicatif::ProgressBar;
use rollcall_shared::time::Timestamp;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::fleet::agents::{self, Agents, Credentials, Seen};
use crate::fleet::{MODEL, STABLE, figures as process, push};
use crate::multicall::Programs;
use figures::{Doors, Figures, Round};
use witness::Witness;

/// The candidate's lease: the shortest but one, so that nodes fence themselves in a long storm.
const LEASE: Duration = Duration::from_secs(3);
/// How long a fleet may take to come back.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often waiting looks again. Moments are taken where they happen, not here.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// `rollcall-sim storm`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many agents
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    agents: u32,
    /// How many times the coordinator is killed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How to print; the default is a table
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// How figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One line of JSON.
    Json,
}

/// Measures and prints.
///
/// # Errors
/// When the fleet does not come up or back.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(u64::from(arguments.rounds))
    } else {
        ProgressBar::hidden()
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let figures = runtime.block_on(run(arguments, Programs::here()?, &bar))?;
    bar.finish_and_clear();
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(&figures)?),
        Output::Table => print!("{figures}"),
    }
    let kept = figures.stable_lost == 0 && figures.leases_invented == 0;
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A fleet, and what is watched of it.
struct Storm<'a> {
    arguments: &'a Arguments,
    cluster: Cluster,
    agents: Agents,
    witness: Witness,
    door: Doors,
}

async fn run(arguments: &Arguments, programs: Programs, progress: &ProgressBar) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(programs.clone(), dir.path(), None).await?;
    progress.set_message("enrolling");
    let credentials = agents::enroll(&cluster.coordinator_dir(), arguments.agents)?;
    let config = cluster.coordinator_dir().join("config.toml");
    // Before the fleet, so that its heartbeats do not take part.
    let floors = floors(arguments, &programs, &config, &credentials).await?;

    cluster.begin().await?;
    let door = Doors::of(&cluster)?;
    let witness = Witness::new(arguments.agents, STABLE.parse()?);
    let observe = |node| witness.observer(node);
    progress.set_message("connecting");
    let agents = Agents::start(credentials, cluster.quic(), Some(&observe)).await?;
    agents.until(arguments.agents, Seen::Connected).await?;
    push(&cluster, STABLE)?;
    crate::fleet::start(&cluster, dir.path(), STABLE, "0s")?;
    let stable = Seen::Stable(STABLE.parse()?);
    agents.until(arguments.agents, stable).await?;
    witness.standing();

    let mut storm = Storm {
        arguments,
        cluster,
        agents,
        witness,
        door,
    };
    let mut rounds = Vec::new();
    progress.set_message("storming");
    for round in 1..=arguments.rounds {
        rounds.push(storm.round(dir.path(), round).await?);
        progress.inc(1);
    }
    Ok(Figures::of(
        arguments.agents,
        &floors,
        &rounds,
        storm.witness.broken(),
    ))
}

/// As many bare measurements as there are storms, and one first that warms everything up.
async fn floors(
    arguments: &Arguments,
    programs: &Programs,
    config: &Path,
    credentials: &[Credentials],
) -> Result<Vec<Duration>> {
    floor::measure(programs, config, credentials).await?;
    let mut floors = Vec::new();
    for _ in 0..arguments.rounds {
        floors.push(floor::measure(programs, config, credentials).await?);
    }
    Ok(floors)
}

impl Storm<'_> {
    /// A candidate on trial everywhere, the coordinator killed and started, the candidate
    /// taken back.
    async fn round(&mut self, dir: &Path, round: u32) -> Result<Round> {
        let count = self.arguments.agents;
        let version = format!("1.0.{round}");
        push(&self.cluster, &version)?;
        start_canary(&self.cluster, dir, &version)?;
        let on_trial = Seen::Candidate(version.parse()?);
        self.agents.until(count, on_trial).await?;

        let clock = self.agents.clock();
        let delays_before = self.agents.delays();
        self.cluster.kill_coordinator();
        let killed_at = clock.now();
        self.witness.dark(killed_at + LEASE);
        self.cluster.start_coordinator()?;
        let listens_at = self.until_it_listens().await?;
        let pid = self
            .cluster
            .coordinator_pid()
            .context("the coordinator does not run")?;
        let (decided_at, ()) = tokio::try_join!(self.roll_back(), self.until_all_are_back())?;
        let cpu = process::cpu(pid)?;
        let stable = Seen::Stable(STABLE.parse()?);
        self.agents.until(count, stable).await?;
        let freed_at = self.witness.last_freed().context("a candidate stayed")?;
        let welcomed = self.witness.welcomed();
        Ok(Round {
            down: listens_at.since(killed_at),
            welcomed: welcomed.iter().map(|at| at.since(listens_at)).collect(),
            dials: self.agents.delays() - delays_before,
            door: self.door.read().await?,
            cpu,
            peak_bytes: process::peak_bytes(pid)?,
            decided: decided_at.since(listens_at),
            freed: freed_at.max(decided_at).since(listens_at),
        })
    }

    /// The moment at which the coordinator's socket is there.
    async fn until_it_listens(&self) -> Result<Timestamp> {
        let (clock, address) = (self.agents.clock(), self.cluster.quic());
        let wait = async {
            while !is_bound(address)? {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(clock.now())
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .context("the coordinator did not come back")?
    }

    async fn until_all_are_back(&self) -> Result<()> {
        let count = self.arguments.agents as usize;
        let wait = async {
            while self.witness.welcomed().len() < count {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        let back = self.witness.welcomed().len();
        ensure!(waited.is_ok(), "{back} of {count} agents came back");
        Ok(())
    }

    /// Rolls back as soon as anybody answers; the coordinator's own word of when it decided.
    async fn roll_back(&self) -> Result<Timestamp> {
        let attempt = || async {
            let command = self.cluster.operator(&[
                "rollback", MODEL, "--reason", "measured", "--wait", "60s", "-o", "json",
            ]);
            tokio::task::spawn_blocking(move || crate::cluster::run(command)).await?
        };
        let wait = async {
            loop {
                match attempt().await {
                    Ok(told) => return Ok(told),
                    Err(error) if error.to_string().contains("does not answer") => {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let told = tokio::time::timeout(PATIENCE, wait)
            .await
            .context("the coordinator took no command")??;
        let told: Value = serde_json::from_str(&told)?;
        ensure!(
            told["settled"] == true,
            "the rollback did not settle: {told}"
        );
        let decided_at = told["decided_at"].as_str().context("no decided_at")?;
        Ok(decided_at.parse()?)
    }
}

/// A shadow of no length, then half of all requests for an hour, under a short lease.
fn start_canary(cluster: &Cluster, dir: &Path, version: &str) -> Result<()> {
    let plan = dir.join("canary.toml");
    std::fs::write(
        &plan,
        format!(
            "model = \"{MODEL}\"\ncandidate = \"{version}\"\nstrategy = \"canary\"\nlease = \"{}s\"\n\
             [policy]\ncheck_every = \"100ms\"\n\
             [[stage]]\nname = \"shadow\"\nmode = \"shadow\"\n\
             [[stage]]\nname = \"half\"\nmode = \"canary\"\nby = \"request\"\nshare_percent = 50\nhold = \"1h\"\n\
             [[stage]]\nname = \"full\"\nmode = \"full\"\n",
            LEASE.as_secs()
        ),
    )?;
    cluster.print(&["rollout", "start", plan.to_str().context("not UTF-8")?])?;
    Ok(())
}

/// Whether a UDP socket is bound to a port of this machine. Binding it ourselves to find
/// out could keep the coordinator from it.
fn is_bound(address: SocketAddr) -> Result<bool> {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/udp")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .any(|local| local.ends_with(&port)))
}
