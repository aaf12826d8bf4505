//! The daemon: opens the data folder, takes over, and serves both doors until told to stop.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::TokioTimer;
use quinn::Endpoint;
use rollcall_coordinator_core::coordinator::CoreConfig;
use rollcall_shared::ids::FleetName;
use rollcall_shared::signing::SigningKey;
use rollcall_transport::admission::{Admission, RevokedCertificates};
use rollcall_transport::ca::FleetCa;
use rollcall_transport::close::CloseCode;
use rollcall_transport::endpoint::{EndpointError, TwoWays, coordinator_endpoint};
use rollcall_transport::identity::{Identity, IdentityError};
use rollcall_transport::tls::{TlsError, https_server_tls};
use sd_notify::NotifyState;

use crate::artifacts::{ArtifactError, ArtifactStore};
use crate::config::{Config, ConfigError, Layout};
use crate::driver::{CoreHandle, Driver, DriverError};
use crate::http::{self, Api};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{Journal, JournalError};
use crate::metrics::Metrics;
use crate::quic_server::enrolment::Enrolment;
use crate::quic_server::outbox::Agents;
use crate::quic_server::{self, Context};

/// How long requests may still run after the signal to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// How long closing agents' connections may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// From a connection's (or the last answer's) end to the next request's whole head.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);

/// Kernel buffer for what agents send: a push to 10,000 comes back as 10,000
/// acknowledgements at once. The kernel gives less where its own bound is lower.
const UDP_RECEIVE_BYTES: usize = 8 << 20;

/// Where a coordinator listens; bound by the caller, so that tests can bind port 0.
#[derive(Debug)]
pub struct Sockets {
    /// For agents.
    pub quic: UdpSocket,
    /// For operators.
    pub https: TcpListener,
}

impl Sockets {
    /// Binds the configured addresses.
    ///
    /// # Errors
    /// When an address is taken or not ours.
    pub fn bind(config: &Config) -> Result<Self, ServeError> {
        let failed = |address: SocketAddr| move |source| ServeError::Bind { address, source };
        Ok(Self {
            quic: UdpSocket::bind(config.quic_listen).map_err(failed(config.quic_listen))?,
            https: TcpListener::bind(config.https_listen).map_err(failed(config.https_listen))?,
        })
    }
}

