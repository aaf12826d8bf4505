//! A coordinator that rolls out, promotes, withdraws, and sometimes forgets.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::{Assignment, CandidateMode, Share, Snapshot, Withdrawal};
use rollcall_shared::ids::{Generation, RolloutId};
use rollcall_shared::time::Timestamp;

use crate::agent::fixtures::{assignment, canary, candidate, model, version};
use crate::input::Input;

pub(super) struct Coordinator {
    /// Every message ever sent down; any of them may arrive at any time, again.
    pub(super) sent: Vec<Input>,
    pub(super) current: Assignment,
    pub(super) history: BTreeMap<Generation, Assignment>,
    pub(super) withdrawals: Vec<Withdrawal>,
    pub(super) decided_at: BTreeMap<RolloutId, Timestamp>,
    stable_rollout: u64,
    last: u64,
}

impl Coordinator {
    pub(super) fn new() -> Self {
        let first = assignment(1, 1);
        Self {
            sent: vec![Input::Assign(first.clone())],
            history: BTreeMap::from([(first.generation, first.clone())]),
            current: first,
            withdrawals: vec![],
            decided_at: BTreeMap::new(),
            stable_rollout: 1,
            last: 1,
        }
    }

    pub(super) fn issue(&mut self, next: Assignment) {
        self.current = next.clone();
        self.history.insert(next.generation, next.clone());
        self.sent.push(Input::Assign(next));
    }

    pub(super) fn advance(&mut self, choice: u8) {
        let mut next = self.current.clone();
        next.generation = next.generation.next();
        match next.candidate {
            None => {
                self.last += 1;
                let last = self.last;
                next.candidate = Some(candidate(last, last, mode(choice)));
            }
            Some(tried) if choice.is_multiple_of(4) => {
                self.stable_rollout = tried.rollout.0;
                next.previous = next.stable.replace(tried.version);
                next.candidate = None;
            }
            Some(mut tried) => {
                tried.mode = mode(choice);
                next.candidate = Some(tried);
            }
        }
        self.issue(next);
    }

    pub(super) fn withdraw(&mut self, now: Timestamp) {
        let current = &self.current;
        let (rollout, withdrawn, serving) = match (current.candidate, current.stable) {
            (Some(tried), _) => (tried.rollout, tried.version, current.stable),
            (None, Some(stable)) if current.previous.is_some() => {
                (RolloutId(self.stable_rollout), stable, current.previous)
            }
            (None, _) => return,
        };
        let generation = current.generation.next();
        let next = Assignment {
            stable: serving,
            generation,
            ..assignment(0, None)
        };
        let withdrawal = Withdrawal {
            model: model(),
            rollout,
            withdrawn,
            generation,
            serving,
        };
        self.decided_at.insert(rollout, now);
        self.withdrawals.push(withdrawal.clone());
        self.issue(next);
        self.sent.pop();
        self.sent.push(Input::Withdraw(withdrawal));
    }

    pub(super) fn forget(&mut self, choice: u8) {
        let withdrawals = &self.withdrawals;
        let Some(gone) = withdrawals.get(usize::from(choice) % withdrawals.len().max(1)) else {
            return;
        };
        let (rollout, withdrawn) = (gone.rollout, gone.withdrawn);
        let mut next = self.current.clone();
        next.generation = next.generation.next();
        if choice.is_multiple_of(2) {
            let mut tried = candidate(rollout.0, 0, mode(choice));
            tried.version = withdrawn;
            next.candidate = Some(tried);
        } else {
            next.previous = Some(withdrawn);
        }
        // An agent that never heard of the withdrawal cannot be blamed.
        self.decided_at.remove(&rollout);
        self.issue(next);
    }

    pub(super) fn repair(&mut self) {
        let snapshot = self.snapshot();
        self.sent.push(Input::Sync(snapshot));
    }

    /// The next generation without anything withdrawn.
    pub(super) fn clean(&mut self) -> Assignment {
        let gone: BTreeSet<_> = self.withdrawals.iter().map(|w| w.withdrawn).collect();
        let mut clean = self.current.clone();
        clean.generation = clean.generation.next();
        clean.previous = clean.previous.filter(|v| !gone.contains(v));
        clean.candidate = clean.candidate.filter(|c| !gone.contains(&c.version));
        let stable = clean.stable.filter(|v| !gone.contains(v));
        clean.stable = stable.or(Some(version(1_000)));
        self.issue(clean.clone());
        clean
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            assignments: vec![self.current.clone()],
            withdrawals: self.withdrawals.clone(),
        }
    }
}

fn mode(choice: u8) -> CandidateMode {
    match choice % 4 {
        0 => CandidateMode::Prepare,
        1 => CandidateMode::Shadow(Share::ALL),
        2 => canary(50.0),
        _ => CandidateMode::Canary(Share::ALL),
    }
}
