//! How many messages one agent may send: a token bucket.

use std::time::Duration;

use rollcall_shared::time::Timestamp;

/// Messages at once: a reconnecting node reports on every model and version it has.
const BURST: u32 = 1_000;
/// Messages a second after that; a working node sends a few.
const PER_SECOND: u32 = 200;

/// The time that one message pays for.
const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);

/// Counts one agent's messages.
#[derive(Debug)]
pub(super) struct MessageRate {
    /// When the bucket would be full again; the past: it is full.
    full_at: Timestamp,
}

impl MessageRate {
    pub(super) const fn new() -> Self {
        Self {
            full_at: Timestamp::ZERO,
        }
    }

    /// Counts a message. The answer is how long to wait before the next is read.
    pub(super) fn spend(&mut self, now: Timestamp) -> Duration {
        self.full_at = self.full_at.max(now) + COST;
        self.full_at.since(now + COST * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_a_flood_is_slowed_to_the_rate() {
        let now = Timestamp::from_nanos(1_000_000_000);
        let mut rate = MessageRate::new();
        assert!((0..BURST).all(|_| rate.spend(now).is_zero()));
        assert_eq!(rate.spend(now), COST);
        let later = now + COST * (BURST + 1);
        assert!(
            rate.spend(later).is_zero(),
            "an idle second or five fills the bucket again"
        );
    }
}
