//! Whose failures were counted a moment ago.
//!
//! Somebody whose request fails tries again, and again: for a test that takes failures as
//! independent that is one failure. Two sets of key hashes take turns: a key counts again
//! after 10 to 20 s. Both have a bound, and beyond it every failure counts: by then so many
//! people are hit that no repetition matters.

use std::collections::HashSet;
use std::time::Duration;

use rollcall_shared::time::Timestamp;

/// For so long at least, and twice as long at most, a key that failed does not count again.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Keys in one set: 64 KiB with all that belongs to it.
const KEYS_MAX: usize = 4_096;

/// Keys that failed lately.
#[derive(Debug, Default)]
pub(super) struct FailedKeys {
    young: HashSet<u64>,
    old: HashSet<u64>,
    turned_at: Timestamp,
}

impl FailedKeys {
    /// Notes a failure; whether it is the key's first in a while.
    pub(super) fn is_first(&mut self, key: u64, now: Timestamp) -> bool {
        let since = now.since(self.turned_at);
        if since >= REMEMBERED {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
            if since >= 2 * REMEMBERED {
                self.old.clear();
            }
            self.turned_at = now;
        }
        if self.young.contains(&key) || self.old.contains(&key) {
            return false;
        }
        if self.young.len() < KEYS_MAX {
            self.young.insert(key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(0) + Duration::from_secs(1_000 + seconds)
    }

    #[test]
    fn a_key_counts_once_in_ten_seconds_and_again_after_twenty() {
        let mut keys = FailedKeys::default();
        assert!(keys.is_first(1, at(0)));
        assert!((1..=10).all(|second| !keys.is_first(1, at(second))));
        assert!(keys.is_first(2, at(10)));
        assert!(!keys.is_first(1, at(19)));
        assert!(keys.is_first(1, at(20)));
        assert!(!keys.is_first(2, at(20)));
        assert!(keys.is_first(2, at(500)));
    }

    #[test]
    fn when_the_room_is_taken_every_failure_of_the_rest_counts() {
        let mut keys = FailedKeys::default();
        assert!((0..KEYS_MAX as u64).all(|key| keys.is_first(key, at(0))));
        let late = u64::MAX;
        assert!(keys.is_first(late, at(0)) && keys.is_first(late, at(1)));
        assert!(!keys.is_first(7, at(1)));
    }
}
