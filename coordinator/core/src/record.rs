//! The journal's records: what happened, who did it, and a hash that ties each
//! to all before it. The coordinator's state is nothing but the fold of these.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::digest::Digest;
use rollcall_shared::histogram::Histogram;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::SignedManifest;
use rollcall_shared::plan::Plan;
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::Verdict;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::input::{Actor, TokenKind};
use crate::judge::Evidence;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 1 without gaps.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What.
    pub event: Event,
    /// Hash of the record before; of nothing for the first.
    pub previous: Digest,
}

impl Record {
    /// Digest of the record, `previous` included: the chain.
    ///
    /// # Panics
    /// Never: every event encodes as JSON.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("records encode"))
    }
}

/// What can happen. Only ever appended to: old journals must read for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "the fields are named by the words of ids.rs and plan.rs"
)]
#[expect(
    clippy::large_enum_variant,
    reason = "few live at a time: they are made one by one"
)]
pub enum Event {
    /// A coordinator process took over. Every model skips a generation: one may have been
    /// broadcast with a withdrawal and lost before it was durable.
    Booted {
        software: String,
    },
    TokenCreated {
        id: String,
        secret_hash: Digest,
        kind: TokenKind,
        name: String,
        expires_at: Option<Timestamp>,
    },
    TokenRevoked {
        id: String,
    },
    /// Uses up the token.
    NodeEnrolled {
        node: NodeId,
        labels: BTreeMap<String, String>,
        key: Digest,
        token: String,
    },
    NodeRevoked {
        node: NodeId,
    },
    NodeQuarantined {
        node: NodeId,
    },
    NodeReleased {
        node: NodeId,
    },
    VersionRegistered {
        model: ModelName,
        version: VersionRef,
        signed: SignedManifest,
    },
    VersionArchived {
        model: ModelName,
        version: Version,
    },
    VersionRestored {
        model: ModelName,
        version: Version,
    },
    /// The checkpoint is `stable`: what a rollback goes back to.
    RolloutStarted {
        rollout: RolloutId,
        model: ModelName,
        candidate: VersionRef,
        stable: Option<VersionRef>,
        plan: Plan,
        generation: Generation,
    },
    /// `cohort` for stages by node only. `verdict`: what let the stage before it pass, if one was.
    StageEntered {
        rollout: RolloutId,
        stage: usize,
        cohort: Option<BTreeSet<NodeId>>,
        generation: Generation,
        verdict: Option<Verdict>,
        forced: bool,
    },
    RolloutPaused {
        rollout: RolloutId,
    },
    RolloutResumed {
        rollout: RolloutId,
    },
    GateApproved {
        rollout: RolloutId,
        gate: String,
        note: Option<String>,
    },
    /// The candidate is taken back, for good.
    Withdrawn {
        withdrawal: Withdrawal,
        cause: Cause,
    },
    /// An agent knew a withdrawal, or held a generation, that this journal had lost.
    KnowledgeAdopted {
        node: NodeId,
        withdrawals: Vec<Withdrawal>,
        generations: Vec<(ModelName, Generation)>,
    },
    /// All nodes answered or are fenced.
    RollbackSettled {
        rollout: RolloutId,
        propagation: Propagation,
    },
    /// The watch is over: the candidate is stable now.
    Promoted {
        rollout: RolloutId,
        generation: Generation,
        verdict: Verdict,
    },
    /// The plan had no full stage and is through: the candidate is let go, not withdrawn.
    RolloutFinished {
        rollout: RolloutId,
        generation: Generation,
        verdict: Verdict,
    },
    /// What the decision in the record that follows rests on: the same verdict comes of it again.
    Judged {
        rollout: RolloutId,
        evidence: Box<Evidence<'static>>,
    },
    /// One node alone is to blame: it goes on without the candidate, and the rollout without it.
    CandidateBarred {
        rollout: RolloutId,
        node: NodeId,
        generation: Generation,
        verdict: Verdict,
    },
    /// Somebody asks the fleet what this withdrawal would come to. It is not decided: nothing
    /// follows from it but answers.
    RehearsalBegan {
        as_if: Withdrawal,
        reason: String,
    },
    /// What came of the rehearsal that began in record `rehearsal`. `unready`: nodes that would
    /// have nothing to serve, or would have to load it first.
    RehearsalEnded {
        rehearsal: u64,
        model: ModelName,
        propagation: Propagation,
        unready: BTreeSet<NodeId>,
    },
}

/// Why a candidate was withdrawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields name themselves")]
pub enum Cause {
    Operator {
        actor: String,
        reason: String,
    },
    Judge {
        stage: String,
        verdict: Verdict,
    },
    Rejected {
        actor: String,
        note: Option<String>,
    },
    /// An agent knew of it; see [`Event::KnowledgeAdopted`].
    Adopted {
        node: NodeId,
    },
}

/// How a withdrawal spread, in milliseconds from the decision to the receipt in hand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Propagation {
    /// Median over the nodes that sent receipts; `None` when none did.
    pub p50_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// The last.
    pub max_ms: Option<f64>,
    /// Who was last.
    pub last_node: Option<NodeId>,
    /// Nodes that sent receipts.
    pub received: u64,
    /// Node by node, milliseconds from the decision to its receipt; in a record only the
    /// slowest ([`rollcall_shared::limits::RECEIPTS_RECORDED_MAX`]).
    #[serde(default)]
    pub receipts_ms: BTreeMap<NodeId, f64>,
    /// Of the nodes in `receipts_ms`, those that serve by right another version than the
    /// withdrawal names, and which.
    // Skipped when empty, as it always is in records of earlier releases: the chain of hashes
    // is over the bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub serving_otherwise: BTreeMap<NodeId, Option<Version>>,
    /// Of all receipts, from the decision.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub histogram: Histogram,
    /// Nodes that were silent until their lease was over, and since when they are fenced.
    pub fenced: BTreeMap<NodeId, Timestamp>,
    /// Nodes that are silent and hold no lease that could run out (it may serve the version by right).
    pub silent: BTreeSet<NodeId>,
}
