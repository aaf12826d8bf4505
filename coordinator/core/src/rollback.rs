//! Withdrawals and their receipts.
//!
//! A withdrawal is decided, broadcast, and made durable, in this order. From then on every
//! node of the fleet that hosts the model owes a receipt: its word that it serves the
//! withdrawal's generation or a newer one, without the withdrawn version. A node that stays
//! silent is *fenced* once every lease it may hold is over; it is never called a success.
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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::limits::{LEASE_MAX, lease_bound};
use rollcall_shared::report::Receipt;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal};
use crate::fleet::Presence;
use crate::input::Actor;
use crate::record::{Cause, Event, Propagation};
use crate::roles::actor_name;
use crate::state::{Phase, Rollback, Rollout};

/// What is to be taken away.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) model: ModelName,
    pub(crate) rollout: RolloutId,
    pub(crate) withdrawn: VersionRef,
    /// What should serve instead if it is stable that goes; see `Model::serving_without`.
    pub(crate) preferred: Option<VersionRef>,
}

/// Who has answered a withdrawal.
#[derive(Clone, Debug)]
pub(crate) struct Receipts {
    withdrawal: Withdrawal,
    decided_at: Timestamp,
    /// Since when this process waits.
    waits_since: Timestamp,
    answers: BTreeMap<NodeId, Answer>,
    /// Nodes without a receipt, by when they are fenced; `MAX`: never.
    pending: BTreeSet<(Timestamp, NodeId)>,
    settled: bool,
}

/// What is known of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It serves what it should.
    Receipt { at: Timestamp },
    /// Nothing yet. From `fenced_at` on no lease lets it go on; `None`: it needs no lease.
    Pending { fenced_at: Option<Timestamp> },
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

impl Receipts {
    fn new(
        rollback: &Rollback,
        waits_since: Timestamp,
        expected: BTreeMap<NodeId, Option<Timestamp>>,
    ) -> Self {
        Self {
            withdrawal: rollback.withdrawal.clone(),
            decided_at: rollback.decided_at,
            waits_since,
            pending: expected
                .iter()
                .map(|(node, fenced_at)| (fenced_at.unwrap_or(Timestamp::MAX), node.clone()))
                .collect(),
            answers: expected
                .into_iter()
                .map(|(node, fenced_at)| (node, Answer::Pending { fenced_at }))
                .collect(),
            settled: false,
        }
    }

    pub(crate) const fn answers(&self) -> &BTreeMap<NodeId, Answer> {
        &self.answers
    }

    /// When nobody can be waited for any longer.
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        let last = self.pending.last().map(|(fenced_at, _)| *fenced_at);
        last.or(Some(self.waits_since))
            .filter(|due| !self.settled && *due < Timestamp::MAX)
    }

    fn on_receipt(&mut self, node: &NodeId, receipt: &Receipt, now: Timestamp) {
        let serves_withdrawn = receipt
            .serving
            .iter()
            .any(|serving| serving.version == self.withdrawal.withdrawn);
        let counts = receipt.model == self.withdrawal.model
            && receipt.generation >= self.withdrawal.generation
            && !serves_withdrawn;
        let answer = self.answers.get_mut(node).filter(|_| counts);
        if let Some(answer) = answer
            && let Answer::Pending { fenced_at } = *answer
        {
            *answer = Answer::Receipt { at: now };
            let until = fenced_at.unwrap_or(Timestamp::MAX);
            self.pending.remove(&(until, node.clone()));
        }
    }

    /// The node left the fleet: it owes nothing.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.answers.remove(node);
        self.pending.retain(|(_, pending)| pending != node);
    }

    fn may_settle(&self, now: Timestamp) -> bool {
        let last = self.pending.last();
        !self.settled && last.is_none_or(|(fenced_at, _)| *fenced_at <= now)
    }

    /// How far it has spread.
    pub(crate) fn propagation(&self, now: Timestamp) -> Propagation {
        let mut propagation = Propagation::default();
        for (node, answer) in &self.answers {
            match answer {
                Answer::Receipt { at } => {
                    let after = millis(at.since(self.decided_at));
                    propagation.receipts_ms.insert(node.clone(), after);
                }
                Answer::Pending {
                    fenced_at: Some(fenced_at),
                } if *fenced_at <= now => {
                    propagation.fenced.insert(node.clone(), *fenced_at);
                }
                Answer::Pending { .. } => {
                    propagation.silent.insert(node.clone());
                }
            }
        }
        let mut ordered: Vec<(&NodeId, f64)> = propagation
            .receipts_ms
            .iter()
            .map(|(node, after)| (node, *after))
            .collect();
        ordered.sort_by(|a, b| a.1.total_cmp(&b.1));
        propagation.received = ordered.len() as u64;
        propagation.p50_ms = percentile(&ordered, 50);
        propagation.p99_ms = percentile(&ordered, 99);
        propagation.max_ms = ordered.last().map(|(_, after)| *after);
        propagation.last_node = ordered.last().map(|(node, _)| (*node).clone());
        propagation
    }
}

