//! The door: what a `Hello` must be, what it teaches us, and the welcome.
//!
//! Agents remember withdrawals and generations. A journal that was restored from an old
//! backup does not: whatever an agent hands back that this journal never wrote is adopted
//! before anything else is decided ([`Coordinator::adopt`]). That trusts enrolled agents to
//! take versions away, never to bring one back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::{ConnectionId, Generation, ModelName, NodeId};
use rollcall_shared::limits::{
    HEARTBEAT_EVERY_PER_NODE, IDLE_TIMEOUT, LABELS_MAX, MODELS_PER_NODE_MAX, TEXT_BYTES_MAX,
    WITHDRAWALS_PER_MODEL_MAX,
};
use rollcall_shared::wire::{Hello, PROTOCOL, PROTOCOL_MIN, ToAgent, Welcome, negotiate};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{DisconnectCause, Effect};
use crate::fleet::Presence;
use crate::input::Actor;
use crate::record::{Cause, Event};
use crate::rollback::Target;

/// Versions that a node may call ready: each model's stable, previous and candidate, and one
/// on its way out.
const READY_PER_NODE_MAX: usize = 4 * MODELS_PER_NODE_MAX;

/// How far beyond what this journal knows a generation or a rollout's number may be that an
/// agent remembers. No backup is so old; numbers without a bound would run out.
const LEAP_MAX: u64 = 1 << 32;

/// Models that only agents remember. More are not adopted.
const MODELS_REMEMBERED_MAX: usize = MODELS_PER_NODE_MAX;

/// A `Hello` within all bounds, and the protocol to answer in.
struct ValidatedHello {
    hello: Hello,
    protocol: u16,
}

impl ValidatedHello {
    fn check(hello: Hello) -> Result<Self, String> {
        let Some(protocol) = negotiate(hello.protocol_min, hello.protocol) else {
            return Err(format!(
                "the agent speaks protocols {} to {}, this coordinator {PROTOCOL_MIN} to {PROTOCOL}: \
                 update whichever is older",
                hello.protocol_min, hello.protocol
            ));
        };
        let long = |text: &String| text.len() > TEXT_BYTES_MAX;
        let too_many = [
            ("models", hello.models.len(), MODELS_PER_NODE_MAX),
            ("held generations", hello.held.len(), MODELS_PER_NODE_MAX),
            ("receipts", hello.receipts.len(), MODELS_PER_NODE_MAX),
            ("labels", hello.labels.len(), LABELS_MAX),
            ("ready versions", hello.ready.len(), READY_PER_NODE_MAX),
            (
                "withdrawals",
                hello.withdrawals.len(),
                MODELS_PER_NODE_MAX * WITHDRAWALS_PER_MODEL_MAX,
            ),
        ];
        if let Some((what, have, most)) = too_many.iter().find(|(_, have, most)| have > most) {
            return Err(format!(
                "the agent has {have} {what}; at most {most} are possible"
            ));
        }
        if long(&hello.software) || hello.labels.iter().any(|(k, v)| long(k) || long(v)) {
            return Err(format!(
                "the agent's software name or a label is longer than {TEXT_BYTES_MAX} bytes"
            ));
        }
        Ok(Self { hello, protocol })
    }
}

impl Coordinator {
    pub(crate) fn on_connected(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        hello: Hello,
    ) {
        let refusal = match self.state.nodes.get(node) {
            None => Err(DisconnectCause::Refused(format!(
                "{node} is not enrolled here: enrol it with a new agent token"
            ))),
            Some(entry) if entry.revoked => Err(DisconnectCause::Revoked),
            Some(_) => ValidatedHello::check(hello)
                .and_then(|valid| self.check_leaps(valid))
                .map_err(DisconnectCause::Refused),
        };
        let valid = match refusal {
            Ok(valid) => valid,
            Err(cause) => {
                turn.then(Effect::Disconnect {
                    node: node.clone(),
                    connection,
                    cause,
                });
                return;
            }
        };
        self.note_presence(turn, connection, node, &valid);
        let ValidatedHello { hello, protocol } = valid;
        self.adopt(turn, node, &hello.withdrawals, held_or_served(&hello));
        let models = self.hosted_models(node);
        let snapshot = self.snapshot_of(node, &models);
        for assignment in &snapshot.assignments {
            let (model, generation) = (&assignment.model, assignment.generation);
            self.fleet.note_sent(node, model, generation);
        }
        turn.then(Effect::Send {
            node: node.clone(),
            connection,
            message: ToAgent::Welcome(Welcome {
                protocol,
                heartbeat_every_ms: millis(self.heartbeat_every()),
                report_every_ms: millis(self.config.report_every),
                snapshot,
            }),
        });
        for receipt in hello.receipts {
            self.on_receipt(turn, connection, node, receipt);
        }
        for readiness in hello.ready {
            self.on_readiness(turn, connection, node, readiness);
        }
        for model in &models {
            self.nudge(turn, model);
        }
    }

