//! Who has answered one withdrawal, and who is still waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::report::{Receipt, Role};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use super::propagation::Arrival;
use crate::record::Propagation;
use crate::state::Rollback;

/// Who has answered a withdrawal.
#[derive(Clone, Debug)]
pub(crate) struct Receipts {
    withdrawal: Withdrawal,
    decided_at: Timestamp,
    /// Since when this process waits.
    waits_since: Timestamp,
    answers: BTreeMap<NodeId, Answer>,
    /// Nodes without a receipt, by when they are fenced; `MAX`: never.
    pending: BTreeSet<(Timestamp, NodeId)>,
    settled: bool,
}

/// What is known of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It serves what it should, and this version by right.
    Receipt {
        at: Timestamp,
        serving: Option<Version>,
    },
    /// Nothing yet. From `fenced_at` on no lease lets it go on; `None`: it needs no lease.
    Pending { fenced_at: Option<Timestamp> },
}

impl Receipts {
    pub(super) fn new(
        rollback: &Rollback,
        waits_since: Timestamp,
        expected: BTreeMap<NodeId, Option<Timestamp>>,
    ) -> Self {
        Self {
            withdrawal: rollback.withdrawal.clone(),
            decided_at: rollback.decided_at,
            waits_since,
            pending: expected
                .iter()
                .map(|(node, fenced_at)| (fenced_at.unwrap_or(Timestamp::MAX), node.clone()))
                .collect(),
            answers: expected
                .into_iter()
                .map(|(node, fenced_at)| (node, Answer::Pending { fenced_at }))
                .collect(),
            settled: false,
        }
    }

    pub(crate) const fn model(&self) -> &ModelName {
        &self.withdrawal.model
    }

    pub(crate) const fn answers(&self) -> &BTreeMap<NodeId, Answer> {
        &self.answers
    }

    /// Nodes without a receipt, as long as the rollback is not settled.
    pub(crate) fn unanswered(&self) -> u64 {
        if self.settled {
            0
        } else {
            self.pending.len() as u64
        }
    }

    /// When nobody can be waited for any longer.
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        let last = self.pending.last().map(|(fenced_at, _)| *fenced_at);
        last.or(Some(self.waits_since))
            .filter(|due| !self.settled && *due < Timestamp::MAX)
    }

    /// How long after the decision, if this is the node's first receipt that counts.
    pub(super) fn on_receipt(
        &mut self,
        node: &NodeId,
        receipt: &Receipt,
        now: Timestamp,
    ) -> Option<Duration> {
        let serves_withdrawn = receipt
            .serving
            .iter()
            .any(|serving| serving.version == self.withdrawal.withdrawn);
        let counts = receipt.model == self.withdrawal.model
            && receipt.generation >= self.withdrawal.generation
            && !serves_withdrawn;
        let answer = self.answers.get_mut(node).filter(|_| counts)?;
        let Answer::Pending { fenced_at } = *answer else {
            return None;
        };
        let mut serving = receipt.serving.iter();
        let stable = serving.find(|serving| serving.role == Role::Stable);
        *answer = Answer::Receipt {
            at: now,
            serving: stable.map(|serving| serving.version.version),
        };
        let until = fenced_at.unwrap_or(Timestamp::MAX);
        self.pending.remove(&(until, node.clone()));
        Some(now.since(self.decided_at))
    }

    /// The node left the fleet: it owes nothing.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.answers.remove(node);
        self.pending.retain(|(_, pending)| pending != node);
    }

    pub(super) fn may_settle(&self, now: Timestamp) -> bool {
        let last = self.pending.last();
        !self.settled && last.is_none_or(|(fenced_at, _)| *fenced_at <= now)
    }

    pub(super) const fn settle(&mut self) {
        self.settled = true;
    }

    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// How far it has spread, node by node.
    pub(crate) fn propagation(&self, now: Timestamp) -> Propagation {
        let arrivals = self
            .answers
            .iter()
            .filter_map(|(node, answer)| match answer {
                Answer::Receipt { at, serving } => Some(Arrival {
                    node,
                    after: at.since(self.decided_at),
                    serving: *serving,
                }),
                Answer::Pending { .. } => None,
            });
        let should_serve = self.withdrawal.serving.map(|v| v.version);
        let mut propagation = Propagation::of(arrivals, should_serve);
        for (node, answer) in &self.answers {
            match answer {
                Answer::Receipt { .. } => {}
                Answer::Pending {
                    fenced_at: Some(fenced_at),
                } if *fenced_at <= now => {
                    propagation.fenced.insert(node.clone(), *fenced_at);
                }
                Answer::Pending { .. } => {
                    propagation.silent.insert(node.clone());
                }
            }
        }
        propagation
    }
}
