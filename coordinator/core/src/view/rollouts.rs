//! Pictures of rollouts and rollbacks.

use std::collections::BTreeMap;

use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::time::Timestamp;

use crate::coordinator::Coordinator;
use crate::record::Propagation;
use crate::rollback::{Answer, Receipts};
use crate::rollout::hold_end;
use crate::state::{Phase, Rollout};
use crate::view::{
    FencedNode, PropagationMs, ReceiptCounts, RollbackNode, RollbackNodeState, RollbackView,
    RolloutPhase, RolloutView, Step, WaitingOn,
};

impl Coordinator {
    /// Every rollout, the oldest first.
    #[must_use]
    pub fn rollouts(&self, now: Timestamp) -> Vec<RolloutView> {
        let rollouts = self.state.rollouts.values();
        rollouts.map(|r| self.rollout_view(r, now)).collect()
    }

    /// One rollout.
    #[must_use]
    pub fn rollout(&self, rollout: RolloutId, now: Timestamp) -> Option<RolloutView> {
        let rollout = self.state.rollouts.get(&rollout)?;
        Some(self.rollout_view(rollout, now))
    }

    pub(super) fn rollout_view(&self, rollout: &Rollout, now: Timestamp) -> RolloutView {
        let is_live = rollout.is_live();
        let verdict_now = is_live.then(|| self.judge_now(rollout, now));
        let waiting_on = verdict_now
            .as_ref()
            .map(|verdict| self.waiting_on(rollout, verdict, now))
            .unwrap_or_default();
        let judged = self.trials.get(&rollout.id).and_then(|t| t.verdict.clone());
        let hold_end = hold_end(rollout).filter(|_| is_live);
        RolloutView {
            id: rollout.id,
            model: rollout.model.clone(),
            candidate: rollout.candidate.version,
            stable: rollout.stable.map(|v| v.version),
            strategy: rollout.plan.strategy,
            owner: rollout.plan.owner.clone(),
            started_by: rollout.started_by.clone(),
            started_at: rollout.started_at,
            state: phase(rollout, &waiting_on),
            stage: rollout.stage.as_ref().map(|stage| stage.index),
            stage_name: rollout.stage_plan().map(|stage| stage.name.clone()),
            stage_since: rollout.stage.as_ref().map(|stage| stage.since),
            hold_left_ms: hold_end.map(|end| {
                let left = end.since(now).as_nanos().div_ceil(1_000_000);
                u64::try_from(left).unwrap_or(u64::MAX)
            }),
            waiting_on,
            verdict: judged.or_else(|| last_recorded_verdict(rollout)),
            cohort: rollout
                .stage
                .as_ref()
                .and_then(|stage| stage.cohort.clone()),
            cause: rollout.rollback().map(|rollback| rollback.cause.clone()),
            plan: rollout.plan.clone(),
            history: rollout.history.clone(),
        }
    }

    /// The latest rollback of a model.
    #[must_use]
    pub fn rollback_of_model(&self, model: &ModelName, now: Timestamp) -> Option<RollbackView> {
        let of_model = self.state.rollouts.values().filter(|r| r.model == *model);
        let latest = of_model
            .filter_map(|rollout| Some((rollout.rollback()?.withdrawal.generation, rollout.id)))
            .max()?;
        self.rollback(latest.1, now)
    }

    /// How the withdrawal of a rollout spreads; `None` when it was not withdrawn.
    #[must_use]
    pub fn rollback(&self, rollout: RolloutId, now: Timestamp) -> Option<RollbackView> {
        let rollback = self.state.rollouts.get(&rollout)?.rollback()?;
        let receipts = self.rollbacks.get(&rollout);
        // Memory knows more than the record: nodes that answered after they were fenced.
        let propagation = match (receipts, &rollback.propagation) {
            (Some(receipts), _) => receipts.propagation(now),
            (None, Some(recorded)) => recorded.clone(),
            (None, None) => Propagation::default(),
        };
        let until = receipts.map(fences).unwrap_or_default();
        let withdrawal = &rollback.withdrawal;
        Some(RollbackView {
            model: withdrawal.model.clone(),
            rollout,
            generation: withdrawal.generation,
            withdrawn: withdrawal.withdrawn.version,
            serving: withdrawal.serving.map(|v| v.version),
            cause: rollback.cause.clone(),
            decided_at: rollback.decided_at,
            receipts: receipt_counts(&propagation),
            propagation_ms: PropagationMs {
                p50: propagation.p50_ms,
                p99: propagation.p99_ms,
                max: propagation.max_ms,
            },
            last_node: propagation.last_node.clone(),
            settled: rollback.propagation.is_some(),
            nodes: rollback_nodes(&propagation, &until),
        })
    }
}

