//! The nodes as they are now: who is connected, what each said last, what it was told.
//!
//! Memory only, and level-triggered: everything here is said again in the next `Hello`. The
//! latest connection of a node wins; what an older one still delivers is ignored.
//!
//! For every node it remembers when it was last answered ([`Presence::answered_at`]). An agent
//! counts a lease from the *sending* of a message that was answered, so no lease that it can
//! hold ends later than that moment plus the lease's bound.

mod hello;
mod messages;

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{ConnectionId, Generation, ModelName, NodeId};
use rollcall_shared::limits::TEXT_BYTES_MAX;
use rollcall_shared::report::{Readiness, ReadyState, Receipt, Resources};
use rollcall_shared::time::Timestamp;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{DisconnectCause, Done, Effect, Refusal};
use crate::input::Actor;
use crate::record::Event;

/// Nodes that connected since this process began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) nodes: BTreeMap<NodeId, Presence>,
}

/// One node, as this process knows it.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) last_seen: Timestamp,
    /// When its last `Hello` or heartbeat was answered: nothing else renews a lease.
    pub(crate) answered_at: Timestamp,
    pub(crate) software: String,
    /// Negotiated on its latest connection.
    pub(crate) protocol: u16,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it hosts; empty: every model.
    models: BTreeSet<ModelName>,
    /// What it said it holds.
    pub(crate) held: BTreeMap<ModelName, Generation>,
    /// It taught this journal something on this connection; once is enough.
    taught: bool,
    /// The highest generation that this process sent it.
    sent: BTreeMap<ModelName, Generation>,
    pub(crate) receipts: BTreeMap<ModelName, Receipt>,
    pub(crate) ready: BTreeMap<ModelName, BTreeMap<VersionRef, ReadyState>>,
    pub(crate) resources: Option<Resources>,
}

impl Presence {
    pub(crate) fn hosts(&self, model: &ModelName) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }

    pub(crate) fn ready_state(
        &self,
        model: &ModelName,
        version: VersionRef,
    ) -> Option<&ReadyState> {
        self.ready.get(model)?.get(&version)
    }

    fn note_ready(&mut self, readiness: Readiness) {
        let mut state = readiness.state;
        if let ReadyState::Failed { reason, .. } = &mut state {
            *reason = reason.chars().take(TEXT_BYTES_MAX).collect();
        }
        let versions = self.ready.entry(readiness.model).or_default();
        versions.insert(readiness.version, state);
    }

    /// Keeps the newest; says whether this one is.
    fn note_receipt(&mut self, receipt: Receipt) -> bool {
        let known = self.receipts.get(&receipt.model);
        let newest = known.is_none_or(|r| r.generation <= receipt.generation);
        if newest {
            self.receipts.insert(receipt.model.clone(), receipt);
        }
        newest
    }
}

impl Fleet {
    /// Connected nodes that host a model.
    pub(crate) fn connected_hosting(&self, model: &ModelName) -> Vec<(NodeId, ConnectionId)> {
        self.nodes
            .iter()
            .filter(|(_, presence)| presence.hosts(model))
            .filter_map(|(node, presence)| Some((node.clone(), presence.connection?)))
            .collect()
    }

    pub(crate) fn on_disconnected(&mut self, connection: ConnectionId, node: &NodeId) {
        if let Some(presence) = self.of_connection(connection, node) {
            presence.connection = None;
        }
    }

    /// The node, if this is its latest connection.
    pub(crate) fn of_connection(
        &mut self,
        connection: ConnectionId,
        node: &NodeId,
    ) -> Option<&mut Presence> {
        self.nodes
            .get_mut(node)
            .filter(|presence| presence.connection == Some(connection))
    }

    /// Remembers what a node was told.
    pub(crate) fn note_sent(&mut self, node: &NodeId, model: &ModelName, generation: Generation) {
        if let Some(presence) = self.nodes.get_mut(node) {
            let sent = presence.sent.entry(model.clone()).or_default();
            *sent = (*sent).max(generation);
        }
    }

    /// Every connected node was told, whether it hosts the model or not.
    pub(crate) fn note_broadcast(&mut self, model: &ModelName, generation: Generation) {
        for presence in self.nodes.values_mut().filter(|p| p.connection.is_some()) {
            let sent = presence.sent.entry(model.clone()).or_default();
            *sent = (*sent).max(generation);
        }
    }

