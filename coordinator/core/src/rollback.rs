//! Withdrawals and their receipts.
//!
//! A withdrawal is decided, broadcast, and made durable, in this order. From then on every
//! node of the fleet that hosts the model owes a receipt: its word that it serves the
//! withdrawal's generation or a newer one, without the withdrawn version. A node that stays
//! silent is *fenced* once every lease it may hold is over; it is never called a success.
//! [`receipts`] keeps who has answered, [`propagation`] makes figures of it.
//!
//! Where a node may serve the withdrawn version by right there is no lease to run out: it was
//! stable or the version before, and the node's newest receipt does not prove that it has
//! heard of anything else since (`state::rights`). Such a node stays silent, and the rollback
//! unsettled, until it returns or is revoked.
//!
//! Receipts are memory until all is settled, then a record. After a restart they come again
//! with every agent's `Hello`, and fences are counted from the restart: nobody was answered
//! since, and the wall clock of the process that decided may have been another one. Who owes
//! a receipt is a matter of the journal's order, for the same reason.

mod propagation;
mod receipts;

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::limits::{LEASE_MAX, lease_bound};
use rollcall_shared::report::Receipt;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal, Urgent};
use crate::fleet::Presence;
use crate::input::Actor;
use crate::record::{Cause, Event, Propagation};
use crate::roles::actor_name;
use crate::state::{Phase, Rollout};

pub(crate) use self::propagation::{Arrival, Tally, millis};
pub(crate) use self::receipts::{Answer, Receipts};

/// What is to be taken away.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) model: ModelName,
    pub(crate) rollout: RolloutId,
    pub(crate) withdrawn: VersionRef,
    /// What should serve instead if it is stable that goes; see `Model::serving_without`.
    pub(crate) preferred: Option<VersionRef>,
}

impl Target {
    pub(crate) fn candidate_of(rollout: &Rollout) -> Self {
        Self {
            model: rollout.model.clone(),
            rollout: rollout.id,
            withdrawn: rollout.candidate,
            preferred: None,
        }
    }
}

/// A withdrawal that is decided, and no more.
#[derive(Clone, Debug)]
pub(crate) struct Aftermath {
    withdrawal: Withdrawal,
    decided_at: Timestamp,
}

impl Coordinator {
    /// Withdraws the running candidate, or else the stable version in favour of the one before it.
    pub(crate) fn on_rollback(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        model: &ModelName,
        version: Option<Version>,
        reason: String,
    ) -> Result<Done, Refusal> {
        let target = self.target(model, version)?;
        let cause = Cause::Operator {
            actor: actor_name(actor),
            reason: crate::registry::cut(reason),
        };
        Ok(self.withdraw(turn, actor.clone(), target, cause))
    }

    /// What a rollback takes away now.
    pub(crate) fn target(
        &self,
        model: &ModelName,
        version: Option<Version>,
    ) -> Result<Target, Refusal> {
        match (self.state.live_rollout(model), version) {
            (Some(rollout), None) => Ok(Target::candidate_of(rollout)),
            (Some(rollout), Some(version)) if rollout.candidate.version == version => {
                Ok(Target::candidate_of(rollout))
            }
            (Some(_) | None, version) => self.stable_target(model, version),
        }
    }

    /// What the fleet is told to take a version away.
    pub(crate) fn withdrawal_of(&self, target: Target) -> Withdrawal {
        let entry = self.state.models.get(&target.model);
        Withdrawal {
            generation: self.state.next_generation(&target.model),
            serving: entry.and_then(|m| m.serving_without(target.withdrawn, target.preferred)),
            model: target.model,
            rollout: target.rollout,
            withdrawn: target.withdrawn,
        }
    }

