//! How much one agent, one node or one address may ask for: token buckets.

use std::time::Duration;

use rollcall_shared::time::Timestamp;

/// A bucket of time: whoever spends pays with time, and time fills it again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// How much fits.
    depth: Duration,
    /// When it would be full again; the past: it is full.
    full_at: Timestamp,
}

impl Bucket {
    /// A full one.
    pub(super) const fn new(depth: Duration) -> Self {
        Self {
            depth,
            full_at: Timestamp::ZERO,
        }
    }

    /// Takes `cost` out, overdrawn or not. The answer is how long until it is not
    /// overdrawn any more.
    pub(super) fn spend(&mut self, cost: Duration, now: Timestamp) -> Duration {
        self.full_at = self.full_at.max(now) + cost;
        self.full_at.since(now + self.depth)
    }

    /// Takes `cost` out if it is there; otherwise nothing changes, and the answer is how
    /// long until it is.
    pub(super) fn try_spend(&mut self, cost: Duration, now: Timestamp) -> Result<(), Duration> {
        let mut after = *self;
        let wait = after.spend(cost, now);
        if wait.is_zero() {
            *self = after;
            Ok(())
        } else {
            Err(wait)
        }
    }

    pub(super) fn is_full(&self, now: Timestamp) -> bool {
        self.full_at <= now
    }
}

/// Messages at once: 64 models that all change get three messages each, and more.
const MESSAGES_AT_ONCE: u32 = 500;
/// The time that one message pays for: 50 a second. A working node sends a few.
const MESSAGE_COST: Duration = Duration::from_millis(20);
/// The time that a kibibyte pays for: 256 KiB a second.
const KIB_COST: Duration = Duration::from_micros(3_906);

/// Datagrams that may be thrown away before an agent is cut off: what a receiver cannot
/// slow down, it can only end.
const EXCESS_MAX: u32 = 2_000;

/// Paces what one agent says on streams: by messages and by bytes.
#[derive(Debug)]
pub(super) struct MessageRate(Bucket);

impl MessageRate {
    pub(super) const fn new() -> Self {
        Self(Bucket::new(Duration::from_millis(
            MESSAGE_COST.as_millis() as u64 * MESSAGES_AT_ONCE as u64,
        )))
    }

    /// Counts a message. The answer is how long to wait before the next is read.
    pub(super) fn spend(&mut self, bytes: u64, now: Timestamp) -> Duration {
        let kib = u32::try_from(bytes / 1_024).unwrap_or(u32::MAX);
        self.0.spend(MESSAGE_COST.max(KIB_COST * kib), now)
    }
}

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datagram {
    /// Read it.
    Take,
    /// Too many came: lost, as any datagram may be.
    Drop,
    /// Too many were dropped: end the connection.
    Flood,
}

/// Counts one agent's datagrams.
#[derive(Debug)]
pub(super) struct DatagramRate {
    bucket: Bucket,
    excess: u32,
}

impl DatagramRate {
    pub(super) const fn new() -> Self {
        Self {
            bucket: MessageRate::new().0,
            excess: 0,
        }
    }

    pub(super) fn arrived(&mut self, now: Timestamp) -> Datagram {
        if self.bucket.try_spend(MESSAGE_COST, now).is_ok() {
            self.excess = self.excess.saturating_sub(1);
            return Datagram::Take;
        }
        self.excess += 1;
        if self.excess > EXCESS_MAX {
            Datagram::Flood
        } else {
            Datagram::Drop
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);

    #[test]
    fn a_burst_is_free_and_a_flood_is_slowed_to_the_rate() {
        let mut rate = MessageRate::new();
        assert!((0..MESSAGES_AT_ONCE).all(|_| rate.spend(100, NOW).is_zero()));
        assert_eq!(rate.spend(100, NOW), MESSAGE_COST);
        let later = NOW + MESSAGE_COST * (MESSAGES_AT_ONCE + 1);
        assert!(
            rate.spend(100, later).is_zero(),
            "ten idle seconds fill the bucket again"
        );
    }

    #[test]
    fn large_messages_pay_by_their_bytes() {
        let mut rate = MessageRate::new();
        let waits: Vec<_> = (0..4).map(|_| rate.spend(1 << 20, NOW)).collect();
        assert_eq!(waits[..2], [Duration::ZERO; 2]);
        assert_eq!(waits[3] - waits[2], KIB_COST * 1_024);
    }

    #[test]
    fn datagrams_beyond_the_rate_are_dropped_and_a_flood_is_ended() {
        let mut rate = DatagramRate::new();
        let mut arrive = |count: u32, at| (0..count).map(|_| rate.arrived(at)).last();
        assert_eq!(arrive(MESSAGES_AT_ONCE, NOW), Some(Datagram::Take));
        assert_eq!(arrive(EXCESS_MAX, NOW), Some(Datagram::Drop));
        assert_eq!(arrive(1, NOW), Some(Datagram::Flood));
    }

    #[test]
    fn what_is_not_there_is_not_spent() {
        let mut bucket = Bucket::new(Duration::from_secs(2));
        let second = Duration::from_secs(1);
        assert_eq!(bucket.try_spend(second * 2, NOW), Ok(()));
        assert_eq!(bucket.try_spend(second, NOW), Err(second));
        assert_eq!(bucket.try_spend(second, NOW), Err(second), "no dearer");
        assert_eq!(bucket.try_spend(second, NOW + second), Ok(()));
        assert!(!bucket.is_full(NOW + second) && bucket.is_full(NOW + second * 4));
    }
}
