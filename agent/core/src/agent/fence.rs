//! The road of a withdrawal: out of the routes, then onto the disk, then reported.
//!
//! The first part, [`Agent::fence`], is for whoever hears of a withdrawal, whatever else
//! is going on: it touches nothing but the memory of this process. The rest follows with
//! the next input, in its turn.

use std::sync::Arc;

use rollcall_shared::assignment::{Assignment, VersionRef, Withdrawal};
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::limits::MODELS_PER_NODE_MAX;
use rollcall_shared::report::AgentEvent;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;

use super::Agent;
use super::carry_out::Rerouted;
use crate::reconcile;
use crate::route::Route;

/// What is to be said of withdrawals once they are on the disk.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Of these models.
    receipts: Vec<ModelName>,
    events: Vec<AgentEvent>,
}

impl Owed {
    fn receipt(&mut self, model: ModelName) {
        if !self.receipts.contains(&model) {
            self.receipts.push(model);
        }
    }

    /// Notes what is to be said of a route, and gives the route.
    fn words_of(&mut self, rerouted: Rerouted) -> Route {
        let Rerouted {
            route,
            is_receipt_due,
            event,
        } = rerouted;
        if is_receipt_due {
            self.receipt(route.model.clone());
        }
        self.events.extend(event);
        route
    }
}

impl Agent {
    /// Carries a withdrawal out as far as it concerns requests: the route to put in place
    /// now, whatever effects still wait. The rest (durable, prepared, reported, freed) comes
    /// with the next [`Self::handle`], which is due at once.
    ///
    /// # Panics
    /// When `now` is before the `now` of an earlier call.
    #[must_use]
    pub fn fence(&mut self, withdrawal: Withdrawal, now: Timestamp) -> Option<Route> {
        self.advance(now);
        self.unfinished = true;
        let (name, generation) = (withdrawal.model.clone(), withdrawal.generation);
        let is_repeated = self.durable.withdrawals.contains(&withdrawal);
        self.on_withdrawal(withdrawal);
        let rerouted = self.reroute_model(&name, now);
        if is_repeated && self.has_reached(&name, generation) {
            self.owed.receipt(name);
        }
        rerouted.map(|rerouted| self.owed.words_of(rerouted))
    }

    /// The same for withdrawals that come with other news: the routes to put in place.
    pub(super) fn fence_all(&mut self, withdrawals: Vec<Withdrawal>, now: Timestamp) -> Vec<Route> {
        for withdrawal in withdrawals {
            self.on_withdrawal(withdrawal);
        }
        if !self.unsaved {
            return Vec::new();
        }
        let names: Vec<ModelName> = self.models.keys().cloned().collect();
        let mut routes = Vec::new();
        for name in &names {
            let rerouted = self.reroute_model(name, now);
            routes.extend(rerouted.map(|rerouted| self.owed.words_of(rerouted)));
        }
        routes
    }

    /// Whether we carried a withdrawal out. Asked again, the coordinator has lost our
    /// receipt, or never got it.
    fn has_reached(&self, model: &ModelName, generation: Generation) -> bool {
        let route = self.models.get(model).and_then(|m| m.route.as_ref());
        route.is_some_and(|route| route.generation >= generation)
    }

    /// What is to be said by now.
    pub(super) fn take_owed(&mut self) -> Vec<FromAgent> {
        let Owed { receipts, events } = std::mem::take(&mut self.owed);
        let routes = receipts
            .iter()
            .filter_map(|model| self.models.get(model)?.route.as_ref());
        let receipts = routes.map(|route| FromAgent::Receipt(reconcile::receipt(route)));
        receipts
            .chain(events.into_iter().map(FromAgent::Event))
            .collect()
    }

    /// Remembers a withdrawal, whatever its generation. There is no bound here: forgetting
    /// one is worse than any memory, and the coordinator refuses rollouts that could exceed
    /// `WITHDRAWALS_PER_MODEL_MAX`.
    fn on_withdrawal(&mut self, withdrawal: Withdrawal) {
        if !self.concerns_us(&withdrawal) {
            return;
        }
        let is_new = !self.durable.withdrawals.contains(&withdrawal);
        if is_new {
            Arc::make_mut(&mut self.durable.withdrawals).insert(withdrawal.clone());
            self.unsaved = true;
            if let Some(model) = self.models.get_mut(&withdrawal.model) {
                model.withdrawn.add(&withdrawal);
            }
        }
        if let Some((asked, instead)) = self.asked_after(&withdrawal, is_new) {
            self.hold(asked, instead);
        }
    }

    pub(super) fn concerns_us(&self, withdrawal: &Withdrawal) -> bool {
        let model = &withdrawal.model;
        let room = self.models.contains_key(model) || self.models.len() < MODELS_PER_NODE_MAX;
        self.hosts(model) && room
    }

    /// What a withdrawal asks of us, and what may stand in for its stable version. `None`:
    /// nothing beyond what is held already.
    pub(super) fn asked_after(
        &self,
        withdrawal: &Withdrawal,
        is_new: bool,
    ) -> Option<(Assignment, [Option<VersionRef>; 3])> {
        let model = &withdrawal.model;
        let held = self.held(model);
        let routed = self.models.get(model).and_then(|m| m.route.as_ref());
        let routed_stable = routed.and_then(|r| r.stable);
        let held_previous = held.and_then(|a| a.previous);
        match held {
            Some(held) if held.generation >= withdrawal.generation => is_new.then(|| {
                let instead = [withdrawal.serving, routed_stable, held_previous];
                (held.clone(), instead)
            }),
            held => {
                let asked = Assignment {
                    model: model.clone(),
                    generation: withdrawal.generation,
                    stable: withdrawal.serving,
                    previous: None,
                    candidate: None,
                };
                let held_stable = held.and_then(|a| a.stable);
                Some((asked, [held_stable, routed_stable, held_previous]))
            }
        }
    }
}
