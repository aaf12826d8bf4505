//! The agent: what a serving node does with what it is told.
//!
//! Two roads lead from an input to effects, and both end in the same comparison of what
//! should be with what is:
//!
//! - `carry_out` (everything but a withdrawal): durable first, then prepared,
//!   then routed, then reported, and only then is memory freed.
//! - [`Agent::fence`] (a withdrawal, also one in a snapshot), before that: routed first,
//!   then durable, then reported. The safe direction waits neither for a disk nor for its turn.
//!
//! Nothing is computed from the change that an input made. Each `handle` derives routes,
//! pins and preparations from the whole state, so a lost, repeated or reordered message
//! cannot leave a difference behind that nobody looks at again.
//!
//! Deliberately absent: connections and retries of sending (a `Hello` repeats what
//! matters), downloads (a `Prepare` is one word here), the breaker (per request, see
//! [`crate::breaker`]), and any way for an input to put a withdrawn version back.

mod carry_out;
mod fence;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod interleavings;
mod rehearse;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::assignment::{Assignment, VersionRef};
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::limits::{HEARTBEAT_EVERY, HEARTBEATS_PER_LEASE, MODELS_PER_NODE_MAX};
use rollcall_shared::report::Readiness;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::{
    FromAgent, Heartbeat, HeartbeatAnswer, Hello, PROTOCOL, PROTOCOL_MIN, Welcome,
};

use self::fence::Owed;
pub use self::status::{ModelStatus, WaitingFor};
use crate::effect::{DurableState, Effect};
use crate::input::{Input, PrepareFailure};
use crate::lease::{HeartbeatsInFlight, Lease};
use crate::preparation::{Preparation, cut, retry_delay};
use crate::reconcile::{self, Withdrawn};
use crate::route::Route;

/// Who an agent is; from its config file. Its name is in its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentIdentity {
    /// Where it stands, e.g. `zone = eu-1`.
    pub labels: BTreeMap<String, String>,
    /// The models it hosts; empty: all.
    pub models: Vec<ModelName>,
    /// Its software, e.g. `rollcall-agent 0.1.0`.
    pub software: String,
}

/// One serving node.
#[derive(Debug)]
pub struct Agent {
    identity: AgentIdentity,
    durable: DurableState,
    /// `durable` differs from the disk.
    unsaved: bool,
    /// What is to be said of withdrawals once `durable` is on the disk.
    owed: Owed,
    /// A withdrawal is carried out no further than its routes.
    unfinished: bool,
    /// One for each hosted model with an assignment in `durable`.
    models: BTreeMap<ModelName, Model>,
    link: Link,
    heartbeats: HeartbeatsInFlight,
    /// The rehearsal that was answered last on this connection: copies follow.
    rehearsed: Option<u64>,
    last_now: Timestamp,
}

/// What is known of a model beside its assignment; lost in a restart.
#[derive(Debug, Default)]
struct Model {
    /// The versions that it should have, and those on their way out.
    versions: BTreeMap<VersionRef, Preparation>,
    /// What was pinned.
    pinned: BTreeSet<VersionRef>,
    /// Follows from `durable.withdrawals`, and is asked at every turn.
    withdrawn: Withdrawn,
    /// The route in place. `None`: none was ever put there.
    route: Option<Route>,
    /// `Some` as long as the assignment has a candidate.
    lease: Option<Lease>,
    /// The newest generation ever heard of; an answer that is older renews nothing.
    heard: Generation,
    /// The rollout whose candidate we said something about: how far it is, at least once.
    told: Option<RolloutId>,
}

#[derive(Debug)]
enum Link {
    Offline,
    /// `Hello` is out.
    Greeting {
        hello_at: Timestamp,
    },
    Welcomed {
        /// As the coordinator asked; see [`Agent::heartbeat_due`].
        heartbeat_every: Duration,
        /// The last one, or the `Welcome`.
        heartbeat_at: Timestamp,
    },
}

