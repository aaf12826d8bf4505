//! One agent as a process: a shell around the shipping core that executes effects
//! one by one, and can die after each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rollcall_agent_core::agent::{Agent, AgentIdentity};
use rollcall_agent_core::backlog::Backlog;
use rollcall_agent_core::effect::{DurableState, Effect};
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::backoff::Backoff;
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::limits::{RECONNECT_FIRST, RECONNECT_MAX};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::ToAgent;

use crate::checkers::{LIVENESS, rehearsals_change_nothing};
use crate::clock::Clock;
use crate::disk::{CrashOutcome, Disk};
use crate::faults::{Knob, Sabotage};
use crate::network::{Direction, LinkId};
use crate::schedule::{Event, FaultKind};
use crate::seed::Draws;
use crate::world::requests::RolloutBreaker;
use crate::world::{CALM, SPINS_MAX, START, World};

/// Window of a report.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(2);

/// One node.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    /// Its name.
    pub(crate) name: NodeId,
    /// Counts its processes.
    pub(crate) epoch: u64,
    pub(super) core: Option<Agent>,
    pub(crate) paused_since: Option<Timestamp>,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk<DurableState>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) effects: Backlog,
    pub(super) busy: bool,
    pub(super) wakes_at: Option<Timestamp>,
    pub(super) spins: (Timestamp, u32),
    /// The route table, each route with a key that is keen on its candidate.
    pub(crate) routes: BTreeMap<ModelName, (Route, [u8; 8])>,
    /// Prepared in this process.
    pub(crate) loaded: BTreeSet<VersionRef>,
    /// When the engine fails every request to a version.
    pub(super) troubles: BTreeMap<VersionRef, (Timestamp, Timestamp)>,
    pub(super) breakers: BTreeMap<ModelName, RolloutBreaker>,
    pub(super) preparing: BTreeMap<VersionRef, u64>,
    pub(super) prepare_attempts: u64,
    /// Refused some version for good.
    pub(crate) refused: bool,
    pub(super) cached: BTreeSet<VersionRef>,
    pub(crate) link: Option<LinkId>,
    pub(super) backoff: Backoff,
    /// Attempts to connect since the last `Welcome` or the start of the process.
    pub(super) attempts: u32,
    pub(super) replayable: VecDeque<ToAgent>,
    pub(crate) draws: Draws,
    pub(super) strangers: Draws,
    pub(super) window: u64,
}

impl AgentProcess {
    /// A node without a process.
    #[must_use]
    pub(crate) fn new(node: usize, seed: u64) -> Self {
        let name = format!("node-{node}");
        Self {
            name: NodeId::new(name.clone()).expect("a good name"),
            epoch: 0,
            core: None,
            paused_since: None,
            clock: Clock::new(super::START, super::START, 0.0),
            disk: Disk::default(),
            inbox: VecDeque::new(),
            effects: Backlog::default(),
            busy: false,
            wakes_at: None,
            spins: (Timestamp::ZERO, 0),
            routes: BTreeMap::new(),
            loaded: BTreeSet::new(),
            troubles: BTreeMap::new(),
            breakers: BTreeMap::new(),
            preparing: BTreeMap::new(),
            prepare_attempts: 0,
            refused: false,
            cached: BTreeSet::new(),
            link: None,
            backoff: Backoff::new(RECONNECT_FIRST, RECONNECT_MAX),
            attempts: 0,
            replayable: VecDeque::new(),
            draws: Draws::child(seed, &format!("agent/{name}")),
            strangers: Draws::child(seed, &format!("strangers/{name}")),
            window: 0,
        }
    }

    /// Whether there is a process, stopped or not.
    #[must_use]
    pub(crate) const fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// Whether there is a process that runs.
    #[must_use]
    pub(crate) const fn is_awake(&self) -> bool {
        self.core.is_some() && self.paused_since.is_none()
    }

    /// Forgets what must not survive a change of the coordinator's journal.
    pub(crate) fn forget_old_messages(&mut self) {
        self.replayable.clear();
    }

    pub(super) fn identity(&self) -> AgentIdentity {
        let zone = if self.name.as_str().ends_with(['0', '2', '4', '6', '8']) {
            "eu-1"
        } else {
            "eu-2"
        };
        let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        AgentIdentity {
            labels,
            models: vec![],
            software: "sim 0.1.0".to_owned(),
        }
    }
}

