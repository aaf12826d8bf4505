//! Clocks that start anywhere and run a little fast or slow.

use rollcall_shared::limits::CLOCK_DRIFT_PERMILLE;
use rollcall_shared::time::Timestamp;

use crate::seed::Draws;

/// Nanoseconds in a second.
const UNIT: i64 = 1_000_000_000;

/// One process's clock: anchored to wall time once, at start, then monotonic.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor_true: Timestamp,
    anchor_local: Timestamp,
    /// Local nanoseconds in a true second.
    rate: i64,
}

impl Clock {
    /// A clock that shows `local` when it is `now`, and runs at 1 / (1 + drift).
    #[must_use]
    pub fn new(now: Timestamp, local: Timestamp, drift_permille: f64) -> Self {
        assert!(drift_permille.abs() <= f64::from(CLOCK_DRIFT_PERMILLE));
        #[expect(clippy::cast_possible_truncation, reason = "about 1e9")]
        let rate = (1e9 / (1.0 + drift_permille / 1e3)).ceil() as i64;
        Self {
            anchor_true: now,
            anchor_local: local,
            rate,
        }
    }

    /// A drift within the run's bounds.
    pub fn draw_drift(draws: &mut Draws, permille_max: f64) -> f64 {
        if permille_max == 0.0 {
            0.0
        } else {
            draws.real(-permille_max, permille_max)
        }
    }

    /// What the clock shows at a true moment.
    #[must_use]
    pub fn local(&self, at: Timestamp) -> Timestamp {
        let elapsed = at.as_nanos().wrapping_sub(self.anchor_true.as_nanos());
        let (seconds, rest) = (elapsed.cast_signed() / UNIT, elapsed.cast_signed() % UNIT);
        // Asked at every turn, so in 64 bits: a run lasts hours, a rate is about 1e9.
        let shown = seconds * self.rate + rest * self.rate / UNIT;
        Timestamp::from_nanos(self.anchor_local.as_nanos().saturating_add_signed(shown))
    }

    /// The first true moment at which the clock shows at least `local`.
    #[must_use]
    pub fn when(&self, local: Timestamp) -> Timestamp {
        if local == Timestamp::MAX {
            return Timestamp::MAX;
        }
        let shown = i128::from(local.as_nanos()) - i128::from(self.anchor_local.as_nanos());
        let rate = i128::from(self.rate);
        let elapsed = (shown * i128::from(UNIT) + rate - 1).div_euclid(rate);
        let at = i128::from(self.anchor_true.as_nanos()) + elapsed;
        Timestamp::from_nanos(u64::try_from(at.max(0)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rollcall_shared::limits::lease_bound;

    use super::*;

    const START: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

    #[test]
    fn a_lease_on_the_slowest_clock_ends_within_the_bound() {
        let clock = Clock::new(START, START, 10.0);
        let lease = Duration::from_secs(10);
        assert!(clock.when(START + lease) <= START + lease_bound(lease));
        assert!(clock.local(START + lease) < START + lease);
    }

    #[test]
    fn the_moment_a_clock_shows_a_time_is_the_first_at_which_it_does() {
        for drift in [-10.0, -0.3, 0.0, 7.7, 10.0] {
            let clock = Clock::new(START, Timestamp::from_nanos(5_000_000), drift);
            for nanos in [5_000_001, 77_777_777, 9_999_999_999] {
                let shown = Timestamp::from_nanos(nanos);
                let at = clock.when(shown);
                assert!(clock.local(at) >= shown);
                assert!(clock.local(at - Duration::from_nanos(1)) < shown);
            }
        }
    }
}
