//! What was seen at the same time, group of nodes by group, as far back as the stage goes.
//!
//! One bad node is not a bad candidate. So the evidence must still be there when any one group
//! of nodes is left out; and as evidence is only weighed without a group when there is enough of
//! it with all of them, which is rare, the intervals are kept instead of one test for each group.
//! When there are too many, neighbours among the older ones are put together: what lies long ago
//! needs no fine steps. How they are put together does not depend on what was seen in them, so
//! tests over them stay valid.

use rollcall_shared::histogram::Histogram;
use rollcall_shared::report::Counts;
use serde::{Deserialize, Serialize};

use super::Trials;

/// Groups that nodes with the candidate are dealt to.
pub const GROUPS: usize = 8;

/// Intervals that are kept.
const INTERVALS_MAX: usize = 64;

/// Of these, the first ones stay as they are: a test spends the beginning on learning what stable
/// is like, and must not spend half of what was seen on it.
const FIRST: usize = 8;

/// How many of those after the first are put together at a time. Even, so that they pair up.
const OLDER: usize = (INTERVALS_MAX - FIRST) / 2;

/// What tests look at, of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Requests.
    #[serde(skip_serializing_if = "is_default")]
    pub requests: u64,
    /// Failures that are independent of each other.
    #[serde(skip_serializing_if = "is_default")]
    pub failures: u64,
    /// Of requests that succeeded.
    #[serde(skip_serializing_if = "is_default")]
    pub latency: Histogram,
    /// Shadow only: pairs compared.
    #[serde(skip_serializing_if = "is_default")]
    pub compared: u64,
    /// Shadow only: pairs on which the versions do not agree.
    #[serde(skip_serializing_if = "is_default")]
    pub disagreed: u64,
}

/// What is empty is left out of records: most of an interval is.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Sample {
    /// Of a node's counts.
    #[must_use]
    pub fn of(counts: &Counts) -> Self {
        Self {
            requests: counts.requests,
            failures: counts.failed_keys,
            latency: counts.latency.clone(),
            compared: counts.compared,
            disagreed: counts.compared.saturating_sub(counts.agreed),
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.latency.merge(&other.latency);
        self.compared += other.compared;
        self.disagreed += other.disagreed;
    }

    pub(super) const fn failed(&self) -> Trials {
        Trials {
            n: self.requests,
            hits: self.failures,
        }
    }
}

/// Both versions at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pair {
    /// The candidate.
    #[serde(skip_serializing_if = "is_default")]
    pub candidate: Sample,
    /// Stable.
    #[serde(skip_serializing_if = "is_default")]
    pub stable: Sample,
}

impl Pair {
    fn merge(&mut self, other: &Self) {
        self.candidate.merge(&other.candidate);
        self.stable.merge(&other.stable);
    }
}

/// What was seen in one interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// By nodes that had the candidate.
    pub groups: [Pair; GROUPS],
    /// By nodes that had only stable.
    #[serde(default, skip_serializing_if = "is_default")]
    pub others: Sample,
}

impl Interval {
    /// Everything, or everything but what one group saw.
    #[must_use]
    pub fn pair(&self, without: Option<usize>) -> Pair {
        let mut sum = Pair {
            candidate: Sample::default(),
            stable: self.others.clone(),
        };
        for (group, pair) in self.groups.iter().enumerate() {
            if Some(group) != without {
                sum.merge(pair);
            }
        }
        sum
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.groups.iter_mut().zip(&other.groups) {
            mine.merge(theirs);
        }
        self.others.merge(&other.others);
    }
}

/// Intervals, the oldest first; those long ago put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(Vec<Interval>);

impl History {
    pub(super) fn push(&mut self, interval: Interval) {
        if self.0.len() >= INTERVALS_MAX {
            let recent = self.0.split_off(FIRST + OLDER);
            let mut older = self.0.split_off(FIRST);
            for pair in older.chunks_mut(2) {
                if let [first, second] = pair {
                    let second = std::mem::take(second);
                    first.merge(&second);
                }
            }
            self.0.extend(older.into_iter().step_by(2).chain(recent));
        }
        self.0.push(interval);
    }

    /// The intervals, the oldest first.
    pub fn intervals(&self) -> impl Iterator<Item = &Interval> {
        self.0.iter()
    }

    /// Groups in which somebody had the candidate.
    pub(super) fn groups(&self) -> impl Iterator<Item = usize> + '_ {
        (0..GROUPS).filter(|group| {
            let seen = |interval: &Interval| interval.groups[*group].candidate.requests > 0;
            self.0.iter().any(seen)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_what_lies_long_ago_is_put_together() {
        let mut history = History::default();
        for n in 1..=10_000 {
            let mut interval = Interval::default();
            interval.groups[n % 2].candidate.requests = 1;
            interval.others.requests = 2;
            history.push(interval);
            assert!(history.0.len() <= INTERVALS_MAX);
        }
        let sum = |without| {
            let pairs = history.intervals().map(|interval| interval.pair(without));
            pairs.fold((0, 0), |(candidate, stable), pair| {
                let requests = pair.candidate.requests;
                (candidate + requests, stable + pair.stable.requests)
            })
        };
        assert_eq!(sum(None), (10_000, 20_000));
        assert_eq!(sum(Some(0)), (5_000, 20_000));
        assert_eq!(history.groups().collect::<Vec<_>>(), [0, 1]);
        let last = history.0.last().unwrap();
        assert_eq!(last.others.requests, 2);
    }
}
