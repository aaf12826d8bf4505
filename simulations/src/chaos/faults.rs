//! What each fault does to the fleet, and how it is mended. A fault holds the lock of what
//! it touches from its beginning to its end, so two never meet on one target; on different
//! targets they do.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::coordinator_faults as coordinator;
use super::disk::{damage, damage_largest, fill};
use super::ground::{Ground, Node};
use super::schedule::{Damage, Fault, Planned};
use crate::relay::Weather;

/// How long a new certificate is good for.
const CERTIFICATE_LASTS: Duration = Duration::from_secs(4);
/// Longest wait for a process that was told to come up.
const UP_MAX: Duration = Duration::from_secs(15);
/// What an agent logs when its disk refuses the state, and when it takes it again.
const NOT_DURABLE: &str = "the state is not durable";
const DURABLE: &str = "the state is on disk again";

/// Begins each fault at its time, and returns when all are over and mended.
pub(super) async fn rage(ground: &Arc<Ground>, schedule: Vec<Planned>) -> Result<()> {
    let mut running = tokio::task::JoinSet::new();
    for planned in schedule {
        let wait = planned.at.saturating_sub(ground.now());
        tokio::time::sleep(wait).await;
        let ground = Arc::clone(ground);
        running.spawn(async move {
            let fired = fire(&ground, &planned).await;
            fired.with_context(|| format!("the fault could not be made: {planned}"))
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

async fn fire(ground: &Ground, Planned { lasts, fault, .. }: &Planned) -> Result<()> {
    let lasts = *lasts;
    let node = |index: &usize| &ground.nodes[*index];
    match fault {
        Fault::KillCoordinator => coordinator::kill(ground, lasts).await?,
        Fault::StopCoordinator => coordinator::stop(ground, lasts).await?,
        Fault::FillCoordinatorDisk => {
            if !coordinator::fill_disk(ground, lasts).await? {
                return Ok(());
            }
        }
        Fault::DamageJournal(file, how) => {
            if !coordinator::damage_journal(ground, *file, *how).await? {
                return Ok(());
            }
        }
        Fault::DamageSnapshot => coordinator::damage_snapshot(ground).await?,
        Fault::StepWallClock(seconds) => coordinator::step_clock(ground, *seconds).await?,
        Fault::RestoreBackup => coordinator::restore_backup(ground, lasts).await?,
        Fault::KillAgent(index) => kill(ground, node(index), lasts).await?,
        Fault::StopAgent(index) => stop(ground, node(index), lasts).await?,
        Fault::CutLink(index) => cut(ground, *index, lasts, true, true).await,
        Fault::CutToCoordinator(index) => cut(ground, *index, lasts, true, false).await,
        Fault::CutToAgent(index) => cut(ground, *index, lasts, false, true).await,
        Fault::BadWeather(index, weather) => {
            let node = node(index);
            let _turn = node.link.lock().await;
            node.relay.set(*weather);
            tokio::time::sleep(lasts).await;
            node.relay.set(Weather::default());
        }
        Fault::Rebind(index) => {
            let node = node(index);
            let _turn = node.link.lock().await;
            node.relay.rebind();
        }
        Fault::FillAgentDisk(index) => {
            if ground.disks.is_none() {
                return Ok(());
            }
            fill_disk(ground, node(index), lasts).await?;
        }
        Fault::DamageIndex(index, how) => damage_index(ground, node(index), *how).await?,
        Fault::DamageState(index, how) => damage_state(ground, node(index), *how).await?,
        Fault::StepBootClock(index, seconds) => {
            step_boot_clock(ground, node(index), *seconds).await?;
        }
        Fault::ExpireCertificate(index) => {
            super::certificate::expire(ground, *index, CERTIFICATE_LASTS, lasts).await?;
        }
    }
    ground.count(fault.kind());
    Ok(())
}

async fn kill(ground: &Ground, node: &Node, lasts: Duration) -> Result<()> {
    let _turn = node.process.lock().await;
    ground.kill_agent(node);
    tokio::time::sleep(lasts).await;
    ground.start_agent(node)
}

async fn stop(ground: &Ground, node: &Node, lasts: Duration) -> Result<()> {
    let _turn = node.process.lock().await;
    ground.stop_agent(node)?;
    tokio::time::sleep(lasts).await;
    ground.continue_agent(node)
}

async fn cut(ground: &Ground, index: usize, lasts: Duration, up: bool, down: bool) {
    let node = &ground.nodes[index];
    let _turn = node.link.lock().await;
    node.relay.set(Weather {
        cut_to_target: up,
        cut_to_client: down,
        ..Weather::default()
    });
    let from = ground.now();
    ground.isolate(&[index], down);
    tokio::time::sleep(lasts).await;
    ground.reconnect(&[index], from);
    node.relay.set(Weather::default());
}

/// A node cannot keep what it hears while its disk is full, and says so: it sends no
/// receipt. So nobody kills it before it could write again.
async fn fill_disk(ground: &Ground, node: &Node, lasts: Duration) -> Result<()> {
    let _turn = node.process.lock().await;
    let filler = fill(&node.dir)?;
    tokio::time::sleep(lasts).await;
    std::fs::remove_file(filler)?;
    let log = ground.dir.join(format!("{}.log", node.name));
    let durable = || {
        let log = std::fs::read(&log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.rfind(DURABLE) >= log.rfind(NOT_DURABLE)
    };
    let wait = async {
        while !durable() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(UP_MAX, wait).await.is_err() {
        ground.incident(
            6,
            format!("{} does not write though its disk has room", node.name),
        );
    }
    Ok(())
}

async fn damage_index(ground: &Ground, node: &Node, how: Damage) -> Result<()> {
    let _turn = node.process.lock().await;
    ground.kill_agent(node);
    damage_largest(&node.dir.join("index"), how)?;
    ground.start_agent(node)?;
    until_up(ground, node).await;
    Ok(())
}

async fn damage_state(ground: &Ground, node: &Node, how: Damage) -> Result<()> {
    let _turn = node.process.lock().await;
    ground.kill_agent(node);
    damage(&node.dir.join("state.bin"), how)?;
    ground.start_agent(node)?;
    until_up(ground, node).await;
    Ok(())
}

/// Both copies of the state must not be damaged at once: nothing promises to survive that.
/// A node that shows its models has read, and mended, what it has.
pub(super) async fn until_up(ground: &Ground, node: &Node) {
    let started = ground.now();
    let shown = || {
        let history = ground.history();
        let last = history.nodes[usize::from(node.index)].statuses.last();
        last.is_some_and(|status| status.asked >= started)
    };
    let wait = async {
        while !shown() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // In vain: the checker will say that it does not answer.
    let _ = tokio::time::timeout(UP_MAX, wait).await;
}

/// A time namespace shifts the clock that counts from boot, as a reboot does. It leaves the
/// wall clock alone, which nothing less than the whole machine's clock would move.
async fn step_boot_clock(ground: &Ground, node: &Node, seconds: u32) -> Result<()> {
    let _turn = node.process.lock().await;
    ground.kill_agent(node);
    let seconds = seconds.to_string();
    ground.start_agent_through(node, &["unshare", "--time", "--boottime", &seconds, "--"])?;
    until_up(ground, node).await;
    if ground.agent_ended(node).is_some() {
        // Not permitted here.
        ground.count("time namespaces refused");
        ground.kill_agent(node);
        ground.start_agent(node)?;
    }
    Ok(())
}
