//! The trip of one candidate: staging, then the stages of its plan, then promoted or let go;
//! withdrawn from any live state.
//!
//! [`Coordinator::step`] is the whole machine. It judges first, in every live state, paused
//! and waiting for approval included: a failure withdraws at once. Only then does it ask what
//! the next stage waits for ([`gates`]), and goes on when the answer is nothing. It runs every
//! `check_every`, at the end of a hold, and when something happens that a gate waits for.
//!
//! A node that alone is to blame loses the candidate, and the stage goes on without it, with
//! fresh evidence. What is decided stands in the journal behind what it was decided on.
//!
//! What is durable of a rollout is [`crate::state::Rollout`]; a [`Trial`] is the evidence of
//! its current stage, which a restart empties: the stage then needs fresh numbers, its hold
//! goes on.

mod commands;
mod evidence;
pub(crate) mod gates;
pub(crate) mod outcomes;
mod preview;
mod trial;

use std::time::Duration;

use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::plan::{StageMode, Strategy};
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::{Outcome, Verdict};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::Refusal;
use crate::input::Actor;
use crate::record::{Cause, Event};
use crate::rollback::Target;
pub(crate) use crate::rollout::trial::Trial;
use crate::state::{Rollout, StageNow};

/// Thousands of nodes get ready within seconds; a rollout looks at them together. A look
/// goes through all nodes, so that a large fleet is looked at more rarely: one of 10,000
/// nodes every .2 s.
const NUDGES_TOGETHER: Duration = Duration::from_millis(10);
const NUDGES_TOGETHER_PER_NODE: Duration = Duration::from_micros(20);

/// Who goes on to the next stage, and whether evidence and hold were waited for.
struct Passage {
    actor: Actor,
    verdict: Verdict,
    forced: bool,
}

impl Coordinator {
    /// After a restart: every live rollout is looked at as soon as time passes.
    pub(crate) fn resume_trials(&mut self, now: Timestamp) {
        let live = self.state.live_rollouts();
        self.trials = live.map(|r| (r.id, self.new_trial(r, now))).collect();
    }

    /// Judges a live rollout, and goes on if nothing keeps it.
    pub(crate) fn step(&mut self, turn: &mut Turn, id: RolloutId) {
        let Some(verdict) = self.judge_or_withdraw(turn, id) else {
            return;
        };
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        if self.waits(rollout, &verdict, turn.now).next().is_none() {
            let passage = Passage {
                actor: Actor::System,
                verdict,
                forced: false,
            };
            self.go_on(turn, id, passage);
        }
    }

    /// The verdict now; `None` when the rollout is over, because of it or before.
    fn judge_or_withdraw(&mut self, turn: &mut Turn, id: RolloutId) -> Option<Verdict> {
        if let Some(trial) = self.trials.get_mut(&id) {
            trial.end_interval(turn.now);
        }
        let rollout = self.state.rollouts.get(&id).filter(|r| r.is_live())?;
        let mut verdict = self.judge_now(rollout);
        let next_check = turn.now + rollout.plan.policy.check_every;
        let hold_end = hold_end(rollout).filter(|end| *end > turn.now);
        // An A/A rollout compares a version with itself: this is the judge's error.
        if verdict.outcome == Outcome::Fail && rollout.plan.strategy == Strategy::Aa {
            self.record_evidence(turn, id);
            self.finish(turn, id, verdict);
            return None;
        }
        if verdict.outcome == Outcome::Fail {
            let stage = rollout.stage_plan().map_or("staging", |s| s.name.as_str());
            let stage = stage.to_owned();
            let target = Target::candidate_of(rollout);
            self.record_evidence(turn, id);
            self.withdraw(turn, Actor::System, target, Cause::Judge { stage, verdict });
            return None;
        }
        if let Some(node) = verdict.blamed.clone() {
            self.bar(turn, id, node, verdict);
            verdict = self.judge_now(self.state.rollouts.get(&id)?);
        }
        if let Some(trial) = self.trials.get_mut(&id) {
            trial.verdict = Some(verdict.clone());
            trial.stepped_at = turn.now;
            trial.wake_at = hold_end.map_or(next_check, |end| end.min(next_check));
        }
        Some(verdict)
    }

    /// Something happened that this model's rollout may wait for: looks at it now, or soon
    /// when it was looked at a moment ago.
    pub(crate) fn nudge(&mut self, turn: &mut Turn, model: &ModelName) {
        let Some(id) = self.state.live_rollout(model).map(|r| r.id) else {
            return;
        };
        let Some(trial) = self.trials.get_mut(&id) else {
            return;
        };
        let nodes = u32::try_from(self.fleet.nodes.len()).unwrap_or(u32::MAX);
        let soon = trial.stepped_at + NUDGES_TOGETHER.max(NUDGES_TOGETHER_PER_NODE * nodes);
        if soon <= turn.now {
            self.step(turn, id);
        } else {
            trial.wake_at = trial.wake_at.min(soon);
        }
    }

