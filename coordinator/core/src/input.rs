//! Everything that can happen to a coordinator.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::digest::Digest;
use rollcall_shared::feedback::FeedbackItem;
use rollcall_shared::ids::{ConnectionId, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{Manifest, SignedManifest};
use rollcall_shared::plan::Plan;
use rollcall_shared::report::Report;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_shared::wire::{FromAgent, Hello};
use serde::{Deserialize, Serialize};

pub use crate::rollout::outcomes::KpiRecord;

/// Everything that can happen to a coordinator.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "an input is handed over once, a box would cost more than it saves"
)]
pub enum Input {
    /// Somebody asks for a change; answered by one [`crate::effect::Effect::Reply`] with the same ticket.
    Command {
        /// Names the answer.
        ticket: Ticket,
        /// Who asks; already authenticated by the shell.
        actor: Actor,
        /// What for.
        command: Command,
    },
    /// An agent's handshake and `Hello` are complete.
    AgentConnected {
        /// Its connection.
        connection: ConnectionId,
        /// Its name, from its certificate.
        node: NodeId,
        /// What it said.
        hello: Hello,
    },
    /// A connection is gone.
    AgentDisconnected {
        /// Which.
        connection: ConnectionId,
        /// Whose.
        node: NodeId,
    },
    /// A message on the control stream or as a datagram.
    FromAgent {
        /// On which connection.
        connection: ConnectionId,
        /// From whom.
        node: NodeId,
        /// What.
        message: FromAgent,
    },
    /// A window's report.
    Reported {
        /// On which connection.
        connection: ConnectionId,
        /// From whom.
        node: NodeId,
        /// What was measured.
        report: Report,
    },
    /// The time that `next_wakeup` asked for has come.
    TimePassed,
}

/// Ties an answer to its command; made by the shell, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Who makes a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The coordinator itself: the judge, a timer, a restart.
    System,
    /// A person or a script with a token.
    Operator {
        /// The token's name.
        name: String,
        /// What it may do.
        roles: BTreeSet<Role>,
    },
    /// An agent, or a node that enrols.
    Agent {
        /// Its name.
        node: NodeId,
    },
}

/// What a token may do. Roles do not include each other, except that `admin` may do everything
/// but approve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look. Every token may.
    Viewer,
    /// Roll back, pause, quarantine: the safe direction. And tell what came of answers.
    Operator,
    /// Push versions; start, resume and advance rollouts.
    Promoter,
    /// Tokens, nodes.
    Admin,
    /// Approve gates that name this role, e.g. `ml-engineering`.
    Approver(String),
}

/// A change that somebody asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Register an immutable version. Its blobs are already durable in the artifact store.
    RegisterVersion {
        /// What was signed.
        signed: SignedManifest,
        /// The same, opened.
        manifest: Manifest,
    },
    /// Begin a trip through a plan.
    StartRollout {
        /// The plan.
        plan: Plan,
        /// Say what would happen, change nothing.
        dry_run: bool,
    },
    /// Stay in the stage until resumed; breaches still withdraw.
    Pause {
        /// Which rollout.
        rollout: RolloutId,
    },
    /// Go on.
    Resume {
        /// Which rollout.
        rollout: RolloutId,
    },
    /// Enter the next stage without waiting for hold or evidence (never past a failure or an approval).
    Advance {
        /// Which rollout.
        rollout: RolloutId,
    },
    /// Approve the gate before a stage.
    Approve {
        /// Which rollout.
        rollout: RolloutId,
        /// The role in whose name; must be one that the gate asks for and the actor has.
        gate: String,
        /// Why.
        note: Option<String>,
    },
    /// End a rollout at a gate: withdraws the candidate.
    Reject {
        /// Which rollout.
        rollout: RolloutId,
        /// Why.
        note: Option<String>,
    },
    /// Withdraw the running candidate, or else the stable version in favour of the one before it.
    Rollback {
        /// Which model.
        model: ModelName,
        /// Only if this is the version that would go. `None`: whichever it is, except that a
        /// stable version does not go when a withdrawal was the last thing that happened: a
        /// command repeated after a lost answer must not take the good version too.
        version: Option<Version>,
        /// Why.
        reason: String,
    },
    /// Ask the fleet what [`Command::Rollback`] with the same words would come to now. Refused
    /// when that would be; changes nothing.
    Rehearse {
        /// Which model.
        model: ModelName,
        /// As for a rollback.
        version: Option<Version>,
        /// Why.
        reason: String,
    },
    /// Hand labels and outcomes to the agents that host a model. Best effort, not recorded.
    PushFeedback {
        /// Of which model.
        model: ModelName,
        /// At most [`rollcall_shared::limits::FEEDBACK_ITEMS_MAX`].
        items: Vec<FeedbackItem>,
    },
    /// Add outcomes to the evidence of a model's live rollout. Memory only, as all evidence.
    RecordKpi {
        /// Of which model.
        model: ModelName,
        /// What was seen.
        record: KpiRecord,
    },
    /// Make a token. The secret is made and shown by the shell; only its hash comes here.
    CreateToken {
        /// Its public id.
        id: String,
        /// Hash of its secret.
        secret_hash: Digest,
        /// For what.
        kind: TokenKind,
        /// For people.
        name: String,
        /// When it ends; `None`: never (operators only).
        expires_at: Option<Timestamp>,
    },
    /// End a token now.
    RevokeToken {
        /// Which.
        id: String,
    },
    /// Take a node into the fleet. Asking again with the same token, name and key is
    /// answered the same way, so that a lost answer does not cost the token.
    Enroll {
        /// The token's id.
        token: String,
        /// Hash of the secret that was shown.
        secret_hash: Digest,
        /// The name the node wants.
        node: NodeId,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Digest of the public key in its signing request.
        key: Digest,
    },
    /// Never let this node in again.
    RevokeNode {
        /// Which.
        node: NodeId,
    },
    /// Give this node no candidates until released.
    Quarantine {
        /// Which.
        node: NodeId,
    },
    /// End a quarantine.
    Release {
        /// Which.
        node: NodeId,
    },
    /// Hide a version that nothing uses; it can come back.
    Archive {
        /// Of which model.
        model: ModelName,
        /// Which.
        version: Version,
    },
    /// Bring an archived version back.
    Restore {
        /// Of which model.
        model: ModelName,
        /// Which.
        version: Version,
    },
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Lets one node enrol, once.
    Agent,
    /// Lets a person or a script use the API.
    Operator {
        /// What it may do.
        roles: BTreeSet<Role>,
    },
}