impl Agent {
    /// An agent after a start of its process, with what the one before it made durable.
    /// It has no lease and no route, and serves stable as soon as that is prepared.
    #[must_use]
    pub fn restore(
        identity: AgentIdentity,
        state: DurableState,
        now: Timestamp,
    ) -> (Self, Vec<Effect>) {
        let mut agent = Self {
            identity,
            durable: DurableState {
                withdrawals: state.withdrawals.clone(),
                ..DurableState::default()
            },
            unsaved: false,
            owed: Owed::default(),
            unfinished: false,
            models: BTreeMap::new(),
            link: Link::Offline,
            heartbeats: HeartbeatsInFlight::default(),
            rehearsed: None,
            last_now: now,
        };
        for (model, assignment) in state.assignments.clone() {
            if agent.hosts(&model) {
                agent.hold(assignment, [None, None, None]);
            } else {
                // Not ours today; its generation must still not go back if it is tomorrow.
                agent.durable.assignments.insert(model, assignment);
            }
        }
        agent.unsaved = agent.durable != state;
        let effects = agent.carry_out(Vec::new(), now);
        agent.assert_invariants(now);
        (agent, effects)
    }

    fn advance(&mut self, now: Timestamp) {
        assert!(now >= self.last_now, "time went backwards");
        self.last_now = now;
    }

    /// Takes one input. The effects are for a [`Backlog`](crate::backlog::Backlog).
    ///
    /// # Panics
    /// When `now` is before the `now` of an earlier call, or an invariant is broken.
    pub fn handle(&mut self, mut input: Input, now: Timestamp) -> Vec<Effect> {
        self.advance(now);
        let fenced = match &mut input {
            Input::Withdraw(withdrawal) => {
                self.fence(withdrawal.clone(), now).into_iter().collect()
            }
            Input::Welcome(Welcome { snapshot, .. }) | Input::Sync(snapshot) => {
                self.fence_all(std::mem::take(&mut snapshot.withdrawals), now)
            }
            // Not even what time alone would bring about: that has its own input.
            Input::Rehearse(rehearsal) => return self.on_rehearse(rehearsal, now),
            _ => Vec::new(),
        };
        let mut effects: Vec<_> = fenced.into_iter().map(Effect::Swap).collect();
        effects.extend(self.persist_if_unsaved());
        let mut owed = self.take_owed();
        if input == Input::Connected {
            // Nothing may be said before `Hello`, and it repeats the receipts.
            owed.retain(is_event);
            let (swaps, words) = self.reroute(now);
            effects.extend(swaps.into_iter().map(Effect::Swap));
            effects.push(Effect::Send(self.on_connected(now)));
            owed.extend(words.into_iter().filter(is_event));
        }
        effects.extend(owed.into_iter().map(Effect::Send));
        let words = match input {
            Input::Connected | Input::Withdraw(_) | Input::Rehearse(_) => Vec::new(),
            Input::Disconnected => {
                self.link = Link::Offline;
                self.heartbeats.forget();
                Vec::new()
            }
            Input::Welcome(welcome) => {
                self.on_welcome(welcome, now);
                Vec::new()
            }
            Input::Assign(assignment) => {
                effects.extend(self.reroute_and_say(now));
                self.on_assign(assignment).into_iter().collect()
            }
            Input::Sync(snapshot) => {
                effects.extend(self.reroute_and_say(now));
                let assignments = snapshot.assignments.into_iter();
                assignments.filter_map(|a| self.on_assign(a)).collect()
            }
            Input::HeartbeatAnswer(answer) => {
                self.on_heartbeat_answer(&answer);
                Vec::new()
            }
            Input::Prepared {
                model,
                version,
                result,
            } => {
                let word = self.on_prepared(model, version, result, now);
                word.into_iter().collect()
            }
            Input::Event(event) => vec![FromAgent::Event(event)],
            Input::TimePassed => self.heartbeat_if_due(now).into_iter().collect(),
        };
        effects.extend(self.carry_out(words, now));
        self.assert_invariants(now);
        effects
    }

