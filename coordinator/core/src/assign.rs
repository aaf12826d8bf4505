//! What one node should do for one model: a function of the durable state alone, so that a
//! restarted coordinator says the same.
//!
//! Who is connected, ready or slow plays no part here; agents fall back to stable where the
//! candidate is not ready.

use rollcall_shared::assignment::{
    Assignment, CandidateAssignment, CandidateMode, Share, Snapshot,
};
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::plan::StageMode;

use crate::coordinator::Coordinator;
use crate::state::{Rollout, State};

/// What `node` should do for `model`; `None` when there is no such model.
pub(crate) fn assignment_for(
    state: &State,
    model: &ModelName,
    node: &NodeId,
) -> Option<Assignment> {
    let entry = state.models.get(model)?;
    let may_try = state
        .nodes
        .get(node)
        .is_some_and(|n| !n.quarantined && !n.revoked);
    let candidate = state
        .live_rollout(model)
        .filter(|rollout| may_try && !rollout.barred.contains(node))
        .map(|rollout| candidate_for(rollout, node));
    Some(Assignment {
        model: model.clone(),
        generation: entry.generation,
        stable: entry.stable,
        previous: state.previous(model),
        candidate,
    })
}

fn candidate_for(rollout: &Rollout, node: &NodeId) -> CandidateAssignment {
    let mode = match (rollout.stage_plan().map(|s| &s.mode), &rollout.stage) {
        (None, _) | (_, None) => CandidateMode::Prepare,
        (Some(StageMode::Shadow { share }), _) => CandidateMode::Shadow(*share),
        (Some(StageMode::CanaryByRequest { share }), _) => CandidateMode::Canary(*share),
        (Some(StageMode::Full), _) => CandidateMode::Canary(Share::ALL),
        (Some(StageMode::CanaryByNode { .. }), Some(now)) => {
            if now.cohort.as_ref().is_some_and(|c| c.contains(node)) {
                CandidateMode::Canary(Share::ALL)
            } else {
                CandidateMode::Prepare
            }
        }
    };
    CandidateAssignment {
        rollout: rollout.id,
        version: rollout.candidate,
        mode,
        lease_ms: u64::try_from(rollout.plan.lease.as_millis()).unwrap_or(u64::MAX),
    }
}

impl Coordinator {
    pub(crate) fn assignment_for(&self, model: &ModelName, node: &NodeId) -> Option<Assignment> {
        assignment_for(&self.state, model, node)
    }

    /// Everything that `node` must know about `models`.
    pub(crate) fn snapshot_of<'a>(
        &self,
        node: &NodeId,
        models: impl IntoIterator<Item = &'a ModelName>,
    ) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for model in models {
            snapshot
                .assignments
                .extend(self.assignment_for(model, node));
            if let Some(entry) = self.state.models.get(model) {
                snapshot
                    .withdrawals
                    .extend(entry.withdrawals.iter().cloned());
            }
        }
        snapshot
    }
}
