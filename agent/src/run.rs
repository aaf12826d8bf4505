//! Puts an agent together and runs it until it is told to stop.
//!
//! The order matters: the ports answer first (not ready), the state and the
//! cache come from disk, and the coordinator is only then looked for. So stable
//! serves with no coordinator in sight.

use std::io;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::ClientConfig;
use rollcall_agent_core::agent::{Agent, AgentIdentity};
use rollcall_agent_core::input::Input;
use rollcall_shared::ids::NodeId;
use rollcall_shared::time::Timestamp;
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::clock::Clock;
use rollcall_transport::endpoint::{EndpointError, agent_config, agent_endpoint_on};
use rollcall_transport::identity::{Identity, IdentityError};
use rollcall_transport::spiffe::SpiffeId;
use rollcall_transport::tls::TlsError;
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, CacheError, StateError};
use crate::config::{CA_FILE, CERTIFICATE_FILE, Config};
use crate::driver::{Driver, LOCAL_INPUTS_MAX, Ports};
use crate::engine::engines::{Engines, EnginesError};
use crate::fetch::Fetcher;
use crate::link::{LinkConfig, link};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::preparer::VersionPreparer;
use crate::progress::Progress;
use crate::recorder::Recorder;
use crate::reporter::Reporter;
use crate::resources::Sampler;
use crate::routes::Routes;
use crate::serve::infer::Inference;
use crate::serve::pages::Pages;
use crate::serve::status::{CacheStatus, CachedVersionStatus, StatusBoard, View};
use crate::serve::threads::{self, Listeners};
use crate::serve::{App, Ids};

/// A certificate that ends within this is warned of at the start.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How long the end waits for work that was cut off, such as a file being hashed on a
/// blocking thread: it holds the folder.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// Where in the agent's folder engines put what is theirs.
const ENGINES_DIR: &str = "engines";

