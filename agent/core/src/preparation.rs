//! How far this node is with a version that it should have, and when it tries again.
//!
//! A failure that may pass (network, disk) is tried again after 1 s, doubling to 60 s,
//! plus up to a quarter so that nodes do not retry in step. There is no randomness in a
//! core, so the jitter is a hash of the node's labels, the version and the attempt.
//! A failure of the version itself is not tried again until the model's assignment
//! changes: the same bytes fail the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::limits::TEXT_BYTES_MAX;
use rollcall_shared::report::ReadyState;
use rollcall_shared::time::Timestamp;

/// First pause before trying again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause, before jitter.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How far this node is with a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Preparation {
    /// A `Prepare` is under way.
    Fetching {
        /// Attempts that failed before this one.
        failures: u32,
    },
    /// Loaded and warmed.
    Ready,
    /// It failed, and may succeed later.
    Waiting {
        /// Attempts that failed.
        failures: u32,
        /// What went wrong.
        reason: String,
        /// When to try again.
        retry_at: Timestamp,
    },
    /// It failed, and will fail again.
    Failed {
        /// What went wrong.
        reason: String,
        /// The generation it was tried for.
        generation: Generation,
    },
}

impl Preparation {
    /// The state after the `Prepare` to begin now, if one is due.
    pub(crate) fn begin(
        held: Option<&Self>,
        generation: Generation,
        now: Timestamp,
    ) -> Option<Self> {
        match held {
            None => Some(Self::Fetching { failures: 0 }),
            Some(Self::Fetching { .. } | Self::Ready) => None,
            Some(Self::Waiting {
                failures, retry_at, ..
            }) => (now >= *retry_at).then_some(Self::Fetching {
                failures: *failures,
            }),
            Some(Self::Failed {
                generation: tried, ..
            }) => (generation != *tried).then_some(Self::Fetching { failures: 0 }),
        }
    }

    /// When to try again, if time alone decides.
    pub(crate) const fn retry_at(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting { retry_at, .. } => Some(*retry_at),
            Self::Fetching { .. } | Self::Ready | Self::Failed { .. } => None,
        }
    }

    /// Whether the engine holds, or is about to hold, memory for it.
    pub(crate) const fn occupies_the_engine(&self) -> bool {
        match self {
            Self::Fetching { .. } | Self::Ready => true,
            Self::Waiting { .. } | Self::Failed { .. } => false,
        }
    }

    /// As the coordinator hears it.
    pub(crate) fn state(&self) -> ReadyState {
        match self {
            Self::Fetching { .. } => ReadyState::Fetching,
            Self::Ready => ReadyState::Ready,
            Self::Waiting { reason, .. } => ReadyState::Failed {
                reason: reason.clone(),
                retrying: true,
            },
            Self::Failed { reason, .. } => ReadyState::Failed {
                reason: reason.clone(),
                retrying: false,
            },
        }
    }
}

/// How long to wait after the `failures`th failure in a row (counted from 1).
pub(crate) fn retry_delay(
    failures: u32,
    labels: &BTreeMap<String, String>,
    model: &ModelName,
    version: &VersionRef,
) -> Duration {
    let doublings = failures.saturating_sub(1).min(6);
    let base = (RETRY_FIRST * (1 << doublings)).min(RETRY_MAX);
    let seed = format!("{labels:?}/{model}/{}/{failures}", version.digest);
    let [first, second, ..] = *Digest::of(seed.as_bytes()).as_bytes();
    base + base / 4 * u32::from(u16::from_be_bytes([first, second])) / u32::from(u16::MAX)
}

/// A reason short enough for the wire.
pub(crate) fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(TEXT_BYTES_MAX));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::{model, version};

    #[test]
    fn pauses_double_from_one_second_to_a_minute_with_at_most_a_quarter_more() {
        let expected = [1, 2, 4, 8, 16, 32, 60, 60];
        for (failures, seconds) in (1..).zip(expected) {
            let base = Duration::from_secs(seconds);
            let delay = retry_delay(failures, &BTreeMap::new(), &model(), &version(1));
            assert!(delay >= base && delay <= base * 5 / 4, "{delay:?}");
        }
        let longest = retry_delay(u32::MAX, &BTreeMap::new(), &model(), &version(1));
        assert!(longest <= RETRY_MAX * 5 / 4);
    }

    #[test]
    fn nodes_with_other_labels_retry_at_other_times() {
        let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        let delay = |zone_name| retry_delay(3, &zone(zone_name), &model(), &version(1));
        assert_ne!(delay("eu-1"), delay("eu-2"));
        assert_eq!(delay("eu-1"), delay("eu-1"));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = cut("ü".repeat(TEXT_BYTES_MAX) + "x");
        assert_eq!(reason.len(), TEXT_BYTES_MAX);
        assert_eq!(cut("short".to_owned()), "short");
    }
}
