//! The coordinator as a process: a shell around the shipping core with a journal, and
//! a death after any effect.

use std::collections::VecDeque;
use std::time::Duration;

use rollcall_coordinator_core::coordinator::{Coordinator, CoreConfig};
use rollcall_coordinator_core::effect::{Effect, Urgent};
use rollcall_coordinator_core::input::Input;
use rollcall_coordinator_core::record::{Cause, Event as Recorded, Record};
use rollcall_coordinator_core::state::{ChainError, State};
use rollcall_shared::limits::HEARTBEAT_EVERY;
use rollcall_shared::time::Timestamp;

use crate::checkers::{LIVENESS, rehearsals_change_nothing};
use crate::clock::Clock;
use crate::disk::{CrashOutcome, Journal};
use crate::faults::{Knob, Sabotage};
use crate::network::Direction;
use crate::schedule::{Event, FaultKind};
use crate::seed::Draws;
use crate::world::agent_process::REPORT_EVERY;
use crate::world::{CALM, SPINS_MAX, START, World};

/// The coordinator's machine.
#[derive(Debug)]
pub(crate) struct CoordinatorProcess {
    pub(super) epoch: u64,
    pub(crate) core: Option<Coordinator>,
    pub(super) paused: bool,
    /// There is no machine to start it on.
    pub(super) dark: bool,
    pub(crate) clock: Clock,
    pub(crate) journal: Journal,
    /// The journal's beginning, folded: nobody reads a year of records at every start.
    snapshot: State,
    /// What the last process had in memory when it died.
    left: Option<State>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) effects: VecDeque<Effect>,
    /// A broadcast is out: time is handed in before anything else, as the driver does.
    catching_up: bool,
    pub(super) busy: bool,
    pub(super) wakes_at: Option<Timestamp>,
    pub(super) spins: (Timestamp, u32),
    /// Records that set the fleet up; no backup is older.
    pub(super) setup_records: usize,
    pub(crate) draws: Draws,
}

impl CoordinatorProcess {
    /// A machine with an empty journal.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            epoch: 0,
            core: None,
            paused: false,
            dark: false,
            clock: Clock::new(START, START, 0.0),
            journal: Journal::default(),
            snapshot: State::default(),
            left: None,
            inbox: VecDeque::new(),
            effects: VecDeque::new(),
            catching_up: false,
            busy: false,
            wakes_at: None,
            spins: (Timestamp::ZERO, 0),
            setup_records: 0,
            draws: Draws::child(seed, "coordinator"),
        }
    }

    /// Whether there is a process that runs.
    #[must_use]
    pub(crate) const fn is_awake(&self) -> bool {
        self.core.is_some() && !self.paused
    }
}

/// The state after all records; `snapshot` helps where it is of this journal.
fn fold(snapshot: State, records: &[Record]) -> Result<State, ChainError> {
    let folded = usize::try_from(snapshot.seq()).unwrap_or(usize::MAX);
    let last = folded.checked_sub(1).and_then(|last| records.get(last));
    let (mut state, folded) = match last {
        Some(last) if last.hash() == snapshot.hash() => (snapshot, folded),
        Some(_) | None => (State::default(), 0),
    };
    for record in &records[folded..] {
        state.apply(record)?;
    }
    Ok(state)
}

impl World {
    /// A process begins with the journal, or with an old backup of it.
    pub(crate) fn start_coordinator(&mut self) {
        let now = self.schedule.now();
        if self.coordinator.core.is_some() || self.coordinator.dark {
            return;
        }
        if now > START && !self.is_healed() {
            self.maybe_restore_backup();
            self.maybe_step_wall_clock();
        }
        let coordinator = &mut self.coordinator;
        let records = coordinator.journal.synced();
        self.checkers
            .acknowledged
            .journal_read(records, &mut self.checkers.verdicts);
        let state = match fold(std::mem::take(&mut coordinator.snapshot), records) {
            Ok(state) => state,
            Err(error) => {
                let what = format!("the journal cannot be read: {error}");
                self.checkers.verdicts.broken(6, None, what);
                return;
            }
        };
        let left = coordinator.left.take();
        let left = left.filter(|left| left.hash() == state.hash());
        if left.as_ref().is_some_and(|left| *left != state) {
            let what = "the core's state is not the fold of the journal".to_owned();
            self.checkers.verdicts.broken(6, None, what);
        }
        coordinator.snapshot = state;
        self.trace.line(
            now,
            "coordinator",
            format_args!("starts after record {}", records.len()),
        );
        // Equal to what was folded, so there is nothing to copy.
        let state = left.unwrap_or_else(|| coordinator.snapshot.clone());
        let config = CoreConfig {
            software: "sim 0.1.0".to_owned(),
            heartbeat_every: HEARTBEAT_EVERY,
            report_every: REPORT_EVERY,
        };
        coordinator.epoch += 1;
        self.checkers.withdrawn.coordinator_started();
        let (core, effects) = Coordinator::restore(state, config, coordinator.clock.local(now));
        coordinator.core = Some(core);
        coordinator.effects.extend(effects);
        self.pump_coordinator();
    }