    /// The stable version as what shall go, if it may.
    fn stable_target(
        &self,
        model: &ModelName,
        version: Option<Version>,
    ) -> Result<Target, Refusal> {
        let Some(entry) = self.state.models.get(model) else {
            return Err(Refusal::NotFound(format!("there is no model {model}")));
        };
        let refused = |why: String| Err(Refusal::Conflict(why));
        let Some(stable) = entry.stable else {
            return refused(format!(
                "{model} runs no rollout and has no stable version: nothing to roll back"
            ));
        };
        if let Some(version) = version.filter(|version| *version != stable.version) {
            return refused(format!(
                "{model}@{version} is neither on trial nor stable: see `rollcall model show {model}`"
            ));
        }
        if entry.serving_without(stable, None).is_none() {
            return refused(format!(
                "{model} runs no rollout, and there is no version before {} to go back to: start a \
                 direct rollout of a good version",
                stable.version
            ));
        }
        let newest = self
            .state
            .rollouts
            .values()
            .rev()
            .find(|r| r.model == *model);
        if let Some(withdrawn) = newest.filter(|r| version.is_none() && r.rollback().is_some()) {
            return refused(format!(
                "{} ({}@{}) is withdrawn already, and {model} runs no rollout. To take the stable \
                 version back as well, say `--version {}`",
                withdrawn.id, model, withdrawn.candidate.version, stable.version
            ));
        }
        let rollout = self.promoted_by(model, stable).ok_or_else(|| {
            Refusal::Conflict(format!(
                "no rollout of {model} made {} stable",
                stable.version
            ))
        })?;
        Ok(Target {
            model: model.clone(),
            rollout,
            withdrawn: stable,
            preferred: None,
        })
    }

    /// The rollout by which a version became stable.
    pub(crate) fn promoted_by(&self, model: &ModelName, stable: VersionRef) -> Option<RolloutId> {
        let mut newest_first = self.state.rollouts.values().rev();
        newest_first
            .find(|r| r.model == *model && r.candidate == stable && r.phase == Phase::Promoted)
            .map(|r| r.id)
    }

    /// Takes a version away, for good.
    pub(crate) fn withdraw(
        &mut self,
        turn: &mut Turn,
        actor: Actor,
        target: Target,
        cause: Cause,
    ) -> Done {
        let withdrawal = self.withdrawal_of(target);
        turn.broadcast(Urgent::Withdraw(withdrawal.clone()));
        let event = Event::Withdrawn {
            withdrawal: withdrawal.clone(),
            cause,
        };
        self.record(turn, actor, event);
        self.trials.remove(&withdrawal.rollout);
        self.end_trial_of_stable(turn, &withdrawal.model);
        let done = Done::Withdrawn {
            rollout: withdrawal.rollout,
            generation: withdrawal.generation,
        };
        self.aftermath.push(Aftermath {
            withdrawal,
            decided_at: turn.now,
        });
        done
    }

    /// What a withdrawal changes in what we know of every node. In a large fleet that
    /// takes longer than the broadcast itself, so it is done when that is out, with the
    /// next input: nothing is heard of any node in between.
    pub(crate) fn catch_up(&mut self, turn: &mut Turn) {
        for decided in std::mem::take(&mut self.aftermath) {
            let Aftermath {
                withdrawal,
                decided_at,
            } = decided;
            let model = &withdrawal.model;
            self.forget_unassigned(model);
            self.fleet.note_broadcast(model, withdrawal.generation);
            self.rollbacks
                .retain(|_, receipts| !receipts.is_settled() || receipts.model() != model);
            self.expect_receipts(withdrawal.rollout, decided_at);
            self.settle_rollbacks(turn);
        }
    }

    /// After a restart: everything not settled is waited for again.
    pub(crate) fn resume_rollbacks(&mut self, now: Timestamp) {
        let unsettled: Vec<RolloutId> = self
            .state
            .rollouts
            .values()
            .filter(|r| r.rollback().is_some_and(|b| b.propagation.is_none()))
            .map(|r| r.id)
            .collect();
        for rollout in unsettled {
            self.expect_receipts(rollout, now);
        }
    }

    /// Begins to wait for the receipts of a decided withdrawal. Before `now` this process
    /// renewed no lease of the withdrawn version but those in `Presence::answered_at`.
    fn expect_receipts(&mut self, id: RolloutId, now: Timestamp) {
        let Some(rollout) = self.state.rollouts.get(&id) else {
            return;
        };
        let Some(rollback) = rollout.rollback() else {
            return;
        };
        let owing = self.owing(&rollback.withdrawal, rollback.seq, now);
        let receipts = Receipts::new(rollback, now, owing);
        self.rollbacks.insert(id, receipts);
    }

