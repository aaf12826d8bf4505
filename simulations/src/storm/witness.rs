//! What the agents' routes did while the coordinator was away: one line of memory a node.
//!
//! A restarted coordinator moves every model past the generations of the process before it,
//! so the first route of a newer generation is the proof that a node was welcomed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_agent::driver::SwapObserver;
use rollcall_agent_core::route::Route;
use rollcall_shared::ids::Generation;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

/// Sees every swap of every node.
#[derive(Clone)]
pub(super) struct Witness {
    stable: Version,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    nodes: Vec<Node>,
    /// Since the fleet stands: from here on stable must never be missing.
    standing: bool,
    /// No lease of a node in the dark may reach beyond.
    leases_end: Option<Timestamp>,
    broken: Broken,
}

/// How often a promise was not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Broken {
    /// Routes without the stable version.
    pub(super) stable_lost: u64,
    /// Routes under a lease that nobody can have renewed.
    pub(super) leases_invented: u64,
    /// Longest time from the end of a lease to the route without its candidate. Requests
    /// in between went to stable: the lease is checked at each of them as well.
    pub(super) longest_overdue: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    generation: Generation,
    lease_until: Option<Timestamp>,
    /// When its candidate went last.
    freed_at: Timestamp,
    /// What it held when the coordinator died.
    before: Generation,
    welcomed_at: Option<Timestamp>,
}

impl Seen {
    fn swap(&mut self, index: usize, stable: Version, route: &Route, at: Timestamp) {
        let node = &mut self.nodes[index];
        let lease_until = route.candidate.as_ref().map(|c| c.lease_until);
        if self.standing && route.stable.is_none_or(|v| v.version != stable) {
            self.broken.stable_lost += 1;
        }
        let in_the_dark = node.welcomed_at.is_none() && route.generation == node.before;
        if let (true, Some(end), Some(lease)) = (in_the_dark, self.leases_end, lease_until)
            && lease > end
        {
            self.broken.leases_invented += 1;
        }
        if let Some(overdue) = node.lease_until.map(|end| at.since(end)) {
            self.broken.longest_overdue = self.broken.longest_overdue.max(overdue);
        }
        if node.lease_until.is_some() && lease_until.is_none() {
            node.freed_at = at;
        }
        if route.generation > node.before && node.welcomed_at.is_none() {
            node.welcomed_at = Some(at);
        }
        node.generation = route.generation;
        node.lease_until = lease_until;
    }
}

impl Witness {
    pub(super) fn new(nodes: u32, stable: Version) -> Self {
        let seen = Seen {
            nodes: vec![Node::default(); nodes as usize],
            ..Seen::default()
        };
        Self {
            stable,
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn observer(&self, node: usize) -> SwapObserver {
        let witness = self.clone();
        Arc::new(move |route, at| witness.seen().swap(node, witness.stable, route, at))
    }

    /// Every node serves stable by now.
    pub(super) fn standing(&self) {
        self.seen().standing = true;
    }

    /// The coordinator is dead: nothing is renewed beyond `leases_end`.
    pub(super) fn dark(&self, leases_end: Timestamp) {
        let mut seen = self.seen();
        seen.leases_end = Some(leases_end);
        for node in &mut seen.nodes {
            node.before = node.generation;
            node.welcomed_at = None;
        }
    }

    /// When each node was welcomed again, in order; as many as there are.
    pub(super) fn welcomed(&self) -> Vec<Timestamp> {
        let seen = self.seen();
        let mut at: Vec<_> = seen.nodes.iter().filter_map(|n| n.welcomed_at).collect();
        at.sort_unstable();
        at
    }

    /// When the last candidate went; `None`: one is still there.
    pub(super) fn last_freed(&self) -> Option<Timestamp> {
        let seen = self.seen();
        let free = seen.nodes.iter().all(|node| node.lease_until.is_none());
        free.then(|| seen.nodes.iter().map(|node| node.freed_at).max())?
    }

    pub(super) fn broken(&self) -> Broken {
        self.seen().broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollcall_agent_core::route::{CandidateRoute, CandidateUsage};
    use rollcall_shared::assignment::{Share, VersionRef};
    use rollcall_shared::digest::Digest;
    use rollcall_shared::hashing::CohortHasher;
    use rollcall_shared::ids::{ModelName, RolloutId};

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn version(text: &str) -> VersionRef {
        VersionRef {
            version: text.parse().unwrap(),
            digest: Digest::of(text.as_bytes()),
        }
    }

    fn route(generation: u64, lease_until: Option<u64>) -> Route {
        let model = ModelName::new("digits").unwrap();
        let candidate = lease_until.map(|until| CandidateRoute {
            rollout: RolloutId(1),
            version: version("1.0.1"),
            usage: CandidateUsage::Canary(Share::ALL),
            lease_until: at(until),
            hasher: CohortHasher::new(&model, RolloutId(1)),
        });
        Route {
            model,
            generation: Generation(generation),
            stable: Some(version("1.0.0")),
            candidate,
        }
    }

    #[test]
    fn a_route_without_stable_and_a_lease_from_nowhere_are_noticed() {
        let witness = Witness::new(1, "1.0.0".parse().unwrap());
        let see = witness.observer(0);
        see(&route(3, Some(4)), at(1));
        witness.standing();
        witness.dark(at(5));
        see(&route(3, Some(5)), at(2));
        assert_eq!(witness.broken(), Broken::default());
        assert!(witness.welcomed().is_empty() && witness.last_freed().is_none());

        see(&route(3, Some(6)), at(3));
        assert_eq!(witness.broken().leases_invented, 1);
        let mut bare = route(3, None);
        bare.stable = None;
        see(&bare, at(8));
        let broken = witness.broken();
        assert_eq!(
            (broken.stable_lost, broken.longest_overdue),
            (1, Duration::from_secs(2))
        );
        assert_eq!(witness.last_freed(), Some(at(8)));

        see(&route(6, Some(20)), at(9));
        assert_eq!(witness.welcomed(), [at(9)]);
        assert_eq!(witness.broken().leases_invented, 1, "it was welcomed");
    }
}