    fn maybe_restore_backup(&mut self) {
        let now = self.schedule.now();
        let coordinator = &mut self.coordinator;
        if !coordinator.draws.chance(self.options.old_backups) {
            return;
        }
        let length = coordinator.journal.synced().len();
        let most = length.saturating_sub(coordinator.setup_records).max(1);
        let most = if coordinator.draws.chance(0.5) {
            most.min(6)
        } else {
            most
        };
        let lost = coordinator.draws.below(most);
        if lost == 0 {
            return;
        }
        coordinator.journal.restore_backup(length - lost);
        self.fired.hit(Knob::OldBackupRestored);
        self.trace.line(
            now,
            "coordinator",
            format_args!("is restored from a backup, {lost} records older"),
        );
        let journal = self.coordinator.journal.synced();
        self.checkers.backup_restored(journal);
        self.agents
            .iter_mut()
            .for_each(super::AgentProcess::forget_old_messages);
    }

    fn maybe_step_wall_clock(&mut self) {
        let max = self.options.wall_step_max;
        if max.is_zero() {
            return;
        }
        let now = self.schedule.now();
        let step = self.coordinator.draws.between(Duration::ZERO, max * 2);
        self.coordinator.clock = Clock::new(now, now + step - max, 0.0);
        self.fired.hit(Knob::WallClockStepped);
    }

    /// kill -9, or power loss.
    pub(crate) fn crash_coordinator(&mut self) {
        let coordinator = &mut self.coordinator;
        let Some(core) = coordinator.core.take() else {
            return;
        };
        self.trace.line(
            self.schedule.now(),
            "coordinator",
            format_args!("is killed"),
        );
        self.fired.hit(Knob::CoordinatorKilled);
        let from = coordinator.journal.synced().len();
        if coordinator.busy {
            self.fired.hit(Knob::CoordinatorKilledDuringSync);
        } else if !coordinator.effects.is_empty() {
            self.fired.hit(Knob::CoordinatorKilledBetweenEffects);
        } else if core.state().seq()
            != coordinator
                .journal
                .synced()
                .last()
                .map_or(0, |record| record.seq)
        {
            let what = "the core's state is not the fold of what it appended".to_owned();
            self.checkers.verdicts.broken(6, None, what);
        }
        coordinator.left = Some(core.into_state());
        coordinator.epoch += 1;
        coordinator.paused = false;
        coordinator.busy = false;
        coordinator.inbox.clear();
        coordinator.effects.clear();
        coordinator.catching_up = false;
        coordinator.wakes_at = None;
        self.network.forget(Direction::Down, None);
        match coordinator.journal.crash(&mut coordinator.draws) {
            CrashOutcome::Nothing => {}
            CrashOutcome::Lost => self.fired.hit(Knob::UnsyncedWriteLost),
            CrashOutcome::Kept => self.note_durable(from),
        }
        self.checkers.bounded.coordinator_crashed();
        self.operator.coordinator_is_gone();
        let max = self.options.down_max;
        let down = self
            .coordinator
            .draws
            .between(Duration::from_millis(100), max);
        self.schedule.after(down, Event::CoordinatorStarts);
    }

    /// A stopped coordinator goes on now.
    pub(crate) fn wake_coordinator(&mut self) {
        self.resume_coordinator(self.coordinator.epoch);
    }

