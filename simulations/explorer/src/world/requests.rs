//! What clients would be answered now, and what the coordinator says of it.
//!
//! Each look at a node is a request with the key of one of [`CLIENTS`], handled as the
//! agent's shell handles it: the route picks, the breaker is asked, and a candidate that
//! fails leaves the request to the fallback. An engine fails for a while on one node and not
//! on another; the counts in reports come from [`crate::workload`] and know nothing of it,
//! as if these few requests drowned among the many.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_agent_core::breaker::{Breaker, Transition};
use rollcall_agent_core::route::{Pick, Route};
use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::time::Timestamp;

use crate::checkers::{Seen, rollback_is_bounded::RollbackIsBounded, uses};
use crate::faults::{Knob, Sabotage};
use crate::schedule::Event;
use crate::world::{AgentProcess, World};

/// How many clients there are, each with a sticky key of its own.
pub(crate) const CLIENTS: u64 = 64;

/// The key of the client who is among the first to meet the route's candidate. It is the same
/// for as long as the rollout is.
pub(crate) fn keen_key(route: &Route, before: Option<&(Route, [u8; 8])>) -> [u8; 8] {
    let Some(candidate) = &route.candidate else {
        return [0; 8];
    };
    if let Some((
        Route {
            candidate: Some(before),
            ..
        },
        key,
    )) = before
        && before.rollout == candidate.rollout
    {
        return *key;
    }
    let mut best = (u16::MAX, [0; 8]);
    for client in 0..CLIENTS {
        let key = client.to_le_bytes();
        best = best.min((candidate.hasher.bucket(&key), key));
    }
    best.1
}

/// A breaker, and the rollout whose candidate it guards.
pub(crate) type RolloutBreaker = (RolloutId, Breaker);

impl World {
    /// Somebody looks at all nodes and at what the coordinator says of them.
    pub(super) fn observe_all(&mut self) {
        let next = self
            .observer
            .between(Duration::from_millis(20), Duration::from_millis(800));
        self.schedule.after(next, Event::Observe);
        for node in 0..self.agents.len() {
            self.observe(node);
        }
        self.compare_claims();
    }

    /// What would this node answer now? A stopped process counts as well: this is what
    /// it would answer if it went on now, before its timers run.
    pub(crate) fn observe(&mut self, node: usize) {
        let agent = &self.agents[node];
        if !agent.is_up() {
            return;
        }
        let local = agent.clock.local(self.schedule.now());
        let at = if self.setup.sabotage == Some(Sabotage::LeaseIgnored) {
            Timestamp::ZERO
        } else {
            local
        };
        let random = (self.observer.number() % CLIENTS).to_le_bytes();
        let mut tried = Vec::new();
        for (route, keen) in agent.routes.values() {
            let mut observed = None;
            for key in [*keen, random] {
                let pick = route.pick(&key, at);
                let client = u64::from_le_bytes(key);
                let seen = Seen {
                    node,
                    route,
                    pick,
                    client,
                    at,
                };
                if observed != Some(pick) {
                    self.checkers.observed(&seen, &agent.loaded);
                    observed = Some(pick);
                }
                self.checkers.met(&seen);
                match (pick, &route.candidate) {
                    (Pick::Candidate { .. }, Some(candidate)) => {
                        self.fired.hit(Knob::CandidateAnswered);
                        tried.push((route.model.clone(), candidate.rollout));
                    }
                    (Pick::StableAndShadow { .. }, _) => self.fired.hit(Knob::CandidateShadowed),
                    (Pick::Nobody | Pick::Stable(_) | Pick::Candidate { .. }, _) => {}
                }
            }
        }
        if self.agents[node].is_awake() {
            for (model, rollout) in tried {
                self.try_candidate(node, model, rollout, local);
            }
        }
    }

    /// A request that the route gives to the candidate.
    fn try_candidate(
        &mut self,
        node: usize,
        model: ModelName,
        rollout: RolloutId,
        local: Timestamp,
    ) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        let Some(version) = agent
            .routes
            .get(&model)
            .and_then(|(route, _)| route.candidate.as_ref())
            .map(|candidate| candidate.version)
        else {
            return;
        };
        let breakers = agent.breakers.entry(model.clone());
        let (_, breaker) = breakers.or_insert_with(|| (rollout, Breaker::new()));
        let verdicts = &mut self.checkers.verdicts;
        let trials = &mut self.checkers.trials;
        if !breaker.allows(local) {
            trials.denied(node, &model, rollout, verdicts);
            return;
        }
        let troubled = agent.troubles.get(&version);
        let fails = troubled.is_some_and(|(from, until)| (*from..*until).contains(&now));
        trials.ran(node, &model, rollout, !fails, verdicts);
        if fails {
            self.fired.hit(Knob::FellBack);
        }
        match breaker.record(!fails, local) {
            Some(Transition::Opened { .. }) => self.fired.hit(Knob::BreakerOpened),
            Some(Transition::Closed) => self.fired.hit(Knob::BreakerClosed),
            Some(Transition::Reopened) | None => {}
        }
    }

    /// Holds what the coordinator says about rollbacks against what nodes serve.
    pub(crate) fn compare_claims(&mut self) {
        let now = self.schedule.now();
        let Some(core) = &self.coordinator.core else {
            return;
        };
        let local = self.coordinator.clock.local(now);
        for model in &self.operator.models {
            let Some(withdrawal) = core.latest_withdrawal(model) else {
                continue;
            };
            let withdrawn = withdrawal.withdrawn.version;
            let approved = &self.checkers.approved;
            let serves = |agent: &&AgentProcess| {
                let route = agent.routes.get(model).filter(|_| agent.is_up());
                route.is_some_and(|(route, keen)| {
                    let pick = route.pick(keen, agent.clock.local(now));
                    uses(route, pick).any(|used| {
                        let unknowable = approved.promotion_was_lost(used.version);
                        used.version.version == withdrawn && !unknowable
                    })
                })
            };
            let serving: BTreeSet<&NodeId> =
                self.agents.iter().filter(serves).map(|a| &a.name).collect();
            // What nobody serves can be counted as everybody's.
            if serving.is_empty() {
                continue;
            }
            if let Some(view) = core.rollback_of_model(model, local) {
                RollbackIsBounded::claimed(&view, &serving, &mut self.checkers.verdicts);
            }
        }
    }
}
