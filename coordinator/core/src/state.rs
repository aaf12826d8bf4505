//! The coordinator's durable state: nothing but the fold of the journal's records.
//!
//! [`State::apply`] is the only way in. A live coordinator applies each record the
//! moment it makes it, a restarted one reads them all again; both arrive at the same
//! state, which `fold_of_records_equals_live_state` checks. What is not here (who is
//! connected, evidence, receipts of an unsettled rollback) is memory and starts afresh.

mod fold;
mod rights;

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{Manifest, SignedManifest};
use rollcall_shared::plan::{Plan, Stage};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::input::{Actor, TokenKind};
use crate::record::{Cause, Propagation, Record};
use crate::state::rights::Rights;
use crate::view::HistoryEntry;

/// The fold of the journal. Encodes as JSON for snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    seq: u64,
    hash: Digest,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) models: BTreeMap<ModelName, Model>,
    pub(crate) rollouts: BTreeMap<RolloutId, Rollout>,
    pub(crate) next_rollout: u64,
}

/// The journal is not one unbroken chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A record is missing, or there twice.
    #[error("the journal goes from record {} to {found}: one is missing or out of order", expected - 1)]
    Gap {
        /// The number that had to come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A record was changed after it was written, or belongs to another journal.
    #[error("record {seq} does not follow from the one before it: the journal was changed")]
    Broken {
        /// The first record that does not fit.
        seq: u64,
    },
    /// A record speaks of something that no record before it made.
    #[error("record {seq} makes no sense here: {why}")]
    Nonsense {
        /// Which.
        seq: u64,
        /// What it speaks of.
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) secret_hash: Digest,
    pub(crate) kind: TokenKind,
    pub(crate) name: String,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) revoked_at: Option<Timestamp>,
    pub(crate) used_by: Option<NodeId>,
}

impl Token {
    /// Neither revoked nor expired.
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) key: Digest,
    pub(crate) token: String,
    /// The record that enrolled it. Wall clocks step; what came first is in the journal's order.
    pub(crate) enrolled_seq: u64,
    pub(crate) enrolled_at: Timestamp,
    pub(crate) quarantined: bool,
    pub(crate) revoked: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Model {
    /// The current generation.
    pub(crate) generation: Generation,
    /// Generations up to this one were given by earlier coordinator processes, or adopted
    /// from agents: holding one of them proves nothing. See `fleet::hello`.
    pub(crate) known: Generation,
    pub(crate) stable: Option<VersionRef>,
    pub(crate) previous: Option<VersionRef>,
    pub(crate) versions: BTreeMap<Version, RegisteredVersion>,
    pub(crate) withdrawals: BTreeSet<Withdrawal>,
    /// Who may still serve it by right.
    pub(crate) rights: Rights,
    /// The live rollout.
    pub(crate) rollout: Option<RolloutId>,
}

impl Model {
    /// Whether any version of this number was withdrawn: none is to be tried again.
    pub(crate) fn is_withdrawn(&self, version: Version) -> bool {
        self.withdrawals
            .iter()
            .any(|w| w.withdrawn.version == version)
    }