    pub(crate) fn resume_coordinator(&mut self, epoch: u64) {
        if self.coordinator.epoch == epoch && self.coordinator.paused {
            self.coordinator.paused = false;
            self.trace
                .line(self.schedule.now(), "coordinator", format_args!("goes on"));
            self.pump_coordinator();
        }
    }

    /// Hands an input to the core when it is free.
    pub(crate) fn tell_coordinator(&mut self, input: Input) {
        if self.coordinator.core.is_some() {
            self.coordinator.inbox.push_back(input);
            self.pump_coordinator();
        }
    }

    pub(crate) fn pump_coordinator(&mut self) {
        loop {
            let now = self.schedule.now();
            let calm = now < START + CALM;
            let coordinator = &mut self.coordinator;
            if !coordinator.is_awake() || coordinator.busy {
                return;
            }
            if let Some(effect) = coordinator.effects.pop_front() {
                self.execute_coordinator_effect(effect);
                if !calm
                    && self.coordinator.core.is_some()
                    && self.coordinator.draws.chance(self.options.crash_at_effect)
                {
                    self.crash_coordinator();
                }
                continue;
            }
            if calm {
                coordinator.setup_records = coordinator.journal.synced().len();
            }
            let local = coordinator.clock.local(now);
            let Some(core) = coordinator.core.as_mut() else {
                return;
            };
            if std::mem::take(&mut coordinator.catching_up) {
                self.handle_coordinator_input(Input::TimePassed, local);
                continue;
            }
            let due = core.next_wakeup().is_some_and(|at| at <= local);
            let input = match coordinator.inbox.pop_front() {
                Some(input) if due && coordinator.draws.chance(0.5) => {
                    coordinator.inbox.push_front(input);
                    Input::TimePassed
                }
                Some(input) => input,
                None if due => Input::TimePassed,
                None => break,
            };
            self.handle_coordinator_input(input, local);
        }
        self.schedule_coordinator_wakeup();
    }

    fn schedule_coordinator_wakeup(&mut self) {
        let coordinator = &mut self.coordinator;
        let next = coordinator.core.as_ref().and_then(Coordinator::next_wakeup);
        if let Some(at) = next.map(|local| coordinator.clock.when(local))
            && coordinator.wakes_at.is_none_or(|planned| at < planned)
        {
            coordinator.wakes_at = Some(at);
            let epoch = coordinator.epoch;
            self.schedule.at(at, Event::CoordinatorWakes { epoch });
        }
    }

    fn handle_coordinator_input(&mut self, input: Input, local: Timestamp) {
        let now = self.schedule.now();
        let coordinator = &mut self.coordinator;
        self.trace
            .line(now, "coordinator", format_args!("{input:?}"));
        if input == Input::TimePassed {
            let spins = &mut coordinator.spins;
            *spins = if spins.0 == now {
                (now, spins.1 + 1)
            } else {
                (now, 0)
            };
            if spins.1 > SPINS_MAX {
                let what = "its core asks to be woken for the same moment for ever".to_owned();
                self.checkers.verdicts.broken(LIVENESS, None, what);
                coordinator.core = None;
                return;
            }
        }
        let Some(core) = coordinator.core.as_mut() else {
            return;
        };
        let rehearses = rehearsals_change_nothing::is_of_rehearsal(&input);
        let mut effects = core.handle(input, local);
        if rehearses {
            rehearsals_change_nothing::coordinator(&effects, &mut self.checkers.verdicts);
        }
        self.check_order(&effects);
        if self.setup.sabotage == Some(Sabotage::SendBeforeAppend) {
            // Answers keep their place after the append.
            effects.sort_by_key(|effect| match effect {
                Effect::Broadcast(_)
                | Effect::Send { .. }
                | Effect::Offer { .. }
                | Effect::Disconnect { .. } => 0,
                Effect::Append(_) => 1,
                Effect::Reply { .. } => 2,
            });
        }
        self.coordinator.effects.extend(effects);
    }