    pub(crate) fn nudge_all(&mut self, turn: &mut Turn) {
        let models: Vec<ModelName> = self
            .state
            .live_rollouts()
            .map(|r| r.model.clone())
            .collect();
        for model in models {
            self.nudge(turn, &model);
        }
    }

    /// Enters the next stage, or ends the rollout after the last.
    fn go_on(&mut self, turn: &mut Turn, id: RolloutId, passage: Passage) {
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        let model = rollout.model.clone();
        let generation = self.state.next_generation(&model);
        let next = rollout.next_index();
        let verdict = passage.verdict;
        let event = if let Some(stage) = rollout.plan.stages.get(next) {
            Event::StageEntered {
                rollout: id,
                stage: next,
                cohort: self.cohort_for(rollout, stage),
                generation,
                verdict: rollout.stage.is_some().then_some(verdict),
                forced: passage.forced,
            }
        } else if rollout.stage_plan().map(|s| &s.mode) == Some(&StageMode::Full) {
            Event::Promoted {
                rollout: id,
                generation,
                verdict,
            }
        } else {
            Event::RolloutFinished {
                rollout: id,
                generation,
                verdict,
            }
        };
        self.record_evidence(turn, id);
        self.record(turn, passage.actor, event);
        turn.changed(&model);
        self.forget_unassigned(&model);
        self.trials.remove(&id);
        let rollout = self.state.rollouts.get(&id).filter(|r| r.is_live());
        if let Some(rollout) = rollout {
            let mut trial = self.new_trial(rollout, turn.now);
            let next_check = turn.now + rollout.plan.policy.check_every;
            trial.wake_at = hold_end(rollout).map_or(next_check, |end| end.min(next_check));
            self.trials.insert(id, trial);
        }
    }

    /// Puts down what the decision that follows rests on, so that anybody can recompute it.
    fn record_evidence(&mut self, turn: &mut Turn, id: RolloutId) {
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        if rollout.stage.is_none() {
            return; // only loading was judged: its counts are in the verdict
        }
        let evidence = Box::new(self.evidence(rollout).abridged());
        let rollout = id;
        self.record(turn, Actor::System, Event::Judged { rollout, evidence });
    }

    /// Takes the candidate from one node, for this rollout. What was seen so far is mixed with
    /// that node's: evidence starts again.
    fn bar(&mut self, turn: &mut Turn, id: RolloutId, node: NodeId, verdict: Verdict) {
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        let model = rollout.model.clone();
        let generation = self.state.next_generation(&model);
        self.record_evidence(turn, id);
        let event = Event::CandidateBarred {
            rollout: id,
            node,
            generation,
            verdict,
        };
        self.record(turn, Actor::System, event);
        turn.changed(&model);
        if let Some(rollout) = self.state.rollouts.get(&id) {
            let trial = self.new_trial(rollout, turn.now);
            self.trials.insert(id, trial);
        }
    }

    /// Ends a rollout, and nothing is withdrawn.
    pub(crate) fn finish(&mut self, turn: &mut Turn, id: RolloutId, verdict: Verdict) {
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        let model = rollout.model.clone();
        let event = Event::RolloutFinished {
            rollout: id,
            generation: self.state.next_generation(&model),
            verdict,
        };
        self.record(turn, Actor::System, event);
        turn.changed(&model);
        self.forget_unassigned(&model);
        self.trials.remove(&id);
    }

    /// A node's breaker opened: told at once, outside of reports.
    pub(crate) fn on_breaker(&mut self, turn: &mut Turn, node: &NodeId, model: &ModelName) {
        let Some(id) = self.state.live_rollout(model).map(|r| r.id) else {
            return;
        };
        if let Some(trial) = self.trials.get_mut(&id) {
            trial.breakers.insert(node.clone());
            self.step(turn, id);
        }
    }

    /// A live rollout by its id.
    pub(crate) fn live(&self, id: RolloutId) -> Result<&Rollout, Refusal> {
        let rollout = self
            .state
            .rollouts
            .get(&id)
            .ok_or_else(|| Refusal::NotFound(format!("there is no rollout {id}")))?;
        if rollout.is_live() {
            Ok(rollout)
        } else {
            Err(Refusal::Conflict(format!("rollout {id} is over")))
        }
    }
}

/// When the current stage has lasted long enough.
pub(crate) fn hold_end(rollout: &Rollout) -> Option<Timestamp> {
    let since = rollout.stage.as_ref().map(|now: &StageNow| now.since)?;
    Some(since + rollout.stage_plan()?.hold)
}

#[cfg(test)]
mod tests;
