//! What agents say about themselves: receipts, readiness, events and, once a
//! window, what they measured.

mod bounds;
pub mod protocol_2;
mod quality;

use serde::{Deserialize, Serialize};

pub use self::quality::{
    CALIBRATION_BINS, CalibrationBin, ClassCounts, Moments, Quality, SCORE_BINS,
};

use crate::assignment::VersionRef;
use crate::histogram::Histogram;
use crate::ids::{Generation, ModelName, RolloutId};

/// What a version answered requests as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// By right.
    Stable,
    /// On trial, its answers went to clients.
    Candidate,
    /// On trial, its answers were compared and thrown away.
    Shadow,
}

/// "I serve this generation": sent when the route of a model has been swapped and
/// the agent's memory of it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The model.
    pub model: ModelName,
    /// The generation that the route table now holds.
    pub generation: Generation,
    /// What answers, with the digests of the manifests really loaded.
    pub serving: Vec<Serving>,
}

/// A version that answers (or shadows) on a node right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// As what.
    pub role: Role,
    /// The version, and the digest of the manifest that its loaded files were checked against.
    pub version: VersionRef,
}

/// How far a node is with a version that it was told to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionRef,
    /// How far.
    pub state: ReadyState,
}

/// How far a node is with a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyState {
    /// Its files are being fetched and verified.
    Fetching,
    /// Loaded, warmed, smoke cases passed.
    Ready,
    /// It cannot be served here: damaged, refused by the engine, or a smoke case failed.
    /// The agent tries again only when `retrying`.
    Failed {
        /// What went wrong and what to do, for people.
        reason: String,
        /// Whether the agent goes on trying (the network or the disk may recover).
        retrying: bool,
    },
}

/// Something that cannot wait for the next report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentEvent {
    /// The circuit breaker took a candidate out of service on this node; stable answers.
    BreakerOpened {
        /// The model.
        model: ModelName,
        /// The rollout.
        rollout: RolloutId,
        /// Failures in a row that opened it.
        failures: u32,
    },
    /// The breaker let the candidate back after a probe succeeded.
    BreakerClosed {
        /// The model.
        model: ModelName,
        /// The rollout.
        rollout: RolloutId,
    },
    /// The lease of a candidate ran out: the node fenced itself and serves stable.
    LeaseExpired {
        /// The model.
        model: ModelName,
        /// The rollout.
        rollout: RolloutId,
    },
}

/// What one node measured in one window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Counts windows of one agent process.
    pub window: u64,
    /// How long the window was, in milliseconds.
    pub duration_ms: u64,
    /// One for each model, version, role and generation that saw requests.
    pub series: Vec<Series>,
    /// Series left out because there were more than the bound.
    pub series_dropped: u64,
    /// The node itself.
    pub resources: Resources,
}

/// Requests of one version in one role within a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The model.
    pub model: ModelName,
    /// The version that ran.
    pub version: VersionRef,
    /// As what.
    pub role: Role,
    /// The generation of the route that sent requests to it.
    pub generation: Generation,
    /// Its counts.
    pub counts: Counts,
    /// The same for each segment of requests that named one, at most
    /// [`crate::limits::SEGMENTS_MAX`]; the last may be [`OTHER_SEGMENT`].
    pub segments: Vec<Segment>,
}

/// Requests of one segment: a country, a kind of customer, whatever clients name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// As clients name it.
    pub name: String,
    /// Its counts.
    pub counts: Counts,
}

/// Where requests of segments beyond the bound are counted.
pub const OTHER_SEGMENT: &str = "other";

/// Counts of requests; they add up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that the version was asked to answer, failed ones included.
    /// Requests refused before routing (bad input) are not the version's and not here.
    pub requests: u64,
    /// Of these, how many the engine failed.
    pub errors: u64,
    /// Of these, how many ran past the deadline.
    pub timeouts: u64,
    /// Of the failed, how many stable answered instead.
    pub fallbacks: u64,
    /// Of the failed, those whose sticky key had not failed in the seconds before: somebody who
    /// tries again and again has failed once. What error rates are compared by, since tests
    /// need failures that are independent of each other.
    pub failed_keys: u64,
    /// Time in the engine of requests that succeeded, queueing included.
    pub latency: Histogram,
    /// Shadow only: pairs compared.
    pub compared: u64,
    /// Shadow only: pairs on which both versions agreed.
    pub agreed: u64,
    /// Shadow only: copies dropped because the shadow queue was full.
    pub shed: u64,
    /// What the answers were like.
    pub quality: Quality,
}

impl Counts {
    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.timeouts += other.timeouts;
        self.fallbacks += other.fallbacks;
        self.failed_keys += other.failed_keys;
        self.latency.merge(&other.latency);
        self.compared += other.compared;
        self.agreed += other.agreed;
        self.shed += other.shed;
        self.quality.merge(&other.quality);
    }

    /// Requests that got no answer from this version.
    #[must_use]
    pub const fn failures(&self) -> u64 {
        self.errors + self.timeouts
    }
}

/// How the node itself is. Bytes, and percent 0 to 100.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Of all cores together.
    pub cpu_percent: f32,
    /// In use on the host.
    pub memory_used: u64,
    /// Of the host.
    pub memory_total: u64,
    /// Resident set of the agent.
    pub process_memory: u64,
    /// CPU of the agent; 100 is one core.
    pub process_cpu_percent: f32,
    /// Free on the cache's disk.
    pub disk_free: u64,
    /// Size of the cache's disk.
    pub disk_total: u64,
    /// Bytes of blobs in the cache.
    pub cache_bytes: u64,
    /// One for each GPU; empty where there is none.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Its product name.
    pub name: String,
    /// Busy, 0 to 100.
    pub utilization_percent: u32,
    /// Bytes in use.
    pub memory_used: u64,
    /// Bytes in all.
    pub memory_total: u64,
    /// Degrees Celsius, if it tells.
    pub temperature_celsius: Option<u32>,
    /// Watts, if it tells.
    pub power_watts: Option<f32>,
}