    /// Promise 4: a withdrawal is broadcast before it is durable.
    fn check_order(&mut self, effects: &[Effect]) {
        let now = self.schedule.now();
        for (at, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Broadcast(Urgent::Withdraw(withdrawal)) => {
                    self.checkers.bounded.announced(withdrawal, now);
                }
                Effect::Broadcast(Urgent::Rehearse(_)) => {}
                Effect::Append(records) => {
                    let decided = records.iter().filter_map(|record| match &record.event {
                        Recorded::Withdrawn {
                            cause: Cause::Adopted { .. },
                            ..
                        } => None,
                        Recorded::Withdrawn { withdrawal, .. } => Some(withdrawal),
                        _ => None,
                    });
                    for withdrawal in decided {
                        let broadcast = Effect::Broadcast(Urgent::Withdraw(withdrawal.clone()));
                        if !effects[..at].contains(&broadcast) {
                            let what =
                                format!("{:?} is made durable before it is broadcast", withdrawal);
                            self.checkers.verdicts.broken(4, None, what);
                        }
                    }
                }
                Effect::Send { .. }
                | Effect::Offer { .. }
                | Effect::Disconnect { .. }
                | Effect::Reply { .. } => {}
            }
        }
    }

    fn execute_coordinator_effect(&mut self, effect: Effect) {
        self.trace.line(
            self.schedule.now(),
            "coordinator",
            format_args!("-> {effect:?}"),
        );
        match effect {
            Effect::Append(records) => self.append(records),
            Effect::Broadcast(urgent) => {
                self.coordinator.catching_up = true;
                self.broadcast(&urgent);
            }
            Effect::Send {
                node,
                connection,
                message,
            } => self.send_to_agent(&node, connection, &message),
            Effect::Offer { .. } => {} // Feedback: no core decides by it.
            Effect::Disconnect {
                node,
                connection,
                cause,
            } => self.disconnect(&node, connection, &cause),
            Effect::Reply { ticket, result } => {
                let Some(command) = self.operator.answered(ticket, &result) else {
                    return;
                };
                match result {
                    Ok(done) => {
                        let journal = self.coordinator.journal.synced();
                        let verdicts = &mut self.checkers.verdicts;
                        self.checkers
                            .acknowledged
                            .replied(&command, &done, journal, verdicts);
                    }
                    Err(_) => self.fired.hit(Knob::CommandRefused),
                }
            }
        }
    }

    fn append(&mut self, records: Vec<Record>) {
        let coordinator = &mut self.coordinator;
        coordinator.journal.begin(records);
        if self.setup.sabotage == Some(Sabotage::AppendNotSynced) {
            let from = coordinator.journal.synced().len();
            coordinator.journal.complete(false);
            self.note_durable(from);
            return;
        }
        coordinator.busy = true;
        let calm = self.schedule.now() < START + CALM;
        let max = if calm {
            Duration::from_millis(10)
        } else {
            self.options.sync_max
        };
        let takes = coordinator.draws.between(Duration::from_micros(500), max);
        let epoch = coordinator.epoch;
        self.schedule
            .after(takes, Event::CoordinatorEffectDone { epoch });
    }

    pub(crate) fn coordinator_effect_done(&mut self, epoch: u64) {
        if self.coordinator.epoch != epoch {
            return;
        }
        let from = self.coordinator.journal.synced().len();
        self.coordinator.busy = false;
        self.coordinator.journal.complete(true);
        self.note_durable(from);
        self.pump_coordinator();
    }

    pub(crate) fn coordinator_wakes(&mut self, epoch: u64) {
        if self.coordinator.epoch == epoch {
            self.coordinator.wakes_at = None;
            self.pump_coordinator();
        }
    }

    /// What strikes the coordinator.
    pub(crate) fn strike_coordinator(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::Crash => self.crash_coordinator(),
            FaultKind::Pause if self.coordinator.is_awake() => {
                self.trace.line(
                    self.schedule.now(),
                    "coordinator",
                    format_args!("stands still"),
                );
                self.fired.hit(Knob::CoordinatorPaused);
                self.coordinator.paused = true;
                let max = self.options.pause_max;
                let pause = self
                    .coordinator
                    .draws
                    .between(Duration::from_millis(500), max);
                let epoch = self.coordinator.epoch;
                self.schedule
                    .after(pause, Event::CoordinatorResumes { epoch });
            }
            FaultKind::Pause | FaultKind::Partition => {}
        }
    }
}
