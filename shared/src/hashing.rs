//! Who belongs to a cohort.
//!
//! A request's bucket depends on the model, the rollout and its sticky key only:
//! the same key meets the same version on every node, and another rollout draws
//! afresh. Nodes are ranked the same way.

use std::sync::Arc;

use crate::assignment::Share;
use crate::ids::{ModelName, NodeId, RolloutId};

/// Hashes the keys of one rollout; made once, used for every request. Routes are cloned
/// often, so this holds what is hashed first, and not the 2 KB of a hasher that has read it.
#[derive(Clone)]
pub struct CohortHasher(Arc<[u8]>);

impl CohortHasher {
    /// A hasher salted with the model and the rollout.
    #[must_use]
    pub fn new(model: &ModelName, rollout: RolloutId) -> Self {
        let salt = [model.as_str().as_bytes(), &[0], &rollout.0.to_be_bytes()];
        Self(salt.concat().into())
    }

    /// The bucket of a sticky key, 0 to [`Share::STEPS`] - 1, evenly spread.
    #[must_use]
    pub fn bucket(&self, key: &[u8]) -> u16 {
        let scaled = (u128::from(self.hash(key)) * u128::from(Share::STEPS)) >> 64;
        u16::try_from(scaled).unwrap_or(Share::STEPS - 1)
    }

    /// Where a node stands in the order in which a node cohort grows.
    #[must_use]
    pub fn rank(&self, node: &NodeId) -> u64 {
        self.hash(node.as_str().as_bytes())
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(bytes);
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_be_bytes(first)
    }
}

impl std::fmt::Debug for CohortHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CohortHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(rollout: u64) -> CohortHasher {
        CohortHasher::new(&ModelName::new("digits").unwrap(), RolloutId(rollout))
    }

    #[test]
    fn a_share_of_ten_percent_gets_about_ten_percent_of_keys() {
        let share = Share::from_percent(10.0).unwrap();
        let hits = (0..20_000u32)
            .filter(|i| share.holds(hasher(1).bucket(&i.to_be_bytes())))
            .count();
        assert!((1_850..2_150).contains(&hits), "{hits} of 20,000");
    }

    #[test]
    fn another_rollout_draws_afresh() {
        let differ = (0..1_000u32)
            .filter(|i| hasher(1).bucket(&i.to_be_bytes()) != hasher(2).bucket(&i.to_be_bytes()))
            .count();
        assert!(differ > 990, "{differ} of 1,000 buckets differ");
    }

    #[test]
    fn buckets_never_change_between_releases() {
        let buckets: Vec<_> = ["", "ana", "user-42"]
            .map(|key| hasher(7).bucket(key.as_bytes()))
            .into();
        assert_eq!(
            buckets, GOLDEN_BUCKETS,
            "running canaries would change their cohorts"
        );
    }

    const GOLDEN_BUCKETS: [u16; 3] = [5939, 4174, 9316];
}
