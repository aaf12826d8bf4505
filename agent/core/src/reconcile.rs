//! What an assignment comes to on this node, given what is ready, leased and withdrawn.
//!
//! Pure functions without memory: the same assignment, readiness, lease and withdrawals
//! always give the same route, so nothing depends on the order in which news arrived.
//!
//! Deliberately absent: any case in which a model that has something to answer with gets
//! a route with nobody in it. Only a withdrawal takes a stable version away.

use std::collections::BTreeSet;

use rollcall_shared::assignment::{Assignment, CandidateMode, VersionRef, Withdrawal};
use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::report::{Receipt, Role, Serving};
use rollcall_shared::time::Timestamp;

use crate::lease::Lease;
use crate::route::{CandidateRoute, CandidateUsage, Route};

/// What must never serve one model again: its withdrawals, by what is asked of them.
#[derive(Debug, Default)]
pub(crate) struct Withdrawn {
    versions: BTreeSet<VersionRef>,
    rollouts: BTreeSet<RolloutId>,
}

impl Withdrawn {
    pub(crate) fn of(all: &BTreeSet<Withdrawal>, model: &ModelName) -> Self {
        let mut withdrawn = Self::default();
        all.iter()
            .filter(|withdrawal| withdrawal.model == *model)
            .for_each(|withdrawal| withdrawn.add(withdrawal));
        withdrawn
    }

    /// One more, of the same model.
    pub(crate) fn add(&mut self, withdrawal: &Withdrawal) {
        self.versions.insert(withdrawal.withdrawn);
        self.rollouts.insert(withdrawal.rollout);
    }

    pub(crate) fn has_version(&self, version: VersionRef) -> bool {
        self.versions.contains(&version)
    }

    pub(crate) fn has_rollout(&self, rollout: RolloutId) -> bool {
        self.rollouts.contains(&rollout)
    }
}

/// The part of an assignment that may be carried out: nothing withdrawn in any role.
///
/// A stable version that is missing or withdrawn is replaced by the first of `instead`
/// that is not, then by the assignment's own `previous`: a coordinator that forgot what
/// is stable must not stop it.
pub(crate) fn permitted(
    asked: Assignment,
    instead: impl IntoIterator<Item = Option<VersionRef>>,
    withdrawn: &Withdrawn,
) -> Assignment {
    let allowed = |version: &VersionRef| !withdrawn.has_version(*version);
    let stable = std::iter::once(asked.stable)
        .chain(instead)
        .chain([asked.previous])
        .flatten()
        .find(allowed);
    let candidate = asked
        .candidate
        .filter(|c| allowed(&c.version) && !withdrawn.has_rollout(c.rollout));
    Assignment {
        stable,
        previous: asked.previous.filter(allowed),
        candidate,
        ..asked
    }
}

/// What must be loaded to carry an assignment out and to go back from it, most urgent first.
pub(crate) fn versions_of(assignment: &Assignment) -> impl Iterator<Item = VersionRef> {
    let candidate = assignment.candidate.map(|c| c.version);
    [assignment.stable, assignment.previous, candidate]
        .into_iter()
        .flatten()
}

/// The route for an assignment.
///
/// Until the assigned stable is ready, what answers now goes on (after a restart:
/// `previous` stands in), the generation stays where it is, and there is no candidate:
/// it would be judged against the wrong version, or stand there without a fallback.
pub(crate) fn route(
    assignment: &Assignment,
    current: Option<&Route>,
    lease: Option<&Lease>,
    is_ready: impl Fn(VersionRef) -> bool,
    withdrawn: &Withdrawn,
    now: Timestamp,
) -> Route {
    let current_stable = current.and_then(|route| route.stable);
    let stable = [assignment.stable, current_stable, assignment.previous]
        .into_iter()
        .flatten()
        .find(|version| is_ready(*version) && !withdrawn.has_version(*version));
    let reached = stable == assignment.stable;
    let candidate = assignment
        .candidate
        .filter(|c| reached && is_ready(c.version))
        .and_then(|c| {
            let usage = match c.mode {
                CandidateMode::Prepare => return None,
                CandidateMode::Shadow(share) => CandidateUsage::Shadow(share),
                CandidateMode::Canary(share) => CandidateUsage::Canary(share),
            };
            Some(CandidateRoute {
                rollout: c.rollout,
                version: c.version,
                usage,
                lease_until: lease?.running_until(now)?,
                hasher: hasher(assignment, c.rollout, current),
            })
        });
    let generation_before = current.map(|route| route.generation).unwrap_or_default();
    Route {
        model: assignment.model.clone(),
        generation: if reached {
            assignment.generation
        } else {
            generation_before
        },
        stable,
        candidate,
    }
}

/// The hasher of a rollout; the one in place where it is the same.
fn hasher(assignment: &Assignment, rollout: RolloutId, current: Option<&Route>) -> CohortHasher {
    let candidate = current.and_then(|route| route.candidate.as_ref());
    match candidate.filter(|c| c.rollout == rollout) {
        Some(candidate) => candidate.hasher.clone(),
        None => CohortHasher::new(&assignment.model, rollout),
    }
}

/// Our word that we serve this route.
pub(crate) fn receipt(route: &Route) -> Receipt {
    Receipt {
        model: route.model.clone(),
        generation: route.generation,
        serving: serving(route).collect(),
    }
}

/// Whether a receipt for one would be a receipt for the other.
pub(crate) fn same_receipt(one: &Route, other: &Route) -> bool {
    one.generation == other.generation && serving(one).eq(serving(other))
}

fn serving(route: &Route) -> impl Iterator<Item = Serving> {
    let stable = route.stable.map(|version| Serving {
        role: Role::Stable,
        version,
    });
    let candidate = route.candidate.as_ref().map(|candidate| Serving {
        role: match candidate.usage {
            CandidateUsage::Shadow(_) => Role::Shadow,
            CandidateUsage::Canary(_) => Role::Candidate,
        },
        version: candidate.version,
    });
    stable.into_iter().chain(candidate)
}

/// The rollout whose candidate left a route for no other reason than that its lease ended.
pub(crate) fn expired(
    before: Option<&Route>,
    after: &Route,
    assignment: &Assignment,
    now: Timestamp,
) -> Option<RolloutId> {
    let left = before?.candidate.as_ref()?;
    let assigned = assignment.candidate?;
    let ended = after.candidate.is_none() && left.lease_until <= now;
    (ended && assigned.rollout == left.rollout).then_some(left.rollout)
}
