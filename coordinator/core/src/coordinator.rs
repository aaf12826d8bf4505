//! The coordinator: routes every input to the machine that knows what to do, and puts
//! what they want done into the one order that keeps the promises.
//!
//! One `handle` makes at most one `Append`. Its effects stand in this order: broadcasts of
//! withdrawals (the safe direction goes first), the append, then messages, disconnections
//! and replies, none of which is executed before the append is durable. Each record is
//! applied to the state at the moment it is made; if the append fails the process stops.
//!
//! Deliberately absent: any clock, any I/O, any answer to a message of a connection that
//! was superseded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::ToAgent;

use crate::effect::{Done, Effect, Refusal, Urgent};
use crate::fleet::Fleet;
use crate::input::{Actor, Command, Input};
use crate::record::{Event, Record};
use crate::rehearsal::Rehearsing;
use crate::roles;
use crate::rollback::{Aftermath, Receipts, Tally};
use crate::rollout::Trial;
use crate::state::State;

/// What a coordinator must know of its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// E.g. `rollcall 0.1.0`.
    pub software: String,
    /// How often agents send heartbeats.
    pub heartbeat_every: Duration,
    /// How long a report's window is.
    pub report_every: Duration,
}

/// The coordinator of one fleet.
#[derive(Clone, Debug)]
pub struct Coordinator {
    pub(crate) state: State,
    pub(crate) config: CoreConfig,
    /// Who is connected, what they said: memory only.
    pub(crate) fleet: Fleet,
    /// Evidence of each live rollout: memory only.
    pub(crate) trials: BTreeMap<RolloutId, Trial>,
    /// Receipts of withdrawals: memory until they settle.
    pub(crate) rollbacks: BTreeMap<RolloutId, Receipts>,
    /// Withdrawals whose broadcast may still be under way; see [`Self::catch_up`].
    pub(crate) aftermath: Vec<Aftermath>,
    /// The last rehearsal of each model: memory only.
    pub(crate) rehearsals: BTreeMap<ModelName, Rehearsing>,
    /// For monitoring: memory only.
    pub(crate) tallies: BTreeMap<ModelName, Tally>,
    last_now: Timestamp,
}

/// What one `handle` wants done, sorted into its order by [`Turn::into_effects`].
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Timestamp,
    broadcasts: Vec<Effect>,
    records: Vec<Record>,
    /// Models whose assignments changed: their nodes hear of it once, at the end.
    changed: BTreeSet<ModelName>,
    messages: Vec<Effect>,
    replies: Vec<Effect>,
}

