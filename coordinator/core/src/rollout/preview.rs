//! What a plan would do now: `rollcall rollout start --dry-run`.

use rollcall_shared::assignment::Share;
use rollcall_shared::ids::{NodeId, RolloutId};
use rollcall_shared::plan::{CohortSize, Plan, Stage, StageMode};

use crate::coordinator::Coordinator;
use crate::input::Actor;
use crate::state::{Model, Phase, Rollout, StageNow};
use crate::view::{PlanPreview, StagePreview};

impl Coordinator {
    /// The plan must have been found fit to start. Cohorts are those that the next rollout id
    /// would draw from the nodes that are connected now.
    pub(crate) fn preview(&self, model: &Model, plan: &Plan) -> PlanPreview {
        let Some(version) = model.versions.get(&plan.candidate) else {
            return self.preview_of(model, plan, Vec::new());
        };
        let mut trip = Rollout {
            id: RolloutId(self.state.next_rollout),
            model: plan.model.clone(),
            candidate: version.version,
            stable: model.stable,
            plan: plan.clone(),
            started_by: Actor::System,
            started_at: rollcall_shared::time::Timestamp::ZERO,
            begun: model.generation,
            phase: Phase::Live { paused: false },
            stage: None,
            approvals: std::collections::BTreeMap::new(),
            barred: std::collections::BTreeSet::new(),
            history: Vec::new(),
        };
        let everybody: Vec<NodeId> = self.eligible(&plan.model).map(|(n, _)| n.clone()).collect();
        let mut stages = Vec::new();
        for (index, stage) in plan.stages.iter().enumerate() {
            let cohort = self.cohort_for(&trip, stage);
            let nodes = cohort.as_ref().map_or_else(
                || everybody.clone(),
                |cohort| cohort.iter().cloned().collect(),
            );
            stages.push(stage_preview(stage, nodes));
            trip.stage = Some(StageNow {
                index,
                since: rollcall_shared::time::Timestamp::ZERO,
                cohort,
                generation: model.generation,
            });
        }
        self.preview_of(model, plan, stages)
    }

    fn preview_of(&self, model: &Model, plan: &Plan, stages: Vec<StagePreview>) -> PlanPreview {
        let connected = self.eligible(&plan.model).count();
        let enrolled = self.state.nodes.values().filter(|n| !n.revoked).count();
        let nobody = (connected == 0).then(|| "no eligible node is connected".to_owned());
        let away = (connected > 0 && connected < enrolled).then(|| {
            format!(
                "{} of {enrolled} nodes cannot take part now: away, quarantined, or not hosting {}",
                enrolled - connected,
                plan.model
            )
        });
        let empty = stages
            .iter()
            .filter(|stage| stage.nodes.is_empty() && connected > 0)
            .map(|stage| format!("no connected node fits stage {:?}", stage.name));
        PlanPreview {
            model: plan.model.clone(),
            candidate: plan.candidate,
            stable: model.stable.map(|v| v.version),
            warnings: nobody.into_iter().chain(away).chain(empty).collect(),
            stages,
        }
    }
}

fn stage_preview(stage: &Stage, nodes: Vec<NodeId>) -> StagePreview {
    let (mode, share) = match &stage.mode {
        StageMode::Shadow { share } => (format!("shadow, {share} of requests copied"), *share),
        StageMode::CanaryByRequest { share } => (format!("canary, {share} of requests"), *share),
        StageMode::CanaryByNode { size, selector } => {
            let of_whom = if selector.is_empty() {
                String::new()
            } else {
                let labels = selector.iter().map(|(k, v)| format!("{k} = {v}"));
                format!(" with {}", labels.collect::<Vec<_>>().join(", "))
            };
            let size = match size {
                CohortSize::Percent(percent) => format!("{percent} % of nodes"),
                CohortSize::Count(count) => format!("{count} nodes"),
            };
            (format!("canary, {size}{of_whom}"), Share::ALL)
        }
        StageMode::Full => ("full, then stable".to_owned(), Share::ALL),
    };
    StagePreview {
        name: stage.name.clone(),
        mode,
        nodes,
        share_percent: share.percent(),
        hold_ms: u64::try_from(stage.hold.as_millis()).unwrap_or(u64::MAX),
        approvals: stage.approvals.clone(),
    }
}
