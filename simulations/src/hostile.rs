//! Bad neighbours: how fast a rollback spreads over a fleet in which some nodes, enrolled
//! like all others, do what they can to keep the coordinator from it.
//!
//! Calm rounds and rounds under attack take turns, so that both see the same machine. The
//! attackers share one thread of this process: they get at most one core. What that core
//! is missed for by the neighbours is part of the ratio.

mod attack;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_coordinator::cli::client::Client;
use rollcall_coordinator_core::view::RollbackView;
use rollcall_shared::digest::Digest;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::fleet::agents::{self, Agents, Credentials, Seen};
use crate::fleet::figures::{self as process, median, millis, quantile};
use crate::fleet::{MODEL, STABLE, push, start};
use crate::multicall::Programs;
use crate::storm::Output;
pub use attack::Behaviour;
use attack::{Attacker, Tally};

/// How long an attack goes on before the rollback is asked for.
const WARM_UP: Duration = Duration::from_millis(700);
/// How long it may take to begin.
const PATIENCE: Duration = Duration::from_secs(30);
/// The file that greedy nodes ask for: more than every window together.
const LARGE_BYTES: usize = 32 << 20;

/// `rollcall-sim hostile`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many agents that behave
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agents: u32,
    /// How many that do not
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    attackers: u32,
    /// How many rollbacks for each behaviour, and as many without it
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// How to print; the default is a table
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Measures and prints.
///
/// # Errors
/// When the fleet does not come up, or a rollback does not reach everybody who behaves.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    let figures = runtime.block_on(run(arguments, Programs::here()?))?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(&figures)?),
        Output::Table => print!("{figures}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// One rollback among agents that behave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Milliseconds from the decision to the route swapped: median of all agents.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// The coordinator's CPU, as a share of one core, from the attack's beginning.
    pub cpu_share: f64,
}

/// One behaviour. Medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What the attackers did.
    pub behaviour: Behaviour,
    /// The rounds without them.
    pub calm: Spread,
    /// The rounds with them.
    pub attacked: Spread,
    /// Of the p99s.
    pub p99_ratio: f64,
    /// What they did, a second and attacker.
    pub acts_per_s: f64,
    /// How their connections ended.
    pub endings: BTreeMap<String, u64>,
    /// The coordinator's peak resident memory so far.
    pub peak_bytes: u64,
}

/// What was measured; the JSON of `rollcall-sim hostile -o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// How many agents behaved.
    pub agents: u32,
    /// How many did not.
    pub attackers: u32,
    /// How many rounds for each behaviour, and as many calm ones.
    pub rounds: u32,
    /// The coordinator's resident memory with everybody connected, before any attack.
    pub calm_bytes: u64,
    /// One for each behaviour.
    pub findings: Vec<Finding>,
}

/// A fleet, and its bad neighbours' way in.
struct Street {
    cluster: Cluster,
    agents: Agents,
    client: Client,
    attackers: Vec<Credentials>,
    /// Where they sit: another address of this machine for each behaviour.
    from: Ipv4Addr,
    largest: Digest,
    count: u32,
    versions: u32,
}

async fn run(arguments: &Arguments, programs: Programs) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::prepare(programs, dir.path(), None).await?;
    let mut credentials = agents::enroll(
        &cluster.coordinator_dir(),
        arguments.agents + arguments.attackers * Behaviour::ALL.len() as u32,
    )?;
    let mut attackers = credentials.split_off(arguments.agents as usize);
    cluster.begin().await?;
    let agents = Agents::start(credentials, cluster.quic(), None).await?;
    agents.until(arguments.agents, Seen::Connected).await?;
    push(&cluster, STABLE)?;
    start(&cluster, dir.path(), STABLE, "0s")?;
    agents
        .until(arguments.agents, Seen::Stable(STABLE.parse()?))
        .await?;
    let client = cluster.client()?;
    let mut street = Street {
        largest: upload_large(&client).await?,
        cluster,
        agents,
        client,
        attackers: Vec::new(),
        from: Ipv4Addr::new(127, 0, 1, 0),
        count: arguments.agents,
        versions: 0,
    };
    // The first rollback warms everything up.
    street.round(dir.path(), None).await?;
    let calm_bytes = process::resident_bytes(street.pid()?)?;
    let mut findings = Vec::new();
    for behaviour in Behaviour::ALL {
        // Others than before: those may be kept out still.
        street.from = Ipv4Addr::from_bits(street.from.to_bits() + 1);
        street.attackers = attackers.split_off(attackers.len() - arguments.attackers as usize);
        findings.push(street.find(dir.path(), behaviour, arguments.rounds).await?);
    }
    Ok(Figures {
        agents: arguments.agents,
        attackers: arguments.attackers,
        rounds: arguments.rounds,
        calm_bytes,
        findings,
    })
}

async fn upload_large(client: &Client) -> Result<Digest> {
    let bytes = vec![7; LARGE_BYTES];
    let digest = Digest::of(&bytes);
    let put = client.upload(reqwest::Method::PUT, &format!("/blobs/{digest}"));
    client.send(put.body(bytes)).await?;
    Ok(digest)
}

impl Street {
    fn pid(&self) -> Result<u32> {
        self.cluster
            .coordinator_pid()
            .context("the coordinator does not run")
    }

