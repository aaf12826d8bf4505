//! What a relay does to packets, and the draw that decides it for each.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

/// A packet that is held back for reordering waits so long at least: enough for
/// others to overtake it on a link without delay.
const OVERTAKEN_AFTER_MIN: Duration = Duration::from_millis(10);

/// What a relay does to packets. The default does nothing to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Lost, of a thousand packets, each way.
    pub loss_permille: u32,
    /// How long every packet takes, one way.
    pub delay: Duration,
    /// At most so much longer, drawn for each packet. Keeps a link's order, as the
    /// queues that cause jitter do.
    pub jitter: Duration,
    /// Held back for another `delay` (10 ms at least), of a thousand packets: those
    /// behind overtake them.
    pub reorder_permille: u32,
    /// Sent twice, of a thousand packets.
    pub duplicate_permille: u32,
    /// Nothing from clients arrives.
    pub cut_to_target: bool,
    /// Nothing from the target arrives.
    pub cut_to_client: bool,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToTarget,
    ToClient,
}

/// One client's packets in one direction.
#[derive(Debug)]
pub(super) struct Passage {
    direction: Direction,
    random: ChaCha8Rng,
    /// When the last packet that was not held back arrives.
    last_due: Option<Instant>,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Dropped,
    /// Arrives at `first`, and as a duplicate at `second`.
    Passes {
        first: Instant,
        second: Option<Instant>,
    },
}

impl Passage {
    pub(super) fn new(direction: Direction, seed: u64) -> Self {
        Self {
            direction,
            random: ChaCha8Rng::seed_from_u64(seed),
            last_due: None,
        }
    }

    /// Decides. Every packet takes the same number of draws, so what happens to the
    /// n-th depends on the seed and the weather of its moment, not on weather before.
    pub(super) fn fate(&mut self, weather: &Weather, now: Instant) -> Fate {
        let mut hits = |permille: u32| self.random.random_range(0..1_000) < permille;
        let lost = hits(weather.loss_permille);
        let held_back = hits(weather.reorder_permille);
        let twice = hits(weather.duplicate_permille);
        let jitter = weather.jitter.mul_f64(self.random.random::<f64>());
        let cut = match self.direction {
            Direction::ToTarget => weather.cut_to_target,
            Direction::ToClient => weather.cut_to_client,
        };
        if lost || cut {
            return Fate::Dropped;
        }
        let mut due = now + weather.delay + jitter;
        if held_back {
            due += weather.delay.max(OVERTAKEN_AFTER_MIN);
        } else {
            due = self.last_due.map_or(due, |last| due.max(last));
            self.last_due = Some(due);
        }
        Fate::Passes {
            first: due,
            second: twice.then_some(due),
        }
    }
}