    /// The nodes that owe a receipt of a withdrawal that was decided in record `seq`, and by
    /// when each is fenced if it hears nothing more; `None`: no lease stops it.
    pub(crate) fn owing(
        &self,
        withdrawal: &Withdrawal,
        seq: u64,
        now: Timestamp,
    ) -> BTreeMap<NodeId, Option<Timestamp>> {
        let bound = lease_bound(self.longest_lease(withdrawal));
        let fenced_at = |presence: Option<&Presence>| {
            let answered_at = presence.map_or(now, |p| p.answered_at);
            (!self.may_linger(withdrawal, presence)).then_some(answered_at.min(now) + bound)
        };
        let mut owing = BTreeMap::new();
        for (node, entry) in &self.state.nodes {
            let presence = self.fleet.nodes.get(node);
            let hosts = presence.is_none_or(|p| p.hosts(&withdrawal.model));
            if !entry.revoked && entry.enrolled_seq < seq && hosts {
                owing.insert(node.clone(), fenced_at(presence));
            }
        }
        owing
    }

    /// The longest lease under which a node may use the withdrawn version: it may have been
    /// on trial before, let go, and a node that did not hear of that still holds the older.
    fn longest_lease(&self, withdrawal: &Withdrawal) -> Duration {
        let trials = self.state.rollouts.values();
        trials
            .filter(|r| r.model == withdrawal.model && r.candidate == withdrawal.withdrawn)
            .map(|r| r.plan.lease)
            .max()
            .unwrap_or(LEASE_MAX)
    }

    /// Whether a node may serve the withdrawn version by right.
    fn may_linger(&self, withdrawal: &Withdrawal, presence: Option<&Presence>) -> bool {
        let receipt = presence.and_then(|p| p.receipts.get(&withdrawal.model));
        let receipted = receipt.map(|r| r.generation).unwrap_or_default();
        let model = self.state.models.get(&withdrawal.model);
        model.is_some_and(|m| m.rights.may_linger(withdrawal.withdrawn.version, receipted))
    }

    /// A withdrawal may make the candidate of a live rollout stable (it was stable before).
    /// Then there is nothing left to try.
    fn end_trial_of_stable(&mut self, turn: &mut Turn, model: &ModelName) {
        let stable = self.state.models.get(model).and_then(|m| m.stable);
        let live = self.state.live_rollout(model);
        let Some(rollout) = live.filter(|r| Some(r.candidate) == stable) else {
            return;
        };
        let (id, verdict) = (rollout.id, self.judge_now(rollout));
        self.finish(turn, id, verdict);
    }

    pub(crate) fn note_rollback_receipt(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        receipt: &Receipt,
    ) {
        for receipts in self.rollbacks.values_mut() {
            if let Some(after) = receipts.on_receipt(node, receipt, turn.now) {
                let tally = self.tallies.entry(receipt.model.clone()).or_default();
                tally.receipts.record(after);
            }
        }
        self.settle_rollbacks(turn);
    }

    /// Records every withdrawal for which nobody is waited for any longer.
    pub(crate) fn settle_rollbacks(&mut self, turn: &mut Turn) {
        let now = turn.now;
        let due: Vec<(RolloutId, Propagation)> = self
            .rollbacks
            .iter_mut()
            .filter(|(_, receipts)| receipts.may_settle(now))
            .map(|(id, receipts)| {
                receipts.settle();
                let propagation = receipts.propagation(now).recorded();
                let tally = self.tallies.entry(receipts.model().clone()).or_default();
                tally.fenced += propagation.fenced.len() as u64;
                (*id, propagation)
            })
            .collect();
        for (rollout, propagation) in due {
            let event = Event::RollbackSettled {
                rollout,
                propagation,
            };
            self.record(turn, Actor::System, event);
        }
    }
}

#[cfg(test)]
mod tests;
