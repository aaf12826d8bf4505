//! What was seen of a candidate and of stable in the current stage, and the judge's question.
//!
//! A series counts when its route's generation belongs to the stage: the one that began it,
//! or a later one up to now (a quarantine, a restart). The baseline of a node cohort are the
//! nodes that the same selector fits and that are not in the cohort; of a request cohort and
//! of a shadow, the same nodes. Where the candidate answers everything there is no stable left
//! to measure: then what earlier verdicts of this rollout recorded of stable counts.

use std::borrow::Cow;

use rollcall_shared::assignment::Share;
use rollcall_shared::ids::{ConnectionId, NodeId};
use rollcall_shared::plan::StageMode;
use rollcall_shared::report::{Counts, ReadyState, Report, Role, Series};
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::{Finding, Verdict};

use crate::coordinator::Coordinator;
use crate::judge::rules::{Baseline, rules};
use crate::judge::watch::{Arm, Watch};
use crate::judge::{Breakers, Evidence, Loads, judge};
use crate::rollout::gates::matches;
use crate::rollout::trial::Trial;
use crate::state::{Rollout, StageNow};
use crate::view::Step;

/// No node counts more in one window; a report that says so is not believed.
const REQUESTS_PER_WINDOW_MAX: u64 = 1 << 40;

impl Coordinator {
    pub(crate) fn on_reported(
        &mut self,
        connection: ConnectionId,
        node: &NodeId,
        report: Report,
        now: Timestamp,
    ) {
        let Some(presence) = self.fleet.of_connection(connection, node) else {
            return;
        };
        presence.last_seen = now;
        presence.resources = Some(report.resources);
        for series in report.series {
            if !is_plausible(&series) {
                continue;
            }
            let Some(rollout) = self.state.live_rollout(&series.model) else {
                continue;
            };
            if rollout.barred.contains(node) {
                continue;
            }
            let arm = if self.is_on_trial(rollout, &series) {
                Arm::Candidate
            } else if self.is_baseline(rollout, node, &series) {
                Arm::Stable
            } else {
                let arm = self.is_late(rollout, &series);
                if let (Some(arm), Some(trial)) = (arm, self.trials.get_mut(&rollout.id)) {
                    trial.watch.note_outcomes(arm, &series.counts.quality);
                }
                continue;
            };
            if let Some(trial) = self.trials.get_mut(&rollout.id) {
                trial.see(node, arm, &series, now);
            }
        }
    }

    /// Whose labels and outcomes these are, if they came in after the stage of the answers that
    /// they are about: what is known of a version does not end with a stage.
    fn is_late(&self, rollout: &Rollout, series: &Series) -> Option<Arm> {
        let model = self.state.models.get(&rollout.model)?;
        let in_rollout =
            rollout.begun <= series.generation && series.generation <= model.generation;
        match series.role {
            _ if !in_rollout || rollout.stage.is_none() => None,
            Role::Candidate | Role::Shadow => {
                (series.version == rollout.candidate).then_some(Arm::Candidate)
            }
            Role::Stable => (Some(series.version) == model.stable).then_some(Arm::Stable),
        }
    }

