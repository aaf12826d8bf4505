//! Chaos with real processes: coordinator and agents as they ship, each agent's QUIC through
//! a relay of its own, HTTP traffic, and a schedule of faults drawn from a seed, while an
//! operator starts rollouts and takes them back. An outside observer writes down what is
//! served; [`checker`] holds it against the promises.
//!
//! | module | holds |
//! | --- | --- |
//! | [`schedule`] | what goes wrong when |
//! | `ground` | processes, links and disks, and a lock for each |
//! | `faults`, `coordinator_faults`, `certificate`, `disk` | what a fault does, and how it is mended |
//! | `operator` | rollouts and rollbacks with the real commands |
//! | `observer` | what is seen from outside |
//! | [`history`], [`checker`] | what was seen, and the promises |
//! | [`summary`] | the table at the end |
//!
//! The schedule is the seed's; how processes and packets interleave is the machine's. So a
//! violation comes with its seed, but also with the logs of all processes.

mod certificate;
pub mod checker;
mod coordinator_faults;
mod disk;
mod faults;
mod ground;
pub mod history;
mod observer;
mod operator;
pub mod schedule;
pub mod summary;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::multicall::Programs;
use crate::traffic::{Observer, Rows, Traffic, Way};
use checker::{Violation, check};
use ground::{Ground, LEASE, MODEL, Outcome};
use operator::Operator;
use schedule::Planned;
use summary::Summary;

/// Requests a second to each node.
const RATE: u32 = 20;
const SUPERVISE_EVERY: Duration = Duration::from_millis(300);
const TAKE_EVERY: Duration = Duration::from_millis(250);
/// Checking looks at everything so far.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Real processes under kill -9, pauses, lossy and cut links, full and damaged disks.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// For how many minutes faults rage
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// Decides the schedule of faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many agents
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=50))]
    agents: u16,
    /// How to print; the default is a table
    #[arg(short, long, default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if (0.1..=1_440.0).contains(&minutes) => Ok(minutes),
        Ok(_) | Err(_) => Err("give minutes from 0.1 to 1440".to_owned()),
    }
}

/// Runs chaos and prints what came of it. Fails with exit code 1 when a promise was broken.
///
/// # Errors
/// When the fleet does not come up, or a fault cannot be made.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    let dir = tempfile::Builder::new()
        .prefix("rollcall-chaos-")
        .tempdir()?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = rage(arguments, dir.path()) => ended,
            told = told_to_stop() => Err(told.err().unwrap_or_else(|| anyhow!("interrupted"))),
        }
    });
    // Tasks that follow a rollback hold the fleet: without them it ends here.
    runtime.shutdown_timeout(Duration::from_secs(5));
    let summary = match ended {
        Ok(summary) => summary,
        Err(error) => {
            let kept = dir.keep();
            return Err(error.context(format!("the logs are in {}", kept.display())));
        }
    };
    match arguments.output {
        Form::Table => print!("{summary}"),
        Form::Json => println!("{}", serde_json::to_string(&summary)?),
    }
    if summary.violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "history.json and the logs of all processes are in {}",
        dir.keep().display()
    );
    Ok(ExitCode::FAILURE)
}

/// Processes and mounts end with the fleet, so an interruption must end the fleet.
async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

