//! The least that a storm can cost: as many handshakes, with the same certificates and
//! endpoint settings, against a process that takes connections and does nothing else.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_coordinator::config::Config;
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::close::{CloseCode, close};
use rollcall_transport::endpoint::{agent_config, agent_endpoint, connect, coordinator_endpoint};
use rollcall_transport::identity::Identity;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::fleet::agents::{Credentials, ENDPOINTS};
use crate::multicall::Programs;

/// Handshakes under way at the same time: enough to keep every core busy, few enough that
/// they fit a socket's default buffer. A first packet that is lost costs a second.
const IN_FLIGHT: usize = 48;

/// The process behind the bare door; ends with its owner.
struct BareDoor {
    process: Child,
    address: SocketAddr,
}

impl Drop for BareDoor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl BareDoor {
    fn open(programs: &Programs, config: &std::path::Path) -> Result<Self> {
        let mut process = programs
            .bare_door()
            .arg(config)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let told = process.stdout.take().context("no pipe")?;
        BufReader::new(told).read_line(&mut line)?;
        let address = line.trim().parse();
        let address = address.with_context(|| format!("the bare door said {line:?}"))?;
        Ok(Self { process, address })
    }
}

/// How long `credentials.len()` handshakes take. Each connection is closed when it stands,
/// or keep-alives would take part.
///
/// # Errors
/// When one of them fails.
pub(super) async fn measure(
    programs: &Programs,
    config: &std::path::Path,
    credentials: &[Credentials],
) -> Result<Duration> {
    let door = BareDoor::open(programs, config)?;
    let endpoints = (0..ENDPOINTS)
        .map(|_| agent_endpoint(SocketAddr::from(([127, 0, 0, 1], 0))))
        .collect::<Result<Vec<_>, _>>()?;
    let clients = credentials
        .iter()
        .map(|c| Ok(agent_config(&c.identity, &c.ca)?))
        .collect::<Result<Vec<_>>>()?;
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut dialling = JoinSet::new();
    let began = tokio::time::Instant::now();
    for (index, client) in clients.into_iter().enumerate() {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let endpoint = endpoints[index % ENDPOINTS].quic.clone();
        let address = door.address;
        dialling.spawn(async move {
            let connected = connect(&endpoint, client, address).await;
            drop(slot);
            connected.map(|connection| close(&connection, CloseCode::Normal, ""))
        });
    }
    while let Some(connected) = dialling.join_next().await {
        connected??;
    }
    Ok(began.elapsed())
}

/// The process: takes the coordinator's configuration file, prints its address, and takes
/// connections until it is killed.
pub(crate) fn open_door(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let opened = arguments
        .next()
        .context("which configuration?")
        .and_then(|config| take_connections(&PathBuf::from(config)));
    match opened {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bare door does not open: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn take_connections(config: &std::path::Path) -> Result<()> {
    let layout = Config::read(config)?.layout();
    let read = |path: PathBuf| {
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let identity = Identity::from_pem(&read(layout.certificate())?, &read(layout.key())?)?;
    let ca = CaCertificate::from_pem(&read(layout.ca_certificate())?)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let endpoint = coordinator_endpoint(socket, &identity, &ca)?.quic;
        println!("{}", endpoint.local_addr()?);
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    connection.closed().await;
                }
            });
        }
        Ok(())
    })
}
