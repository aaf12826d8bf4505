//! What a rollout's next stage waits for.
//!
//! A pure look at the state and the fleet: the same list keeps the rollout where it is and
//! is shown to people.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::NodeId;
use rollcall_shared::plan::{Stage, StageMode, Strategy};
use rollcall_shared::report::{ReadyState, Role};
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::{Metric, Outcome, Verdict};

use crate::cohort;
use crate::coordinator::Coordinator;
use crate::rollout::hold_end;
use crate::state::Rollout;
use crate::view::WaitingOn;

impl Coordinator {
    /// Everything that keeps a live rollout from its next stage; empty: nothing does.
    pub(crate) fn waiting_on(
        &self,
        rollout: &Rollout,
        verdict: &Verdict,
        now: Timestamp,
    ) -> Vec<WaitingOn> {
        self.waits(rollout, verdict, now).collect()
    }

    /// [`Self::waiting_on`], from what is cheap to know to what needs a look at every node.
    pub(crate) fn waits<'a>(
        &'a self,
        rollout: &'a Rollout,
        verdict: &Verdict,
        now: Timestamp,
    ) -> impl Iterator<Item = WaitingOn> + use<'a> {
        let paused = rollout.is_paused().then_some(WaitingOn::Paused);
        paused
            .into_iter()
            .chain(hold(rollout, now))
            .chain(samples(rollout, verdict))
            .chain(missing_approvals(rollout))
            .chain(std::iter::once_with(|| self.missing_nodes(rollout)).flatten())
    }

    /// Nodes that must be ready before the next stage and are not.
    fn missing_nodes(&self, rollout: &Rollout) -> Vec<WaitingOn> {
        let only = match (rollout.next_stage(), &rollout.stage) {
            (Some(stage), Some(_)) => self.cohort_for(rollout, stage),
            // The candidate is let go: nobody needs it.
            (None, Some(_)) if rollout.stage_plan().map(|s| &s.mode) != Some(&StageMode::Full) => {
                return Vec::new();
            }
            (Some(_) | None, _) => None,
        };
        let mut not_ready = Vec::new();
        let mut failed = Vec::new();
        let mut nodes: usize = 0;
        for (node, presence) in self.eligible(&rollout.model) {
            nodes += 1;
            let is_elsewhere = only.as_ref().is_some_and(|cohort| !cohort.contains(node));
            if is_elsewhere || rollout.barred.contains(node) {
                continue;
            }
            match presence.ready_state(&rollout.model, rollout.candidate) {
                Some(ReadyState::Ready) => {}
                Some(ReadyState::Failed {
                    reason,
                    retrying: false,
                }) => failed.push(WaitingOn::CandidateFailed {
                    node: node.clone(),
                    reason: reason.clone(),
                }),
                Some(ReadyState::Fetching | ReadyState::Failed { retrying: true, .. }) | None => {
                    not_ready.push(node.clone());
                }
            }
        }
        let nobody = nodes == 0 || only.is_some_and(|cohort| cohort.is_empty());
        let not_ready = (!not_ready.is_empty()).then_some(WaitingOn::Nodes { not_ready });
        let nobody = nobody.then_some(WaitingOn::NoNodes);
        nobody.into_iter().chain(not_ready).chain(failed).collect()
    }

    /// The node cohort of a stage; `None` where everybody takes part.
    pub(crate) fn cohort_for(&self, rollout: &Rollout, stage: &Stage) -> Option<BTreeSet<NodeId>> {
        let StageMode::CanaryByNode { size, selector } = &stage.mode else {
            return None;
        };
        let before = rollout.stage.as_ref().and_then(|now| now.cohort.as_ref());
        let keep: BTreeSet<NodeId> = before
            .into_iter()
            .flatten()
            .filter(|node| self.may_try(node) && !rollout.barred.contains(*node))
            .cloned()
            .collect();
        let eligible: cohort::Eligible<'_> = self
            .eligible(&rollout.model)
            .filter(|(_, presence)| matches(&presence.labels, selector))
            .filter(|(node, _)| !rollout.barred.contains(*node))
            .map(|(node, presence)| (node, &presence.labels))
            .chain(
                keep.iter()
                    .filter_map(|node| Some((node, self.labels(node)?))),
            )
            .collect();
        let hasher = CohortHasher::new(&rollout.model, rollout.id);
        Some(cohort::pick(&hasher, &eligible, &keep, *size))
    }
}

/// Whether a node has every label that the selector names.
pub(crate) fn matches(
    labels: &BTreeMap<String, String>,
    selector: &BTreeMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(label, value)| labels.get(label) == Some(value))
}

fn hold(rollout: &Rollout, now: Timestamp) -> Option<WaitingOn> {
    let left = hold_end(rollout)?.since(now);
    (!left.is_zero()).then(|| WaitingOn::Hold {
        // Rounded up: what is left is never shown as nothing.
        left_ms: u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
    })
}

/// Requests that are missing for a verdict. A direct rollout does not wait for them: it is
/// promoted after its watch unless the judge objects.
fn samples(rollout: &Rollout, verdict: &Verdict) -> Vec<WaitingOn> {
    if rollout.plan.strategy == Strategy::Direct || verdict.outcome != Outcome::Insufficient {
        return Vec::new();
    }
    let policy = &rollout.plan.policy;
    let shadow = matches!(
        rollout.stage_plan().map(|s| &s.mode),
        Some(StageMode::Shadow { .. })
    );
    let on_trial = if shadow {
        Role::Shadow
    } else {
        Role::Candidate
    };
    let mut missing: Vec<WaitingOn> = Vec::new();
    for finding in verdict.decisive() {
        let need = if rests_on_labels(finding.metric) {
            policy.min_labels
        } else {
            policy.min_requests
        };
        let metric = finding.metric;
        let lacks = |role, have| WaitingOn::Samples {
            metric,
            role,
            have,
            need,
        };
        let samples = if finding.candidate_samples < need {
            lacks(on_trial, finding.candidate_samples)
        } else if finding.stable.is_some() && finding.stable_samples < need {
            lacks(Role::Stable, finding.stable_samples)
        } else {
            WaitingOn::Evidence {
                metric,
                rule: finding.rule.clone(),
            }
        };
        if !missing.contains(&samples) {
            missing.push(samples);
        }
    }
    missing
}

const fn rests_on_labels(metric: Metric) -> bool {
    match metric {
        Metric::Accuracy | Metric::F1 | Metric::Calibration | Metric::Bias | Metric::Kpi => true,
        Metric::ErrorRate
        | Metric::LatencyP50
        | Metric::LatencyP95
        | Metric::LatencyP99
        | Metric::Agreement
        | Metric::LoadFailures
        | Metric::Breakers
        | Metric::Drift => false,
    }
}

pub(crate) fn missing_approvals(rollout: &Rollout) -> impl Iterator<Item = WaitingOn> {
    let asked = rollout.next_stage().into_iter().flat_map(|s| &s.approvals);
    asked
        .filter(|gate| !rollout.approvals.contains_key(*gate))
        .map(|gate| WaitingOn::Approval { role: gate.clone() })
}