    fn in_stage<'a>(&self, rollout: &'a Rollout, series: &Series) -> Option<&'a StageNow> {
        let now = self.state.models.get(&rollout.model)?.generation;
        let stage = rollout.stage.as_ref()?;
        (stage.generation <= series.generation && series.generation <= now).then_some(stage)
    }

    fn is_on_trial(&self, rollout: &Rollout, series: &Series) -> bool {
        let mode = rollout.stage_plan().map(|s| &s.mode);
        let role = match mode {
            Some(StageMode::Shadow { .. }) => Role::Shadow,
            Some(
                StageMode::CanaryByRequest { .. }
                | StageMode::CanaryByNode { .. }
                | StageMode::Full,
            ) => Role::Candidate,
            None => return false,
        };
        series.role == role
            && series.version == rollout.candidate
            && self.in_stage(rollout, series).is_some()
    }

    fn is_baseline(&self, rollout: &Rollout, node: &NodeId, series: &Series) -> bool {
        let stable = self.state.models.get(&rollout.model).and_then(|m| m.stable);
        let (Some(stage), Some(plan)) = (self.in_stage(rollout, series), rollout.stage_plan())
        else {
            return false;
        };
        let same_kind = match &plan.mode {
            StageMode::CanaryByNode { selector, .. } => {
                let in_cohort = stage.cohort.as_ref().is_some_and(|c| c.contains(node));
                !in_cohort && self.labels(node).is_some_and(|l| matches(l, selector))
            }
            StageMode::Shadow { .. } | StageMode::CanaryByRequest { .. } | StageMode::Full => {
                self.may_try(node)
            }
        };
        same_kind && series.role == Role::Stable && Some(series.version) == stable
    }

    /// A trial of the stage that a rollout is in.
    pub(crate) fn new_trial(&self, rollout: &Rollout, now: Timestamp) -> Trial {
        let mode = rollout.stage_plan().map(|s| &s.mode);
        let has_stable = self
            .state
            .models
            .get(&rollout.model)
            .is_some_and(|m| m.stable.is_some());
        let recorded = recorded_findings(rollout);
        let baseline = if !has_stable {
            Baseline::Nothing
        } else if self.answers_everything(rollout) {
            Baseline::Remembered(&recorded)
        } else {
            Baseline::Concurrent
        };
        let policy = &rollout.plan.policy;
        let shadow = matches!(mode, Some(StageMode::Shadow { .. }));
        let rules = rules(policy, &baseline, shadow);
        let mut watch = Watch::new(policy, rules, shadow);
        let version = self.registered(&rollout.model, rollout.candidate.version);
        if let Ok((_, version)) = version {
            let features = version.manifest.metadata.drift.iter();
            watch.trained_on = features
                .map(|(name, feature)| (name.clone(), feature.counts.clone()))
                .collect();
        }
        Trial::new(watch, now)
    }

    /// What a live rollout is judged on now.
    pub(crate) fn evidence(&self, rollout: &Rollout) -> Evidence<'_> {
        let trial = self.trials.get(&rollout.id);
        let loads = self.loads(rollout);
        let opened = trial.map(|trial| trial.breakers.clone());
        Evidence {
            loads,
            breakers: Breakers {
                nodes: loads.nodes,
                opened: opened.unwrap_or_default(),
            },
            watch: trial
                .filter(|_| rollout.stage.is_some())
                .map(|trial| Cow::Borrowed(&trial.watch)),
        }
    }

    /// What the judge says of a live rollout now.
    pub(crate) fn judge_now(&self, rollout: &Rollout) -> Verdict {
        judge(&rollout.plan.policy, &self.evidence(rollout))
    }

    /// Whether no connected node of the stage's kind still answers with stable.
    fn answers_everything(&self, rollout: &Rollout) -> bool {
        let (Some(stage), Some(now)) = (rollout.stage_plan(), &rollout.stage) else {
            return false;
        };
        match &stage.mode {
            StageMode::Shadow { .. } => false,
            StageMode::CanaryByRequest { share } => *share == Share::ALL,
            StageMode::Full => true,
            StageMode::CanaryByNode { selector, .. } => {
                let in_cohort = |node| now.cohort.as_ref().is_some_and(|c| c.contains(node));
                !self
                    .eligible(&rollout.model)
                    .any(|(node, presence)| matches(&presence.labels, selector) && !in_cohort(node))
            }
        }
    }

    /// How many nodes gave up on loading the candidate. A node that failed and left still counts.
    fn loads(&self, rollout: &Rollout) -> Loads {
        let mut loads = Loads::default();
        for (node, presence) in &self.fleet.nodes {
            if !presence.hosts(&rollout.model)
                || !self.may_try(node)
                || rollout.barred.contains(node)
            {
                continue;
            }
            let failed = matches!(
                presence.ready_state(&rollout.model, rollout.candidate),
                Some(ReadyState::Failed {
                    retrying: false,
                    ..
                })
            );
            loads.nodes += u64::from(failed || presence.connection.is_some());
            loads.failed += u64::from(failed);
        }
        loads
    }
}

/// What the verdicts that let earlier stages pass said of stable.
fn recorded_findings(rollout: &Rollout) -> Vec<Finding> {
    let verdicts = rollout
        .history
        .iter()
        .filter_map(|entry| match &entry.step {
            Step::StageEntered { verdict, .. } => verdict.as_ref(),
            Step::Started
            | Step::Paused
            | Step::Resumed
            | Step::Approved { .. }
            | Step::Barred { .. }
            | Step::Withdrawn { .. }
            | Step::Settled
            | Step::Promoted { .. }
            | Step::Finished { .. } => None,
        });
    let findings = verdicts.flat_map(|verdict| verdict.findings.iter());
    findings.filter(|f| f.stable.is_some()).cloned().collect()
}

/// Whether a series can be what one node saw in one window. A node must not be able to shift a
/// verdict by numbers that cannot be.
fn is_plausible(series: &Series) -> bool {
    let possible = |counts: &Counts| {
        let quality = &counts.quality;
        let labelled = quality.labelled.values();
        counts.requests <= REQUESTS_PER_WINDOW_MAX
            && counts.shed <= REQUESTS_PER_WINDOW_MAX
            && counts.fallbacks <= REQUESTS_PER_WINDOW_MAX
            && counts.errors.saturating_add(counts.timeouts) <= counts.requests
            && counts.failed_keys <= counts.failures()
            && counts.latency.count() <= counts.requests
            && counts.compared <= counts.requests
            && counts.agreed <= counts.compared
            && labelled
                .clone()
                .all(|class| class.correct <= class.predicted.min(class.actual))
    };
    let segments = &series.segments;
    possible(&series.counts)
        && segments.iter().all(|segment| {
            possible(&segment.counts) && segment.counts.requests <= series.counts.requests
        })
}
