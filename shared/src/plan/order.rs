//! Which stages may follow which, and what a strategy means when the plan lists none.

use std::time::Duration;

use super::file::invalid;
use super::{CohortSize, PlanError, Stage, StageMode, Strategy};
use crate::assignment::Share;
use crate::limits::STAGES_MAX;

/// What a strategy means when the plan lists no stages.
pub(super) fn ready_made_stages(strategy: Strategy, hold: Duration) -> Vec<Stage> {
    let stage = |name: &str, mode| Stage {
        name: name.to_owned(),
        mode,
        hold,
        approvals: vec![],
    };
    let shadow = || stage("shadow", StageMode::Shadow { share: Share::ALL });
    let full = || stage("full", StageMode::Full);
    match strategy {
        Strategy::Direct => vec![full()],
        Strategy::Shadow => vec![shadow()],
        Strategy::Aa => {
            let share = Share::from_percent(50.0).unwrap_or(Share::ALL);
            vec![stage("aa", StageMode::CanaryByRequest { share })]
        }
        Strategy::Canary => {
            let canaries = [5.0, 25.0, 50.0].map(|percent| {
                let share = Share::from_percent(percent).unwrap_or(Share::ALL);
                stage(
                    &format!("canary-{percent}"),
                    StageMode::CanaryByRequest { share },
                )
            });
            [shadow()]
                .into_iter()
                .chain(canaries)
                .chain([full()])
                .collect()
        }
    }
}

pub(super) fn check_stages(strategy: Strategy, stages: &[Stage]) -> Result<(), PlanError> {
    if stages.len() > STAGES_MAX {
        return invalid(format!("more than {STAGES_MAX} stages"));
    }
    for (i, stage) in stages.iter().enumerate() {
        if stages[..i].iter().any(|earlier| earlier.name == stage.name) {
            return invalid(format!("two stages are named {:?}", stage.name));
        }
    }
    let rank = |mode: &StageMode| match mode {
        StageMode::Shadow { .. } => 0,
        StageMode::CanaryByRequest { .. } | StageMode::CanaryByNode { .. } => 1,
        StageMode::Full => 2,
    };
    for pair in stages.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        if rank(&before.mode) > rank(&after.mode) || after.mode == before.mode {
            return invalid(format!(
                "stage {:?} cannot follow {:?}: the order is shadow, then growing canaries, then full",
                after.name, before.name
            ));
        }
        if shrinks(&before.mode, &after.mode) {
            return invalid(format!(
                "stage {:?} gives the candidate less than {:?} did: shares only grow",
                after.name, before.name
            ));
        }
    }
    let ranks: Vec<_> = stages.iter().map(|stage| rank(&stage.mode)).collect();
    let (fits, need) = match strategy {
        Strategy::Direct => (ranks == [2], "one full stage and no other"),
        Strategy::Shadow => (ranks.iter().all(|&rank| rank == 0), "shadow stages only"),
        Strategy::Aa => (
            ranks.iter().all(|&rank| rank == 1),
            "canary stages only: nothing is promoted",
        ),
        Strategy::Canary => (
            ranks.first() == Some(&0) && ranks.contains(&1) && ranks.last() == Some(&2),
            "a shadow stage first, then at least one canary, and full last",
        ),
    };
    if fits {
        Ok(())
    } else {
        invalid(format!("this strategy takes {need}"))
    }
}

fn shrinks(before: &StageMode, after: &StageMode) -> bool {
    match (before, after) {
        (StageMode::Shadow { share: a }, StageMode::Shadow { share: b })
        | (StageMode::CanaryByRequest { share: a }, StageMode::CanaryByRequest { share: b }) => {
            b < a
        }
        (
            StageMode::CanaryByNode {
                size: CohortSize::Percent(a),
                selector: s,
            },
            StageMode::CanaryByNode {
                size: CohortSize::Percent(b),
                selector: t,
            },
        ) => s == t && b < a,
        (
            StageMode::CanaryByNode {
                size: CohortSize::Count(a),
                selector: s,
            },
            StageMode::CanaryByNode {
                size: CohortSize::Count(b),
                selector: t,
            },
        ) => s == t && b < a,
        (
            StageMode::Shadow { .. }
            | StageMode::CanaryByRequest { .. }
            | StageMode::CanaryByNode { .. }
            | StageMode::Full,
            _,
        ) => false,
    }
}