/// Why a coordinator does not serve, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be used.
    #[error("cannot listen on {address}: {source}; is another coordinator running?")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file of the data folder is missing or unreadable.
    #[error("{} cannot be read: {source}; `rollcall init` makes a data folder", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The registry key's file is damaged.
    #[error("{} does not hold 64 hexadecimal digits: restore it from a backup", path.display())]
    RegistryKey {
        /// Which.
        path: PathBuf,
    },
    /// The folder is of another fleet.
    #[error("the configuration is for fleet {configured}, but the CA's certificate is of {found}")]
    OtherFleet {
        /// What the configuration says.
        configured: FleetName,
        /// What the certificate says.
        found: FleetName,
    },
    /// A certificate or key is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS refuses the identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The agents' door does not open.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No thread for pushes.
    #[error("the system gives no thread for withdrawals: {0}")]
    Push(#[source] io::Error),
    /// The journal is unusable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The blobs are unusable.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The core cannot go on.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The operators' door failed.
    #[error("the HTTPS server failed: {0}")]
    Https(#[source] io::Error),
}

/// The secrets of a data folder.
struct Keys {
    ca: FleetCa,
    identity: Identity,
    registry: SigningKey,
}

impl Keys {
    fn read(layout: &Layout, fleet: &FleetName) -> Result<Self, ServeError> {
        let read = |path: PathBuf| {
            fs::read_to_string(&path).map_err(|source| ServeError::Missing { path, source })
        };
        let ca = FleetCa::from_pem(&read(layout.ca_certificate())?, &read(layout.ca_key())?)?;
        let found = ca.certificate().fleet();
        if found != fleet {
            return Err(ServeError::OtherFleet {
                configured: fleet.clone(),
                found: found.clone(),
            });
        }
        let identity = Identity::from_pem(&read(layout.certificate())?, &read(layout.key())?)?;
        let registry = read(layout.registry_key())?;
        let registry = seed(registry.trim()).ok_or_else(|| ServeError::RegistryKey {
            path: layout.registry_key(),
        })?;
        Ok(Self {
            ca,
            identity,
            registry: SigningKey::from_seed(&registry),
        })
    }
}

fn seed(hex: &str) -> Option<[u8; 32]> {
    // A digest has the same form: 32 bytes as hexadecimal digits.
    hex.parse::<rollcall_shared::digest::Digest>()
        .ok()
        .map(|digest| *digest.as_bytes())
}

/// Everything that a coordinator is made of, before anything runs.
struct Assembled {
    driver: Driver,
    core: CoreHandle,
    journal: Arc<dyn Journal>,
    agents: Agents,
    endpoint: Endpoint,
    context: Context,
    operators: Operators,
    api: Api,
}

impl Assembled {
    async fn from(config: &Config, sockets: Sockets) -> Result<Self, ServeError> {
        let layout = config.layout();
        config.validate().map_err(|why| ConfigError::Invalid {
            path: layout.config(),
            why,
        })?;
        let keys = Keys::read(&layout, &config.fleet)?;
        let journal = open_journal(layout.folder())?;
        let artifacts = ArtifactStore::open(&layout.blobs(), config.blob_bytes_max)?;
        let (agents, metrics) = (Agents::default(), Metrics::default());
        let core_config = CoreConfig {
            software: format!("rollcall {}", env!("CARGO_PKG_VERSION")),
            heartbeat_every: config.heartbeat_every,
            report_every: config.report_every,
        };
        let (driver, core) = Driver::start(
            Arc::clone(&journal),
            core_config,
            agents.clone(),
            metrics.clone(),
        )
        .await?;
        let endpoint = agents_door(sockets.quic, &keys)?;
        agents
            .push_by(endpoint.beacons.clone())
            .map_err(ServeError::Push)?;
        let operators = https_server(sockets.https, &keys.identity)?;
        let pin = keys.ca.fingerprint();
        let context = Context::new(
            core.clone(),
            agents.clone(),
            artifacts.clone(),
            config.artifact_streams_max,
            Enrolment::new(keys.ca, keys.registry.public()),
            Admission::new(config.fleet.clone(), RevokedCertificates::default()),
            metrics.clone(),
        );
        let api = Api {
            core: core.clone(),
            journal: Arc::clone(&journal),
            artifacts,
            registry_key: keys.registry,
            pin,
            metrics,
        };
        Ok(Self {
            driver,
            core,
            journal,
            agents,
            endpoint: endpoint.quic,
            context,
            operators,
            api,
        })
    }
}

/// Serves until `shutdown` completes or the journal fails.
///
/// # Errors
/// When the data folder is unusable, or records cannot be made durable: the caller
/// must then end the process.
pub async fn run(
    config: Config,
    sockets: Sockets,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (quic, https) = (
        sockets.quic.local_addr().ok(),
        sockets.https.local_addr().ok(),
    );
    let made = Assembled::from(&config, sockets).await?;
    let (endpoint, handle) = (made.endpoint, made.operators.handle);
    let mut driving = tokio::spawn(made.driver.run());
    let accepting = tokio::spawn(quic_server::serve(endpoint.clone(), Arc::new(made.context)));
    let watchdog = tokio::spawn(feed_watchdog(made.core));
    let pages = http::router(made.api).into_make_service();
    let mut serving = tokio::spawn(made.operators.server.serve(pages));
    announce(&[NotifyState::Ready]);
    tracing::info!(fleet = %config.fleet, ?quic, ?https, "serving");

    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = &mut driving => Err(match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => ServeError::Driver(DriverError::Panicked),
        }),
        ended = &mut serving => Err(ServeError::Https(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => io::Error::other("it ended"),
        })),
    };
    announce(&[NotifyState::Stopping]);
    watchdog.abort();
    accepting.abort();
    handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
    if ended.is_ok() {
        let _ = tokio::time::timeout(SHUTDOWN_GRACE + Duration::from_secs(1), serving).await;
    }
    made.agents.close_all(
        CloseCode::Shutdown,
        "the coordinator restarts; connect again",
    );
    endpoint.close(quinn::VarInt::from_u32(0), b"");
    // Farewells are short; agents that miss them notice by themselves.
    let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
    // Nobody waits for an answer any more; what was acknowledged is durable.
    driving.abort();
    made.journal.close();
    ended
}

fn open_journal(folder: &Path) -> Result<Arc<dyn Journal>, ServeError> {
    let missing = !folder.join("journal.db").is_file();
    if missing {
        return Err(ServeError::Missing {
            path: folder.join("journal.db"),
            source: io::ErrorKind::NotFound.into(),
        });
    }
    Ok(Arc::new(SqliteJournal::open(folder)?))
}

fn agents_door(socket: UdpSocket, keys: &Keys) -> Result<TwoWays, ServeError> {
    // A smaller buffer costs repeats, nothing else.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, UDP_RECEIVE_BYTES);
    Ok(coordinator_endpoint(
        socket,
        &keys.identity,
        keys.ca.certificate(),
    )?)
}

type HttpsServer = axum_server::Server<SocketAddr, axum_server::tls_rustls::RustlsAcceptor>;

struct Operators {
    server: HttpsServer,
    handle: axum_server::Handle<SocketAddr>,
}

fn https_server(listener: TcpListener, identity: &Identity) -> Result<Operators, ServeError> {
    let tls = RustlsConfig::from_config(Arc::new(https_server_tls(identity)?));
    listener.set_nonblocking(true).map_err(ServeError::Https)?;
    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp_rustls(listener, tls)
        .map_err(ServeError::Https)?
        .handle(handle.clone());
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT);
    Ok(Operators { server, handle })
}

/// Tells systemd; without systemd nothing happens.
fn announce(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Feeds systemd's watchdog as long as the core answers: a core that hangs is restarted.
async fn feed_watchdog(core: CoreHandle) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        if core.ask(|core, _| core.state().seq()).await.is_err() {
            return;
        }
        announce(&[NotifyState::Watchdog]);
    }
}
