//! What was seen from outside, and what was done to the fleet meanwhile: all that the
//! checker goes by. Plain values, so that a test can forge them.
//!
//! Nothing here is Rollcall's own word, except where a promise is about that word: what
//! it acknowledged, what it reported of a rollback, and what a node shows that it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

/// Since the run's start, on the observer's clock.
pub type At = Duration;

/// After `SIGSTOP` some thread may finish what it is at.
const STOP_SETTLES: Duration = Duration::from_millis(100);

/// Everything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    /// The lease of every rollout.
    pub lease: Duration,
    /// By node.
    pub nodes: Vec<NodeHistory>,
    /// Digests of approved versions.
    pub approved: BTreeMap<String, String>,
    /// Versions that were seen to be stable somewhere: they serve without a lease.
    pub ever_stable: BTreeSet<String>,
    /// What the operator was told is done.
    pub acknowledged: Vec<Acknowledged>,
    /// By version: each is withdrawn once.
    pub withdrawals: BTreeMap<String, Withdrawal>,
    /// What the coordinator said of rollbacks.
    pub reports: Vec<Report>,
    /// What the coordinator showed.
    pub views: Vec<View>,
    /// When it was put back to an older state.
    pub restores: Vec<Restore>,
    /// What was seen to be wrong while it happened.
    pub incidents: Vec<Incident>,
}

/// One node as it was seen, and what was done to it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeHistory {
    /// Answers to inference requests, in the order of sending.
    pub answers: Vec<Answered>,
    /// What its status page showed, in order.
    pub statuses: Vec<Status>,
    /// When it could not answer, by our doing.
    pub absences: Vec<Absence>,
    /// When it was cut off from the coordinator, by our doing.
    pub isolations: Vec<Isolation>,
}

/// One inference request.
#[derive(Clone, Debug, Serialize)]
pub struct Answered {
    /// When it was sent.
    pub sent: At,
    /// When the answer, or the failure, was there.
    pub got: At,
    /// Which version answered; `None`: none did.
    pub version: Option<String>,
}

/// One look at a node's status page.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// When it was asked for.
    pub asked: At,
    /// When it was there.
    pub got: At,
    /// The generation that the node holds.
    pub generation: u64,
    /// The candidate it holds.
    pub candidate: Option<String>,
    /// Versions in use, with their digests.
    pub serving: Vec<(String, String)>,
}

/// Something that must not happen, whatever else does.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// Which promise it breaks.
    pub promise: u8,
    /// When.
    pub at: At,
    /// What.
    pub what: String,
}

/// From when to when; `None`: until now.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Span {
    /// Its beginning.
    pub from: At,
    /// Its end.
    pub until: Option<At>,
}

/// A time in which no lease could be renewed and no receipt given.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Isolation {
    /// When.
    pub span: Span,
    /// Nothing could reach the node; otherwise nothing that it says the coordinator, and
    /// it may hear that its candidate was promoted.
    pub deaf: bool,
}

/// Why a node could not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum AbsenceKind {
    /// Its process was killed; `until` is when it was started again.
    Killed,
    /// Its process was stopped and went on at `until`.
    Stopped,
}

/// A time without a node.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Absence {
    /// Why.
    pub kind: AbsenceKind,
    /// When.
    pub span: Span,
}

/// What the operator was told is done.
#[derive(Clone, Debug, Serialize)]
pub struct Acknowledged {
    /// When the answer was there.
    pub at: At,
    /// What.
    pub what: Deed,
}

/// A command that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Deed {
    /// A version was registered.
    Pushed {
        /// Which.
        version: String,
    },
    /// A rollout was started, and was seen to be live, promoted or withdrawn.
    Rollout {
        /// Which.
        rollout: String,
        /// How far it was.
        rank: Rank,
    },
}

/// How far a rollout is: this only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Rank {
    /// It may still change.
    Live,
    /// It ended well.
    Over,
    /// Its version was taken back.
    Withdrawn,
}

/// A version that was taken back.
#[derive(Clone, Debug, Serialize)]
pub struct Withdrawal {
    /// Of which rollout.
    pub rollout: String,
    /// The generation from which on a node knows.
    pub generation: u64,
    /// When the operator began to ask for it; `None`: the judge decided.
    pub asked: Option<At>,
    /// When it was known outside that it is decided.
    pub known: At,
}

/// How a node is in a rollback, by the coordinator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum NodeReport {
    /// It serves what it should.
    Receipt,
    /// Its lease is over.
    Fenced,
    /// Nothing is known.
    Open,
}

/// What the coordinator said of a rollback.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// When.
    pub got: At,
    /// Of which version.
    pub version: String,
    /// Node by node, by index.
    pub nodes: BTreeMap<usize, NodeReport>,
    /// Whether nobody is waited for any longer.
    pub settled: bool,
    /// From the decision to each receipt, on its clock.
    pub after_ms: Vec<f64>,
}

/// What the coordinator showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct View {
    /// When it was asked.
    pub asked: At,
    /// The model's generation.
    pub generation: u64,
    /// Versions, and whether they are withdrawn.
    pub versions: BTreeMap<String, bool>,
    /// Rollouts.
    pub rollouts: BTreeMap<String, Rank>,
}

/// The coordinator's folder was put back to what it was at `backup`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Restore {
    /// When the copy was made.
    pub backup: At,
    /// When the coordinator that was replaced ended.
    pub at: At,
    /// When all nodes were connected to it.
    pub heard: Option<At>,
}

impl Span {
    /// Whether all of `from..=to` lies in it.
    #[must_use]
    pub fn covers(&self, from: At, to: At) -> bool {
        self.from <= from && self.until.is_none_or(|until| to <= until)
    }
}

impl History {
    /// Of withdrawals after `backup`, those that no node has shown to know are lost with what
    /// came after the backup: nobody is left who could keep them. Gives how many.
    pub fn forget_what_no_node_knows(&mut self, backup: At) -> usize {
        let before = self.withdrawals.len();
        let nodes = &self.nodes;
        self.withdrawals.retain(|_, withdrawal| {
            let mut statuses = nodes.iter().flat_map(|node| &node.statuses);
            withdrawal.known <= backup
                || statuses.any(|status| status.generation >= withdrawal.generation)
        });
        before - self.withdrawals.len()
    }
}

impl NodeHistory {
    /// The earliest moment at which a request can have been taken up: while the process
    /// is stopped, none is.
    #[must_use]
    pub fn taken_up(&self, answer: &Answered) -> At {
        let stopped = self
            .absences
            .iter()
            .filter(|absence| absence.kind == AbsenceKind::Stopped);
        stopped
            .filter_map(|absence| Some((absence.span.from, absence.span.until?)))
            .filter(|(from, until)| *from + STOP_SETTLES <= answer.sent && *until <= answer.got)
            .map(|(_, until)| until)
            .fold(answer.sent, At::max)
    }
}
