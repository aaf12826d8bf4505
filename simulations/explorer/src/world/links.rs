//! An agent's connections: dialling, what arrives on them, and what an old network
//! might deliver again.

use std::time::Duration;

use rollcall_agent_core::agent::Agent;
use rollcall_agent_core::effect::Effect;
use rollcall_agent_core::input::Input;
use rollcall_shared::assignment::Assignment;
use rollcall_shared::codec;
use rollcall_shared::ids::Generation;
use rollcall_shared::wire::ToAgent;

use crate::faults::{Knob, Sabotage};
use crate::network::{Arrived, Awake, Direction, LinkId, Packet, decode_frame};
use crate::schedule::Event;
use crate::world::World;

/// Old messages that can be delivered again.
const REPLAYABLE_MAX: usize = 32;

/// No coordinator of the same past gives these generations to something else.
const STRANGERS_AHEAD: u64 = 1_000;

impl World {
    /// Tries to connect, unless stopped or connected.
    pub(crate) fn dial(&mut self, node: usize, epoch: u64) {
        let agent = &self.agents[node];
        if agent.epoch != epoch || agent.link.is_some() || !agent.is_up() {
            return;
        }
        let failures = self.agents[node].attempts;
        self.agents[node].attempts += 1;
        let verdicts = &mut self.checkers.verdicts;
        self.checkers.reconnects.attempted(failures, verdicts);
        let trip = self.network.delay(&self.options) * 3;
        self.schedule.after(trip, Event::Handshake { node, epoch });
    }

    pub(crate) fn handshake_ends(&mut self, node: usize, epoch: u64) {
        let agent = &self.agents[node];
        if agent.epoch != epoch || agent.link.is_some() {
            return;
        }
        let reached = Direction::BOTH
            .iter()
            .all(|way| !self.network.is_blocked(node, *way));
        let answered = reached && self.coordinator.is_awake() && agent.is_awake();
        if answered && self.network.handshake_succeeds(&self.options) {
            if self.network.link_of(node, Direction::Down).is_some() {
                self.fired.hit(Knob::Superseded);
            }
            let link = self.network.connect(node, &mut self.schedule);
            self.agents[node].link = Some(link);
            self.tell_agent(node, Input::Connected);
        } else {
            self.fired.hit(Knob::HandshakeFailed);
            self.dial_later(node, Duration::from_secs(1));
        }
    }

    fn dial_later(&mut self, node: usize, at_least: Duration) {
        let agent = &mut self.agents[node];
        let wait = agent.backoff.next(agent.draws.unit());
        let epoch = agent.epoch;
        self.schedule
            .after(at_least + wait, Event::Dial { node, epoch });
    }

    /// The agent's side of a connection is gone.
    pub(crate) fn agent_lost_link(&mut self, node: usize, link: LinkId) {
        if self.agents[node].link == Some(link) {
            self.agents[node].link = None;
            self.tell_agent(node, Input::Disconnected);
            self.hear_a_stranger(node);
            self.dial_later(node, Duration::ZERO);
        }
    }

    pub(crate) fn link_tick(&mut self, link: LinkId) {
        let Some(node) = self.network.links.get(&link).map(|link| link.node) else {
            return;
        };
        let awake = Awake {
            agent: self.agents[node].is_awake(),
            coordinator: self.coordinator.is_awake(),
        };
        let announced = self.network.links[&link].announced;
        let world = (&self.options, &mut self.schedule, &mut self.fired);
        for side in self.network.tick(link, awake, world) {
            self.trace.line(
                self.schedule.now(),
                &self.agents[node].name,
                format_args!("{link:?} idle at {side:?}"),
            );
            match side {
                Direction::Up => self.agent_lost_link(node, link),
                Direction::Down => self.coordinator_lost_link(node, link, announced),
            }
        }
    }

    pub(crate) fn farewell(&mut self, link: LinkId, direction: Direction) {
        let Some(node) = self.network.links.get(&link).map(|link| link.node) else {
            return;
        };
        let announced = self.network.links[&link].announced;
        if self.network.farewell_arrives(link, direction) {
            match direction {
                Direction::Up => self.coordinator_lost_link(node, link, announced),
                Direction::Down => self.agent_lost_link(node, link),
            }
        }
    }

    pub(crate) fn arrive(&mut self, link: LinkId, direction: Direction, packet: Packet) {
        let Some(node) = self.network.links.get(&link).map(|link| link.node) else {
            return;
        };
        for arrived in self
            .network
            .arrive(link, direction, packet, &mut self.fired)
        {
            match direction {
                Direction::Up => self.arrive_at_coordinator(node, link, &arrived),
                Direction::Down => self.arrive_at_agent(node, link, &arrived),
            }
        }
    }

