//! The one place that reads time.
//!
//! Wall time is read once, at the start; from then on the clock advances with
//! `CLOCK_BOOTTIME`, which counts suspended time and never goes backwards. So a
//! step of the wall clock (NTP, an operator) can neither shorten nor prolong a
//! lease, and a node that slept through its lease wakes up knowing it.

use std::time::Duration;

use rollcall_shared::time::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// How long [`Clock::sleep_until`] trusts tokio's timer, which stands still while
/// the machine is suspended. After a resume a sleeper is late by at most this.
const SLEEP_SLICE: Duration = Duration::from_millis(100);

/// A clock that never goes backwards. Copies show the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What the clock showed when boot time was `anchor_boot`.
    anchor: Timestamp,
    anchor_boot: Duration,
}

impl Clock {
    /// Starts at the wall clock's time, or at `not_before` if that is later: a
    /// process passes the last timestamp that it stored, so that its clock does
    /// not go backwards across a restart either.
    #[must_use]
    pub fn start(not_before: Timestamp) -> Self {
        Self::anchored(read(ClockId::Realtime), not_before, read(ClockId::Boottime))
    }

    fn anchored(wall: Duration, not_before: Timestamp, anchor_boot: Duration) -> Self {
        Self {
            anchor: (Timestamp::ZERO + wall).max(not_before),
            anchor_boot,
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.at(read(ClockId::Boottime))
    }

    fn at(&self, boot: Duration) -> Timestamp {
        self.anchor + boot.saturating_sub(self.anchor_boot)
    }

    /// Waits until the clock shows `deadline` or later; returns at once if it does.
    ///
    /// Cancel-safe. [`Timestamp::MAX`] waits for ever.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        if deadline == Timestamp::MAX {
            return std::future::pending().await;
        }
        loop {
            let left = deadline.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(SLEEP_SLICE)).await;
        }
    }
}

/// A clock's reading; one before its epoch counts as the epoch.
fn read(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    match (u64::try_from(tv_sec), u32::try_from(tv_nsec)) {
        (Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
        (Err(_), _) | (_, Err(_)) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_wall_clock_behind_the_last_stored_time_starts_at_the_stored_time() {
        let stored = Timestamp::ZERO + 2 * HOUR;
        let clock = Clock::anchored(HOUR, stored, HOUR);
        assert_eq!(clock.at(HOUR), stored);
        assert_eq!(clock.at(2 * HOUR), stored + HOUR);
    }

    #[test]
    fn a_boot_clock_that_seems_to_go_backwards_holds_the_time() {
        let clock = Clock::anchored(HOUR, Timestamp::ZERO, HOUR);
        assert_eq!(clock.at(Duration::ZERO), clock.at(HOUR));
    }

    #[test]
    fn time_does_not_go_backwards() {
        let clock = Clock::start(Timestamp::ZERO);
        let readings: Vec<_> = (0..1_000).map(|_| clock.now()).collect();
        assert!(readings.is_sorted());
        assert!(
            readings[0] > Timestamp::ZERO + 50 * 365 * 24 * HOUR,
            "after 2020"
        );
    }

    #[tokio::test]
    async fn a_sleeper_wakes_when_its_time_has_come_and_not_before() {
        let clock = Clock::start(Timestamp::ZERO);
        clock.sleep_until(Timestamp::ZERO).await;
        let deadline = clock.now() + Duration::from_millis(3);
        clock.sleep_until(deadline).await;
        assert!(clock.now() >= deadline);
    }
}
