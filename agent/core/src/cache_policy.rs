//! Which versions leave the disk when room is needed: the least recently used first,
//! never a pinned one.
//!
//! Least recently used fits because a version that nothing pins is only wanted again when
//! an operator goes back to it, and operators go back to recent ones. A version's bytes
//! are counted whole although versions may share blobs: the plan may free less than it
//! counted, and the cache then plans again with the true sizes.
//!
//! Deliberately absent: deleting (the shell does, index entry first), and any partial
//! plan: without room for the whole nothing is thrown away.

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::Timestamp;

/// A version whose blobs are in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedVersion {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionRef,
    /// Of its blobs.
    pub bytes: u64,
    /// When it was last prepared or served.
    pub last_used: Timestamp,
    /// Whether it must stay, see [`crate::effect::Effect::Pin`].
    pub pinned: bool,
}

/// Even without everything that may go, there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room in the cache: {needed} bytes needed, {pinned} of {quota} bytes are pinned; \
     raise the cache quota or assign fewer models to this node"
)]
pub struct NoRoom {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes allowed.
    pub quota: u64,
    /// Bytes that must stay.
    pub pinned: u64,
}

/// What to evict, in order, so that `needed_bytes` more fit into `quota_bytes`. Equally
/// old versions go in the order of their names. Empty: there is room already.
///
/// # Errors
/// When evicting everything that is not pinned is not enough.
pub fn plan_eviction(
    entries: &[CachedVersion],
    quota_bytes: u64,
    needed_bytes: u64,
) -> Result<Vec<(ModelName, VersionRef)>, NoRoom> {
    let bytes_of = |pinned: bool| {
        let some = entries.iter().filter(move |e| e.pinned == pinned);
        some.fold(0u64, |sum, entry| sum.saturating_add(entry.bytes))
    };
    let pinned = bytes_of(true);
    if pinned.saturating_add(needed_bytes) > quota_bytes {
        return Err(NoRoom {
            needed: needed_bytes,
            quota: quota_bytes,
            pinned,
        });
    }
    let room_for_loose = quota_bytes - pinned - needed_bytes;
    let mut loose: Vec<_> = entries.iter().filter(|e| !e.pinned).collect();
    loose.sort_by_key(|e| (e.last_used, &e.model, e.version));
    let mut remaining = bytes_of(false);
    let mut evicted = Vec::new();
    for entry in loose {
        if remaining <= room_for_loose {
            break;
        }
        remaining = remaining.saturating_sub(entry.bytes);
        evicted.push((entry.model.clone(), entry.version));
    }
    Ok(evicted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::{at, model, version};

    fn cached(major: u64, bytes: u64, last_used: u64, pinned: bool) -> CachedVersion {
        CachedVersion {
            model: model(),
            version: version(major),
            bytes,
            last_used: at(last_used),
            pinned,
        }
    }

    fn keys(majors: &[u64]) -> Vec<(ModelName, VersionRef)> {
        majors.iter().map(|m| (model(), version(*m))).collect()
    }

    #[test]
    fn nothing_goes_while_there_is_room() {
        let entries = [cached(1, 40, 1, false), cached(2, 40, 2, false)];
        assert_eq!(plan_eviction(&entries, 100, 20), Ok(vec![]));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let entries = [
            cached(1, 40, 3, false),
            cached(2, 30, 1, false),
            cached(3, 30, 2, false),
        ];
        assert_eq!(plan_eviction(&entries, 100, 30), Ok(keys(&[2])));
        assert_eq!(plan_eviction(&entries, 100, 31), Ok(keys(&[2, 3])));
    }

    #[test]
    fn a_pinned_version_stays_however_old_it_is() {
        let entries = [cached(1, 50, 0, true), cached(2, 50, 9, false)];
        assert_eq!(plan_eviction(&entries, 100, 50), Ok(keys(&[2])));
    }

    #[test]
    fn without_room_nothing_goes_and_the_error_says_what_is_in_the_way() {
        let entries = [cached(1, 60, 0, true), cached(2, 40, 0, false)];
        let no_room = NoRoom {
            needed: 41,
            quota: 100,
            pinned: 60,
        };
        assert_eq!(plan_eviction(&entries, 100, 41), Err(no_room));
        assert_eq!(plan_eviction(&entries, 100, 40), Ok(keys(&[2])));
        assert!(plan_eviction(&entries, 100, u64::MAX).is_err());
    }

    #[test]
    fn ties_go_by_name_whatever_the_order_of_entries() {
        let one = [cached(2, 10, 5, false), cached(1, 10, 5, false)];
        let other = [cached(1, 10, 5, false), cached(2, 10, 5, false)];
        assert_eq!(plan_eviction(&one, 20, 10), Ok(keys(&[1])));
        assert_eq!(plan_eviction(&other, 20, 10), Ok(keys(&[1])));
    }

    #[test]
    fn a_lowered_quota_evicts_even_when_nothing_is_needed() {
        let entries = [cached(1, 40, 1, false), cached(2, 40, 2, false)];
        assert_eq!(plan_eviction(&entries, 50, 0), Ok(keys(&[1])));
    }
}
