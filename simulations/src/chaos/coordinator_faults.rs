//! What is done to the coordinator, its disk and its journal.

use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_coordinator::journal::sqlite::SqliteJournal;
use rollcall_coordinator::journal::{Journal, SNAPSHOT_SCHEMA};
use rollcall_coordinator_core::input::{Actor, TokenKind};
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_shared::digest::Digest;
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use rusqlite::{Connection, params};
use rustix::process::Signal;

use super::disk::{Backup, damage, fill};
use super::ground::{Ground, Outcome};
use super::history::Restore;
use super::schedule::{Damage, JournalFile};

/// How long a coordinator may take to serve or to refuse.
const DECIDES_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Kills, does something to the files of the dead, and starts.
async fn while_dead<T>(
    ground: &Ground,
    lasts: Duration,
    deed: impl FnOnce() -> Result<T>,
) -> Result<T> {
    ground.kill_coordinator();
    let from = ground.now();
    ground.isolate(&ground.everyone(), true);
    let done = deed();
    tokio::time::sleep(lasts).await;
    ground.reconnect(&ground.everyone(), from);
    ground.start_coordinator()?;
    done
}

pub(super) async fn kill(ground: &Ground, lasts: Duration) -> Result<()> {
    let _turn = ground.coordinator.lock().await;
    while_dead(ground, lasts, || Ok(())).await
}

pub(super) async fn stop(ground: &Ground, lasts: Duration) -> Result<()> {
    let _turn = ground.coordinator.lock().await;
    ground.signal_coordinator(Signal::STOP)?;
    let from = ground.now();
    ground.isolate(&ground.everyone(), true);
    tokio::time::sleep(lasts).await;
    ground.reconnect(&ground.everyone(), from);
    ground.signal_coordinator(Signal::CONT)
}

/// `false`: there is no disk that can be full.
pub(super) async fn fill_disk(ground: &Ground, lasts: Duration) -> Result<bool> {
    if ground.disks.is_none() {
        return Ok(false);
    }
    let _turn = ground.coordinator.lock().await;
    let filler = fill(&ground.coordinator_dir())?;
    tokio::time::sleep(lasts).await;
    std::fs::remove_file(filler)?;
    // One that met the full disk may still be on its way out.
    if !served(ground).await && ground.coordinator_ended().is_some() {
        // What it could not keep it must not acknowledge: ending is an honest answer.
        ground.count("coordinator ended over a full disk");
        ground.start_coordinator()?;
    }
    Ok(true)
}

/// What a coordinator does with damaged files is seen while no agent can reach it and no
/// command counts; then the files are put back. `false`: there was nothing to damage.
pub(super) async fn damage_journal(
    ground: &Ground,
    file: JournalFile,
    how: Damage,
) -> Result<bool> {
    let _turn = ground.coordinator.lock().await;
    let mut links = Vec::new();
    for node in &ground.nodes {
        links.push(node.link.lock().await);
    }
    let _alone = ground.open.write().await;
    for node in &ground.nodes {
        node.relay.cut(true);
    }
    ground.kill_coordinator();
    let from = ground.now();
    ground.isolate(&ground.everyone(), true);
    let folder = ground.coordinator_dir();
    let backup = Backup::of(&folder, ground.dir.join("undamaged"))?;
    let name = match file {
        JournalFile::Database => "journal.db",
        JournalFile::Log => "journal.db-wal",
    };
    let damaged = damage(&folder.join(name), how)?;
    if damaged.is_some() {
        ground.start_coordinator()?;
        ground.count(match (served(ground).await, file) {
            (true, JournalFile::Database) => "journal damaged: served",
            (false, JournalFile::Database) => "journal damaged: refused",
            (true, JournalFile::Log) => "journal's log damaged: served",
            (false, JournalFile::Log) => "journal's log damaged: refused",
        });
        ground.kill_coordinator();
    }
    backup.restore(&folder)?;
    ground.reconnect(&ground.everyone(), from);
    ground.start_coordinator()?;
    for node in &ground.nodes {
        node.relay.cut(false);
    }
    Ok(damaged.is_some())
}

/// Whether the coordinator answers; `false` when it ended instead.
async fn served(ground: &Ground) -> bool {
    let decide = async {
        loop {
            if ground.coordinator_ended().is_some() {
                return false;
            }
            if let Outcome::Done(_) = ground.command_to_anyone(&["model", "list"]).await {
                return true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(DECIDES_MAX, decide)
        .await
        .unwrap_or(false)
}

/// A snapshot only saves time: one that does not verify must not be used.
pub(super) async fn damage_snapshot(ground: &Ground) -> Result<()> {
    let _turn = ground.coordinator.lock().await;
    while_dead(ground, Duration::ZERO, || {
        let folder = ground.coordinator_dir();
        let head = SqliteJournal::open(&folder)?.head()?;
        let store = Connection::open(folder.join("journal.db"))?;
        store.execute(
            "INSERT OR REPLACE INTO snapshots (seq, schema, record_hash, state_hash, state) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                head.seq,
                SNAPSHOT_SCHEMA,
                head.hash.to_string(),
                Digest::of(b"what it was").to_string(),
                b"what became of it"
            ],
        )?;
        Ok(())
    })
    .await
}

/// The journal gets a record of a time to come, as if the wall clock had been ahead until
/// now: the next process starts with a clock that is behind it. (The machine's clock cannot
/// be set from here, and a library that lies about it is not asked: the clock is read
/// without libc.)
pub(super) async fn step_clock(ground: &Ground, seconds: u32) -> Result<()> {
    let _turn = ground.coordinator.lock().await;
    while_dead(ground, Duration::ZERO, || {
        let journal = SqliteJournal::open(&ground.coordinator_dir())?;
        let head = journal.head()?;
        let last = journal.records(head.seq, 1)?;
        let last: Record = serde_json::from_str(&last.first().context("no record")?.body)?;
        let now = Clock::start(Timestamp::ZERO).now();
        let event = Event::TokenCreated {
            id: format!("{:08x}", head.seq),
            secret_hash: Digest::of(b"nobody knows it"),
            kind: TokenKind::Agent,
            name: "made by a clock ahead".to_owned(),
            expires_at: None,
        };
        let record = Record {
            seq: head.seq + 1,
            at: last.at.max(now) + Duration::from_secs(seconds.into()),
            actor: Actor::System,
            event,
            previous: head.hash,
        };
        journal.append(&[record])?;
        journal.close();
        Ok(())
    })
    .await
}

/// A copy is made, work goes on, and the copy takes the place of what came of it.
pub(super) async fn restore_backup(ground: &Ground, lasts: Duration) -> Result<()> {
    let _turn = ground.coordinator.lock().await;
    let folder = ground.coordinator_dir();
    let (backup, copied) = while_dead(ground, Duration::ZERO, || {
        let backup = Backup::of(&folder, ground.dir.join("backup"))?;
        Ok((backup, ground.now()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(4) + lasts).await;
    while_dead(ground, Duration::ZERO, || {
        let at = ground.now();
        backup.restore(&folder)?;
        let mut history = ground.history();
        history.restores.push(Restore {
            backup: copied,
            at,
            heard: None,
        });
        let lost = history.forget_what_no_node_knows(copied);
        drop(history);
        for _ in 0..lost {
            ground.count("withdrawals lost with a backup");
        }
        Ok(())
    })
    .await?;
    if ground.all_connected().await {
        let heard = ground.now();
        if let Some(restore) = ground.history().restores.last_mut() {
            restore.heard = Some(heard);
        }
    }
    Ok(())
}
