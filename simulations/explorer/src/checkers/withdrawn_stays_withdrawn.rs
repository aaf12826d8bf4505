//! Promise 2: what a node knows to be withdrawn never serves there again.
//!
//! A node knows from the moment its core was told, for as long as the process lives;
//! and from the moment its disk holds it, for ever.

use std::collections::BTreeSet;

use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::{VersionRef, Withdrawal};

use super::{Use, Verdicts};

/// What each node knows.
#[derive(Debug)]
pub struct WithdrawnStaysWithdrawn {
    told: Vec<BTreeSet<VersionRef>>,
    on_disk: Vec<BTreeSet<Withdrawal>>,
    known: Vec<BTreeSet<VersionRef>>,
}

impl WithdrawnStaysWithdrawn {
    /// Nobody knows anything.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            told: vec![BTreeSet::new(); nodes],
            on_disk: vec![BTreeSet::new(); nodes],
            known: vec![BTreeSet::new(); nodes],
        }
    }

    /// What a node knows to be withdrawn.
    #[must_use]
    pub fn known_to(&self, node: usize) -> &BTreeSet<VersionRef> {
        &self.known[node]
    }

    pub(super) fn told<'a>(
        &mut self,
        node: usize,
        withdrawals: impl IntoIterator<Item = &'a Withdrawal>,
    ) {
        for withdrawal in withdrawals {
            self.told[node].insert(withdrawal.withdrawn);
            self.known[node].insert(withdrawal.withdrawn);
        }
    }

    pub(super) fn persisted(&mut self, node: usize, state: &DurableState, verdicts: &mut Verdicts) {
        if state.withdrawals == self.on_disk[node] {
            return;
        }
        let lost = self.on_disk[node].difference(&state.withdrawals).next();
        if let Some(lost) = lost {
            let what = format!(
                "its disk held the withdrawal of {} and lost it",
                lost.withdrawn.version
            );
            verdicts.broken(2, Some(node), what);
        }
        for withdrawal in &state.withdrawals {
            if self.on_disk[node].insert(withdrawal.clone()) {
                self.known[node].insert(withdrawal.withdrawn);
            }
        }
    }

    pub(super) fn process_started(&mut self, node: usize) {
        self.told[node].clear();
        self.known[node] = self.on_disk[node].iter().map(|w| w.withdrawn).collect();
    }

    pub(super) fn state_lost(&mut self, node: usize) {
        self.on_disk[node].clear();
    }

    pub(super) fn used(&self, node: usize, route: &Route, used: Use, verdicts: &mut Verdicts) {
        if self.known[node].contains(&used.version) {
            let what = format!(
                "{}@{} serves as {:?} (generation {}), which the node knows to be withdrawn",
                route.model, used.version.version, used.role, route.generation
            );
            verdicts.broken(2, Some(node), what);
        }
    }
}