    /// What serves once `withdrawn` is taken away: stable, or else the first of `preferred`
    /// and the version before. Never one that is withdrawn itself.
    pub(crate) fn serving_without(
        &self,
        withdrawn: VersionRef,
        preferred: Option<VersionRef>,
    ) -> Option<VersionRef> {
        let is_withdrawn = |v: &VersionRef| self.withdrawals.iter().any(|w| w.withdrawn == *v);
        [self.stable, preferred, self.previous]
            .into_iter()
            .flatten()
            .find(|version| *version != withdrawn && !is_withdrawn(version))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RegisteredVersion {
    pub(crate) version: VersionRef,
    pub(crate) signed: SignedManifest,
    pub(crate) manifest: Manifest,
    pub(crate) archived: bool,
}

/// The durable part of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rollout {
    pub(crate) id: RolloutId,
    pub(crate) model: ModelName,
    pub(crate) candidate: VersionRef,
    pub(crate) stable: Option<VersionRef>,
    pub(crate) plan: Plan,
    pub(crate) started_by: Actor,
    pub(crate) started_at: Timestamp,
    /// The generation that began it.
    #[serde(default)]
    pub(crate) begun: Generation,
    pub(crate) phase: Phase,
    /// The last stage that was entered; `None` while staging.
    pub(crate) stage: Option<StageNow>,
    /// Gates of the next stage that are approved, and by whom.
    pub(crate) approvals: BTreeMap<String, Actor>,
    /// Nodes that go on without the candidate.
    #[serde(default)]
    pub(crate) barred: BTreeSet<NodeId>,
    pub(crate) history: Vec<HistoryEntry>,
}

/// Where a rollout is in its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Live { paused: bool },
    Promoted,
    Finished,
    Withdrawn(Box<Rollback>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageNow {
    pub(crate) index: usize,
    pub(crate) since: Timestamp,
    /// Only in stages by node.
    pub(crate) cohort: Option<BTreeSet<NodeId>>,
    /// The generation that began it; later ones up to the next stage belong to it as well.
    pub(crate) generation: Generation,
}

/// The durable part of a withdrawal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rollback {
    pub(crate) withdrawal: Withdrawal,
    pub(crate) cause: Cause,
    /// The record that decided it.
    pub(crate) seq: u64,
    pub(crate) decided_at: Timestamp,
    /// Once every node answered or is fenced.
    pub(crate) propagation: Option<Propagation>,
}

impl Rollout {
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    pub(crate) const fn is_paused(&self) -> bool {
        matches!(self.phase, Phase::Live { paused: true })
    }

    /// The plan of the last stage that was entered.
    pub(crate) fn stage_plan(&self) -> Option<&Stage> {
        self.stage
            .as_ref()
            .and_then(|now| self.plan.stages.get(now.index))
    }

    /// Index of the stage that comes next; the number of stages when none does.
    pub(crate) fn next_index(&self) -> usize {
        self.stage.as_ref().map_or(0, |now| now.index + 1)
    }

    /// The stage that comes next, if one does.
    pub(crate) fn next_stage(&self) -> Option<&Stage> {
        self.plan.stages.get(self.next_index())
    }

    pub(crate) fn rollback(&self) -> Option<&Rollback> {
        match &self.phase {
            Phase::Withdrawn(rollback) => Some(rollback),
            Phase::Live { .. } | Phase::Promoted | Phase::Finished => None,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            seq: 0,
            hash: Digest::of(b""),
            tokens: BTreeMap::new(),
            nodes: BTreeMap::new(),
            models: BTreeMap::new(),
            rollouts: BTreeMap::new(),
            next_rollout: 1,
        }
    }
}

impl State {
    /// Folds a whole journal.
    ///
    /// # Errors
    /// At the first record that breaks the chain.
    pub fn from_records(records: impl IntoIterator<Item = Record>) -> Result<Self, ChainError> {
        let mut state = Self::default();
        for record in records {
            state.apply(&record)?;
        }
        Ok(state)
    }

    /// Folds one more record.
    ///
    /// # Errors
    /// When the record does not follow the last one. The state must not be used any more.
    pub fn apply(&mut self, record: &Record) -> Result<(), ChainError> {
        if record.seq != self.seq + 1 {
            return Err(ChainError::Gap {
                expected: self.seq + 1,
                found: record.seq,
            });
        }
        if record.previous != self.hash {
            return Err(ChainError::Broken { seq: record.seq });
        }
        self.fold(record)?;
        self.seq = record.seq;
        self.hash = record.hash();
        Ok(())
    }

    /// Number of the last record; 0 when there is none.
    #[must_use]
    pub const fn seq(&self) -> u64 {
        self.seq
    }

    /// Hash of the last record; of nothing when there is none.
    #[must_use]
    pub const fn hash(&self) -> Digest {
        self.hash
    }

    /// The live rollout of a model.
    pub(crate) fn live_rollout(&self, model: &ModelName) -> Option<&Rollout> {
        let id = self.models.get(model)?.rollout?;
        self.rollouts.get(&id)
    }

    /// The live rollouts of all models.
    pub(crate) fn live_rollouts(&self) -> impl Iterator<Item = &Rollout> {
        self.models
            .values()
            .filter_map(|model| self.rollouts.get(&model.rollout?))
    }

    /// The generation that a change of this model gets.
    pub(crate) fn next_generation(&self, model: &ModelName) -> Generation {
        self.models
            .get(model)
            .map_or(Generation(1), |m| m.generation.next())
    }
}
