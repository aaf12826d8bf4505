//! Every bound, and why it is what it is. When a bound is reached something
//! definite happens, said beside it; nothing grows without one.

use std::time::Duration;

/// Names of fleets, nodes and models. Short enough for a file name, a DNS label
/// and a heartbeat datagram that names every model. Longer: refused.
pub const NAME_BYTES_MAX: usize = 48;

/// One frame on a stream. A snapshot of [`MODELS_PER_NODE_MAX`] models with
/// [`WITHDRAWALS_PER_MODEL_MAX`] withdrawals each fits. A larger frame closes the connection.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// A message this large travels as one QUIC datagram on any path (1,200 is the
/// least QUIC guarantees; headers and tag take some). Larger ones use the control stream.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;

/// Models on one node. More: the node's `Hello` is refused.
pub const MODELS_PER_NODE_MAX: usize = 64;

/// Versions of one model in the registry. More: the push is refused until some are archived.
pub const VERSIONS_PER_MODEL_MAX: usize = 10_000;

/// Withdrawals kept for one model, for ever. More: new rollouts of the model are refused.
pub const WITHDRAWALS_PER_MODEL_MAX: usize = 512;

/// Labels of a node, and of a version. More: refused.
pub const LABELS_MAX: usize = 64;

/// Any free text (reasons, notes, label values). Longer: refused, or cut where it is our own.
pub const TEXT_BYTES_MAX: usize = 1_024;

/// Files of one version. More: the push is refused.
pub const FILES_PER_VERSION_MAX: usize = 256;

/// A signed manifest. Larger: refused.
pub const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// A plan file. Larger: refused.
pub const PLAN_BYTES_MAX: usize = 64 << 10;

/// Stages of a plan. More: refused.
pub const STAGES_MAX: usize = 32;

/// Tensors in one request, and inputs or outputs of one signature. More: refused.
pub const TENSORS_MAX: usize = 64;

/// Series (model x version x role x generation) in one report. More: the excess
/// is dropped and counted in `series_dropped`.
pub const SERIES_PER_REPORT_MAX: usize = 256;

/// One report. An agent whose window takes more sends it in several; a series that alone
/// takes more goes without its segments. A larger one breaks the protocol.
pub const REPORT_BYTES_MAX: usize = 1 << 20;

/// Segments of one model that are told apart. Requests of more are counted under `other`.
pub const SEGMENTS_MAX: usize = 64;

/// Classes that are counted by name in one series. More are counted under `other`.
pub const CLASSES_MAX: usize = 64;

/// Outcomes by name (KPIs) in one series. Values of more are refused.
pub const KPIS_MAX: usize = 16;

/// Input features of one version that are counted. More: the push is refused.
pub const FEATURES_MAX: usize = 32;

/// Bins of one input feature: drift is judged by ten or twenty. More: the push is refused.
pub const FEATURE_BINS_MAX: usize = 32;

/// Names that clients give to segments, classes and outcomes: each may be in every report.
/// Longer: refused; a longer text that a model answers names no class.
pub const TAG_BYTES_MAX: usize = 48;

/// Labels and outcomes in one request to an agent or to the coordinator, which hands them on
/// as one message. More: refused, to be sent in parts.
pub const FEEDBACK_ITEMS_MAX: usize = 2_000;

/// Body of an inference request. Larger: 413, unread.
pub const INFER_BODY_BYTES_MAX: usize = 64 << 20;

/// Heartbeats whose sending time an agent remembers. An answer to an older one renews nothing.
pub const HEARTBEATS_IN_FLIGHT_MAX: usize = 64;

/// Longest lease a plan may ask for: it bounds how long an unreachable node may
/// go on with a candidate after its withdrawal.
pub const LEASE_MAX: Duration = Duration::from_secs(3_600);

/// Shortest lease: at least two heartbeats must fit in it.
pub const LEASE_MIN: Duration = Duration::from_secs(2);

/// How much slower than true an agent's clock may run, in parts per thousand:
/// a lease of `ttl` is over, on the coordinator's clock, after `ttl * 1.01`.
pub const CLOCK_DRIFT_PERMILLE: u32 = 10;

/// Receipts that a settled rollback's record names one by one, the slowest: 1,000 names are some
/// 30 KB of journal. The histogram beside them counts every receipt.
pub const RECEIPTS_RECORDED_MAX: usize = 1_000;

/// How long a rehearsal waits for answers: an agent answers from memory. Whoever has not answered
/// then is silent, and so is whoever an outage of this length hides.
pub const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// How often an agent that has a coordinator says that it lives, in fleets that are not
/// large. Heartbeats are what keeps a connection alive: QUIC's own keep-alive is off.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// What a heartbeat may cost the coordinator, as a share of one core: a heartbeat and its
/// answer take some 40 us, and ten thousand nodes then say every 2.5 s that they live
/// instead of filling half a core every second.
pub const HEARTBEAT_EVERY_PER_NODE: Duration = Duration::from_micros(250);

/// Whatever the coordinator asks for, an agent tries so often to renew a lease before it ends.
pub const HEARTBEATS_PER_LEASE: u32 = 4;

/// QUIC idle time-out: how long a silent connection is believed in. Longer than most
/// outages: what was decided meanwhile then arrives with the first beacon after the heal,
/// without a new handshake. A coordinator's restart is noticed by its resets, not by this.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Reconnects back off from the first to the second, with full jitter.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(200);
/// See [`RECONNECT_FIRST`].
pub const RECONNECT_MAX: Duration = Duration::from_secs(10);

/// The longest that `ttl` on an agent's clock can last on the coordinator's.
#[must_use]
pub fn lease_bound(ttl: Duration) -> Duration {
    ttl + ttl * CLOCK_DRIFT_PERMILLE / 1_000
}

const _: () = assert!(LEASE_MIN.as_millis() >= 2 * HEARTBEAT_EVERY.as_millis());
const _: () = assert!(DATAGRAM_BYTES_MAX < 1_200);
