//! Reconnect delays: exponential with full jitter, so that a fleet that lost its
//! coordinator at one moment does not come back at one moment.
//!
//! Source: "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("full jitter").

use std::time::Duration;

/// The delays of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// The ceiling starts at `first`, doubles each time and stays at `max`.
    #[must_use]
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            attempt: 0,
        }
    }

    /// The next delay; `random` is uniform in 0 to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = self
            .first
            .saturating_mul(1 << self.attempt.min(20))
            .min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// After a success the series starts again.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_maximum_and_start_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let delays: Vec<_> = (0..5).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff.next(0.25), Duration::from_millis(250));
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}
