//! What people ask of a rollout: start, pause, resume, advance.

use rollcall_shared::ids::RolloutId;
use rollcall_shared::limits::WITHDRAWALS_PER_MODEL_MAX;
use rollcall_shared::plan::{Plan, Strategy};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal};
use crate::input::Actor;
use crate::record::Event;
use crate::rollout::Passage;
use crate::rollout::gates::missing_approvals;
use crate::state::{Model, RegisteredVersion};
use crate::view::WaitingOn;

impl Coordinator {
    pub(crate) fn on_start(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        plan: Plan,
        dry_run: bool,
    ) -> Result<Done, Refusal> {
        let (model, version) = self.check_start(&plan)?;
        if dry_run {
            return Ok(Done::Preview(self.preview(model, &plan)));
        }
        let (stable, candidate) = (model.stable, version.version);
        let rollout = RolloutId(self.state.next_rollout);
        turn.changed(&plan.model);
        let event = Event::RolloutStarted {
            rollout,
            model: plan.model.clone(),
            candidate,
            stable,
            generation: self.state.next_generation(&plan.model),
            plan,
        };
        self.record(turn, actor.clone(), event);
        if let Some(begun) = self.state.rollouts.get(&rollout) {
            let trial = self.new_trial(begun, turn.now);
            self.trials.insert(rollout, trial);
        }
        self.step(turn, rollout);
        Ok(Done::Started(rollout))
    }

    /// Whether a plan may start now.
    fn check_start(&self, plan: &Plan) -> Result<(&Model, &RegisteredVersion), Refusal> {
        let (model, version) = self.registered(&plan.model, plan.candidate)?;
        let name = format!("{}@{}", plan.model, plan.candidate);
        let refusal = if model.is_withdrawn(plan.candidate) {
            format!("{name} was withdrawn, and a withdrawal is for good: push a new version number")
        } else if version.archived {
            format!("{name} is archived: restore it first")
        } else if model.stable == Some(version.version) {
            format!("{name} is stable already")
        } else if let Some(live) = model.rollout {
            format!(
                "{} is on rollout {live}: wait for it or roll it back",
                plan.model
            )
        } else if model.withdrawals.len() >= WITHDRAWALS_PER_MODEL_MAX {
            format!(
                "{} has {WITHDRAWALS_PER_MODEL_MAX} withdrawals, more cannot be remembered: go on \
                 under another model name",
                plan.model
            )
        } else if model.stable.is_none() && plan.strategy != Strategy::Direct {
            format!(
                "{} has no stable version to compare with: its first version needs \
                 strategy = \"direct\"",
                plan.model
            )
        } else if plan.strategy == Strategy::Aa && !is_a_copy(model, version) {
            format!(
                "strategy = \"aa\" compares stable with itself: push the files of stable once more \
                 under a new version number; those of {name} differ"
            )
        } else {
            return Ok((model, version));
        };
        Err(Refusal::Conflict(refusal))
    }

    pub(crate) fn on_pause(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        rollout: RolloutId,
    ) -> Result<Done, Refusal> {
        if !self.live(rollout)?.is_paused() {
            self.record(turn, actor.clone(), Event::RolloutPaused { rollout });
        }
        Ok(Done::Done)
    }

    pub(crate) fn on_resume(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        rollout: RolloutId,
    ) -> Result<Done, Refusal> {
        if self.live(rollout)?.is_paused() {
            self.record(turn, actor.clone(), Event::RolloutResumed { rollout });
            self.step(turn, rollout);
        }
        Ok(Done::Done)
    }

    /// Does not wait for hold, samples or nodes; never past an approval, a pause or a failure.
    pub(crate) fn on_advance(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        id: RolloutId,
    ) -> Result<Done, Refusal> {
        let rollout = self.live(id)?;
        if rollout.is_paused() {
            return Err(Refusal::Conflict(format!(
                "{id} is paused: resume it first"
            )));
        }
        let missing: Vec<String> = missing_approvals(rollout)
            .filter_map(|waiting| match waiting {
                WaitingOn::Approval { role } => Some(role),
                WaitingOn::Hold { .. }
                | WaitingOn::Nodes { .. }
                | WaitingOn::NoNodes
                | WaitingOn::Samples { .. }
                | WaitingOn::Evidence { .. }
                | WaitingOn::Paused
                | WaitingOn::CandidateFailed { .. } => None,
            })
            .collect();
        if !missing.is_empty() {
            return Err(Refusal::Conflict(format!(
                "the next stage of {id} needs the approval of {}",
                missing.join(", ")
            )));
        }
        if rollout.next_stage().is_some() && self.eligible(&rollout.model).next().is_none() {
            return Err(Refusal::Conflict(format!(
                "no node that could take part in {id} is connected"
            )));
        }
        let Some(verdict) = self.judge_or_withdraw(turn, id) else {
            return Err(Refusal::Conflict(format!(
                "the judge found a failure: {id} is withdrawn"
            )));
        };
        let passage = Passage {
            actor: actor.clone(),
            verdict,
            forced: true,
        };
        self.go_on(turn, id, passage);
        Ok(Done::Done)
    }
}

/// Whether a version has the very files of stable.
fn is_a_copy(model: &Model, version: &RegisteredVersion) -> bool {
    let stable = model.stable.and_then(|v| model.versions.get(&v.version));
    stable.is_some_and(|stable| stable.manifest.files == version.manifest.files)
}

#[cfg(test)]
mod tests;
