//! Promise 3: when `lease x 1.01` has passed since a withdrawal was decided, no node
//! uses the candidate, whatever it heard; and the coordinator never counts a node that
//! does among those that answered or are fenced.
//!
//! A withdrawal counts as decided once it is durable (then from the moment the core
//! decided it), or adopted from an agent. One that was stable has no lease on nodes
//! that hold it by right: these are the coordinator's "silent" nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_agent_core::route::Route;
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_coordinator_core::view::{RollbackNodeState, RollbackView};
use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::NodeId;
use rollcall_shared::report::Role;
use rollcall_shared::time::Timestamp;

use super::only_approved_serves::OnlyApprovedServes;
use super::{Use, Verdicts, VersionMap, lease_bound};

#[derive(Debug)]
struct Decided {
    at: Timestamp,
    bound: Duration,
    promoted: bool,
}

/// When what was withdrawn.
#[derive(Debug, Default)]
pub struct RollbackIsBounded {
    /// Broadcast, perhaps not yet durable.
    announced: VersionMap<Timestamp>,
    decided: VersionMap<Decided>,
}

impl RollbackIsBounded {
    /// The core decided.
    pub fn announced(&mut self, withdrawal: &Withdrawal, now: Timestamp) {
        self.announced.entry(withdrawal.withdrawn).or_insert(now);
    }

    /// What was not durable is not decided.
    pub fn coordinator_crashed(&mut self) {
        self.announced.clear();
    }

    pub(super) fn durable(
        &mut self,
        record: &Record,
        approved: &OnlyApprovedServes,
        now: Timestamp,
    ) {
        let withdrawals = match &record.event {
            Event::Withdrawn { withdrawal, .. } => std::slice::from_ref(withdrawal),
            Event::KnowledgeAdopted { withdrawals, .. } => withdrawals,
            _ => return,
        };
        for withdrawal in withdrawals {
            let version = withdrawal.withdrawn;
            let at = self.announced.get(&version).copied().unwrap_or(now);
            self.decided.entry(version).or_insert_with(|| Decided {
                at,
                bound: lease_bound(approved.lease_of(version)),
                promoted: approved.was_promoted(version),
            });
        }
    }

    pub(super) fn backup_restored(&mut self) {
        self.decided.clear();
        self.announced.clear();
    }

    pub(super) fn used(&self, node: usize, route: &Route, used: Use, verdicts: &mut Verdicts) {
        let Some(decided) = self.decided.get(&used.version) else {
            return;
        };
        let late = verdicts.now.since(decided.at + decided.bound);
        let by_right = used.role == Role::Stable && decided.promoted;
        if !late.is_zero() && !by_right {
            let what = format!(
                "{}@{} serves as {:?} {late:?} after decided_at + lease x 1.01",
                route.model, used.version.version, used.role
            );
            verdicts.broken(3, Some(node), what);
        }
    }

    /// The coordinator says who answered and who is fenced; `serving` is the truth.
    pub fn claimed(view: &RollbackView, serving: &BTreeSet<&NodeId>, verdicts: &mut Verdicts) {
        for node in &view.nodes {
            let counted = matches!(
                node.state,
                RollbackNodeState::Receipt | RollbackNodeState::Fenced
            );
            if counted && serving.contains(&node.node) {
                let what = format!(
                    "the rollback of {}@{} counts {} as {:?}, which still serves it",
                    view.model, view.withdrawn, node.node, node.state
                );
                verdicts.broken(3, None, what);
            }
        }
    }
}
