//! Takes a candidate out of service on this node when it fails again and again.
//!
//! # Why failures in a row, and a cool-down
//!
//! A failed candidate request is answered by stable within the same request, so clients
//! do not see errors; they see the time that the failure took. What this breaker must
//! stop is a candidate that fails *every* request (crashed engine, out of GPU memory, a
//! time-out each time) from adding that time to each request of the cohort until the
//! judge, who sees windows of seconds, withdraws it.
//!
//! - **In a row**, not a rate: a rate needs a window with enough requests in it, and a
//!   canary at 1 % of a quiet model has few. Five in a row need five requests. A candidate
//!   that fails half of its requests opens it about once in 62 requests; one that fails
//!   one in a hundred practically never. Telling "somewhat worse than stable" from noise
//!   is the judge's work, with all nodes' evidence: a breaker that did it too would hide
//!   that evidence from the judge.
//! - **A cool-down, then one probe**: an engine that ran out of memory may recover when
//!   the peak is over. One request in 60 s finds out, at the price of one slow request.
//! - **A probe may get lost** (its task was cancelled with the client's connection, its
//!   thread died). After another cool-down the next request is a probe.
//!
//! Source: M. Nygard, *Release It!*, 2007, "Circuit Breaker".
//!
//! Deliberately absent: slowness (a time-out is a failure, a slow answer is the judge's
//! business), a growing cool-down (a withdrawal comes first), and memory across restarts.

use std::time::Duration;

use rollcall_shared::time::Timestamp;

/// Failures in a row that open a breaker.
pub const FAILURES_TO_OPEN: u32 = 5;

/// How long an open breaker lets nothing through, and how long a probe is waited for.
pub const COOL_DOWN: Duration = Duration::from_secs(60);

/// The breaker of one candidate on one node. Make a new one for another candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Everything goes through.
    Closed { failures_in_a_row: u32 },
    /// Nothing goes through.
    Open { until: Timestamp },
    /// One request is finding out.
    HalfOpen { probe_since: Timestamp },
}

/// What a result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Closed to open: the candidate is out of service here.
    Opened {
        /// Failures in a row.
        failures: u32,
    },
    /// Half-open to open: the probe failed; nothing new for people.
    Reopened,
    /// Half-open to closed: the candidate is back.
    Closed,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::Closed {
                failures_in_a_row: 0,
            },
        }
    }

    /// Whether the candidate may get this request. `true` may make the request the probe,
    /// so ask once for a request, and only when it would really go to the candidate.
    pub fn allows(&mut self, now: Timestamp) -> bool {
        let (allowed, state) = match self.state {
            State::Closed { .. } => (true, self.state),
            State::Open { until } if now >= until => (true, State::HalfOpen { probe_since: now }),
            State::HalfOpen { probe_since } if now.since(probe_since) >= COOL_DOWN => {
                (true, State::HalfOpen { probe_since: now })
            }
            State::Open { .. } | State::HalfOpen { .. } => (false, self.state),
        };
        self.state = state;
        allowed
    }

    /// Notes how a request to the candidate went. Requests that were under way when the
    /// breaker opened change nothing while it is open.
    pub fn record(&mut self, success: bool, now: Timestamp) -> Option<Transition> {
        let (state, transition) = match (self.state, success) {
            (State::Closed { .. }, true) => (Self::new().state, None),
            (State::Closed { failures_in_a_row }, false) => {
                let failures = failures_in_a_row + 1;
                if failures < FAILURES_TO_OPEN {
                    let failures_in_a_row = failures;
                    (State::Closed { failures_in_a_row }, None)
                } else {
                    (Self::open(now), Some(Transition::Opened { failures }))
                }
            }
            (State::Open { .. }, _) => (self.state, None),
            (State::HalfOpen { .. }, true) => (Self::new().state, Some(Transition::Closed)),
            (State::HalfOpen { .. }, false) => (Self::open(now), Some(Transition::Reopened)),
        };
        self.state = state;
        transition
    }

    /// Whether the candidate is in service without restriction.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    fn open(now: Timestamp) -> State {
        State::Open {
            until: now + COOL_DOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::at;

    fn opened_at(seconds: u64) -> Breaker {
        let mut breaker = Breaker::new();
        for _ in 1..FAILURES_TO_OPEN {
            assert_eq!(breaker.record(false, at(seconds)), None);
        }
        let opened = Transition::Opened {
            failures: FAILURES_TO_OPEN,
        };
        assert_eq!(breaker.record(false, at(seconds)), Some(opened));
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_for_sixty_seconds() {
        let mut breaker = opened_at(10);
        assert!(!breaker.is_closed());
        assert!(!breaker.allows(at(10)));
        assert!(!breaker.allows(at(69)));
        assert!(breaker.allows(at(70)));
    }

    #[test]
    fn a_success_between_failures_starts_the_count_again() {
        let mut breaker = Breaker::new();
        for _ in 0..10 {
            for _ in 1..FAILURES_TO_OPEN {
                assert_eq!(breaker.record(false, at(0)), None);
            }
            assert_eq!(breaker.record(true, at(0)), None);
        }
        assert!(breaker.allows(at(0)));
    }

    #[test]
    fn half_open_lets_one_probe_at_a_time() {
        let mut breaker = opened_at(0);
        assert!(breaker.allows(at(60)));
        assert!(!breaker.allows(at(60)));
        assert!(!breaker.allows(at(119)));
    }

    #[test]
    fn a_successful_probe_closes_it() {
        let mut breaker = opened_at(0);
        assert!(breaker.allows(at(60)));
        assert_eq!(breaker.record(true, at(61)), Some(Transition::Closed));
        assert_eq!(breaker, Breaker::new());
    }

    #[test]
    fn a_failed_probe_opens_it_for_another_cool_down() {
        let mut breaker = opened_at(0);
        assert!(breaker.allows(at(60)));
        assert_eq!(breaker.record(false, at(61)), Some(Transition::Reopened));
        assert!(!breaker.allows(at(120)));
        assert!(breaker.allows(at(121)));
    }

    #[test]
    fn a_probe_that_never_returns_does_not_block_for_ever() {
        let mut breaker = opened_at(0);
        assert!(breaker.allows(at(60)));
        assert!(breaker.allows(at(120)));
        assert!(!breaker.allows(at(121)));
        assert_eq!(breaker.record(true, at(122)), Some(Transition::Closed));
    }

    #[test]
    fn results_of_requests_begun_before_it_opened_change_nothing() {
        let mut breaker = opened_at(0);
        assert_eq!(breaker.record(true, at(1)), None);
        assert_eq!(breaker.record(false, at(30)), None);
        assert!(!breaker.allows(at(59)));
        assert!(breaker.allows(at(60)));
    }

    #[test]
    fn a_clock_read_slightly_earlier_on_another_thread_is_harmless() {
        let mut breaker = opened_at(0);
        assert!(breaker.allows(at(60)));
        assert!(!breaker.allows(at(59)));
    }
}
