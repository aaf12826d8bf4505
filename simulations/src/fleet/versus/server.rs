//! A broker as a child process on loopback: started, awaited, and ended by its own
//! process id, however the measurement ends.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{PATIENCE, now, pause};
use crate::cluster::{Process, spawn};

/// Between two looks whether it is ready.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines of its log that an error shows.
const TAIL: usize = 10;

/// A running broker. Dropping it ends its process, then removes its files.
pub(super) struct Server {
    process: Process,
    log: PathBuf,
    _dir: TempDir,
}

impl Server {
    /// Starts `command`, which may keep files in `dir`.
    pub(super) fn start(mut command: Command, dir: TempDir) -> Result<Self> {
        let log = dir.path().join("log");
        let process = spawn(&mut command, &log)
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        Ok(Self {
            process,
            log,
            _dir: dir,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Asks again and again until the broker answers.
    pub(super) fn until_ready<T>(&mut self, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = now() + PATIENCE;
        loop {
            match ask() {
                Ok(answer) => return Ok(answer),
                Err(error) if now() > deadline || self.process.has_ended() => {
                    return self.explain(Err(error)).context("the broker is not ready");
                }
                Err(_) => pause(LOOK_AGAIN),
            }
        }
    }

    /// Adds to an error what the broker itself says.
    pub(super) fn explain<T>(&mut self, result: Result<T>) -> Result<T> {
        let Err(error) = result else { return result };
        let ended = if self.process.has_ended() {
            "ended"
        } else {
            "runs"
        };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        Err(error.context(format!("the broker {ended}, and said: {tail}")))
    }
}
