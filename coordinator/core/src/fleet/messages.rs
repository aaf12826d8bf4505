//! What agents say after their `Hello`.

use std::collections::BTreeMap;

use rollcall_shared::ids::{ConnectionId, Generation, ModelName, NodeId};
use rollcall_shared::limits::MODELS_PER_NODE_MAX;
use rollcall_shared::report::{AgentEvent, Readiness, ReadyState, Receipt};
use rollcall_shared::wire::{FromAgent, Heartbeat, HeartbeatAnswer, ToAgent};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::Effect;

impl Coordinator {
    pub(crate) fn on_message(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        message: FromAgent,
    ) {
        let Some(presence) = self.fleet.of_connection(connection, node) else {
            return;
        };
        presence.last_seen = turn.now;
        match message {
            // The shell hands the first one over as `AgentConnected`; a second changes nothing.
            FromAgent::Hello(_) => {}
            FromAgent::Heartbeat(heartbeat) => {
                self.on_heartbeat(turn, connection, node, &heartbeat);
            }
            FromAgent::Receipt(receipt) => self.on_receipt(turn, connection, node, receipt),
            FromAgent::Readiness(readiness) => {
                self.on_readiness(turn, connection, node, readiness);
            }
            FromAgent::Rehearsed(rehearsed) => {
                self.on_rehearsed(turn, connection, node, rehearsed);
            }
            FromAgent::Event(AgentEvent::BreakerOpened { model, rollout, .. }) => {
                let live = self.state.live_rollout(&model).map(|r| r.id);
                if live == Some(rollout) {
                    self.on_breaker(turn, node, &model);
                }
            }
            // A breaker that closes says that a probe came through, which the counts say too; an
            // expired lease is what `rollback` reckons with anyway.
            FromAgent::Event(
                AgentEvent::BreakerClosed { .. } | AgentEvent::LeaseExpired { .. },
            ) => {}
        }
    }

    /// Answers with what is current; sends again what the agent missed.
    fn on_heartbeat(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        heartbeat: &Heartbeat,
    ) {
        let held: BTreeMap<ModelName, Generation> = heartbeat
            .held
            .iter()
            .take(MODELS_PER_NODE_MAX)
            .cloned()
            .collect();
        // All that it remembers was in its `Hello`. What it learns elsewhere is adopted too,
        // but once: adoption is a record, and news for the whole fleet.
        let taught = self.fleet.nodes.get(node).is_some_and(|p| p.taught);
        if !taught && held.iter().all(|(m, g)| self.is_possible(m, *g)) {
            self.adopt(turn, node, &[], held.clone());
        }
        let models = self.hosted_models(node);
        let current: Vec<(ModelName, Generation)> = models
            .iter()
            .filter_map(|model| Some((model.clone(), self.state.models.get(model)?.generation)))
            .collect();
        let lagging: Vec<&ModelName> = current
            .iter()
            .filter(|(model, now)| held.get(model).copied().unwrap_or_default() < *now)
            .map(|(model, _)| model)
            .collect();
        let repair = (!lagging.is_empty()).then(|| self.snapshot_of(node, lagging));
        for assignment in repair.iter().flat_map(|snapshot| &snapshot.assignments) {
            let (model, generation) = (&assignment.model, assignment.generation);
            self.fleet.note_sent(node, model, generation);
        }
        if let Some(presence) = self.fleet.of_connection(connection, node) {
            presence.held = held;
            presence.answered_at = turn.now;
        }
        let answer = HeartbeatAnswer {
            seq: heartbeat.seq,
            current,
        };
        let messages = [
            Some(ToAgent::HeartbeatAnswer(answer)),
            repair.map(ToAgent::Sync),
        ];
        for message in messages.into_iter().flatten() {
            turn.then(Effect::Send {
                node: node.clone(),
                connection,
                message,
            });
        }
    }

    pub(crate) fn on_receipt(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        receipt: Receipt,
    ) {
        let current = self.state.models.get(&receipt.model).map(|m| m.generation);
        if current.is_none_or(|current| receipt.generation > current) {
            return;
        }
        let Some(presence) = self.fleet.of_connection(connection, node) else {
            return;
        };
        if presence.note_receipt(receipt.clone()) {
            self.note_rollback_receipt(turn, node, &receipt);
        }
    }

    pub(crate) fn on_readiness(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        readiness: Readiness,
    ) {
        let is_assigned = self.assigned(&readiness.model).contains(&readiness.version);
        let Some(presence) = self.fleet.of_connection(connection, node) else {
            return;
        };
        if !is_assigned {
            return;
        }
        let model = readiness.model.clone();
        let version = readiness.version;
        let failed = matches!(
            readiness.state,
            ReadyState::Failed {
                retrying: false,
                ..
            }
        );
        presence.note_ready(readiness);
        let live = self.state.live_rollout(&model);
        let Some(rollout) = live.filter(|r| r.candidate == version).map(|r| r.id) else {
            return;
        };
        if failed {
            self.step(turn, rollout);
        } else {
            self.nudge(turn, &model);
        }
    }
}