    /// Rarer in large fleets: what heartbeats cost grows with the fleet, what they are for
    /// (finding a lost message, noticing a lost node) does not get better with it. Leases
    /// do not suffer: an agent that holds one sends more by itself.
    fn heartbeat_every(&self) -> Duration {
        let nodes = u32::try_from(self.state.nodes.len()).unwrap_or(u32::MAX);
        let of_fleet = HEARTBEAT_EVERY_PER_NODE.saturating_mul(nodes);
        self.config
            .heartbeat_every
            .max(of_fleet.min(IDLE_TIMEOUT / 6))
    }

    /// Whether what the agent remembers can have been.
    fn check_leaps(&self, valid: ValidatedHello) -> Result<ValidatedHello, String> {
        let rollouts_end = self.state.next_rollout.saturating_add(LEAP_MAX);
        let withdrawals = &valid.hello.withdrawals;
        let generations = withdrawals.iter().map(|w| (&w.model, w.generation));
        let held = held_or_served(&valid.hello);
        let told = generations.chain(held.iter().map(|(model, held)| (model, *held)));
        let leap = told
            .filter(|(model, generation)| !self.is_possible(model, *generation))
            .map(|(model, generation)| format!("generation {generation} of {model}"))
            .next();
        let number = withdrawals.iter().find(|w| w.rollout.0 > rollouts_end);
        match leap.or_else(|| number.map(|w| format!("rollout {}", w.rollout))) {
            None => Ok(valid),
            Some(what) => Err(format!(
                "the agent remembers {what}, which no backup can have lost: its state is damaged \
                 or not of this fleet; enrol the node anew with an empty folder"
            )),
        }
    }

    /// Whether a generation can have been given, by this journal or one that it lost.
    pub(crate) fn is_possible(&self, model: &ModelName, generation: Generation) -> bool {
        let known = self.state.models.get(model).map(|m| m.generation.0);
        generation.0 <= known.unwrap_or_default().saturating_add(LEAP_MAX)
    }

    fn note_presence(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        valid: &ValidatedHello,
    ) {
        let hello = &valid.hello;
        let before = self.fleet.nodes.remove(node);
        if let Some(old) = before.as_ref().and_then(|p| p.connection) {
            turn.then(Effect::Disconnect {
                node: node.clone(),
                connection: old,
                cause: DisconnectCause::Superseded,
            });
            self.note_lost_rehearsals(turn, old, node);
        }
        let (sent, resources) = before.map(|p| (p.sent, p.resources)).unwrap_or_default();
        let presence = Presence {
            connection: Some(connection),
            last_seen: turn.now,
            answered_at: turn.now,
            software: hello.software.clone(),
            protocol: valid.protocol,
            labels: self.merged_labels(node, &hello.labels),
            models: hello.models.iter().cloned().collect(),
            held: hello.held.iter().cloned().collect(),
            taught: false,
            sent,
            receipts: BTreeMap::new(),
            ready: BTreeMap::new(),
            resources,
        };
        self.fleet.nodes.insert(node.clone(), presence);
    }

    fn merged_labels(
        &self,
        node: &NodeId,
        said: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut labels = self
            .state
            .nodes
            .get(node)
            .map(|n| n.labels.clone())
            .unwrap_or_default();
        labels.extend(said.clone());
        labels
    }

    /// Registered models that a node hosts.
    pub(crate) fn hosted_models(&self, node: &NodeId) -> Vec<ModelName> {
        let presence = self.fleet.nodes.get(node);
        let hosts = |model: &&ModelName| presence.is_some_and(|p| p.hosts(model));
        self.state.models.keys().filter(hosts).cloned().collect()
    }

