//! What the API and the CLI show: read-only pictures of the state, in JSON that scripts
//! rely on. Views never hold secrets nor hashes of them.
//!
//! The methods of [`crate::coordinator::Coordinator`] that make them are in `view/queries.rs`,
//! `view/rollouts.rs`, and with words of their own `view/rollbacks.rs` and `view/rehearsals.rs`.

mod queries;
mod rehearsals;
mod rollbacks;
mod rollouts;

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{ManifestFile, Metadata, ModelSignature};
use rollcall_shared::plan::{Plan, Strategy};
use rollcall_shared::report::{Readiness, Resources, Role as ServingRole, Serving};
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::{Metric, Verdict};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::input::{Actor, TokenKind};
use crate::record::{Cause, Record};
pub use crate::view::rehearsals::{RehearsalView, UnreadyNode};
pub use crate::view::rollbacks::{
    FencedNode, HistogramBin, PropagationMs, ReceiptCounts, RollbackFigures, RollbackNode,
    RollbackNodeState, RollbackSummary, RollbackView,
};

/// One line of the audit log is a record of the journal.
pub type AuditEntry = Record;

/// Everything that `rollcall status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// How many nodes there are, by how they are.
    pub nodes: NodeCounts,
    /// Every model.
    pub models: Vec<ModelView>,
    /// Live rollouts only.
    pub rollouts: Vec<RolloutView>,
    /// Rollbacks for which not every node has answered or is fenced.
    pub rollbacks: Vec<RollbackView>,
    /// What somebody should look at, in words.
    pub alerts: Vec<String>,
    /// The journal's last record.
    pub seq: u64,
}

/// How many nodes there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// In the fleet: enrolled and not revoked.
    pub enrolled: u64,
    /// Of these, connected now.
    pub connected: u64,
    /// Of these, quarantined.
    pub quarantined: u64,
    /// Of these, serving something that was not approved.
    pub unauthorised: u64,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub model: ModelName,
    /// What serves by right.
    pub stable: Option<Version>,
    /// What a rollback of a finished rollout goes back to.
    pub previous: Option<Version>,
    /// The current generation.
    pub generation: Generation,
    /// All registered versions, in order.
    pub versions: Vec<VersionStageView>,
    /// The live rollout, if there is one.
    pub rollout: Option<RolloutId>,
}

/// A version in the list of its model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStageView {
    /// Which.
    pub version: Version,
    /// Where it stands.
    pub stage: VersionStage,
}

/// Where a version stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionStage {
    /// In the registry, not in use (or the stable before this one, kept warm).
    Registered,
    /// On trial, answering nobody.
    Shadow,
    /// On trial, answering somebody.
    Canary,
    /// Stable.
    Production,
    /// Hidden; can be restored.
    Archived,
    /// Taken back, for good.
    Withdrawn,
}

/// One version with its story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionView {
    /// The model.
    pub model: ModelName,
    /// Which.
    pub version: Version,
    /// E.g. `fraud-detector-v2.1.0-20260115-1600`.
    pub full_name: String,
    /// Digest of its signed manifest.
    pub digest: Digest,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// Where it stands.
    pub stage: VersionStage,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Its files.
    pub files: Vec<ManifestFile>,
    /// Its inputs and outputs.
    pub signature: ModelSignature,
    /// What people say about it.
    pub metadata: Metadata,
}

/// How a rollout is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// Nodes fetch, load and warm the candidate.
    Staging,
    /// In a stage.
    Running,
    /// Somebody paused it; breaches still withdraw.
    Paused,
    /// Everything but an approval is there.
    AwaitingApproval,
    /// Over: the candidate was taken back.
    Withdrawn,
    /// Over: the candidate is stable.
    Promoted,
    /// Over: measured to the end and let go.
    Finished,
}

impl RolloutPhase {
    /// Whether the rollout may still change.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            Self::Staging | Self::Running | Self::Paused | Self::AwaitingApproval
        )
    }
}

/// What keeps a rollout from its next stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitingOn {
    /// The stage must last longer.
    Hold {
        /// How much longer.
        left_ms: u64,
    },
    /// Connected nodes have not loaded and warmed the candidate.
    Nodes {
        /// Which.
        not_ready: Vec<NodeId>,
    },
    /// No eligible node is connected.
    NoNodes,
    /// Too few requests were seen to judge.
    Samples {
        /// Which metric.
        metric: Metric,
        /// Whose requests are missing.
        role: ServingRole,
        /// Requests seen.
        have: u64,
        /// Requests needed.
        need: u64,
    },
    /// The estimate breaks a rule, and it is not proven: more requests will tell.
    Evidence {
        /// What is measured.
        metric: Metric,
        /// The rule.
        rule: String,
    },
    /// Somebody must approve the next stage.
    Approval {
        /// In which role.
        role: String,
    },
    /// Somebody must resume it.
    Paused,
    /// One node of several cannot load the candidate: quarantine the node, or advance.
    CandidateFailed {
        /// Which.
        node: NodeId,
        /// What it said.
        reason: String,
    },
}

