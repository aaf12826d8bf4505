//! The process under test: the agent's serving half as it ships, with its own threads, limits,
//! counters and log, and routes that are set by order of the measuring process.
//!
//! A process of its own, because a candidate's reach is the process: what it leaks, burns and
//! locks up there must neither slow the clients that measure nor outlive its trial.
//!
//! Left out is what does not serve: the link to a coordinator, the cache and the reports.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_agent::config::Serving;
use rollcall_agent::driver::RouteTable as _;
use rollcall_agent::engine::cost::Cost;
use rollcall_agent::engine::tract::Tract;
use rollcall_agent::engine::{Engine as _, LoadFiles, LoadedModel};
use rollcall_agent::metrics::Metrics;
use rollcall_agent::models::Models;
use rollcall_agent::prepare::PreparedModel;
use rollcall_agent::progress::Progress;
use rollcall_agent::recorder::Recorder;
use rollcall_agent::routes::Routes;
use rollcall_agent::serve::infer::Inference;
use rollcall_agent::serve::pages::Pages;
use rollcall_agent::serve::status::{CacheStatus, StatusBoard};
use rollcall_agent::serve::threads::{self, Listeners};
use rollcall_agent::serve::{App, Ids};
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::{CandidateRoute, CandidateUsage, Route};
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::assignment::{Share, VersionRef};
use rollcall_shared::digest::Digest;
use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{
    DataType, EngineKind, MODEL_FILE, Manifest, Metadata, ModelSignature, TensorSpec,
};
use rollcall_shared::report::{AgentEvent, Counts, Role};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::behaviour::{Candidate, Gate};
use super::{Trial, Usage};
use crate::fleet::{MODEL, STABLE};

/// As `rollcall-agent run` has for everything that neither serves clients nor runs models.
const AGENT_THREADS: usize = 2;
/// Events that wait to be counted: few come of one breaker.
const EVENTS_MAX: usize = 64;
const CANDIDATE: &str = "2.0.0";
/// How long a candidate may be in use after its trial.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Longer than any run.
const LEASE: Duration = Duration::from_secs(24 * 3_600);
/// Whom the canary answers: so many of its clients, in every trial the same.
pub(super) const CANARY_PERCENT: f64 = 10.0;

/// What this process is told, a line each. It answers each with what it counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Route a fresh candidate.
    Try,
    /// Stable alone. The answer comes when the candidate is out of memory.
    Calm,
}

/// What the agent counted since its start.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Totals {
    /// Requests that stable was asked to answer, in a candidate's place too.
    pub stable_requests: u64,
    /// Of these, how many it did not.
    pub stable_failures: u64,
    /// Requests, or copies of such, that candidates were asked to answer.
    pub candidate_requests: u64,
    /// Of these, how many their engine failed.
    pub candidate_errors: u64,
    /// Of these, how many were too late, or found no room.
    pub candidate_timeouts: u64,
    /// Copies that found no room.
    pub shed: u64,
    /// How often a candidate's breaker opened.
    pub breaker_openings: u64,
}

