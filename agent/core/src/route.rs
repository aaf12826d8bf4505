//! Who answers a request: a pure function of the route, the request's sticky key
//! and the time.
//!
//! The lease is checked here, at every request, not only by a timer: a process that
//! was paused beyond its lease must not answer one request with the candidate
//! before its timers run again.

use rollcall_shared::assignment::{Share, VersionRef};
use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::time::Timestamp;

/// How requests for one model are answered. Replaced whole, never changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The model.
    pub model: ModelName,
    /// The generation that this route carries out. Never goes back.
    pub generation: Generation,
    /// Answers by right; `None`: nothing is ready, requests get 503.
    pub stable: Option<VersionRef>,
    /// On trial and ready.
    pub candidate: Option<CandidateRoute>,
}

/// A candidate that may get requests until its lease is over.
#[derive(Clone, Debug)]
pub struct CandidateRoute {
    /// The rollout, also the salt of `hasher`.
    pub rollout: RolloutId,
    /// The version.
    pub version: VersionRef,
    /// What it is used for.
    pub usage: CandidateUsage,
    /// From this moment on it gets nothing.
    pub lease_until: Timestamp,
    /// Buckets of this rollout.
    pub hasher: CohortHasher,
}

/// What a ready candidate is used for, and for which share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateUsage {
    /// Copies only.
    Shadow(Share),
    /// It answers.
    Canary(Share),
}

/// Who answers one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Nothing is ready.
    Nobody,
    /// Stable, alone.
    Stable(VersionRef),
    /// Stable; the candidate gets a copy.
    StableAndShadow {
        /// Answers.
        stable: VersionRef,
        /// Gets the copy.
        shadow: VersionRef,
    },
    /// The candidate; if it fails, `fallback` answers within the same request.
    Candidate {
        /// Answers.
        candidate: VersionRef,
        /// Answers if that fails.
        fallback: Option<VersionRef>,
    },
}

impl Route {
    /// Who answers a request with this sticky key at this moment.
    #[must_use]
    pub fn pick(&self, sticky_key: &[u8], now: Timestamp) -> Pick {
        let stable_alone = self.stable.map_or(Pick::Nobody, Pick::Stable);
        let Some(candidate) = self.candidate.as_ref().filter(|c| now < c.lease_until) else {
            return stable_alone;
        };
        let bucket = candidate.hasher.bucket(sticky_key);
        match (candidate.usage, self.stable) {
            (CandidateUsage::Canary(share), fallback) if share.holds(bucket) => Pick::Candidate {
                candidate: candidate.version,
                fallback,
            },
            (CandidateUsage::Shadow(share), Some(stable)) if share.holds(bucket) => {
                Pick::StableAndShadow {
                    stable,
                    shadow: candidate.version,
                }
            }
            (CandidateUsage::Canary(_) | CandidateUsage::Shadow(_), _) => stable_alone,
        }
    }
}

/// The hasher follows from model and rollout, so it does not take part.
impl PartialEq for CandidateRoute {
    fn eq(&self, other: &Self) -> bool {
        (self.rollout, self.version, self.usage, self.lease_until)
            == (other.rollout, other.version, other.usage, other.lease_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::{at, model, version};

    fn route(stable: Option<u64>, usage: CandidateUsage) -> Route {
        Route {
            model: model(),
            generation: Generation(1),
            stable: stable.map(version),
            candidate: Some(CandidateRoute {
                rollout: RolloutId(1),
                version: version(2),
                usage,
                lease_until: at(10),
                hasher: CohortHasher::new(&model(), RolloutId(1)),
            }),
        }
    }

    fn canary(percent: f64) -> Route {
        let share = Share::from_percent(percent).unwrap();
        route(Some(1), CandidateUsage::Canary(share))
    }

    fn keys() -> impl Iterator<Item = [u8; 4]> {
        (0..5_000u32).map(u32::to_be_bytes)
    }

    fn meets_candidate(route: &Route, key: &[u8]) -> bool {
        match route.pick(key, at(0)) {
            Pick::Candidate { .. } | Pick::StableAndShadow { .. } => true,
            Pick::Stable(_) | Pick::Nobody => false,
        }
    }

    #[test]
    fn the_same_key_meets_the_same_version_on_every_node() {
        let (one_node, another) = (canary(30.0), canary(30.0));
        for key in keys() {
            assert_eq!(one_node.pick(&key, at(0)), another.pick(&key, at(9)));
        }
    }

    #[test]
    fn a_growing_share_only_adds_keys() {
        let (small, large) = (canary(5.0), canary(25.0));
        let count = |route: &Route| keys().filter(|key| meets_candidate(route, key)).count();
        assert!(keys().all(|key| !meets_candidate(&small, &key) || meets_candidate(&large, &key)));
        assert!(count(&small) > 0 && count(&large) > count(&small));
        assert_eq!(count(&canary(0.0)), 0);
        assert_eq!(count(&canary(100.0)), 5_000);
    }

    #[test]
    fn a_canary_falls_back_to_stable_and_a_shadow_never_answers() {
        let canary = route(Some(1), CandidateUsage::Canary(Share::ALL));
        let expected = Pick::Candidate {
            candidate: version(2),
            fallback: Some(version(1)),
        };
        assert_eq!(canary.pick(b"ana", at(0)), expected);
        let shadow = route(Some(1), CandidateUsage::Shadow(Share::ALL));
        let expected = Pick::StableAndShadow {
            stable: version(1),
            shadow: version(2),
        };
        assert_eq!(shadow.pick(b"ana", at(0)), expected);
    }

    #[test]
    fn the_lease_is_checked_at_every_pick() {
        let route = route(Some(1), CandidateUsage::Canary(Share::ALL));
        assert!(meets_candidate(&route, b"ana"));
        assert_eq!(route.pick(b"ana", at(10)), Pick::Stable(version(1)));
        assert_eq!(route.pick(b"ana", at(9_999)), Pick::Stable(version(1)));
    }

    #[test]
    fn without_stable_there_is_nobody_to_shadow_or_to_fall_back_to() {
        let shadow = route(None, CandidateUsage::Shadow(Share::ALL));
        assert_eq!(shadow.pick(b"ana", at(0)), Pick::Nobody);
        let canary = route(None, CandidateUsage::Canary(Share::NONE));
        assert_eq!(canary.pick(b"ana", at(0)), Pick::Nobody);
        let first_ever = route(None, CandidateUsage::Canary(Share::ALL));
        let expected = Pick::Candidate {
            candidate: version(2),
            fallback: None,
        };
        assert_eq!(first_ever.pick(b"ana", at(0)), expected);
        assert_eq!(first_ever.pick(b"ana", at(10)), Pick::Nobody);
    }
}
