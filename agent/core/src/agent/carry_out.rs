//! From state to effects, and what must hold after every input: durable, prepared,
//! routed, reported, and only then is memory freed. Withdrawals have a road of their own
//! before this one; see [`super::fence`].
//!
//! Deliberately absent: any reading of inputs. Whatever an input changed is in the state
//! by now, and the effects are the difference between the state and what was brought about.

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::report::{AgentEvent, Readiness};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;

use super::Agent;
use crate::effect::Effect;
use crate::preparation::Preparation;
use crate::reconcile;
use crate::route::Route;

/// A route that has to be put in place.
pub(super) struct Rerouted {
    pub(super) route: Route,
    /// It serves something else, or carries something newer out.
    pub(super) is_receipt_due: bool,
    pub(super) event: Option<AgentEvent>,
}

impl Agent {
    /// Ends leases that are over, so that no receipt is repeated for a route that should
    /// have been replaced before this input came.
    pub(super) fn reroute_and_say(&mut self, now: Timestamp) -> Vec<Effect> {
        let (routes, words) = self.reroute(now);
        let swaps = routes.into_iter().map(Effect::Swap);
        swaps.chain(words.into_iter().map(Effect::Send)).collect()
    }

    /// Brings about what the state asks for. `words` are said after the receipts.
    pub(super) fn carry_out(&mut self, words: Vec<FromAgent>, now: Timestamp) -> Vec<Effect> {
        self.unfinished = false;
        let mut effects: Vec<_> = self.persist_if_unsaved().into_iter().collect();
        effects.extend(self.pin_if_changed());
        let begun = self.begin_preparations(now);
        effects.extend(
            begun
                .iter()
                .cloned()
                .map(|(model, version)| Effect::Prepare { model, version }),
        );
        let (routes, receipts) = self.reroute(now);
        effects.extend(routes.into_iter().map(Effect::Swap));
        let ready = self.readiness_to_say(begun);
        let said = receipts.into_iter().chain(words).chain(ready);
        effects.extend(said.map(Effect::Send));
        effects.extend(self.unload_unneeded());
        effects
    }

    pub(super) fn persist_if_unsaved(&mut self) -> Option<Effect> {
        std::mem::take(&mut self.unsaved).then(|| Effect::Persist(self.durable.clone()))
    }

    fn pin_if_changed(&mut self) -> Option<Effect> {
        let mut changed = false;
        for (name, model) in &mut self.models {
            let assignment = &self.durable.assignments[name];
            let assigned = |version: &VersionRef| {
                reconcile::versions_of(assignment).any(|asked| asked == *version)
            };
            let is_pinned = |version| model.pinned.contains(&version);
            let same = model.pinned.iter().all(assigned)
                && reconcile::versions_of(assignment).all(is_pinned);
            if !same {
                model.pinned = reconcile::versions_of(assignment).collect();
                changed = true;
            }
        }
        let pinned = self.models.iter().flat_map(|(name, model)| {
            let versions = model.pinned.iter();
            versions.map(|version| (name.clone(), *version))
        });
        changed.then(|| Effect::Pin(pinned.collect()))
    }

    /// How far the node is with a version, if it has to do with it at all.
    pub(super) fn preparation(
        &self,
        model: &ModelName,
        version: VersionRef,
    ) -> Option<&Preparation> {
        self.models.get(model)?.versions.get(&version)
    }

    fn begin_preparations(&mut self, now: Timestamp) -> Vec<(ModelName, VersionRef)> {
        let mut begun = Vec::new();
        for (name, model) in &mut self.models {
            let assignment = &self.durable.assignments[name];
            for version in reconcile::versions_of(assignment) {
                let held = model.versions.get(&version);
                if let Some(next) = Preparation::begin(held, assignment.generation, now) {
                    model.versions.insert(version, next);
                    begun.push((name.clone(), version));
                }
            }
        }
        begun
    }

    /// How far the versions are whose preparation has just begun, and the candidates of
    /// rollouts that are new to us. A candidate may be here already (it was kept to go back
    /// to, or tried before), while the coordinator forgets readiness with every rollout.
    fn readiness_to_say(&mut self, begun: Vec<(ModelName, VersionRef)>) -> Vec<FromAgent> {
        let mut keys = begun;
        for (name, model) in &mut self.models {
            let candidate = self.durable.assignments[name].candidate;
            let rollout = candidate.map(|c| c.rollout);
            let is_new = rollout != model.told;
            model.told = rollout;
            let new = candidate.filter(|_| is_new);
            keys.extend(
                new.map(|c| (name.clone(), c.version))
                    .filter(|k| !keys.contains(k)),
            );
        }
        keys.into_iter()
            .filter_map(|(model, version)| {
                let state = self.preparation(&model, version)?.state();
                Some(FromAgent::Readiness(Readiness {
                    model,
                    version,
                    state,
                }))
            })
            .collect()
    }

