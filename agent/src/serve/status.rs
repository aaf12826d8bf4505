//! What `GET /rollcall/v1/status` shows: what the node serves, from where, and what it waits for.
//!
//! The driver posts the core's view after each input; a request reads it, and how far
//! preparations are. Leases are counted down to the moment of the request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rollcall_agent_core::agent::{ModelStatus, WaitingFor};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::report::{Resources, Role};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::progress::{PreparingLine, Progress};
use crate::resources::Sample;

/// What the core said, and when.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When.
    pub at: Timestamp,
    /// Whether a coordinator had welcomed the agent.
    pub connected: bool,
    /// How each model stood.
    pub models: Vec<ModelStatus>,
}

/// What the cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Bytes of blobs.
    pub bytes: u64,
    /// The versions whose blobs are all there.
    pub versions: Vec<CachedVersionStatus>,
}

/// A version on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedVersionStatus {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its files.
    pub bytes: u64,
}

type CacheView = Box<dyn Fn() -> CacheStatus + Send + Sync>;

/// Where the parts of the status are posted.
pub struct StatusBoard {
    node: NodeId,
    grpc: Option<SocketAddr>,
    view: ArcSwap<View>,
    sample: ArcSwap<Sample>,
    progress: Arc<Progress>,
    cache: CacheView,
}

impl fmt::Debug for StatusBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusBoard({})", self.node)
    }
}

impl StatusBoard {
    /// An empty board of this node. `progress` is read and `cache` asked whenever someone
    /// reads the board.
    #[must_use]
    pub fn new(node: NodeId, progress: Arc<Progress>, cache: CacheView) -> Self {
        Self {
            node,
            grpc: None,
            view: ArcSwap::default(),
            sample: ArcSwap::default(),
            progress,
            cache,
        }
    }

    /// With the address of the gRPC port, where there is one.
    #[must_use]
    pub const fn with_grpc(mut self, address: Option<SocketAddr>) -> Self {
        self.grpc = address;
        self
    }

    /// Posts the core's view.
    pub fn post_view(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// Posts a sample of the node's resources.
    pub fn post_sample(&self, sample: Sample) {
        self.sample.store(Arc::new(sample));
    }

    /// The last view.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The last sample.
    #[must_use]
    pub fn sample(&self) -> Arc<Sample> {
        self.sample.load_full()
    }

    /// What is being prepared.
    #[must_use]
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Everything, at this moment. Blocking: the cache is asked.
    #[must_use]
    pub fn read(&self, now: Timestamp) -> Status {
        let view = self.view();
        let age = now.since(view.at);
        Status {
            node: self.node.clone(),
            grpc: self.grpc,
            connected: view.connected,
            models: view
                .models
                .iter()
                .map(|model| ModelLine::new(model, age))
                .collect(),
            preparing: self.progress.read(),
            cache: (self.cache)(),
            resources: self.sample().resources.clone(),
        }
    }
}

/// The status as it is written.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    node: NodeId,
    /// Where gRPC listens, with the port that was found; null: nowhere.
    grpc: Option<SocketAddr>,
    connected: bool,
    models: Vec<ModelLine>,
    /// Empty: nothing is being prepared.
    preparing: Vec<PreparingLine>,
    cache: CacheStatus,
    resources: Resources,
}

#[derive(Clone, Debug, Serialize)]
struct ModelLine {
    model: ModelName,
    generation: Generation,
    generation_served: Generation,
    stable: Option<Version>,
    candidate: Option<Version>,
    rollout: Option<RolloutId>,
    mode: &'static str,
    lease_left_ms: Option<u64>,
    serving: Vec<ServingLine>,
    waiting: Vec<WaitingFor>,
}

#[derive(Clone, Debug, Serialize)]
struct ServingLine {
    version: Version,
    digest: Digest,
    role: Role,
}

impl ModelLine {
    fn new(status: &ModelStatus, age: Duration) -> Self {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self {
            model: status.model.clone(),
            generation: status.generation,
            generation_served: status.generation_served,
            stable: status.stable.map(|stable| stable.version),
            candidate: status.candidate.map(|candidate| candidate.version),
            rollout: status.rollout,
            mode: status.mode,
            lease_left_ms: status.lease_left_ms.map(|left| left.saturating_sub(age_ms)),
            serving: status
                .serving
                .iter()
                .map(|serving| ServingLine {
                    version: serving.version.version,
                    digest: serving.version.digest,
                    role: serving.role,
                })
                .collect(),
            waiting: status.waiting.clone(),
        }
    }
}
