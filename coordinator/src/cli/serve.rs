//! `rollcall serve`: the daemon.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::CliError;
use crate::config::{Config, LogFormat};
use crate::serve::{Sockets, run};

/// Run the coordinator.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration that `rollcall init` made.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Private keys that lie here are read from here, not from the data folder; systemd sets it.
    #[arg(long, value_name = "DIR", env = "CREDENTIALS_DIRECTORY")]
    credentials: Option<PathBuf>,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut config = Config::read(&self.config).map_err(CliError::failed)?;
        config.credentials = self.credentials;
        log_to_stderr(&config)?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(CliError::failed)?
            .block_on(async {
                let sockets = Sockets::bind(&config).map_err(CliError::failed)?;
                let mut terminate = signal(SignalKind::terminate()).map_err(CliError::failed)?;
                let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::failed)?;
                let shutdown = async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    tracing::info!("told to stop");
                };
                run(config, sockets, shutdown)
                    .await
                    .inspect_err(|error| tracing::error!(%error, "the coordinator stops"))
                    .map_err(CliError::failed)
            })
    }
}

fn log_to_stderr(config: &Config) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| CliError::Failed(format!("log_filter: {error}")))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    }
    .map_err(CliError::failed)
}