    /// The routes that have to change, and what to say once they have.
    pub(super) fn reroute(&mut self, now: Timestamp) -> (Vec<Route>, Vec<FromAgent>) {
        let (mut routes, mut words) = (Vec::new(), Vec::new());
        let names: Vec<ModelName> = self.models.keys().cloned().collect();
        for rerouted in names
            .iter()
            .filter_map(|name| self.reroute_model(name, now))
        {
            let Rerouted {
                route,
                is_receipt_due,
                event,
            } = rerouted;
            let receipt = is_receipt_due.then(|| FromAgent::Receipt(reconcile::receipt(&route)));
            words.extend(receipt);
            words.extend(event.map(FromAgent::Event));
            routes.push(route);
        }
        (routes, words)
    }

    /// The model's route, if it has to change.
    pub(super) fn reroute_model(&mut self, name: &ModelName, now: Timestamp) -> Option<Rerouted> {
        let model = self.models.get_mut(name)?;
        let assignment = &self.durable.assignments[name];
        let is_ready = |v| model.versions.get(&v) == Some(&Preparation::Ready);
        let withdrawn = &model.withdrawn;
        let before = model.route.as_ref();
        let lease = model.lease.as_ref();
        let route = reconcile::route(assignment, before, lease, is_ready, withdrawn, now);
        if before == Some(&route) {
            return None;
        }
        assert!(
            before.is_none_or(|b| b.generation <= route.generation),
            "a route's generation went back"
        );
        let is_receipt_due = before.map_or(route.generation > Generation::default(), |before| {
            !reconcile::same_receipt(before, &route)
        });
        let event = reconcile::expired(before, &route, assignment, now).map(|rollout| {
            AgentEvent::LeaseExpired {
                model: name.clone(),
                rollout,
            }
        });
        model.route = Some(route.clone());
        Some(Rerouted {
            route,
            is_receipt_due,
            event,
        })
    }

    /// Frees what neither an assignment nor a route names.
    fn unload_unneeded(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (name, model) in &mut self.models {
            let candidate = |route: &Route| route.candidate.as_ref().map(|c| c.version);
            let route = model.route.as_ref();
            let routed = [route.and_then(|r| r.stable), route.and_then(candidate)];
            model.versions.retain(|version, preparation| {
                let keep = model.pinned.contains(version) || routed.contains(&Some(*version));
                if !keep && preparation.occupies_the_engine() {
                    effects.push(Effect::Unload {
                        model: name.clone(),
                        version: *version,
                    });
                }
                keep
            });
        }
        effects
    }

    /// What must hold after every input; a broken one is a bug, and better found by a
    /// restart into stable than by requests.
    pub(super) fn assert_invariants(&self, now: Timestamp) {
        assert!(!self.unsaved, "something was not persisted");
        for (name, model) in &self.models {
            let assignment = &self.durable.assignments[name];
            assert!(model.heard >= assignment.generation);
            assert_eq!(model.lease.is_some(), assignment.candidate.is_some());
            let Some(route) = &model.route else {
                panic!("{name} has an assignment and no route");
            };
            assert!(route.generation <= assignment.generation);
            let withdrawn = &model.withdrawn;
            let candidate = route.candidate.as_ref();
            let routed = route.stable.into_iter().chain(candidate.map(|c| c.version));
            for version in routed {
                assert!(
                    !withdrawn.has_version(version),
                    "a withdrawn version is routed"
                );
                let preparation = model.versions.get(&version);
                assert_eq!(preparation, Some(&Preparation::Ready), "routed, not ready");
            }
            if let Some(candidate) = candidate {
                assert!(!withdrawn.has_rollout(candidate.rollout), "withdrawn");
                let lease = model.lease.as_ref().and_then(|l| l.running_until(now));
                assert_eq!(
                    lease,
                    Some(candidate.lease_until),
                    "a candidate without a lease"
                );
            }
        }
    }
}