fn phase(rollout: &Rollout, waiting_on: &[WaitingOn]) -> RolloutPhase {
    let only_approvals = !waiting_on.is_empty()
        && waiting_on
            .iter()
            .all(|waiting| matches!(waiting, WaitingOn::Approval { .. }));
    match (&rollout.phase, &rollout.stage) {
        (Phase::Withdrawn(_), _) => RolloutPhase::Withdrawn,
        (Phase::Promoted, _) => RolloutPhase::Promoted,
        (Phase::Finished, _) => RolloutPhase::Finished,
        (Phase::Live { paused: true }, _) => RolloutPhase::Paused,
        (Phase::Live { paused: false }, _) if only_approvals => RolloutPhase::AwaitingApproval,
        (Phase::Live { paused: false }, None) => RolloutPhase::Staging,
        (Phase::Live { paused: false }, Some(_)) => RolloutPhase::Running,
    }
}

fn last_recorded_verdict(rollout: &Rollout) -> Option<rollcall_shared::verdict::Verdict> {
    rollout
        .history
        .iter()
        .rev()
        .find_map(|entry| match &entry.step {
            Step::StageEntered { verdict, .. } => verdict.clone(),
            Step::Promoted { verdict } | Step::Finished { verdict } => Some(verdict.clone()),
            Step::Withdrawn {
                cause: crate::record::Cause::Judge { verdict, .. },
                ..
            } => Some(verdict.clone()),
            Step::Withdrawn { .. }
            | Step::Started
            | Step::Paused
            | Step::Resumed
            | Step::Approved { .. }
            | Step::Settled => None,
        })
}

/// When each node that has not answered is fenced.
fn fences(receipts: &Receipts) -> BTreeMap<NodeId, Timestamp> {
    let answers = receipts.answers().iter();
    answers
        .filter_map(|(node, answer)| match answer {
            Answer::Pending { fenced_at } => Some((node.clone(), (*fenced_at)?)),
            Answer::Receipt { .. } => None,
        })
        .collect()
}

fn receipt_counts(propagation: &Propagation) -> ReceiptCounts {
    let fenced: Vec<FencedNode> = propagation
        .fenced
        .iter()
        .map(|(node, at)| FencedNode {
            node: node.clone(),
            at: *at,
        })
        .collect();
    let silent: Vec<NodeId> = propagation.silent.iter().cloned().collect();
    ReceiptCounts {
        expected: propagation.received + (fenced.len() + silent.len()) as u64,
        received: propagation.received,
        fenced,
        silent,
    }
}

fn rollback_nodes(
    propagation: &Propagation,
    until: &BTreeMap<NodeId, Timestamp>,
) -> Vec<RollbackNode> {
    let node = |node: &NodeId, state, after_ms, until| RollbackNode {
        node: node.clone(),
        state,
        after_ms,
        until,
    };
    let answered = propagation
        .receipts_ms
        .iter()
        .map(|(name, after)| node(name, RollbackNodeState::Receipt, Some(*after), None));
    let fenced = propagation
        .fenced
        .iter()
        .map(|(name, at)| node(name, RollbackNodeState::Fenced, None, Some(*at)));
    let silent = propagation.silent.iter().map(|name| {
        let until = until.get(name).copied();
        let state = if until.is_some() {
            RollbackNodeState::Waiting
        } else {
            RollbackNodeState::Silent
        };
        node(name, state, None, until)
    });
    let mut nodes: Vec<RollbackNode> = answered.chain(fenced).chain(silent).collect();
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}
