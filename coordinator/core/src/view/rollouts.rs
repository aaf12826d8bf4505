//! Pictures of rollouts.

use rollcall_shared::ids::RolloutId;
use rollcall_shared::time::Timestamp;

use crate::coordinator::Coordinator;
use crate::rollout::hold_end;
use crate::state::{Phase, Rollout};
use crate::view::{RolloutPhase, RolloutView, Step, WaitingOn};

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
        let verdict_now = is_live.then(|| self.judge_now(rollout));
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
            rollback: self.rollback_summary(rollout, now),
            plan: rollout.plan.clone(),
            history: rollout.history.clone(),
        }
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
            Step::Barred { verdict, .. }
            | Step::Promoted { verdict }
            | Step::Finished { verdict } => Some(verdict.clone()),
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
