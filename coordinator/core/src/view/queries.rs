//! Pictures of the fleet, the registry and the tokens.

use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::limits::lease_bound;
use rollcall_shared::manifest::SignedManifest;
use rollcall_shared::plan::StageMode;
use rollcall_shared::report::Readiness;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::{Version, full_name};

use crate::coordinator::Coordinator;
use crate::fleet::Presence;
use crate::state::{Model, Node, RegisteredVersion};
use crate::view::{
    FleetStatus, ModelView, NodeCounts, NodeModelView, NodeView, TokenView, VersionStage,
    VersionStageView, VersionView,
};

impl Coordinator {
    /// Everything that `rollcall status` shows.
    #[must_use]
    pub fn fleet_status(&self, now: Timestamp) -> FleetStatus {
        let unsettled = self.state.rollouts.values().filter(|rollout| {
            rollout
                .rollback()
                .is_some_and(|rollback| rollback.propagation.is_none())
        });
        let rollbacks: Vec<_> = unsettled
            .filter_map(|rollout| self.rollback(rollout.id, now))
            .collect();
        let rollouts: Vec<_> = self
            .state
            .live_rollouts()
            .map(|rollout| self.rollout_view(rollout, now))
            .collect();
        let (nodes, mut alerts) = self.node_counts();
        for rollback in &rollbacks {
            let silent = rollback.receipts.silent.len();
            if silent > 0 {
                alerts.push(format!(
                    "{silent} nodes have not confirmed the withdrawal of {}@{}",
                    rollback.model, rollback.withdrawn
                ));
            }
        }
        FleetStatus {
            nodes,
            models: self.models(),
            rollouts,
            rollbacks,
            alerts,
            seq: self.state.seq(),
        }
    }

    fn node_counts(&self) -> (NodeCounts, Vec<String>) {
        let mut counts = NodeCounts::default();
        let mut alerts = Vec::new();
        for (name, node) in self.state.nodes.iter().filter(|(_, node)| !node.revoked) {
            counts.enrolled += 1;
            counts.quarantined += u64::from(node.quarantined);
            let Some(presence) = self.fleet.nodes.get(name) else {
                continue;
            };
            counts.connected += u64::from(presence.connection.is_some());
            let mut authorised = true;
            for model in presence.receipts.keys() {
                for version in self.unauthorised(presence, model) {
                    authorised = false;
                    alerts.push(format!(
                        "{name} serves {model}@{} ({}), which is not approved there",
                        version.version,
                        version.digest.short()
                    ));
                }
            }
            counts.unauthorised += u64::from(!authorised);
        }
        (counts, alerts)
    }

    /// Every model.
    #[must_use]
    pub fn models(&self) -> Vec<ModelView> {
        let models = self.state.models.iter();
        models.map(|(name, m)| self.model_view(name, m)).collect()
    }

    /// One model.
    #[must_use]
    pub fn model(&self, model: &ModelName) -> Option<ModelView> {
        let entry = self.state.models.get(model)?;
        Some(self.model_view(model, entry))
    }

    fn model_view(&self, name: &ModelName, model: &Model) -> ModelView {
        ModelView {
            model: name.clone(),
            stable: model.stable.map(|v| v.version),
            previous: model.previous.map(|v| v.version),
            generation: model.generation,
            versions: model
                .versions
                .values()
                .map(|registered| VersionStageView {
                    version: registered.version.version,
                    stage: self.stage_of(name, model, registered),
                })
                .collect(),
            rollout: model.rollout,
        }
    }

    fn stage_of(&self, name: &ModelName, model: &Model, of: &RegisteredVersion) -> VersionStage {
        if model.is_withdrawn(of.version.version) {
            return VersionStage::Withdrawn;
        }
        if model.stable == Some(of.version) {
            return VersionStage::Production;
        }
        let live = self.state.live_rollout(name);
        let on_trial = live.filter(|rollout| rollout.candidate == of.version);
        match on_trial.and_then(|rollout| rollout.stage_plan()) {
            Some(stage) => match stage.mode {
                StageMode::Shadow { .. } => VersionStage::Shadow,
                StageMode::CanaryByRequest { .. }
                | StageMode::CanaryByNode { .. }
                | StageMode::Full => VersionStage::Canary,
            },
            None if of.archived => VersionStage::Archived,
            None => VersionStage::Registered,
        }
    }

