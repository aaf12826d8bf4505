//! What a withdrawal would come to on this node, said without doing it.
//!
//! [`Agent::rehearse`] borrows the agent and asks the very functions that a withdrawal would
//! be carried out with, so it can neither change anything nor drift away from them.
//!
//! Deliberately absent: any trace of a rehearsal on the disk, in a route, a lease, or a
//! generation. Only the number of the last one is remembered, so that old ones that somebody
//! repeats are not answered again; the last one itself is, because answers get lost.

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::{FromAgent, Missing, Rehearsal, Rehearsed};

use super::Agent;
use crate::effect::Effect;
use crate::preparation::Preparation;
use crate::reconcile::{self, Withdrawn};

impl Agent {
    pub(super) fn on_rehearse(&mut self, rehearsal: &Rehearsal, now: Timestamp) -> Vec<Effect> {
        let number = Some(rehearsal.rehearsal);
        if self.rehearsed > number {
            return Vec::new();
        }
        self.rehearsed = number;
        let answer = self.rehearse(rehearsal, now);
        let said = answer.map(|answer| Effect::Send(FromAgent::Rehearsed(answer)));
        said.into_iter().collect()
    }

    /// `None`: such a withdrawal would be none of our business, and get no receipt.
    fn rehearse(&self, rehearsal: &Rehearsal, now: Timestamp) -> Option<Rehearsed> {
        let withdrawal = &rehearsal.as_if;
        let name = &withdrawal.model;
        if !self.concerns_us(withdrawal) {
            return None;
        }
        let is_new = !self.durable.withdrawals.contains(withdrawal);
        let mut withdrawn = Withdrawn::of(&self.durable.withdrawals, name);
        withdrawn.add(withdrawal);
        let assignment = match self.asked_after(withdrawal, is_new) {
            Some((asked, instead)) => reconcile::permitted(asked, instead, &withdrawn),
            None => self.held(name)?.clone(),
        };
        let current = self.models.get(name).and_then(|m| m.route.as_ref());
        let preparation = |version| self.preparation(name, version);
        let is_ready = |version| preparation(version) == Some(&Preparation::Ready);
        // Without a lease: who is on trial by another rollout does not matter here.
        let route = reconcile::route(&assignment, current, None, is_ready, &withdrawn, now);
        let missing = |version: VersionRef| Missing {
            version,
            state: preparation(version).map(Preparation::state),
        };
        Some(Rehearsed {
            rehearsal: rehearsal.rehearsal,
            model: name.clone(),
            held: self.held(name).map(|a| a.generation).unwrap_or_default(),
            serving: route.stable,
            missing: assignment
                .stable
                .filter(|version| route.stable != Some(*version))
                .map(missing),
        })
    }
}