impl World {
    /// A process begins, with what its disk holds.
    pub(crate) fn start_agent(&mut self, node: usize) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        if agent.is_up() {
            return;
        }
        let mut state = agent.disk.synced().clone();
        if self.setup.sabotage == Some(Sabotage::AgentForgetsWithdrawalsOnRestart) {
            state.withdrawals = Arc::default();
        }
        let drift = Clock::draw_drift(&mut agent.draws, self.options.drift_permille_max);
        if drift != 0.0 {
            self.fired.hit(Knob::ClockDrifted);
        }
        let far = agent
            .draws
            .between(Duration::ZERO, Duration::from_secs(1_000_000));
        agent.clock = Clock::new(now, Timestamp::from_nanos(1_000_000_000_000) + far, drift);
        agent.epoch += 1;
        agent.attempts = 0;
        self.trace
            .line(now, &agent.name, format_args!("starts with {state:?}"));
        self.checkers.agent_started(node, &state);
        self.boot_core(node, state);
        let agent = &self.agents[node];
        let (epoch, local) = (agent.epoch, Duration::from_millis(1));
        self.schedule.after(local, Event::Dial { node, epoch });
        self.schedule
            .after(REPORT_EVERY, Event::ReportDue { node, epoch });
        self.pump_agent(node);
    }

    fn boot_core(&mut self, node: usize, state: DurableState) {
        let agent = &mut self.agents[node];
        let local = agent.clock.local(self.schedule.now());
        let (core, effects) = Agent::restore(agent.identity(), state, local);
        agent.core = Some(core);
        agent.effects.add(effects);
    }

    /// kill -9, or power loss.
    pub(crate) fn crash_agent(&mut self, node: usize) {
        let healed = self.is_healed();
        let agent = &mut self.agents[node];
        if !agent.is_up() {
            return;
        }
        self.trace
            .line(self.schedule.now(), &agent.name, format_args!("is killed"));
        self.fired.hit(Knob::AgentKilled);
        if agent.busy {
            self.fired.hit(Knob::AgentKilledDuringSync);
        } else if !agent.effects.is_empty() {
            self.fired.hit(Knob::AgentKilledBetweenEffects);
        }
        agent.core = None;
        agent.paused_since = None;
        agent.epoch += 1;
        agent.busy = false;
        agent.inbox.clear();
        agent.effects = Backlog::default();
        agent.wakes_at = None;
        agent.routes.clear();
        agent.loaded.clear();
        agent.troubles.clear();
        agent.breakers.clear();
        agent.preparing.clear();
        agent.link = None;
        self.network.forget(Direction::Up, Some(node));
        match agent.disk.crash(&mut agent.draws) {
            CrashOutcome::Nothing => {}
            CrashOutcome::Lost => self.fired.hit(Knob::UnsyncedWriteLost),
            CrashOutcome::Kept => self.checkers.persisted(node, agent.disk.synced()),
        }
        if !healed && agent.draws.chance(self.options.state_losses) {
            self.trace.line(
                self.schedule.now(),
                &agent.name,
                format_args!("loses its disk"),
            );
            self.fired.hit(Knob::AgentStateLost);
            agent.disk.replace(DurableState::default());
            agent.cached.clear();
            agent.forget_old_messages();
            self.checkers.state_lost(node);
        }
        let down = agent
            .draws
            .between(Duration::from_millis(100), self.options.down_max);
        self.schedule.after(down, Event::AgentStarts { node });
    }

    /// The process goes on; the observer is faster than its timers.
    pub(crate) fn resume_agent(&mut self, node: usize, epoch: u64) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        if agent.epoch != epoch {
            return;
        }
        let Some(since) = agent.paused_since.take() else {
            return;
        };
        let ran_out = agent
            .routes
            .values()
            .filter_map(|(route, _)| route.candidate.as_ref())
            .any(|candidate| {
                agent.clock.local(since) < candidate.lease_until
                    && candidate.lease_until <= agent.clock.local(now)
            });
        if ran_out {
            self.fired.hit(Knob::AgentPausedBeyondLease);
        }
        self.trace.line(now, &agent.name, format_args!("goes on"));
        self.observe(node);
        self.pump_agent(node);
    }

    /// Hands an input to the core when it is free, and a withdrawal at once.
    pub(crate) fn tell_agent(&mut self, node: usize, input: Input) {
        let agent = &mut self.agents[node];
        if agent.is_up() {
            agent.inbox.push_back(input);
            self.pump_agent(node);
        }
    }

    /// Withdrawals are carried out where packets are received, whatever the shell's loop
    /// is busy with.
    fn fence_agent(&mut self, node: usize) {
        let now = self.schedule.now();
        loop {
            let agent = &mut self.agents[node];
            let urgent = |input: &Input| matches!(input, Input::Withdraw(_));
            let at = agent.inbox.iter().position(urgent);
            let Some(Input::Withdraw(withdrawal)) = at.and_then(|at| agent.inbox.remove(at)) else {
                return;
            };
            self.trace
                .line(now, &agent.name, format_args!("fences {withdrawal:?}"));
            self.checkers.told(node, [&withdrawal]);
            let local = agent.clock.local(now);
            let Some(core) = agent.core.as_mut() else {
                return;
            };
            if let Some(route) = core.fence(withdrawal, local) {
                if agent.busy || !agent.effects.is_empty() {
                    self.fired.hit(Knob::FencedAheadOfEffects);
                }
                if let Some(undone) = agent.effects.overtaken_by(&route) {
                    self.checkers.stable.overtaken(node, &undone);
                }
                self.execute_agent_effect(node, Effect::Swap(route));
                self.observe(node);
            }
        }
    }

    /// The shell's loop: effects one by one, then inputs, then timers.
    pub(crate) fn pump_agent(&mut self, node: usize) {
        loop {
            let now = self.schedule.now();
            let calm = now < START + CALM;
            if !self.agents[node].is_awake() {
                return;
            }
            self.fence_agent(node);
            let agent = &mut self.agents[node];
            if agent.busy {
                return;
            }
            if let Some(effect) = agent.effects.pop() {
                self.execute_agent_effect(node, effect);
                let agent = &mut self.agents[node];
                // Routes of several models are swapped in one go.
                if !matches!(agent.effects.peek(), Some(Effect::Swap(_))) {
                    self.observe(node);
                }
                let agent = &mut self.agents[node];
                if agent.is_up() && !calm && agent.draws.chance(self.options.crash_at_effect) {
                    self.crash_agent(node);
                }
                continue;
            }
            let local = agent.clock.local(now);
            let Some(core) = agent.core.as_mut() else {
                return;
            };
            let due = core.next_wakeup().is_some_and(|at| at <= local);
            let input = match agent.inbox.pop_front() {
                Some(input) if due && agent.draws.chance(0.5) => {
                    agent.inbox.push_front(input);
                    Input::TimePassed
                }
                Some(input) => input,
                None if due => Input::TimePassed,
                None => break,
            };
            self.handle_agent_input(node, input, local);
        }
        self.schedule_agent_wakeup(node);
    }

    fn schedule_agent_wakeup(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        let next = agent
            .core
            .as_ref()
            .and_then(Agent::next_wakeup)
            .map(|local| agent.clock.when(local));
        if let Some(at) = next
            && agent.wakes_at.is_none_or(|planned| at < planned)
        {
            agent.wakes_at = Some(at);
            let epoch = agent.epoch;
            self.schedule.at(at, Event::AgentWakes { node, epoch });
        }
    }

    fn handle_agent_input(&mut self, node: usize, input: Input, local: Timestamp) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        self.trace.line(now, &agent.name, format_args!("{input:?}"));
        if input == Input::TimePassed {
            agent.spins = if agent.spins.0 == now {
                (now, agent.spins.1 + 1)
            } else {
                (now, 0)
            };
            if agent.spins.1 > SPINS_MAX {
                let what = "its core asks to be woken for the same moment for ever".to_owned();
                self.checkers.verdicts.broken(LIVENESS, Some(node), what);
                agent.core = None;
                return;
            }
        }
        match &input {
            Input::Sync(snapshot) => self.checkers.told(node, &snapshot.withdrawals),
            Input::Welcome(welcome) => {
                agent.backoff.reset();
                agent.attempts = 0;
                self.checkers.told(node, &welcome.snapshot.withdrawals);
            }
            _ => {}
        }
        let Some(core) = agent.core.as_mut() else {
            return;
        };
        let rehearsing = matches!(input, Input::Rehearse(_)).then(|| core.status(local));
        let effects = core.handle(input, local);
        if let Some(before) = rehearsing {
            self.fired.hit(Knob::Rehearsed);
            let standing = (&before, &core.status(local));
            let verdicts = &mut self.checkers.verdicts;
            rehearsals_change_nothing::agent(node, &effects, standing, verdicts);
        }
        agent.effects.add(effects);
    }

    pub(crate) fn agent_effect_done(&mut self, node: usize, epoch: u64) {
        let agent = &mut self.agents[node];
        if agent.epoch != epoch {
            return;
        }
        agent.busy = false;
        agent.disk.complete(true);
        self.checkers.persisted(node, agent.disk.synced());
        self.pump_agent(node);
    }

    pub(crate) fn agent_wakes(&mut self, node: usize, epoch: u64) {
        let agent = &mut self.agents[node];
        if agent.epoch == epoch {
            agent.wakes_at = None;
            self.observe(node);
            self.pump_agent(node);
        }
    }

    /// What strikes this node.
    pub(crate) fn strike_agent(&mut self, node: usize, kind: FaultKind) {
        match kind {
            FaultKind::Crash => self.crash_agent(node),
            FaultKind::Pause => {
                let now = self.schedule.now();
                let agent = &mut self.agents[node];
                if !agent.is_awake() {
                    return;
                }
                self.trace
                    .line(now, &agent.name, format_args!("stands still"));
                self.fired.hit(Knob::AgentPaused);
                agent.paused_since = Some(now);
                let pause = agent
                    .draws
                    .between(Duration::from_millis(500), self.options.pause_max);
                let epoch = agent.epoch;
                self.schedule
                    .after(pause, Event::AgentResumes { node, epoch });
            }
            FaultKind::Partition => self.partition(node),
        }
    }
}
