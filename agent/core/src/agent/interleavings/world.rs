//! One agent, its machine, the network and a coordinator, in memory, with oracles that
//! share no code with the agent.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_shared::assignment::{CandidateMode, VersionRef, Withdrawal};
use rollcall_shared::ids::Generation;
use rollcall_shared::report::AgentEvent;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::{FromAgent, HeartbeatAnswer, Rehearsal, Rehearsed, Welcome};

use super::coordinator::Coordinator;
use super::machine::Machine;
use crate::agent::fixtures::{LEASE_SECONDS, model, rehearse_and_compare};
use crate::agent::{Agent, AgentIdentity};
use crate::effect::{DurableState, Effect};
use crate::input::{Input, PrepareFailure};
use crate::route::Pick;

const LEASE: Duration = Duration::from_secs(LEASE_SECONDS);

/// What happened in a run, to know that runs are about something.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) candidate_routed: bool,
    pub(super) lease_expired: bool,
    pub(super) withdrawn_while_routed: bool,
}

pub(super) struct World {
    pub(super) seen: Seen,
    pub(super) now: Timestamp,
    agent: Agent,
    crash_after: Option<usize>,
    machine: Machine,
    pub(super) coordinator: Coordinator,
    /// Answers to this process, deliverable at any time.
    answers: Vec<HeartbeatAnswer>,
    welcome: Option<Welcome>,
    rehearsals: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let now = Timestamp::ZERO;
        let (agent, effects) =
            Agent::restore(AgentIdentity::default(), DurableState::default(), now);
        let mut world = Self {
            seen: Seen::default(),
            now,
            agent,
            crash_after: None,
            machine: Machine::default(),
            coordinator: Coordinator::new(),
            answers: vec![],
            welcome: None,
            rehearsals: 0,
        };
        world.execute(effects, false);
        world
    }

    // What the coordinator does.

    pub(super) fn answer(&mut self, choice: usize) {
        let sent: Vec<_> = self.machine.heartbeats.keys().copied().collect();
        if let Some(seq) = sent.get(choice % sent.len().max(1)) {
            let current = vec![(model(), self.coordinator.current.generation)];
            self.answers.push(HeartbeatAnswer { seq: *seq, current });
        }
    }

    // What the network does.

    pub(super) fn deliver(&mut self, choice: usize) {
        let input = self.coordinator.sent[choice % self.coordinator.sent.len()].clone();
        self.give(input);
    }

    pub(super) fn deliver_newest(&mut self) {
        self.deliver(self.coordinator.sent.len() - 1);
    }

    pub(super) fn deliver_answer(&mut self, choice: usize) {
        let Some(answer) = self.answers.get(choice % self.answers.len().max(1)) else {
            return;
        };
        let answer = answer.clone();
        if let Some(sent_at) = self.machine.heartbeats.get(&answer.seq).copied() {
            self.allow(answer.current[0].1, sent_at);
        }
        self.give(Input::HeartbeatAnswer(answer));
    }

    pub(super) fn connect(&mut self) {
        if !self.machine.connected {
            self.machine.connected = true;
            self.give(Input::Connected);
        }
    }

    pub(super) fn welcome(&mut self) {
        let Some(welcome) = self.welcome.take() else {
            return;
        };
        if let Some(hello_at) = self.machine.hello_at.take() {
            self.allow(welcome.snapshot.assignments[0].generation, hello_at);
        }
        self.give(Input::Welcome(welcome));
    }

    pub(super) fn disconnect(&mut self) {
        self.machine.connected = false;
        self.machine.heartbeats.clear();
        self.machine.hello_at = None;
        self.welcome = None;
        self.give(Input::Disconnected);
    }

    /// An answer that names a generation allows the candidate of that generation.
    fn allow(&mut self, generation: Generation, sent_at: Timestamp) {
        if let Some(tried) = self.coordinator.history[&generation].candidate {
            let until = self.machine.allowed_until.entry(tried.rollout).or_default();
            *until = (*until).max(sent_at + LEASE);
        }
    }

    // What the machine does.

    pub(super) fn prepared(&mut self, choice: usize, result: u8) {
        let preparing: Vec<_> = self.machine.preparing.iter().copied().collect();
        let Some(version) = preparing.get(choice % preparing.len().max(1)) else {
            return;
        };
        let result = match result {
            0..30 => Err(true),
            30..50 => Err(false),
            50.. => Ok(()),
        };
        self.end_preparation(*version, result);
    }

    fn end_preparation(&mut self, version: VersionRef, result: Result<(), bool>) {
        self.machine.preparing.remove(&version);
        if result.is_ok() {
            self.machine.loaded.insert(version);
        }
        let reason = "as drawn".to_owned();
        self.give(Input::Prepared {
            model: model(),
            version,
            result: result.map_err(|retryable| PrepareFailure { reason, retryable }),
        });
    }

    pub(super) fn pass(&mut self, milliseconds: u64) {
        let end = self.now + Duration::from_millis(milliseconds);
        while let Some(wakeup) = self.agent.next_wakeup().filter(|at| *at <= end) {
            self.now = self.now.max(wakeup);
            self.give(Input::TimePassed);
            let next = self.agent.next_wakeup();
            assert!(next.is_none_or(|at| at > self.now), "it would spin");
            self.check();
        }
        self.now = end;
    }

    pub(super) fn pause(&mut self, milliseconds: u64) {
        self.now = self.now + Duration::from_millis(milliseconds);
    }

    pub(super) fn crash_after(&mut self, effects: usize) {
        self.crash_after = Some(effects);
    }

    pub(super) fn restart(&mut self) {
        let disk = std::mem::take(&mut self.machine).disk;
        self.machine = Machine {
            told: (*disk.withdrawals).clone(),
            disk: disk.clone(),
            ..Machine::default()
        };
        self.answers.clear();
        self.welcome = None;
        self.crash_after = None;
        let (agent, effects) = Agent::restore(AgentIdentity::default(), disk, self.now);
        self.agent = agent;
        self.execute(effects, false);
    }

    fn give(&mut self, input: Input) {
        let withdrawals = match &input {
            Input::Withdraw(withdrawal) => vec![withdrawal.clone()],
            Input::Sync(snapshot) => snapshot.withdrawals.clone(),
            Input::Welcome(welcome) => welcome.snapshot.withdrawals.clone(),
            _ => vec![],
        };
        let candidate = self
            .machine
            .route
            .as_ref()
            .and_then(|r| r.candidate.as_ref());
        self.seen.withdrawn_while_routed |=
            candidate.is_some_and(|c| withdrawals.iter().any(|w| w.rollout == c.rollout));
        let rehearsed = match &input {
            Input::Withdraw(withdrawal) => self.rehearse(withdrawal),
            _ => None,
        };
        let safe_direction = !withdrawals.is_empty();
        self.machine.told.extend(withdrawals);
        let mut effects = self.agent.handle(input, self.now);
        let crash_after = self.crash_after.take();
        if let Some(executed) = crash_after {
            effects.truncate(executed);
        }
        self.execute(effects, safe_direction);
        if crash_after.is_some() {
            self.restart();
        } else if let Some(rehearsed) = rehearsed {
            self.check_rehearsal(&rehearsed);
        }
    }

    /// What the agent says that a withdrawal would come to; it must change nothing.
    fn rehearse(&mut self, as_if: &Withdrawal) -> Option<Rehearsed> {
        self.rehearsals += 1;
        let input = Input::Rehearse(Rehearsal {
            rehearsal: self.rehearsals,
            as_if: as_if.clone(),
        });
        let mut effects = rehearse_and_compare(&mut self.agent, input, self.now);
        match (effects.pop(), effects.is_empty()) {
            (Some(Effect::Send(FromAgent::Rehearsed(rehearsed))), true) => Some(rehearsed),
            other => panic!("a rehearsal gave {other:?}"),
        }
    }

    /// The withdrawal came to what the rehearsal had said.
    fn check_rehearsal(&self, rehearsed: &Rehearsed) {
        let route = self.machine.route.as_ref().unwrap();
        assert_eq!(route.stable, rehearsed.serving);
        let held = self.machine.disk.assignments[&model()].generation;
        let receipted = route.generation == held;
        // An older withdrawal than what is held asks for no new receipt: then the route is at
        // the held generation whether or not something is missing.
        if held > rehearsed.held {
            assert_eq!(receipted, rehearsed.missing.is_none(), "{rehearsed:?}");
        } else {
            assert!(receipted || rehearsed.missing.is_some(), "{rehearsed:?}");
        }
    }

    fn execute(&mut self, effects: Vec<Effect>, safe_direction: bool) {
        for effect in effects {
            match effect {
                Effect::Swap(route) => {
                    let durable = self.machine.disk.assignments.get(&model());
                    let durable = durable.map(|a| a.generation).unwrap_or_default();
                    assert!(
                        safe_direction || route.generation <= durable,
                        "served before it was durable"
                    );
                    self.machine.swap(route);
                }
                Effect::Persist(state) => self.machine.persist(state),
                Effect::Send(word) => self.hear(word),
                Effect::Prepare { version, .. } => {
                    assert!(!self.machine.loaded.contains(&version), "loaded twice");
                    let is_new = self.machine.preparing.insert(version);
                    assert!(is_new, "prepared twice at once");
                }
                Effect::Unload { version, .. } => {
                    let routed = self.machine.routed();
                    assert!(!routed.contains(&version), "unloaded what answers");
                    let loaded = self.machine.loaded.remove(&version);
                    let preparing = self.machine.preparing.remove(&version);
                    assert!(loaded || preparing, "unloaded what is not there");
                }
                Effect::Pin(_) => {}
            }
        }
    }

    fn hear(&mut self, word: FromAgent) {
        match word {
            FromAgent::Event(AgentEvent::LeaseExpired { .. }) => self.seen.lease_expired = true,
            FromAgent::Receipt(receipt) => {
                let route = self.machine.route.as_ref().unwrap();
                assert_eq!(receipt.generation, route.generation);
                let serving: BTreeSet<_> = receipt.serving.iter().map(|s| s.version).collect();
                assert_eq!(
                    serving,
                    self.machine.routed(),
                    "a receipt for something else"
                );
            }
            FromAgent::Hello(_) if self.machine.connected => {
                self.machine.hello_at = Some(self.now);
                self.welcome = Some(Welcome {
                    protocol: 1,
                    heartbeat_every_ms: 1_000,
                    report_every_ms: 5_000,
                    snapshot: self.coordinator.snapshot(),
                });
            }
            FromAgent::Heartbeat(heartbeat) if self.machine.connected => {
                self.machine.heartbeats.insert(heartbeat.seq, self.now);
            }
            FromAgent::Hello(_)
            | FromAgent::Heartbeat(_)
            | FromAgent::Readiness(_)
            | FromAgent::Rehearsed(_)
            | FromAgent::Event(_) => {}
        }
    }

    // What must hold.

    pub(super) fn check(&mut self) {
        let Some(route) = &self.machine.route else {
            return;
        };
        for key in 0..40u8 {
            let later = route.pick(&[key], self.now + LEASE);
            assert!(candidate_of(&later).is_none(), "beyond any lease");
            let Some(version) = candidate_of(&route.pick(&[key], self.now)) else {
                continue;
            };
            self.seen.candidate_routed = true;
            let rollout = route.candidate.as_ref().unwrap().rollout;
            let told = &self.machine.told;
            assert!(
                !told
                    .iter()
                    .any(|w| w.withdrawn == version || w.rollout == rollout),
                "{rollout} was withdrawn"
            );
            let allowed_until = self.machine.allowed_until.get(&rollout);
            assert!(
                allowed_until.is_some_and(|until| *until > self.now),
                "{rollout} is used without an answer that allows it"
            );
            let decided_at = self.coordinator.decided_at.get(&rollout);
            assert!(
                decided_at.is_none_or(|at| *at + LEASE > self.now),
                "{rollout} is used longer than a lease after its withdrawal"
            );
        }
    }

    /// Faults end: the node must come to serve what the coordinator wants.
    pub(super) fn heal(&mut self) {
        self.crash_after = None;
        let clean = self.coordinator.clean();
        self.disconnect();
        self.connect();
        self.welcome();
        for _ in 0..100 {
            for version in self.machine.preparing.clone() {
                self.end_preparation(version, Ok(()));
            }
            self.pass(1_000);
            self.answer(self.machine.heartbeats.len() - 1);
            self.deliver_answer(self.answers.len() - 1);
            self.check();
        }
        let route = self.machine.route.clone().unwrap();
        assert_eq!(route.generation, clean.generation);
        assert_eq!(route.stable, clean.stable);
        let expected = clean.candidate.filter(|c| c.mode != CandidateMode::Prepare);
        assert_eq!(
            route.candidate.map(|c| c.version),
            expected.map(|c| c.version)
        );
        let wanted = [
            clean.stable,
            clean.previous,
            clean.candidate.map(|c| c.version),
        ];
        let wanted: BTreeSet<_> = wanted.into_iter().flatten().collect();
        assert_eq!(self.machine.loaded, wanted, "no more and no less is loaded");
    }
}

fn candidate_of(pick: &Pick) -> Option<VersionRef> {
    match pick {
        Pick::Nobody | Pick::Stable(_) => None,
        Pick::StableAndShadow { shadow, .. } => Some(*shadow),
        Pick::Candidate { candidate, .. } => Some(*candidate),
    }
}