async fn rage(arguments: &Arguments, dir: &Path) -> Result<Summary> {
    let during = Duration::from_secs_f64(arguments.minutes * 60.0);
    let nodes = usize::from(arguments.agents);
    let schedule = schedule::draw(arguments.seed, during, nodes, LEASE);
    eprintln!(
        "seed {}: {} faults in {:.0} s on {nodes} agents; logs in {}",
        arguments.seed,
        schedule.len(),
        during.as_secs_f64(),
        dir.display()
    );
    let ground = Ground::prepare(Programs::here()?, dir, arguments.agents, arguments.seed).await?;
    if ground.disks.is_none() {
        eprintln!("no disk will be full: mounting a tmpfs is not permitted here");
    }
    let mut operator = Operator::new(Arc::clone(&ground), arguments.seed);
    operator.first_version().await?;
    let start = ground.now();
    let schedule: Vec<Planned> = schedule
        .into_iter()
        .map(|planned| Planned {
            at: planned.at + start,
            ..planned
        })
        .collect();
    for planned in &schedule {
        eprintln!("{planned}");
    }

    let clients = Observer::default();
    let _traffic = traffic(&ground, &clients)?;
    let _watchers = observer::watch(&ground);
    let judge = tokio::spawn(judge(
        Arc::clone(&ground),
        clients.clone(),
        arguments.seed,
        schedule.clone(),
    ));
    let supervisor = tokio::spawn(supervise(Arc::clone(&ground)));
    let stop = CancellationToken::new();
    let operating = tokio::spawn(operator.run(stop.clone()));

    let raged = faults::rage(&ground, schedule).await;
    stop.cancel();
    let operator = operating.await?;
    raged?;
    heal(&ground, operator).await;
    supervisor.abort();
    judge.abort();
    observer::take_answers(&ground, &clients);
    let history = ground.history();
    let summary = Summary::of(arguments.seed, &history, ground.tally());
    if !summary.violations.is_empty() {
        let file = std::fs::File::create(dir.join("history.json"))?;
        serde_json::to_writer(std::io::BufWriter::new(file), &*history)?;
    }
    Ok(summary)
}

fn traffic(ground: &Ground, clients: &Observer) -> Result<Traffic> {
    let rows =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits/1.0.0/validation.json");
    let rows = Rows::read(&rows).context("run chaos from a checkout")?;
    let nodes: Vec<_> = ground.nodes.iter().map(|node| node.http).collect();
    let rows = Arc::new(rows);
    Ok(Traffic::start(
        &nodes,
        MODEL,
        &[Way::Json],
        &rows,
        RATE,
        clients,
    ))
}

/// After the faults: everybody comes back, a rollout and its rollback reach everybody, and
/// the journal verifies.
async fn heal(ground: &Arc<Ground>, mut operator: Operator) {
    if !ground.all_connected().await {
        ground.incident(3, "not all agents came back after the healing".to_owned());
    } else if let Err(error) = operator.last_trip().await {
        ground.incident(3, error.to_string());
    }
    match ground.command(&["audit", "verify"]).await {
        Outcome::Done(_) => {}
        refused @ (Outcome::Waiting(_) | Outcome::Refused(_) | Outcome::Unknown) => {
            ground.incident(6, format!("the journal does not verify: {refused:?}"));
        }
    }
    // What the last rollback reported must hold for a lease.
    tokio::time::sleep(LEASE).await;
}

/// Notices processes that end though nobody touched them, and starts them anew as a service
/// manager does.
async fn supervise(ground: Arc<Ground>) {
    loop {
        tokio::time::sleep(SUPERVISE_EVERY).await;
        if let Ok(_turn) = ground.coordinator.try_lock()
            && let Some(status) = ground.coordinator_ended()
        {
            ground.incident(1, format!("the coordinator ended by itself: {status}"));
            let _ = ground.start_coordinator();
        }
        for node in &ground.nodes {
            if let Ok(_turn) = node.process.try_lock()
                && let Some(status) = ground.agent_ended(node)
            {
                ground.incident(1, format!("{} ended by itself: {status}", node.name));
                ground.kill_agent(node);
                let _ = ground.start_agent(node);
            }
        }
    }
}

/// Takes over answers, and tells each violation when it is first seen.
async fn judge(ground: Arc<Ground>, clients: Observer, seed: u64, schedule: Vec<Planned>) {
    let mut told = BTreeSet::new();
    loop {
        let next_check = ground.now() + CHECK_EVERY;
        while ground.now() < next_check {
            tokio::time::sleep(TAKE_EVERY).await;
            observer::take_answers(&ground, &clients);
        }
        let history = ground.history().clone();
        let violations = tokio::task::spawn_blocking(move || check(&history)).await;
        for violation in violations.unwrap_or_default() {
            if told.insert((violation.promise, violation.subject.clone())) {
                tell(&violation, seed, &schedule, ground.now(), &ground.dir);
            }
        }
    }
}

fn tell(violation: &Violation, seed: u64, schedule: &[Planned], now: Duration, dir: &Path) {
    eprintln!("\nVIOLATION with seed {seed}: {violation}\nThe schedule so far:");
    for planned in schedule.iter().take_while(|planned| planned.at <= now) {
        eprintln!("{planned}");
    }
    eprintln!("Logs: {}\n", dir.display());
}
