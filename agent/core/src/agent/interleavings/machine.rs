//! What a driver holds: a disk, an engine and a route table that complain.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::RolloutId;
use rollcall_shared::time::Timestamp;

use crate::effect::DurableState;
use crate::route::Route;

/// What the driver would hold.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) disk: DurableState,
    pub(super) route: Option<Route>,
    pub(super) loaded: BTreeSet<VersionRef>,
    pub(super) preparing: BTreeSet<VersionRef>,
    /// Withdrawals that this process was told of, or found on its disk.
    pub(super) told: BTreeSet<Withdrawal>,
    pub(super) connected: bool,
    pub(super) hello_at: Option<Timestamp>,
    pub(super) heartbeats: BTreeMap<u64, Timestamp>,
    /// Until when answers that arrived allow a candidate of a rollout.
    pub(super) allowed_until: BTreeMap<RolloutId, Timestamp>,
}

impl Machine {
    pub(super) fn routed(&self) -> BTreeSet<VersionRef> {
        let route = self.route.iter();
        route
            .flat_map(|r| {
                r.stable
                    .into_iter()
                    .chain(r.candidate.iter().map(|c| c.version))
            })
            .collect()
    }

    pub(super) fn swap(&mut self, route: Route) {
        if let Some(before) = &self.route {
            assert!(route.generation >= before.generation, "a route went back");
            let lost = before.stable.filter(|_| route.stable.is_none());
            assert!(
                lost.is_none_or(|v| self.told.iter().any(|w| w.withdrawn == v)),
                "stable stopped answering"
            );
        }
        self.route = Some(route);
        for version in self.routed() {
            assert!(self.loaded.contains(&version), "routed, not loaded");
            let withdrawn = self.told.iter().any(|w| w.withdrawn == version);
            assert!(!withdrawn, "routed, withdrawn");
        }
    }

    pub(super) fn persist(&mut self, state: DurableState) {
        for (model, before) in &self.disk.assignments {
            let after = state.assignments.get(model).map(|a| a.generation);
            assert!(after >= Some(before.generation), "the disk went back");
        }
        assert!(state.withdrawals.is_superset(&self.disk.withdrawals));
        self.disk = state;
    }
}
