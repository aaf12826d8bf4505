//! `rollcall-agent cache`: the versions on this node's disk.
//!
//! Works on the folder itself, so the agent must not be running; `status` shows the
//! cache of one that is.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use serde_json::json;

use super::{Output, OutputArg, WhichAgent};
use crate::cache::Cache as Disk;

#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The versions, and how much of each is there
    List {
        #[command(flatten)]
        agent: WhichAgent,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Hash every file again; damaged ones are removed, and fetched again when needed
    Verify {
        #[command(flatten)]
        agent: WhichAgent,
    },
    /// Remove files that no version needs
    Gc {
        #[command(flatten)]
        agent: WhichAgent,
    },
}

impl Cache {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List { agent, output } => list(&open(&agent)?, output.get()),
            Command::Verify { agent } => verify(&open(&agent)?),
            Command::Gc { agent } => {
                let disk = open(&agent)?;
                let freed = disk.gc()?;
                println!("{freed} bytes freed, {} in use", disk.bytes());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn open(agent: &WhichAgent) -> anyhow::Result<Disk> {
    let config = agent.read()?;
    let quota = config.cache.quota_mib.saturating_mul(1 << 20);
    Disk::open(&config.dir, quota, config.registry_key)
        .with_context(|| format!("cannot open the cache in {}", config.dir.display()))
}

fn list(disk: &Disk, output: Output) -> anyhow::Result<ExitCode> {
    let entries = disk.list();
    if output == Output::Json {
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| {
                json!({
                    "model": entry.model,
                    "version": entry.version.version,
                    "digest": entry.version.digest,
                    "bytes": entry.bytes,
                    "bytes_missing": entry.bytes_missing,
                    "last_used": entry.last_used,
                    "verified_at": entry.verified_at,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "MODEL",
        "VERSION",
        "MANIFEST",
        "BYTES",
        "MISSING",
        "LAST USED",
    ]);
    for entry in &entries {
        table.add_row([
            entry.model.to_string(),
            entry.version.version.to_string(),
            entry.version.digest.short(),
            entry.bytes.to_string(),
            entry.bytes_missing.to_string(),
            entry.last_used.to_string(),
        ]);
    }
    println!("{table}");
    println!("{} of {} bytes", disk.bytes(), disk.quota_bytes());
    Ok(ExitCode::SUCCESS)
}

fn verify(disk: &Disk) -> anyhow::Result<ExitCode> {
    let now = Clock::start(Timestamp::ZERO).now();
    let mut damaged = 0;
    for entry in disk.list() {
        match disk.verify(entry.version, now) {
            Ok(()) => println!("{}@{} is whole", entry.model, entry.version.version),
            Err(error) => {
                damaged += 1;
                eprintln!("{error}");
            }
        }
    }
    Ok(if damaged == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