/// Why an agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file that `enroll` writes cannot be read.
    #[error("cannot read {path}: run `rollcall-agent enroll` first")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The node's key or certificate is unusable.
    #[error("the identity in {dir} is unusable; enrol the node anew in another folder")]
    Identity {
        /// Where it lies.
        dir: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// The certificate is not a node's.
    #[error("the certificate in {dir} names no node but {found}")]
    NotANode {
        /// Where it lies.
        dir: PathBuf,
        /// Whom it names.
        found: SpiffeId,
    },
    /// TLS refuses the identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The disk.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An engine that is configured does not work.
    #[error(transparent)]
    Engines(#[from] EnginesError),
    /// The saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The way to the coordinator does not open.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The operating system gives no socket or thread.
    #[error("the operating system refuses")]
    System(#[from] io::Error),
    /// A task of ours died.
    #[error("a part of the agent died, which is a bug")]
    Died(#[from] JoinError),
}

/// Who this node is, by the files that `enroll` wrote.
struct Credentials {
    node: NodeId,
    client: ClientConfig,
}

impl Credentials {
    fn read(config: &Config) -> Result<Self, RunError> {
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|source| RunError::File { path, source })
        };
        let unusable = |source| RunError::Identity {
            dir: config.dir.clone(),
            source,
        };
        let (certificate, key) = (
            read(config.path(CERTIFICATE_FILE))?,
            read(config.key_path())?,
        );
        let identity = Identity::from_pem(&certificate, &key).map_err(unusable)?;
        warn_of_expiry(identity.expires().map_err(unusable)?);
        let ca = CaCertificate::from_pem(&read(config.path(CA_FILE))?).map_err(unusable)?;
        let node = match identity.name().map_err(unusable)? {
            SpiffeId::Agent(_, node) => node,
            found @ (SpiffeId::Authority(_) | SpiffeId::Coordinator(_)) => {
                return Err(RunError::NotANode {
                    dir: config.dir.clone(),
                    found,
                });
            }
        };
        Ok(Self {
            node,
            client: agent_config(&identity, &ca)?,
        })
    }
}

fn warn_of_expiry(expires: Timestamp) {
    if expires.since(Clock::start(Timestamp::ZERO).now()) < EXPIRY_WARNING {
        tracing::warn!(%expires, "this node's certificate ends soon: enrol the node anew");
    }
}

/// Runs an agent: clients come to `listeners`, the coordinator is reached through `udp`.
/// Returns when `shutdown` was asked for and what was under way is done. The folder is
/// free for another agent then, also in this process, unless work that was cut off goes
/// on for 3 s more.
///
/// # Errors
/// When it cannot start, or a part of it died.
pub async fn run(
    config: Config,
    listeners: Listeners,
    udp: UdpSocket,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    // Whatever ends this function ends every task of it.
    let _stop_all = shutdown.clone().drop_guard();
    let credentials = Credentials::read(&config)?;
    let cache = Arc::new(open_cache(&config).await?);
    let closed = cache.closed();
    let ended = live(config, credentials, cache, listeners, udp, shutdown.clone()).await;
    shutdown.cancel();
    if tokio::time::timeout(CLOSE_MAX, closed.cancelled())
        .await
        .is_err()
    {
        tracing::warn!("work that was cut off still holds the agent's folder");
    }
    ended
}

/// All of an agent's life between the opening and the closing of its folder.
async fn live(
    config: Config,
    credentials: Credentials,
    cache: Arc<Cache>,
    listeners: Listeners,
    udp: UdpSocket,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let engines = open_engines(&config).await?;
    let clock = Clock::start(Timestamp::ZERO);
    let recorder = Arc::new(Recorder::default());
    let models = Arc::new(Models::default());
    let routes = Arc::new(Routes::new(Arc::clone(&models), Arc::clone(&recorder)));
    let (events, local_inputs) = mpsc::channel(LOCAL_INPUTS_MAX);
    let (http, grpc) = listeners.addresses();
    let progress = Arc::new(Progress::new(clock));
    let board = status_board(&credentials.node, &progress, &cache).with_grpc(grpc);
    let app = app(&config, board, clock, &routes, &recorder, events)?;
    let status = Arc::clone(&app.status);
    tracing::info!(node = %credentials.node, ?http, ?grpc, "the agent is up");
    let threads = threads::count(config.serving.connection_threads);
    let serving = tokio::spawn(listeners.serve(app, threads, shutdown.clone()));

    let store = Arc::new(cache.state_store());
    let state = tokio::task::spawn_blocking({
        let store = Arc::clone(&store);
        move || store.load()
    });
    let (agent, boot) = Agent::restore(identity(&config), state.await??, clock.now());
    let endpoint = agent_endpoint_on(udp)?;
    let (link, handle, link_events) = link(LinkConfig {
        endpoint,
        client: credentials.client,
        coordinators: config.coordinators.clone(),
        random: Box::new(rand::random),
        feedback: Box::new({
            let recorder = Arc::clone(&recorder);
            move |feedback| recorder.take_feedback(&feedback)
        }),
    });
    let fetcher = Fetcher::new(handle.clone(), Arc::clone(&cache));
    let preparer =
        VersionPreparer::start(fetcher, &cache, engines, models, progress, &config, clock)?;
    let board = Arc::clone(&status);
    let ports = Ports {
        clock,
        link: handle.clone(),
        link_events,
        local_inputs,
        state_store: store,
        preparer: Arc::new(preparer),
        routes,
        on_swap: None,
        on_change: Some(Box::new(move |agent| board.post_view(view(agent, clock)))),
    };
    let driver = Driver::new(agent, boot, ports);
    let linking = tokio::spawn(link.run(driver.fence(), shutdown.clone()));
    let driving = tokio::spawn(driver.run(shutdown.clone()));
    let reporter = Reporter {
        clock,
        link: handle,
        recorder,
        status,
        sampler: Sampler::open(config.dir.clone()),
        cache_bytes: Box::new(move || cache.bytes()),
    };
    let reporting = tokio::spawn(reporter.run(shutdown.clone()));
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
    supervise(serving, driving, linking, reporting, shutdown).await
}

/// What the ports show.
fn app(
    config: &Config,
    status: StatusBoard,
    clock: Clock,
    routes: &Arc<Routes>,
    recorder: &Arc<Recorder>,
    events: mpsc::Sender<Input>,
) -> io::Result<Arc<App>> {
    let inference = Inference::start(&config.serving, clock, Arc::clone(routes), events)?;
    Ok(Arc::new(App {
        inference: Arc::new(inference),
        status: Arc::new(status),
        metrics: Metrics::new(Arc::clone(recorder)),
        pages: Pages::new(Handle::current()),
        bodies: Arc::new(Semaphore::new(config.serving.bodies_mib_max << 10)),
        ids: Ids::new(rand::random()),
    }))
}

type Task = JoinHandle<()>;

/// Waits for the end. A part that dies ends the others: a supervisor starts the
/// process anew, which serves stable from disk.
async fn supervise(
    mut serving: JoinHandle<io::Result<()>>,
    mut driving: Task,
    mut linking: Task,
    mut reporting: Task,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let early = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut serving => return Ok(ended??),
        ended = &mut driving => ended,
        ended = &mut linking => ended,
        ended = &mut reporting => ended,
    };
    early?;
    shutdown.cancel();
    // It may be what cancelled, with an error.
    serving.await??;
    for task in [driving, linking, reporting] {
        if !task.is_finished() {
            task.await?;
        }
    }
    Ok(())
}

/// Opening blocks: it reads the disk.
async fn open_cache(config: &Config) -> Result<Cache, RunError> {
    let (dir, key) = (config.dir.clone(), config.registry_key);
    let quota = config.cache.quota_mib.saturating_mul(1 << 20);
    Ok(tokio::task::spawn_blocking(move || Cache::open(&dir, quota, key)).await??)
}

/// Opening blocks: it loads a library.
async fn open_engines(config: &Config) -> Result<Engines, RunError> {
    let (settings, dir) = (config.engine.clone(), config.path(ENGINES_DIR));
    Ok(tokio::task::spawn_blocking(move || Engines::open(&settings, &dir)).await??)
}

fn identity(config: &Config) -> AgentIdentity {
    AgentIdentity {
        labels: config.labels.clone(),
        models: config.models.clone(),
        software: concat!("rollcall-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

fn view(agent: &Agent, clock: Clock) -> View {
    let at = clock.now();
    View {
        at,
        connected: agent.is_welcomed(),
        models: agent.status(at),
    }
}

fn status_board(node: &NodeId, progress: &Arc<Progress>, cache: &Arc<Cache>) -> StatusBoard {
    let (progress, cache) = (Arc::clone(progress), Arc::clone(cache));
    StatusBoard::new(
        node.clone(),
        progress,
        Box::new(move || cache_status(&cache)),
    )
}

fn cache_status(cache: &Cache) -> CacheStatus {
    let whole = cache
        .list()
        .into_iter()
        .filter(|entry| entry.bytes_missing == 0);
    let versions = whole.map(|entry| CachedVersionStatus {
        model: entry.model,
        version: entry.version.version,
        digest: entry.version.digest,
        bytes: entry.bytes,
    });
    CacheStatus {
        versions: versions.collect(),
        bytes: cache.bytes(),
    }
}