/// One step of a rollout's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Its record in the journal.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// What.
    pub step: Step,
}

/// What happened to a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words of record.rs")]
pub enum Step {
    Started,
    StageEntered {
        stage: usize,
        name: String,
        forced: bool,
        verdict: Option<Verdict>,
    },
    Paused,
    Resumed,
    Approved {
        gate: String,
        note: Option<String>,
    },
    Withdrawn {
        generation: Generation,
        cause: Cause,
    },
    Barred {
        node: NodeId,
        verdict: Verdict,
    },
    Settled,
    Promoted {
        verdict: Verdict,
    },
    Finished {
        verdict: Verdict,
    },
}

/// One rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Which.
    pub id: RolloutId,
    /// The model.
    pub model: ModelName,
    /// The version on trial.
    pub candidate: Version,
    /// What it is compared with, and what a rollback goes back to.
    pub stable: Option<Version>,
    /// The order of stages.
    pub strategy: Strategy,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Who started it.
    pub started_by: Actor,
    /// When.
    pub started_at: Timestamp,
    /// How it is.
    pub state: RolloutPhase,
    /// Index of the current stage, or of the last when it is over; `None` before the first.
    pub stage: Option<usize>,
    /// Name of that stage.
    pub stage_name: Option<String>,
    /// When that stage began.
    pub stage_since: Option<Timestamp>,
    /// What is left of its hold; `None` when it is over or before the first stage.
    pub hold_left_ms: Option<u64>,
    /// What the next stage waits for; empty when it is over.
    pub waiting_on: Vec<WaitingOn>,
    /// What the judge said last.
    pub verdict: Option<Verdict>,
    /// Nodes that answer with the candidate, in a stage by node.
    pub cohort: Option<BTreeSet<NodeId>>,
    /// Why it was withdrawn.
    pub cause: Option<Cause>,
    /// How the withdrawal spread, in figures.
    pub rollback: Option<RollbackSummary>,
    /// The plan.
    pub plan: Plan,
    /// What happened so far.
    pub history: Vec<HistoryEntry>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeId,
    /// Whether it is connected now.
    pub connected: bool,
    /// Where it stands.
    pub labels: BTreeMap<String, String>,
    /// Whether it gets no candidates.
    pub quarantined: bool,
    /// Whether it may never come back.
    pub revoked: bool,
    /// When it joined.
    pub enrolled_at: Timestamp,
    /// Its software, as it said last.
    pub software: Option<String>,
    /// What it holds and serves, by model.
    pub models: Vec<NodeModelView>,
    /// Whether it serves anything that was not approved.
    pub unauthorised: bool,
    /// How the machine is, as it said last.
    pub resources: Option<Resources>,
    /// When this coordinator process heard of it last.
    pub last_seen: Option<Timestamp>,
}

/// One model on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeModelView {
    /// The model.
    pub model: ModelName,
    /// The generation it said it holds.
    pub generation: Option<Generation>,
    /// What it serves, by its last receipt.
    pub serving: Vec<Serving>,
    /// Versions that serve there and were not approved.
    pub unauthorised: Vec<VersionRef>,
    /// How far it is with versions it was told to have.
    pub readiness: Vec<Readiness>,
    /// When a candidate's lease there is over at the latest, if it hears nothing more.
    pub lease_until: Option<Timestamp>,
}

/// One token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its public id.
    pub id: String,
    /// For people.
    pub name: String,
    /// For what.
    pub kind: TokenKind,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The node that used it up.
    pub used_by: Option<NodeId>,
}

/// What a plan would do: `rollcall rollout start --dry-run`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanPreview {
    /// The model.
    pub model: ModelName,
    /// The version on trial.
    pub candidate: Version,
    /// What it would be compared with.
    pub stable: Option<Version>,
    /// Stage by stage.
    pub stages: Vec<StagePreview>,
    /// What would keep it from starting or going on.
    pub warnings: Vec<String>,
}

/// What one stage would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePreview {
    /// Its name.
    pub name: String,
    /// In words, e.g. `canary, 10 % of requests`.
    pub mode: String,
    /// Nodes that would get the candidate, of those that are connected now.
    pub nodes: Vec<NodeId>,
    /// Share of these nodes' requests, in percent.
    pub share_percent: f64,
    /// How long it lasts at least.
    pub hold_ms: u64,
    /// Roles that must approve before it.
    pub approvals: Vec<String>,
}
