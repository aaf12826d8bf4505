//! What one agent should do for one model, and what takes a candidate away.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::ids::{Generation, ModelName, RolloutId};
use crate::version::Version;

/// A version and the digest of its signed manifest: exactly one set of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionRef {
    /// The version's number.
    pub version: Version,
    /// Digest of the signed manifest, see [`crate::manifest::SignedManifest::digest`].
    pub digest: Digest,
}

/// A share of requests in steps of .01 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Share(u16);

/// A share outside 0 to 100 %.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a share is 0 to 100 percent in steps of .01, not {percent}")]
pub struct ShareError {
    percent: f64,
}

impl Share {
    /// How many steps make the whole.
    pub const STEPS: u16 = 10_000;
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(Self::STEPS);

    /// From percent, rounded to .01.
    ///
    /// # Errors
    /// When `percent` is not within 0 to 100.
    pub fn from_percent(percent: f64) -> Result<Self, ShareError> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(ShareError { percent });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 10,000"
        )]
        Ok(Self((percent * 100.0).round() as u16))
    }

    /// In percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Whether `bucket` (0 to [`Self::STEPS`] - 1) falls into the share. Growing
    /// a share only adds buckets.
    #[must_use]
    pub const fn holds(self, bucket: u16) -> bool {
        bucket < self.0
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let steps = u16::deserialize(deserializer)?;
        if steps > Self::STEPS {
            return Err(serde::de::Error::custom("a share is at most 10000 steps"));
        }
        Ok(Self(steps))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

impl FromStr for Share {
    type Err = ShareError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_percent(
            text.trim_end_matches('%')
                .trim()
                .parse()
                .unwrap_or(f64::NAN),
        )
    }
}

/// How an agent uses a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CandidateMode {
    /// Fetch, verify, load and warm it; send it nothing.
    Prepare,
    /// Copy a share of requests to it off the request path; stable answers all.
    Shadow(Share),
    /// It answers a share of requests: `Share::ALL` on every request of a node cohort
    /// and in the full stage.
    Canary(Share),
}

/// A version on trial on one node, under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateAssignment {
    /// The rollout it belongs to; also the salt of its request cohort.
    pub rollout: RolloutId,
    /// The version.
    pub version: VersionRef,
    /// What it is used for.
    pub mode: CandidateMode,
    /// How long it may be used after the sending of the last answered heartbeat, in milliseconds.
    pub lease_ms: u64,
}

impl CandidateAssignment {
    /// The lease as a duration.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

/// What one agent should do for one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The model.
    pub model: ModelName,
    /// Grows with every change of any node's assignment for this model.
    pub generation: Generation,
    /// Serves by right, without a lease. `None`: nothing was ever promoted.
    pub stable: Option<VersionRef>,
    /// The stable before this one: kept on disk and loaded, for an instant rollback
    /// of a finished rollout.
    pub previous: Option<VersionRef>,
    /// On trial, if anything is.
    pub candidate: Option<CandidateAssignment>,
}

/// "This rollout is over, for good." The same bytes go to every agent.
///
/// Agents keep all withdrawals they ever heard of, refuse the withdrawn version in
/// any role ever after, and hand them back to a coordinator that lost them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The model.
    pub model: ModelName,
    /// The rollout that ends.
    pub rollout: RolloutId,
    /// The version that must not serve again.
    pub withdrawn: VersionRef,
    /// The generation from which on this holds.
    pub generation: Generation,
    /// What serves instead. `None`: the model had no stable version before.
    pub serving: Option<VersionRef>,
}

/// Everything an agent must know; sent when it connects and whenever a heartbeat
/// shows that it missed something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// One for each model the node hosts (in a repair: for each model that lagged).
    pub assignments: Vec<Assignment>,
    /// All withdrawals of those models.
    pub withdrawals: Vec<Withdrawal>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_a_resolution_of_a_hundredth_of_a_percent() {
        assert_eq!(Share::from_percent(0.01).unwrap(), Share(1));
        assert_eq!(Share::from_percent(33.333).unwrap(), Share(3_333));
        assert!(Share::from_percent(100.01).is_err());
        assert!(Share::from_percent(-1.0).is_err());
        assert!(Share::from_percent(f64::NAN).is_err());
    }

    #[test]
    fn a_growing_share_only_adds_buckets() {
        let (small, large) = (
            Share::from_percent(10.0).unwrap(),
            Share::from_percent(25.0).unwrap(),
        );
        assert!((0..Share::STEPS).all(|bucket| !small.holds(bucket) || large.holds(bucket)));
        assert!(!Share::NONE.holds(0));
        assert!(Share::ALL.holds(Share::STEPS - 1));
    }
}
