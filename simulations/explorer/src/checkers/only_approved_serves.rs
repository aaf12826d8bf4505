//! Promise 5: only what the coordinator's journal approved serves, in the role and on
//! the nodes that it approved, and only after it was prepared there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_agent_core::route::Route;
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::plan::{Plan, StageMode};
use rollcall_shared::report::Role;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use super::{Use, Verdicts, VersionMap, VersionSet, lease_bound};

/// What a rollout was ever allowed.
#[derive(Debug, Default)]
struct Allowed {
    shadow: bool,
    everywhere: bool,
    cohort: BTreeSet<NodeId>,
}

/// What was ever approved, by any journal of this run, and what the present one says.
#[derive(Debug, Default)]
pub struct OnlyApprovedServes {
    names: Vec<NodeId>,
    registered: VersionSet,
    promoted: VersionSet,
    allowed: BTreeMap<(RolloutId, VersionRef), Allowed>,
    leases: VersionMap<Duration>,
    /// Of the present journal.
    rollouts: BTreeMap<RolloutId, (VersionRef, Plan)>,
    cohorts: BTreeMap<RolloutId, BTreeSet<NodeId>>,
    quarantined: BTreeMap<NodeId, Timestamp>,
    /// The judge took the candidate from one node.
    barred: BTreeMap<RolloutId, BTreeMap<NodeId, Timestamp>>,
    promoted_now: VersionSet,
    contents: BTreeMap<(ModelName, Version), VersionRef>,
}

impl OnlyApprovedServes {
    /// Nothing was approved yet.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let name = |node| NodeId::new(format!("node-{node}")).expect("a good name");
        Self {
            names: (0..nodes).map(name).collect(),
            ..Self::default()
        }
    }

    /// Whether the version was ever made stable.
    #[must_use]
    pub fn was_promoted(&self, version: VersionRef) -> bool {
        self.promoted.contains(&version)
    }

    /// Whether the version was made stable in records that an old backup lost: the
    /// present coordinator cannot know that a silent node holds it by right.
    #[must_use]
    pub fn promotion_was_lost(&self, version: VersionRef) -> bool {
        self.promoted.contains(&version) && !self.promoted_now.contains(&version)
    }

    /// The longest lease that any plan gave this candidate.
    #[must_use]
    pub fn lease_of(&self, version: VersionRef) -> Duration {
        self.leases.get(&version).copied().unwrap_or_default()
    }

    pub(super) fn durable(&mut self, record: &Record, verdicts: &mut Verdicts) {
        let now = verdicts.now;
        match &record.event {
            Event::VersionRegistered { model, version, .. } => {
                self.registered.insert(*version);
                let name = (model.clone(), version.version);
                let before = self.contents.insert(name, *version);
                if before.is_some_and(|before| before != *version) {
                    let what = format!("{model}@{} is registered twice", version.version);
                    verdicts.broken(5, None, what);
                }
            }
            Event::RolloutStarted {
                rollout,
                candidate,
                plan,
                ..
            } => {
                self.rollouts.insert(*rollout, (*candidate, plan.clone()));
                let lease = self.leases.entry(*candidate).or_default();
                *lease = plan.lease.max(*lease);
            }
            Event::StageEntered { .. } => self.stage_entered(&record.event, verdicts),
            Event::Promoted { rollout, .. } => {
                if let Some((candidate, _)) = self.rollouts.get(rollout) {
                    self.promoted.insert(*candidate);
                    self.promoted_now.insert(*candidate);
                }
            }
            Event::CandidateBarred { rollout, node, .. } => {
                if let Some(cohort) = self.cohorts.get_mut(rollout) {
                    cohort.remove(node);
                }
                let barred = self.barred.entry(*rollout).or_default();
                barred.insert(node.clone(), now);
            }
            Event::NodeQuarantined { node } => {
                self.quarantined.insert(node.clone(), now);
            }
            Event::NodeReleased { node } => {
                self.quarantined.remove(node);
            }
            _ => {}
        }
    }

    fn stage_entered(&mut self, event: &Event, verdicts: &mut Verdicts) {
        let Event::StageEntered {
            rollout,
            stage,
            cohort,
            ..
        } = event
        else {
            return;
        };
        let Some((candidate, plan)) = self.rollouts.get(rollout) else {
            return;
        };
        let allowed = self.allowed.entry((*rollout, *candidate)).or_default();
        allowed.shadow = true;
        if let Some(cohort) = cohort {
            let before = self.cohorts.insert(*rollout, cohort.clone());
            let stays = |node: &&NodeId| !self.quarantined.contains_key(*node);
            let mut before = before.iter().flatten().filter(stays);
            if let Some(dropped) = before.find(|node| !cohort.contains(*node)) {
                let what = format!("stage {stage} of {rollout} drops {dropped}");
                verdicts.broken(5, None, what);
            }
        }
        match plan.stages.get(*stage).map(|stage| &stage.mode) {
            Some(StageMode::CanaryByRequest { .. } | StageMode::Full) => allowed.everywhere = true,
            Some(StageMode::CanaryByNode { .. }) => {
                allowed.cohort.extend(cohort.iter().flatten().cloned())
            }
            Some(StageMode::Shadow { .. }) | None => {}
        }
    }

    pub(super) fn backup_restored(&mut self) {
        self.rollouts.clear();
        self.cohorts.clear();
        self.quarantined.clear();
        self.barred.clear();
        self.promoted_now.clear();
        self.contents.clear();
    }

    pub(super) fn used(
        &self,
        node: usize,
        route: &Route,
        used: Use,
        loaded: &BTreeSet<VersionRef>,
        verdicts: &mut Verdicts,
    ) {
        let (version, now) = (used.version, verdicts.now);
        let mut broken = |why: &str| {
            let what = format!(
                "{}@{} serves as {:?}: {why}",
                route.model, version.version, used.role
            );
            verdicts.broken(5, Some(node), what);
        };
        if !loaded.contains(&version) {
            broken("it is not prepared on this node");
        }
        if !self.registered.contains(&version) {
            broken("it was never registered");
        }
        if used.role == Role::Stable {
            if !self.promoted.contains(&version) {
                broken("it was never promoted");
            }
            return;
        }
        let name = &self.names[node];
        let allowed = used
            .rollout
            .and_then(|rollout| self.allowed.get(&(rollout, version)));
        let in_cohort = |allowed: &Allowed| allowed.cohort.contains(name);
        match (allowed, used.role) {
            (None, _) => broken("no stage of its rollout was ever entered"),
            (Some(allowed), Role::Candidate) if !allowed.everywhere && !in_cohort(allowed) => {
                broken("no stage let it answer on this node");
            }
            (Some(_), _) => {}
        }
        let barred = used.rollout.and_then(|rollout| self.barred.get(&rollout));
        let barred = barred.and_then(|nodes| nodes.get(name));
        let over = |since: &Timestamp| now > *since + lease_bound(self.lease_of(version));
        if self.quarantined.get(name).is_some_and(over) {
            broken("it is on trial, and the node is quarantined");
        }
        if barred.is_some_and(over) {
            broken("it is on trial, and the node is barred from it");
        }
    }
}