    /// Calm and attacked rounds in turn.
    async fn find(&mut self, dir: &Path, behaviour: Behaviour, rounds: u32) -> Result<Finding> {
        let (mut calm, mut attacked) = (Vec::new(), Vec::new());
        let tally = Arc::new(Tally::default());
        let mut lasted = Duration::ZERO;
        for _ in 0..rounds {
            calm.push(self.round(dir, None).await?.0);
            let (spread, took) = self.round(dir, Some((behaviour, &tally))).await?;
            attacked.push(spread);
            lasted += took;
        }
        let (calm, attacked) = (middle(&calm), middle(&attacked));
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 acts")]
        let acts = tally.acts.load(Ordering::Relaxed) as f64;
        Ok(Finding {
            behaviour,
            p99_ratio: attacked.p99_ms / calm.p99_ms,
            calm,
            attacked,
            acts_per_s: acts / lasted.as_secs_f64() / self.attackers.len() as f64,
            endings: tally.endings(),
            peak_bytes: process::peak_bytes(self.pid()?)?,
        })
    }

    /// A version rolled out and taken back, and how long the attack lasted.
    async fn round(
        &mut self,
        dir: &Path,
        attack: Option<(Behaviour, &Arc<Tally>)>,
    ) -> Result<(Spread, Duration)> {
        self.versions += 1;
        let version = format!("1.0.{}", self.versions);
        push(&self.cluster, &version)?;
        // Everybody has it before the attack: nodes that never get ready hold a stage up,
        // as any connected node does.
        start(&self.cluster, dir, &version, "1h")?;
        let on_trial = Seen::Candidate(version.parse()?);
        self.agents.until(self.count, on_trial).await?;

        let pid = self.pid()?;
        let (began, cpu_before) = (tokio::time::Instant::now(), process::cpu(pid)?);
        let attack = match attack {
            Some((behaviour, tally)) => Some(self.attack(behaviour, tally).await?),
            None => None,
        };
        tokio::time::sleep(WARM_UP).await;
        let reason = serde_json::json!({ "reason": "measured" });
        let path = format!("/models/{MODEL}/rollback");
        let rollback: RollbackView = self.client.post(&path, &reason).await?;
        let stable = Seen::Stable(STABLE.parse()?);
        self.agents.until(self.count, stable).await?;
        let lasted = began.elapsed();
        let cpu = process::cpu(pid)?.saturating_sub(cpu_before);
        tokio::task::spawn_blocking(move || drop(attack)).await?;
        let mut swapped: Vec<f64> = self
            .agents
            .swapped_at()
            .into_iter()
            .map(|at| millis(at.since(rollback.decided_at)))
            .collect();
        swapped.sort_by(f64::total_cmp);
        let spread = Spread {
            p50_ms: quantile(&swapped, 0.5),
            p99_ms: quantile(&swapped, 0.99),
            cpu_share: cpu.as_secs_f64() / lasted.as_secs_f64(),
        };
        Ok((spread, lasted))
    }

    /// Begins an attack, and waits until it is under way. It ends with what is returned.
    async fn attack(&self, behaviour: Behaviour, tally: &Arc<Tally>) -> Result<AttackThread> {
        let before = tally.acts.load(Ordering::Relaxed);
        let attackers: Vec<_> = self
            .attackers
            .iter()
            .map(|credentials| {
                let attacker = Attacker {
                    behaviour,
                    coordinator: self.cluster.quic(),
                    from: self.from,
                    largest: self.largest,
                    tally: Arc::clone(tally),
                };
                Ok((attacker, credentials.again()?))
            })
            .collect::<Result<_>>()?;
        let attack = AttackThread::start(attackers)?;
        let begun = async {
            while tally.acts.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Those who were cut off for what they did before may not get in again yet.
        let _ = tokio::time::timeout(PATIENCE, begun).await;
        Ok(attack)
    }
}

/// All attackers, on one thread.
struct AttackThread {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl AttackThread {
    fn start(attackers: Vec<(Attacker, Credentials)>) -> Result<Self> {
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut attacking = tokio::task::JoinSet::new();
        for (attacker, credentials) in attackers {
            attacking.spawn_on(attacker.run(credentials, stop.clone()), runtime.handle());
        }
        let thread = std::thread::Builder::new().name("attackers".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(async { while attacking.join_next().await.is_some() {} });
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for AttackThread {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn middle(spreads: &[Spread]) -> Spread {
    let of = |value: fn(&Spread) -> f64| median(spreads.iter().map(value));
    Spread {
        p50_ms: of(|spread| spread.p50_ms),
        p99_ms: of(|spread| spread.p99_ms),
        cpu_share: of(|spread| spread.cpu_share),
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{} agents, {} bad neighbours, medians of {} rounds each; coordinator at {:.1} MiB before",
            self.agents,
            self.attackers,
            self.rounds,
            mib(self.calm_bytes)
        )?;
        writeln!(
            f,
            "{:<16} {:>8} {:>8} {:>6} {:>6} {:>6} {:>10} {:>9}  endings",
            "behaviour", "calm p99", "p99 ms", "ratio", "CPU", "calm", "acts/s", "peak MiB"
        )?;
        for finding in &self.findings {
            let endings: Vec<_> = finding
                .endings
                .iter()
                .map(|(ending, count)| format!("{count} {ending}"))
                .collect();
            writeln!(
                f,
                "{:<16} {:>8.2} {:>8.2} {:>6.2} {:>6.2} {:>6.2} {:>10.0} {:>9.1}  {}",
                format!("{:?}", finding.behaviour),
                finding.calm.p99_ms,
                finding.attacked.p99_ms,
                finding.p99_ratio,
                finding.attacked.cpu_share,
                finding.calm.cpu_share,
                finding.acts_per_s,
                mib(finding.peak_bytes),
                endings.join(", ")
            )?;
        }
        Ok(())
    }
}