    /// Nodes let go of versions that nobody assigns: what they said of them is over.
    fn keep_ready(&mut self, model: &ModelName, assigned: &[VersionRef]) {
        let said = self
            .nodes
            .values_mut()
            .filter_map(|p| p.ready.get_mut(model));
        for versions in said {
            versions.retain(|version, _| assigned.contains(version));
        }
    }
}

impl Coordinator {
    pub(crate) fn on_revoke_node(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        node: NodeId,
    ) -> Result<Done, Refusal> {
        if self.known_node(&node)?.revoked {
            return Ok(Done::Done);
        }
        let event = Event::NodeRevoked { node: node.clone() };
        self.record(turn, actor.clone(), event);
        let presence = self.fleet.nodes.get_mut(&node);
        if let Some(connection) = presence.and_then(|p| p.connection.take()) {
            turn.then(Effect::Disconnect {
                node: node.clone(),
                connection,
                cause: DisconnectCause::Revoked,
            });
        }
        for receipts in self.rollbacks.values_mut() {
            receipts.forget(&node);
        }
        self.settle_rollbacks(turn);
        self.forget_in_rehearsals(turn, &node);
        self.nudge_all(turn);
        Ok(Done::Done)
    }

    pub(crate) fn on_quarantine(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        node: NodeId,
        quarantine: bool,
    ) -> Result<Done, Refusal> {
        let known = self.known_node(&node)?;
        if known.revoked {
            return Err(Refusal::Conflict(format!("{node} is revoked for good")));
        }
        if known.quarantined == quarantine {
            return Ok(Done::Done);
        }
        let event = if quarantine {
            Event::NodeQuarantined { node }
        } else {
            Event::NodeReleased { node }
        };
        self.record(turn, actor.clone(), event);
        for rollout in self.state.live_rollouts() {
            turn.changed(&rollout.model);
        }
        self.nudge_all(turn);
        Ok(Done::Done)
    }

    fn known_node(&self, node: &NodeId) -> Result<&crate::state::Node, Refusal> {
        self.state
            .nodes
            .get(node)
            .ok_or_else(|| Refusal::NotFound(format!("there is no node {node}")))
    }

    /// Labels of a node: as it said last, over what it enrolled with.
    pub(crate) fn labels<'a>(&'a self, node: &NodeId) -> Option<&'a BTreeMap<String, String>> {
        let said = self.fleet.nodes.get(node).map(|presence| &presence.labels);
        said.or_else(|| self.state.nodes.get(node).map(|n| &n.labels))
    }

    /// Connected nodes that may try a candidate of `model`.
    pub(crate) fn eligible<'a>(
        &'a self,
        model: &'a ModelName,
    ) -> impl Iterator<Item = (&'a NodeId, &'a Presence)> {
        self.fleet.nodes.iter().filter(|(node, presence)| {
            presence.connection.is_some() && presence.hosts(model) && self.may_try(node)
        })
    }

    /// Whether the node is in the fleet, and not quarantined.
    pub(crate) fn may_try(&self, node: &NodeId) -> bool {
        let node = self.state.nodes.get(node);
        node.is_some_and(|n| !n.revoked && !n.quarantined)
    }

    /// What nodes are told to have: stable, the version before it, and the candidate.
    pub(crate) fn assigned(&self, model: &ModelName) -> Vec<VersionRef> {
        let entry = self.state.models.get(model);
        let candidate = self.state.live_rollout(model).map(|r| r.candidate);
        let versions = [
            entry.and_then(|m| m.stable),
            entry.and_then(|m| m.previous),
            candidate,
        ];
        versions.into_iter().flatten().collect()
    }

    pub(crate) fn forget_unassigned(&mut self, model: &ModelName) {
        let assigned = self.assigned(model);
        self.fleet.keep_ready(model, &assigned);
    }

    /// Versions that a connected node serves and was not approved to, by model.
    pub(crate) fn unauthorised(&self, presence: &Presence, model: &ModelName) -> Vec<VersionRef> {
        let (Some(receipt), Some(_)) = (presence.receipts.get(model), presence.connection) else {
            return Vec::new();
        };
        let approved = self.assigned(model);
        receipt
            .serving
            .iter()
            .map(|serving| serving.version)
            .filter(|version| !approved.contains(version))
            .collect()
    }
}