/// The process: takes a [`Trial`] as JSON, prints its address, and follows the orders of its
/// standard input to the end.
pub(crate) fn open(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let served = arguments
        .next()
        .and_then(|trial| trial.into_string().ok())
        .context("which trial?")
        .and_then(|trial| Ok(serde_json::from_str(&trial)?))
        .and_then(follow);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the agent under test broke off: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn follow(trial: Option<Trial>) -> Result<()> {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
    log.with_max_level(tracing::Level::INFO).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(AGENT_THREADS)
        .enable_all()
        .build()?;
    let (mut ground, address) = runtime.block_on(Ground::open(trial))?;
    let mut orders = std::io::stdin().lines();
    let mut told = std::io::stdout();
    writeln!(told, "{address}")?;
    while let Some(order) = orders.next().transpose()? {
        match serde_json::from_str(&order)? {
            Order::Try => runtime.block_on(ground.begin_trial())?,
            Order::Calm => runtime.block_on(ground.end_trial())?,
        }
        writeln!(told, "{}", serde_json::to_string(&ground.totals())?)?;
    }
    // A run may hang still: nobody waits for it.
    runtime.shutdown_background();
    Ok(())
}

struct Ground {
    trial: Option<Trial>,
    clock: Clock,
    models: Arc<Models>,
    routes: Arc<Routes>,
    model: ModelName,
    stable: VersionRef,
    candidate: VersionRef,
    generation: u64,
    /// A trial's end, and its candidate for as long as somebody uses it.
    under_way: Option<(Arc<Gate>, Weak<dyn LoadedModel>)>,
    /// What candidates answer with; not stable's own, which they would wait for.
    behind_candidates: Arc<dyn LoadedModel>,
    breaker_openings: Arc<AtomicU64>,
}

impl Ground {
    async fn open(trial: Option<Trial>) -> Result<(Self, std::net::SocketAddr)> {
        let settings = Serving::default();
        let clock = Clock::start(Timestamp::ZERO);
        let recorder = Arc::new(Recorder::default());
        let models = Arc::new(Models::default());
        let routes = Arc::new(Routes::new(Arc::clone(&models), Arc::clone(&recorder)));
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let inference = Inference::start(&settings, clock, Arc::clone(&routes), sender)?;
        let app = App {
            inference: Arc::new(inference),
            status: Arc::new(StatusBoard::new(
                NodeId::new("under-test")?,
                Arc::new(Progress::new(clock)),
                Box::new(CacheStatus::default),
            )),
            metrics: Metrics::new(recorder),
            pages: Pages::new(Handle::current()),
            bodies: Arc::new(Semaphore::new(settings.bodies_mib_max << 10)),
            ids: Ids::new(7),
        };
        let http = TcpListener::bind("127.0.0.1:0").await?;
        let address = http.local_addr()?;
        let listeners = Listeners { http, grpc: None };
        let threads = threads::count(settings.connection_threads);
        tokio::spawn(listeners.serve(Arc::new(app), threads, CancellationToken::new()));
        let breaker_openings = Arc::default();
        tokio::spawn(count_openings(events, Arc::clone(&breaker_openings)));

        let mut ground = Self {
            trial,
            clock,
            models,
            routes,
            model: ModelName::new(MODEL)?,
            stable: version(STABLE)?,
            candidate: version(CANDIDATE)?,
            generation: 0,
            under_way: None,
            behind_candidates: load()?,
            breaker_openings,
        };
        ground.install(ground.stable, load()?, true)?;
        ground.swap(None);
        Ok((ground, address))
    }

    /// `runs`: once, as loading does, so that its cost is known before the first request.
    fn install(&self, version: VersionRef, loaded: Arc<dyn LoadedModel>, runs: bool) -> Result<()> {
        let (loaded, cost) = Cost::of(loaded);
        if runs {
            loaded.infer(&[zeros()])?;
        }
        let prepared = PreparedModel {
            manifest: self.manifest(version),
            loaded,
            cost,
            version,
            bytes: 0,
            takes_batches: false,
            batcher: None,
        };
        self.models.insert(self.model.clone(), prepared);
        Ok(())
    }

    fn manifest(&self, version: VersionRef) -> Manifest {
        Manifest {
            model: self.model.clone(),
            version: version.version,
            registered_at: Timestamp::ZERO,
            engine: EngineKind::Onnx,
            signature: signature(),
            files: Vec::new(),
            metadata: Metadata::default(),
        }
    }

    fn swap(&mut self, usage: Option<CandidateUsage>) {
        self.generation += 1;
        // A rollout of its own: the breaker of the one before says nothing about it.
        let rollout = RolloutId(self.generation);
        let candidate = usage.map(|usage| CandidateRoute {
            rollout,
            version: self.candidate,
            usage,
            lease_until: self.clock.now() + LEASE,
            hasher: users(&self.model),
        });
        self.routes.swap(Route {
            model: self.model.clone(),
            generation: Generation(self.generation),
            stable: Some(self.stable),
            candidate,
        });
    }

    /// Each trial has a candidate of its own: a breaker that is closed, nothing leaked.
    async fn begin_trial(&mut self) -> Result<()> {
        self.end_trial().await?;
        let Some(Trial { behaviour, usage }) = self.trial else {
            self.swap(None);
            return Ok(());
        };
        let over = Arc::new(Gate::default());
        let loaded = Arc::new(Candidate::new(
            behaviour,
            Arc::clone(&self.behind_candidates),
            &over,
        ));
        let loaded: Arc<dyn LoadedModel> = loaded;
        self.under_way = Some((over, Arc::downgrade(&loaded)));
        self.install(self.candidate, loaded, behaviour.answers())?;
        self.swap(Some(usage.of_requests()?));
        Ok(())
    }

    async fn end_trial(&mut self) -> Result<()> {
        self.swap(None);
        let Some((over, candidate)) = self.under_way.take() else {
            return Ok(());
        };
        over.open();
        self.models.remove(&self.model, self.candidate);
        let gone = async {
            while candidate.strong_count() > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .context("the candidate is still in use long after its trial")
    }

    fn totals(&self) -> Totals {
        let (mut stable, mut candidate) = (Counts::default(), Counts::default());
        for ((_, _, role), total) in &self.routes.recorder().totals() {
            match role {
                Role::Stable => stable.merge(&total.counts),
                Role::Candidate | Role::Shadow => candidate.merge(&total.counts),
            }
        }
        Totals {
            stable_requests: stable.requests,
            stable_failures: stable.errors + stable.timeouts,
            candidate_requests: candidate.requests,
            candidate_errors: candidate.errors,
            candidate_timeouts: candidate.timeouts,
            shed: candidate.shed,
            breaker_openings: self.breaker_openings.load(Ordering::Relaxed),
        }
    }
}

impl Usage {
    fn of_requests(self) -> Result<CandidateUsage> {
        Ok(match self {
            Self::Shadow => CandidateUsage::Shadow(Share::ALL),
            Self::Canary => CandidateUsage::Canary(Share::from_percent(CANARY_PERCENT)?),
        })
    }
}

async fn count_openings(mut events: mpsc::Receiver<Input>, openings: Arc<AtomicU64>) {
    while let Some(event) = events.recv().await {
        if let Input::Event(AgentEvent::BreakerOpened { .. }) = event {
            openings.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn version(number: &str) -> Result<VersionRef> {
    Ok(VersionRef {
        version: number.parse()?,
        digest: Digest::of(number.as_bytes()),
    })
}

/// What draws the users of canaries; the same whatever the trial.
pub(super) fn users(model: &ModelName) -> CohortHasher {
    CohortHasher::new(model, RolloutId(0))
}

/// The digits model on the engine that is built in.
fn load() -> Result<Arc<dyn LoadedModel>> {
    let files = LoadFiles {
        name: format!("{MODEL}@{STABLE}"),
        model: super::bundle().join(MODEL_FILE),
        others: Default::default(),
    };
    Ok(Tract::new().load(&files, &signature())?)
}

/// A row for it.
fn zeros() -> Tensor {
    Tensor {
        name: "input".to_owned(),
        shape: vec![1, 64],
        data: TensorData::Fp32(vec![0.0; 64]),
    }
}

fn signature() -> ModelSignature {
    let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    };
    ModelSignature {
        inputs: vec![spec("input", DataType::Fp32, &[-1, 64])],
        outputs: vec![
            spec("label", DataType::Int64, &[-1]),
            spec("probabilities", DataType::Fp32, &[-1, 10]),
        ],
    }
}