impl Turn {
    fn new(now: Timestamp) -> Self {
        Self {
            now,
            broadcasts: Vec::new(),
            records: Vec::new(),
            changed: BTreeSet::new(),
            messages: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Ahead of the append. For withdrawals, and for rehearsals, which take nothing away and
    /// give nothing: that is in the type.
    pub(crate) fn broadcast(&mut self, urgent: Urgent) {
        self.broadcasts.push(Effect::Broadcast(urgent));
    }

    pub(crate) fn then(&mut self, effect: Effect) {
        self.messages.push(effect);
    }

    pub(crate) fn changed(&mut self, model: &ModelName) {
        self.changed.insert(model.clone());
    }

    fn into_effects(self) -> Vec<Effect> {
        let append = (!self.records.is_empty()).then_some(Effect::Append(self.records));
        self.broadcasts
            .into_iter()
            .chain(append)
            .chain(self.messages)
            .chain(self.replies)
            .collect()
    }
}

impl Coordinator {
    /// Takes over from the process before, whose journal folded to `state`.
    ///
    /// Appends [`Event::Booted`], by which every model skips generations: the process before
    /// may have broadcast a withdrawal with the next generation and died before that was
    /// durable. Using that number again for something else would break promise 7.
    #[must_use]
    pub fn restore(state: State, config: CoreConfig, now: Timestamp) -> (Self, Vec<Effect>) {
        let mut coordinator = Self {
            state,
            config,
            fleet: Fleet::default(),
            trials: BTreeMap::new(),
            rollbacks: BTreeMap::new(),
            aftermath: Vec::new(),
            rehearsals: BTreeMap::new(),
            tallies: BTreeMap::new(),
            last_now: now,
        };
        let mut turn = Turn::new(now);
        let software = coordinator.config.software.clone();
        coordinator.record(&mut turn, Actor::System, Event::Booted { software });
        coordinator.resume_trials(now);
        coordinator.resume_rollbacks(now);
        (coordinator, turn.into_effects())
    }

    /// Advances the coordinator. Effects must be executed in order.
    ///
    /// # Panics
    /// When `now` is before that of an earlier call.
    pub fn handle(&mut self, input: Input, now: Timestamp) -> Vec<Effect> {
        assert!(now >= self.last_now, "time went backwards");
        self.last_now = now;
        let mut turn = Turn::new(now);
        self.catch_up(&mut turn);
        match input {
            Input::Command {
                ticket,
                actor,
                command,
            } => {
                let result = self.on_command(&mut turn, &actor, command);
                turn.replies.push(Effect::Reply { ticket, result });
            }
            Input::AgentConnected {
                connection,
                node,
                hello,
            } => self.on_connected(&mut turn, connection, &node, hello),
            Input::AgentDisconnected { connection, node } => {
                self.fleet.on_disconnected(connection, &node);
                self.note_lost_rehearsals(&mut turn, connection, &node);
            }
            Input::FromAgent {
                connection,
                node,
                message,
            } => self.on_message(&mut turn, connection, &node, message),
            Input::Reported {
                connection,
                node,
                report,
            } => self.on_reported(connection, &node, report, now),
            Input::TimePassed => self.on_time_passed(&mut turn),
        }
        self.announce(&mut turn);
        turn.into_effects()
    }

    /// When [`Input::TimePassed`] is due; `None`: nothing waits for time.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let trials = self.trials.values().map(|trial| trial.wake_at);
        let rollbacks = self.rollbacks.values().filter_map(Receipts::next_wakeup);
        let rehearsals = self.rehearsals.values().filter_map(Rehearsing::next_wakeup);
        let aftermath = (!self.aftermath.is_empty()).then_some(self.last_now);
        let all = trials.chain(rollbacks).chain(rehearsals).chain(aftermath);
        all.min()
    }

    /// The durable state, e.g. for a snapshot.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What is left of a coordinator that is let go.
    #[must_use]
    pub fn into_state(self) -> State {
        self.state
    }

    fn on_time_passed(&mut self, turn: &mut Turn) {
        let due = |trial: &Trial| trial.wake_at <= turn.now;
        let trials: Vec<RolloutId> = self
            .trials
            .iter()
            .filter_map(|(id, trial)| due(trial).then_some(*id))
            .collect();
        for rollout in trials {
            self.step(turn, rollout);
        }
        self.settle_rollbacks(turn);
        self.end_rehearsals(turn);
    }

    fn on_command(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        command: Command,
    ) -> Result<Done, Refusal> {
        roles::permit(actor, &command)?;
        match command {
            Command::RegisterVersion { signed, manifest } => {
                self.on_register(turn, actor, signed, &manifest)
            }
            Command::Archive { model, version } => self.on_archive(turn, actor, model, version),
            Command::Restore { model, version } => self.on_restore(turn, actor, model, version),
            Command::StartRollout { plan, dry_run } => self.on_start(turn, actor, plan, dry_run),
            Command::Pause { rollout } => self.on_pause(turn, actor, rollout),
            Command::Resume { rollout } => self.on_resume(turn, actor, rollout),
            Command::Advance { rollout } => self.on_advance(turn, actor, rollout),
            Command::Approve {
                rollout,
                gate,
                note,
            } => self.on_approve(turn, actor, rollout, gate, note),
            Command::Reject { rollout, note } => self.on_reject(turn, actor, rollout, note),
            Command::Rollback {
                model,
                version,
                reason,
            } => self.on_rollback(turn, actor, &model, version, reason),
            Command::Rehearse {
                model,
                version,
                reason,
            } => self.on_rehearse(turn, actor, &model, version, reason),
            Command::PushFeedback { model, items } => self.on_feedback(turn, model, items),
            Command::RecordKpi { model, record } => self.on_record_kpi(&model, &record),
            Command::CreateToken {
                id,
                secret_hash,
                kind,
                name,
                expires_at,
            } => {
                let event = Event::TokenCreated {
                    id,
                    secret_hash,
                    kind,
                    name,
                    expires_at,
                };
                self.on_create_token(turn, actor, event)
            }
            Command::RevokeToken { id } => self.on_revoke_token(turn, actor, id),
            Command::Enroll {
                token,
                secret_hash,
                node,
                labels,
                key,
            } => {
                let event = Event::NodeEnrolled {
                    node,
                    labels,
                    key,
                    token,
                };
                self.on_enroll(turn, event, secret_hash)
            }
            Command::RevokeNode { node } => self.on_revoke_node(turn, actor, node),
            Command::Quarantine { node } => self.on_quarantine(turn, actor, node, true),
            Command::Release { node } => self.on_quarantine(turn, actor, node, false),
        }
    }

    /// Makes a record, applies it, and has it appended.
    pub(crate) fn record(&mut self, turn: &mut Turn, actor: Actor, event: Event) {
        let record = Record {
            seq: self.state.seq() + 1,
            at: turn.now,
            actor,
            event,
            previous: self.state.hash(),
        };
        self.state
            .apply(&record)
            .expect("a record made from the state follows from it");
        turn.records.push(record);
    }

    /// Tells the nodes of every model that changed what they should do now.
    fn announce(&mut self, turn: &mut Turn) {
        for model in std::mem::take(&mut turn.changed) {
            for (node, connection) in self.fleet.connected_hosting(&model) {
                let Some(assignment) = self.assignment_for(&model, &node) else {
                    continue;
                };
                self.fleet.note_sent(&node, &model, assignment.generation);
                turn.then(Effect::Send {
                    node,
                    connection,
                    message: ToAgent::Assign(assignment),
                });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
