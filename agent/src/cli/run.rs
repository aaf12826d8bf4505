//! `rollcall-agent run`: opens the sockets, starts the runtime, listens for signals.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::Listeners;
use crate::config::{Config, Log, LogFormat};

/// What is between the agent and its coordinator needs no more: clients and models have threads
/// of their own.
const AGENT_THREADS: usize = 2;
/// Fetched files are verified and models loaded on these.
const BLOCKING_THREADS_MAX: usize = 8;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The file that `enroll` wrote
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A private key that lies here is read from here; systemd sets it
    #[arg(long, value_name = "DIR", env = "CREDENTIALS_DIRECTORY")]
    credentials: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut config = Config::read(&self.config)?;
        config.credentials = self.credentials;
        start_log(&config.log)?;
        raise_file_limit();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(AGENT_THREADS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("agent")
            .enable_all()
            .build()
            .context("no runtime")?
            .block_on(serve(config))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let listeners = Listeners {
        http: listen("http", config.http).await?,
        grpc: match config.grpc {
            Some(address) => Some(listen("grpc", address).await?),
            None => None,
        },
    };
    // One socket for both IP versions where the host has both.
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .context("no UDP socket")?;
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn(crate::run(config, listeners, udp, shutdown.clone()));
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let watchdog = tokio::spawn(feed_watchdog());
    let mut agent = std::pin::pin!(agent);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        ended = &mut agent => return Ok(ended??),
    }
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    shutdown.cancel();
    let ended = agent.await;
    watchdog.abort();
    Ok(ended??)
}

async fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: set another `{key}` in the configuration")
    })
}

/// Says at half the interval that this process's threads still take turns.
async fn feed_watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(every / 2).await;
    }
}

/// The soft limit is often 1,024, which clients' connections alone can fill.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit on open files stays as it is");
    }
}

/// Without systemd there is nobody to tell.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn start_log(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter).with_context(|| {
        format!(
            "the configuration says log.filter = {:?}: write e.g. info",
            log.filter
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Only one log per process; a second start in one (tests, the demo) keeps the first.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