    /// Versions of one model, or of all.
    #[must_use]
    pub fn versions(&self, model: Option<&ModelName>) -> Vec<VersionView> {
        self.state
            .models
            .iter()
            .filter(|(name, _)| model.is_none_or(|wanted| wanted == *name))
            .flat_map(|(name, entry)| {
                let versions = entry.versions.values();
                versions.map(move |registered| self.version_view(name, entry, registered))
            })
            .collect()
    }

    /// One version.
    #[must_use]
    pub fn version(&self, model: &ModelName, version: Version) -> Option<VersionView> {
        let entry = self.state.models.get(model)?;
        let registered = entry.versions.get(&version)?;
        Some(self.version_view(model, entry, registered))
    }

    fn version_view(&self, name: &ModelName, model: &Model, of: &RegisteredVersion) -> VersionView {
        let manifest = &of.manifest;
        VersionView {
            model: name.clone(),
            version: manifest.version,
            full_name: full_name(name, manifest.version, manifest.registered_at),
            digest: of.version.digest,
            registered_at: manifest.registered_at,
            stage: self.stage_of(name, model, of),
            bytes: manifest.bytes(),
            files: manifest.files.clone(),
            signature: manifest.signature.clone(),
            metadata: manifest.metadata.clone(),
        }
    }

    /// The signed manifest of a version, as it was pushed.
    #[must_use]
    pub fn manifest(&self, model: &ModelName, version: Version) -> Option<&SignedManifest> {
        let entry = self.state.models.get(model)?;
        Some(&entry.versions.get(&version)?.signed)
    }

    /// Every node that ever enrolled.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        let nodes = self.state.nodes.iter();
        nodes
            .map(|(name, node)| self.node_view(name, node))
            .collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<NodeView> {
        let entry = self.state.nodes.get(node)?;
        Some(self.node_view(node, entry))
    }

    fn node_view(&self, name: &NodeId, node: &Node) -> NodeView {
        let presence = self.fleet.nodes.get(name);
        let models: Vec<NodeModelView> = presence.map_or_else(Vec::new, |presence| {
            self.hosted_models(name)
                .iter()
                .map(|model| self.node_model_view(presence, model))
                .collect()
        });
        NodeView {
            node: name.clone(),
            connected: presence.is_some_and(|p| p.connection.is_some()),
            labels: presence.map_or(&node.labels, |p| &p.labels).clone(),
            quarantined: node.quarantined,
            revoked: node.revoked,
            enrolled_at: node.enrolled_at,
            software: presence.map(|p| p.software.clone()),
            unauthorised: models.iter().any(|model| !model.unauthorised.is_empty()),
            models,
            resources: presence.and_then(|p| p.resources.clone()),
            last_seen: presence.map(|p| p.last_seen),
        }
    }

    fn node_model_view(&self, presence: &Presence, model: &ModelName) -> NodeModelView {
        let receipt = presence.receipts.get(model);
        let readiness = presence.ready.get(model).into_iter().flatten();
        let rollout = self.state.live_rollout(model);
        NodeModelView {
            model: model.clone(),
            generation: presence.held.get(model).copied(),
            serving: receipt.map_or_else(Vec::new, |receipt| receipt.serving.clone()),
            unauthorised: self.unauthorised(presence, model),
            readiness: readiness
                .map(|(version, state)| Readiness {
                    model: model.clone(),
                    version: *version,
                    state: state.clone(),
                })
                .collect(),
            lease_until: rollout
                .filter(|rollout| rollout.stage.is_some())
                .map(|rollout| presence.answered_at + lease_bound(rollout.plan.lease)),
        }
    }

    /// Every token, without secrets.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenView> {
        self.state
            .tokens
            .iter()
            .map(|(id, token)| TokenView {
                id: id.clone(),
                name: token.name.clone(),
                kind: token.kind.clone(),
                created_at: token.created_at,
                expires_at: token.expires_at,
                revoked_at: token.revoked_at,
                used_by: token.used_by.clone(),
            })
            .collect()
    }
}
