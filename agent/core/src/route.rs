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
            (CandidateUsage::Canary(share), fallback) if share.holds(bucket) => {
                Pick::Candidate { candidate: candidate.version, fallback }
            }
            (CandidateUsage::Shadow(share), Some(stable)) if share.holds(bucket) => {
                Pick::StableAndShadow { stable, shadow: candidate.version }
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
