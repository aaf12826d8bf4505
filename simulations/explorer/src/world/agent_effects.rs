//! What an agent's shell does when its core asks for it: one effect at a time, as the
//! shipping driver does.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_agent_core::effect::Effect;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::Route;
use rollcall_shared::report::AgentEvent;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;

use crate::checkers::receipts_are_true;
use crate::faults::{Knob, Sabotage};
use crate::network::Direction;
use crate::schedule::Event;
use crate::world::{World, keen_key};

impl World {
    pub(super) fn execute_agent_effect(&mut self, node: usize, effect: Effect) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        self.trace
            .line(now, &agent.name, format_args!("-> {effect:?}"));
        match effect {
            Effect::Swap(route) => {
                self.checkers
                    .generations
                    .swapped(node, &route, &mut self.checkers.verdicts);
                self.forget_breaker(node, &route);
                let keen = keen_key(&route, self.agents[node].routes.get(&route.model));
                let route = self.sabotaged_route(route);
                self.agents[node]
                    .routes
                    .insert(route.model.clone(), (route, keen));
            }
            Effect::Persist(state) => {
                agent.disk.begin(state);
                if self.setup.sabotage == Some(Sabotage::AgentPersistNotSynced) {
                    agent.disk.complete(false);
                    self.checkers.persisted(node, agent.disk.synced());
                    return;
                }
                agent.busy = true;
                let takes = agent
                    .draws
                    .between(Duration::from_micros(200), self.options.sync_max);
                let epoch = agent.epoch;
                self.schedule
                    .after(takes, Event::AgentEffectDone { node, epoch });
            }
            Effect::Send(message) => self.send_from_agent(node, &message),
            Effect::Prepare { model, version } => self.prepare(node, model, version),
            Effect::Unload { model, version } => {
                let held = agent.disk.synced().assignments.get(&model);
                let verdicts = &mut self.checkers.verdicts;
                self.checkers.stable.unloads(node, version, held, verdicts);
                agent.loaded.remove(&version);
                agent.preparing.remove(&version);
                // It reports nothing from now on, not even what is in the queue.
                agent.inbox.retain(
                    |input| !matches!(input, Input::Prepared { version: v, .. } if *v == version),
                );
            }
            Effect::Pin(pinned) => {
                let pinned: BTreeSet<_> = pinned.into_iter().map(|(_, version)| version).collect();
                let before = agent.cached.len();
                let evicts = agent.draws.chance(self.options.evictions);
                agent
                    .cached
                    .retain(|version| !evicts || pinned.contains(version));
                if agent.cached.len() < before {
                    self.fired.hit(Knob::Evicted);
                }
            }
        }
    }

    fn sabotaged_route(&self, mut route: Route) -> Route {
        if self.setup.sabotage == Some(Sabotage::LeaseIgnored)
            && let Some(candidate) = route.candidate.as_mut()
        {
            candidate.lease_until = Timestamp::MAX;
        }
        route
    }

    /// A breaker lives as long as its candidate stays in the route.
    fn forget_breaker(&mut self, node: usize, route: &Route) {
        let agent = &mut self.agents[node];
        let rollout = route.candidate.as_ref().map(|candidate| candidate.rollout);
        let guarded = agent
            .breakers
            .get(&route.model)
            .map(|(guarded, _)| *guarded);
        if guarded.is_some() && guarded != rollout {
            agent.breakers.remove(&route.model);
            self.checkers.trials.ended(node, &route.model);
        }
    }

    fn check_receipts(&mut self, node: usize, message: &FromAgent) {
        let receipts = match message {
            FromAgent::Receipt(receipt) => std::slice::from_ref(receipt),
            FromAgent::Hello(hello) => &hello.receipts,
            _ => return,
        };
        let agent = &self.agents[node];
        let disk = agent.disk.synced();
        for receipt in receipts {
            let before = self.checkers.generations.last_receipt(node, &receipt.model);
            let verdicts = &mut self.checkers.verdicts;
            receipts_are_true::said(node, receipt, &agent.routes, disk, before, verdicts);
        }
    }

    fn send_from_agent(&mut self, node: usize, message: &FromAgent) {
        self.check_receipts(node, message);
        if let FromAgent::Receipt(receipt) = message {
            let disk = self.agents[node].disk.synced();
            self.checkers
                .generations
                .receipted(node, receipt, disk, &mut self.checkers.verdicts);
        }
        if let FromAgent::Event(AgentEvent::LeaseExpired { .. }) = message {
            self.fired.hit(Knob::LeaseExpired);
        }
        let Some(link) = self.agents[node].link else {
            return;
        };
        let world = (&self.options, &mut self.schedule, &mut self.fired);
        if matches!(message, FromAgent::Heartbeat(_)) {
            self.network
                .send_datagram(link, Direction::Up, message, world);
        } else {
            // The agent's own queue is not bounded here: what waits is dropped with the connection.
            let _ = self
                .network
                .send_control(link, Direction::Up, message, world);
        }
    }
}