/// Nearest rank.
fn percentile(ordered: &[(&NodeId, f64)], percent: usize) -> Option<f64> {
    let rank = (ordered.len() * percent).div_ceil(100).max(1);
    ordered.get(rank - 1).map(|(_, after)| *after)
}

/// Milliseconds to a microsecond.
fn millis(duration: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 microseconds")]
    let micros = duration.as_micros() as f64;
    micros / 1e3
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
        let target = match (self.state.live_rollout(model), version) {
            (Some(rollout), None) => Target::candidate_of(rollout),
            (Some(rollout), Some(version)) if rollout.candidate.version == version => {
                Target::candidate_of(rollout)
            }
            (Some(_) | None, version) => self.stable_target(model, version)?,
        };
        let cause = Cause::Operator {
            actor: actor_name(actor),
            reason: crate::registry::cut(reason),
        };
        Ok(self.withdraw(turn, actor.clone(), target, cause))
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
        let entry = self.state.models.get(&target.model);
        let withdrawal = Withdrawal {
            generation: self.state.next_generation(&target.model),
            model: target.model,
            rollout: target.rollout,
            withdrawn: target.withdrawn,
            serving: entry.and_then(|m| m.serving_without(target.withdrawn, target.preferred)),
        };
        turn.broadcast(withdrawal.clone());
        let event = Event::Withdrawn {
            withdrawal: withdrawal.clone(),
            cause,
        };
        self.record(turn, actor, event);
        self.trials.remove(&withdrawal.rollout);
        let model = &withdrawal.model;
        self.forget_unassigned(model);
        self.fleet.note_broadcast(model, withdrawal.generation);
        self.rollbacks
            .retain(|_, receipts| !receipts.settled || receipts.withdrawal.model != *model);
        self.expect_receipts(withdrawal.rollout, turn.now);
        self.settle_rollbacks(turn);
        self.end_trial_of_stable(turn, model);
        Done::Withdrawn {
            rollout: withdrawal.rollout,
            generation: withdrawal.generation,
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
        let withdrawal = &rollback.withdrawal;
        let bound = lease_bound(self.longest_lease(withdrawal));
        let fenced_at = |node: &NodeId| {
            let presence = self.fleet.nodes.get(node);
            let answered_at = presence.map_or(now, |p| p.answered_at);
            (!self.may_linger(withdrawal, presence)).then_some(answered_at.min(now) + bound)
        };
        let hosts = |node: &NodeId| {
            let presence = self.fleet.nodes.get(node);
            presence.is_none_or(|p| p.hosts(&rollout.model))
        };
        let expected = self
            .state
            .nodes
            .iter()
            .filter(|(node, entry)| {
                !entry.revoked && entry.enrolled_seq < rollback.seq && hosts(node)
            })
            .map(|(node, _)| (node.clone(), fenced_at(node)))
            .collect();
        let receipts = Receipts::new(rollback, now, expected);
        self.rollbacks.insert(id, receipts);
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
        let event = Event::RolloutFinished {
            rollout: rollout.id,
            generation: self.state.next_generation(model),
            verdict: self.judge_now(rollout, turn.now),
        };
        self.trials.remove(&rollout.id);
        self.record(turn, Actor::System, event);
        turn.changed(model);
    }

    pub(crate) fn note_rollback_receipt(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        receipt: &Receipt,
    ) {
        for receipts in self.rollbacks.values_mut() {
            receipts.on_receipt(node, receipt, turn.now);
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
                receipts.settled = true;
                (*id, receipts.propagation(now))
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
