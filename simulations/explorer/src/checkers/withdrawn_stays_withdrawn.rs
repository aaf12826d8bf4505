//! Promise 2: what a node knows to be withdrawn never serves there again.
//!
//! A node knows from the moment its core was told, for as long as the process lives;
//! and from the moment its disk holds it, for ever. The coordinator knows what its journal
//! says it withdrew itself, and what this process adopted from an agent (what an earlier one
//! adopted may wait for the agent's next word, where a journal ends right after it).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::route::Route;
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_shared::assignment::{Assignment, Snapshot, VersionRef, Withdrawal};

use super::{Use, Verdicts, VersionSet};

/// What each node knows.
#[derive(Debug)]
pub struct WithdrawnStaysWithdrawn {
    on_disk: Vec<Arc<BTreeSet<Withdrawal>>>,
    withdrawn_on_disk: Vec<VersionSet>,
    known: Vec<VersionSet>,
    /// By the present journal.
    in_journal: BTreeMap<VersionRef, Withdrawal>,
    /// By the present coordinator process.
    adopted: BTreeMap<VersionRef, Withdrawal>,
}

/// All versions of an assignment, in whatever role.
fn named(assignment: &Assignment) -> impl Iterator<Item = VersionRef> {
    let candidate = assignment.candidate.map(|c| c.version);
    let roles = [assignment.stable, assignment.previous, candidate];
    roles.into_iter().flatten()
}

impl WithdrawnStaysWithdrawn {
    /// Nobody knows anything.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            on_disk: vec![Arc::default(); nodes],
            withdrawn_on_disk: vec![VersionSet::default(); nodes],
            known: vec![VersionSet::default(); nodes],
            in_journal: BTreeMap::new(),
            adopted: BTreeMap::new(),
        }
    }

    /// What a node knows to be withdrawn.
    #[must_use]
    pub fn known_to(&self, node: usize) -> &VersionSet {
        &self.known[node]
    }

    pub(super) fn durable(&mut self, record: &Record, verdicts: &mut Verdicts) {
        let named = match &record.event {
            Event::Withdrawn { withdrawal, .. } => {
                let known = self.in_journal.entry(withdrawal.withdrawn);
                known.or_insert_with(|| withdrawal.clone());
                withdrawal.serving
            }
            Event::RolloutStarted { candidate, .. } => Some(*candidate),
            Event::KnowledgeAdopted { withdrawals, .. } => {
                let adopted = withdrawals.iter().map(|w| (w.withdrawn, w.clone()));
                self.adopted.extend(adopted);
                None
            }
            _ => None,
        };
        if let Some(named) = named.filter(|version| self.in_journal.contains_key(version)) {
            let what = format!(
                "record {} names {}, which the journal withdrew",
                record.seq, named.version
            );
            verdicts.broken(2, None, what);
        }
    }

    pub(super) fn backup_restored(&mut self) {
        self.in_journal.clear();
    }

    /// A coordinator process begins.
    pub fn coordinator_started(&mut self) {
        self.adopted.clear();
    }

    /// The coordinator sends a node its work. What it decided in the same breath may be older
    /// than the withdrawal that went ahead of it; the node tells by the generation.
    pub fn sent(&self, node: usize, assignment: &Assignment, verdicts: &mut Verdicts) {
        let is_withdrawn = |version: &VersionRef| {
            let from = self.in_journal.get(version);
            let from = from.or_else(|| self.adopted.get(version));
            from.is_some_and(|from| from.generation <= assignment.generation)
        };
        if let Some(named) = named(assignment).find(is_withdrawn) {
            let what = format!(
                "it is sent {}@{}, which is known to be withdrawn",
                assignment.model, named.version
            );
            verdicts.broken(2, Some(node), what);
        }
    }

    /// The coordinator sends a node all that it must know of some models.
    pub fn sent_snapshot(&self, node: usize, snapshot: &Snapshot, verdicts: &mut Verdicts) {
        let as_in_journal = |w: &&Withdrawal| self.in_journal.get(&w.withdrawn) == Some(*w);
        let told = snapshot.withdrawals.iter().filter(as_in_journal);
        let told: VersionSet = told.map(|w| w.withdrawn).collect();
        for assignment in &snapshot.assignments {
            self.sent(node, assignment, verdicts);
            let untold = self.in_journal.values().find(|w| {
                w.model == assignment.model
                    && w.generation <= assignment.generation
                    && !told.contains(&w.withdrawn)
            });
            if let Some(untold) = untold {
                let what = format!(
                    "it is sent a snapshot of {} without the withdrawal of {}",
                    untold.model, untold.withdrawn.version
                );
                verdicts.broken(2, Some(node), what);
            }
        }
    }

    pub(super) fn told<'a>(
        &mut self,
        node: usize,
        withdrawals: impl IntoIterator<Item = &'a Withdrawal>,
    ) {
        for withdrawal in withdrawals {
            self.known[node].insert(withdrawal.withdrawn);
        }
    }

    pub(super) fn persisted(&mut self, node: usize, state: &DurableState, verdicts: &mut Verdicts) {
        if state.withdrawals != self.on_disk[node] {
            let lost = self.on_disk[node].difference(&state.withdrawals).next();
            if let Some(lost) = lost {
                let what = format!(
                    "its disk held the withdrawal of {} and lost it",
                    lost.withdrawn.version
                );
                verdicts.broken(2, Some(node), what);
            }
            self.on_disk[node] = Arc::clone(&state.withdrawals);
            for withdrawal in state.withdrawals.iter() {
                if self.withdrawn_on_disk[node].insert(withdrawal.withdrawn) {
                    self.known[node].insert(withdrawal.withdrawn);
                }
            }
        }
        let mut named = state.assignments.values().flat_map(named);
        let broken = named.find(|version| self.withdrawn_on_disk[node].contains(version));
        if let Some(broken) = broken {
            let what = format!(
                "its disk holds an assignment of {}, and its withdrawal",
                broken.version
            );
            verdicts.broken(2, Some(node), what);
        }
    }

    pub(super) fn process_started(&mut self, node: usize) {
        self.known[node].clone_from(&self.withdrawn_on_disk[node]);
    }

    pub(super) fn state_lost(&mut self, node: usize) {
        self.on_disk[node] = Arc::default();
        self.withdrawn_on_disk[node].clear();
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