    /// Takes over what an agent remembers and this journal lost.
    ///
    /// A held generation proves a lost past when it is newer than any that an earlier process
    /// durably gave (`Model::known`) and newer than any that this process sent to this node:
    /// then who knows what the agent holds under that number. We go on above it.
    pub(crate) fn adopt(
        &mut self,
        turn: &mut Turn,
        node: &NodeId,
        withdrawals: &[Withdrawal],
        held: BTreeMap<ModelName, Generation>,
    ) {
        let lost = self.lost(withdrawals);
        let sent = self.fleet.nodes.get(node).map(|presence| &presence.sent);
        let generations: Vec<(ModelName, Generation)> = held
            .into_iter()
            .filter(|(model, held)| {
                let known = self.state.models.get(model).map(|m| m.known);
                if known.is_none() && !self.remembers_more_models() {
                    return false;
                }
                let sent = sent.and_then(|sent| sent.get(model)).copied();
                *held > known.unwrap_or_default() && *held > sent.unwrap_or_default()
            })
            .collect();
        if !lost.is_empty() || !generations.is_empty() {
            let touched = lost.iter().map(|w| &w.model);
            for model in touched.chain(generations.iter().map(|(model, _)| model)) {
                turn.changed(model);
            }
            let event = Event::KnowledgeAdopted {
                node: node.clone(),
                withdrawals: lost.into_iter().collect(),
                generations,
            };
            self.record(turn, Actor::Agent { node: node.clone() }, event);
            if let Some(presence) = self.fleet.nodes.get_mut(node) {
                presence.taught = true;
            }
        }
        // Known ones too: a journal may end between what it adopted and what came of it.
        for withdrawal in withdrawals {
            self.obey(turn, node, withdrawal);
        }
    }

    /// Of these, the withdrawals that this journal lost, within its bounds.
    fn lost(&self, withdrawals: &[Withdrawal]) -> BTreeSet<Withdrawal> {
        let mut lost = BTreeSet::new();
        let mut room: BTreeMap<&ModelName, usize> = BTreeMap::new();
        for withdrawal in withdrawals.iter().filter(|w| !self.knows(w)) {
            let entry = self.state.models.get(&withdrawal.model);
            if entry.is_none() && !self.remembers_more_models() {
                continue;
            }
            let has = entry.map_or(0, |m| m.withdrawals.len());
            let room = room
                .entry(&withdrawal.model)
                .or_insert(WITHDRAWALS_PER_MODEL_MAX.saturating_sub(has));
            if *room > 0 && lost.insert(withdrawal.clone()) {
                *room -= 1;
            }
        }
        lost
    }

    /// Whether a model that nobody registered here may still be adopted.
    fn remembers_more_models(&self) -> bool {
        let models = self.state.models.values();
        models.filter(|m| m.versions.is_empty()).count() < MODELS_REMEMBERED_MAX
    }

    fn knows(&self, withdrawal: &Withdrawal) -> bool {
        let model = self.state.models.get(&withdrawal.model);
        model.is_some_and(|m| {
            let same = |w: &Withdrawal| {
                w.rollout == withdrawal.rollout && w.withdrawn == withdrawal.withdrawn
            };
            m.withdrawals.contains(withdrawal) || m.withdrawals.iter().any(same)
        })
    }

    /// Withdraws what an adopted withdrawal speaks of, if it is on trial or stable here.
    fn obey(&mut self, turn: &mut Turn, node: &NodeId, adopted: &Withdrawal) {
        let cause = Cause::Adopted { node: node.clone() };
        let live = self.state.live_rollout(&adopted.model);
        let on_trial = live
            .filter(|r| r.id == adopted.rollout || r.candidate == adopted.withdrawn)
            .map(Target::candidate_of);
        let entry = self.state.models.get(&adopted.model);
        let stable = entry
            .filter(|m| m.stable == Some(adopted.withdrawn))
            .map(|m| Target {
                model: adopted.model.clone(),
                rollout: self
                    .promoted_by(&adopted.model, adopted.withdrawn)
                    .unwrap_or(adopted.rollout),
                withdrawn: adopted.withdrawn,
                // An agent's word may bring back only what this journal made stable itself.
                preferred: adopted.serving.filter(|v| {
                    let registered = m.versions.get(&v.version);
                    m.rights.ever_named(v.version) && registered.is_some_and(|r| r.version == *v)
                }),
            });
        for target in on_trial.into_iter().chain(stable) {
            self.withdraw(turn, Actor::System, target, cause.clone());
        }
    }
}

/// The newest generation of each model that the agent speaks of.
fn held_or_served(hello: &Hello) -> BTreeMap<ModelName, Generation> {
    let mut held = BTreeMap::new();
    let served = hello.receipts.iter().map(|r| (&r.model, r.generation));
    for (model, generation) in hello.held.iter().map(|(m, g)| (m, *g)).chain(served) {
        let newest: &mut Generation = held.entry(model.clone()).or_default();
        *newest = generation.max(*newest);
    }
    held
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