    fn arrive_at_agent(&mut self, node: usize, link: LinkId, arrived: &Arrived) {
        if self.agents[node].link != Some(link) {
            return;
        }
        let message = match arrived {
            Arrived::Control(bytes) => decode_frame::<ToAgent>(bytes),
            Arrived::Datagram(bytes) => codec::decode(bytes).ok(),
            Arrived::Report(_) => None,
        };
        let Some(message) = message else {
            self.checkers
                .verdicts
                .broken(7, Some(node), "a message could not be read".to_owned());
            return;
        };
        let agent = &mut self.agents[node];
        if matches!(
            message,
            ToAgent::Assign(_) | ToAgent::Sync(_) | ToAgent::Withdraw(_) | ToAgent::Rehearse(_)
        ) {
            agent.replayable.push_back(message.clone());
            if agent.replayable.len() > REPLAYABLE_MAX {
                agent.replayable.pop_front();
            }
        }
        self.deliver_to_agent(node, message);
        self.replay_old_message(node);
    }

    /// A coordinator that was brought back beside the present one, from a backup without the
    /// withdrawals but far ahead in generations, answered while the present one did not, and
    /// says again what the node knows to be over.
    fn hear_a_stranger(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        if !agent.is_up() || !agent.strangers.chance(self.options.stale_words) {
            return;
        }
        let state = agent.disk.synced();
        let over = |version| state.withdrawals.iter().any(|w| w.withdrawn == version);
        let mut words = agent.replayable.iter().filter_map(|message| match message {
            ToAgent::Assign(old) => {
                let held = state.assignments.get(&old.model)?;
                let stable = old.stable.filter(|stable| over(*stable));
                let candidate = old.candidate.filter(|c| over(c.version));
                let says_something = stable.is_some() || candidate.is_some();
                // Nothing else comes back: the present coordinator could not know of that.
                says_something.then(|| Assignment {
                    generation: Generation(held.generation.0 + STRANGERS_AHEAD),
                    stable: stable.or(held.stable),
                    candidate,
                    ..held.clone()
                })
            }
            _ => None,
        });
        let Some(word) = words.next() else {
            return;
        };
        self.fired.hit(Knob::StaleWord);
        self.checkers.generations.forged(node, &word);
        self.tell_agent(node, Input::Assign(word));
    }

    fn deliver_to_agent(&mut self, node: usize, message: ToAgent) {
        let input = match message {
            ToAgent::Welcome(welcome) => Input::Welcome(welcome),
            ToAgent::Assign(assignment) => Input::Assign(assignment),
            ToAgent::Withdraw(withdrawal) => Input::Withdraw(withdrawal),
            ToAgent::Rehearse(rehearsal) => Input::Rehearse(rehearsal),
            ToAgent::Sync(snapshot) => Input::Sync(snapshot),
            ToAgent::HeartbeatAnswer(answer) => Input::HeartbeatAnswer(answer),
            // The connection closes next; and feedback is not for the core.
            ToAgent::Refused { .. } | ToAgent::Feedback(_) => return,
        };
        self.tell_agent(node, input);
    }

    fn replay_old_message(&mut self, node: usize) {
        let agent = &mut self.agents[node];
        let sabotaged = self.setup.sabotage == Some(Sabotage::OldGenerationsAccepted);
        let chance = if sabotaged {
            0.05
        } else {
            self.options.replays
        };
        if !agent.is_up() || agent.replayable.is_empty() || !agent.draws.chance(chance) {
            return;
        }
        let old = agent.draws.below(agent.replayable.len());
        let message = agent.replayable[old].clone();
        self.fired.hit(Knob::OldMessageReplayed);
        match message {
            ToAgent::Assign(assignment) if sabotaged => {
                self.accept_whatever_comes(node, assignment)
            }
            other => self.deliver_to_agent(node, other),
        }
    }

    /// What a core without the generation check would do: the shipping core is made to
    /// believe that it holds less than the old assignment.
    fn accept_whatever_comes(&mut self, node: usize, old: Assignment) {
        let agent = &mut self.agents[node];
        if !agent.is_awake() || agent.busy || !agent.effects.is_empty() {
            return;
        }
        let mut state = agent.disk.synced().clone();
        let held = state.assignments.get_mut(&old.model);
        let Some(held) = held.filter(|held| held.generation > old.generation) else {
            return;
        };
        held.generation.0 = old.generation.0 - 1;
        held.candidate = None;
        let local = agent.clock.local(self.schedule.now());
        let (mut core, effects) = Agent::restore(agent.identity(), state, local);
        // The new core learns what is prepared; routes stay as they are until then.
        for effect in effects {
            if let Effect::Prepare { model, version } = effect
                && agent.loaded.contains(&version)
            {
                let _ = core.handle(
                    Input::Prepared {
                        model,
                        version,
                        result: Ok(()),
                    },
                    local,
                );
            }
        }
        agent.preparing.clear();
        agent.core = Some(core);
        self.tell_agent(node, Input::Assign(old));
    }
}