    /// When [`Input::TimePassed`] must come at the latest.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.unfinished {
            return Some(self.last_now);
        }
        let heartbeat = self.heartbeat_due();
        let routes = self.models.values().filter_map(|m| m.route.as_ref());
        let leases = routes.filter_map(|route| Some(route.candidate.as_ref()?.lease_until));
        let versions = self.models.values().flat_map(|m| m.versions.values());
        let retries = versions.filter_map(Preparation::retry_at);
        heartbeat.into_iter().chain(leases).chain(retries).min()
    }

    fn hosts(&self, model: &ModelName) -> bool {
        self.identity.models.is_empty() || self.identity.models.contains(model)
    }

    fn held(&self, model: &ModelName) -> Option<&Assignment> {
        self.models.get(model)?;
        self.durable.assignments.get(model)
    }

    fn held_generations(&self) -> Vec<(ModelName, Generation)> {
        let held = self.models.keys().filter_map(|model| self.held(model));
        held.map(|a| (a.model.clone(), a.generation)).collect()
    }

    fn on_connected(&mut self, now: Timestamp) -> FromAgent {
        self.heartbeats.forget();
        self.rehearsed = None;
        self.link = Link::Greeting { hello_at: now };
        let routes = self.models.values().filter_map(|m| m.route.as_ref());
        let receipts = routes.map(reconcile::receipt);
        let ready = self.models.iter().flat_map(|(name, model)| {
            model.versions.iter().map(|(version, p)| Readiness {
                model: name.clone(),
                version: *version,
                state: p.state(),
            })
        });
        FromAgent::Hello(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol: PROTOCOL,
            software: self.identity.software.clone(),
            labels: self.identity.labels.clone(),
            models: self.identity.models.clone(),
            held: self.held_generations(),
            withdrawals: self.durable.withdrawals.iter().cloned().collect(),
            receipts: receipts
                .filter(|r| r.generation > Generation::default() || !r.serving.is_empty())
                .collect(),
            ready: ready.collect(),
        })
    }

    /// Grants leases from the sending of our `Hello`, once.
    fn on_welcome(&mut self, welcome: Welcome, now: Timestamp) {
        let assignments = welcome.snapshot.assignments;
        let named: Vec<_> = assignments
            .iter()
            .map(|a| (a.model.clone(), a.generation))
            .collect();
        for assignment in assignments {
            // The receipts it may return went out with our `Hello`.
            self.on_assign(assignment);
        }
        if let Link::Greeting { hello_at } = self.link {
            self.renew(&named, hello_at);
            let heartbeat_every = match welcome.heartbeat_every_ms {
                0 => HEARTBEAT_EVERY,
                milliseconds => Duration::from_millis(milliseconds),
            };
            self.link = Link::Welcomed {
                heartbeat_every,
                heartbeat_at: now,
            };
        }
    }

    /// Takes an assignment that is newer than what we hold. For one that we already
    /// serve, the receipt is returned: the coordinator may have lost it.
    fn on_assign(&mut self, assignment: Assignment) -> Option<FromAgent> {
        let model = &assignment.model;
        let known = self.models.get(model);
        if !self.hosts(model) || (known.is_none() && self.models.len() >= MODELS_PER_NODE_MAX) {
            return None;
        }
        let route = known.and_then(|m| m.route.as_ref());
        let held = self.held(model);
        let held_generation = held.map(|a| a.generation).unwrap_or_default();
        if assignment.generation > held_generation {
            let instead = [
                held.and_then(|a| a.stable),
                route.and_then(|r| r.stable),
                held.and_then(|a| a.previous),
            ];
            self.hold(assignment, instead);
            return None;
        }
        route
            .filter(|r| r.generation == assignment.generation && held.is_some())
            .map(|route| FromAgent::Receipt(reconcile::receipt(route)))
    }

    /// Puts an assignment in place of the one held, as far as it is permitted.
    fn hold(&mut self, asked: Assignment, instead: [Option<VersionRef>; 3]) {
        let name = asked.model.clone();
        let model = self.models.entry(name.clone()).or_insert_with(|| Model {
            withdrawn: Withdrawn::of(&self.durable.withdrawals, &name),
            ..Model::default()
        });
        let assignment = reconcile::permitted(asked, instead, &model.withdrawn);
        let lease = model.lease.take();
        model.lease = assignment
            .candidate
            .map(|candidate| Lease::under(lease.as_ref(), &candidate));
        model.heard = model.heard.max(assignment.generation);
        let generation = assignment.generation;
        let before = self.durable.assignments.insert(name, assignment);
        assert!(
            before.is_none_or(|b| b.generation <= generation),
            "a held generation went back"
        );
        self.unsaved = true;
    }

    fn on_heartbeat_answer(&mut self, answer: &HeartbeatAnswer) {
        if let Some(sent_at) = self.heartbeats.answered(answer.seq) {
            self.renew(&answer.current, sent_at);
        }
    }

    /// Renews the lease of each model whose generation here is the one that we hold and
    /// the newest that we ever heard of.
    fn renew(&mut self, current: &[(ModelName, Generation)], sent_at: Timestamp) {
        for (name, generation) in current {
            let Some(held) = self.held(name).map(|a| a.generation) else {
                continue;
            };
            let Some(model) = self.models.get_mut(name) else {
                continue;
            };
            model.heard = model.heard.max(*generation);
            if *generation == held
                && model.heard == held
                && let Some(lease) = &mut model.lease
            {
                lease.renew(sent_at);
            }
        }
    }

    fn on_prepared(
        &mut self,
        model: ModelName,
        version: VersionRef,
        result: Result<(), PrepareFailure>,
        now: Timestamp,
    ) -> Option<FromAgent> {
        let generation = self.held(&model)?.generation;
        let preparation = self.models.get_mut(&model)?.versions.get_mut(&version)?;
        let &mut Preparation::Fetching { failures } = preparation else {
            return None;
        };
        *preparation = match result {
            Ok(()) => Preparation::Ready,
            Err(failure) if failure.retryable => {
                let failures = failures.saturating_add(1);
                let delay = retry_delay(failures, &self.identity.labels, &model, &version);
                Preparation::Waiting {
                    failures,
                    reason: cut(failure.reason),
                    retry_at: now + delay,
                }
            }
            Err(failure) => Preparation::Failed {
                reason: cut(failure.reason),
                generation,
            },
        };
        Some(FromAgent::Readiness(Readiness {
            state: preparation.state(),
            model,
            version,
        }))
    }

    /// When the next heartbeat is due: as often as the coordinator asked, and at least
    /// [`HEARTBEATS_PER_LEASE`] times in the shortest lease that we hold.
    fn heartbeat_due(&self) -> Option<Timestamp> {
        let Link::Welcomed {
            heartbeat_every,
            heartbeat_at,
        } = &self.link
        else {
            return None;
        };
        let leases = self.models.values().filter_map(|m| m.lease.as_ref());
        let shortest = leases
            .map(|lease| lease.length() / HEARTBEATS_PER_LEASE)
            .min();
        let every = shortest.map_or(*heartbeat_every, |lease| lease.min(*heartbeat_every));
        Some(*heartbeat_at + every)
    }

    /// One heartbeat, however many were missed.
    fn heartbeat_if_due(&mut self, now: Timestamp) -> Option<FromAgent> {
        if now < self.heartbeat_due()? {
            return None;
        }
        if let Link::Welcomed { heartbeat_at, .. } = &mut self.link {
            *heartbeat_at = now;
        }
        let seq = self.heartbeats.send(now);
        let held = self.held_generations();
        Some(FromAgent::Heartbeat(Heartbeat { seq, held }))
    }
}

const fn is_event(word: &FromAgent) -> bool {
    matches!(word, FromAgent::Event(_))
}
