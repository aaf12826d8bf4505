//! Labelled random children of one seed.
//!
//! Every part of the world draws from a stream of its own, keyed by BLAKE3(seed,
//! label): a draw that is added in one place moves no other part's draws, so that a
//! seed still tells nearly the same story after a change.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rollcall_shared::digest::Digest;

/// One stream of draws.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream named `label` of `seed`.
    #[must_use]
    pub fn child(seed: u64, label: &str) -> Self {
        let key = [&seed.to_le_bytes()[..], label.as_bytes()].concat();
        Self(ChaCha8Rng::from_seed(*Digest::of(&key).as_bytes()))
    }

    /// The same stream as a generator, for distributions of the `rand` family.
    #[must_use]
    pub fn generator(self) -> ChaCha8Rng {
        self.0
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in 0 to 1, 1 excluded.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub fn unit(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability. Draws nothing for zero, so that a knob that is off
    /// costs nothing.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// Uniform in `0..n`; `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "nothing to draw from");
        let scaled = (u128::from(self.number()) * n as u128) >> 64;
        usize::try_from(scaled).unwrap_or(n - 1)
    }

    /// Uniform in `min..max`.
    pub fn real(&mut self, min: f64, max: f64) -> f64 {
        min + (max - min) * self.unit()
    }

    /// Uniform in `min..max`.
    pub fn between(&mut self, min: Duration, max: Duration) -> Duration {
        min + max.saturating_sub(min).mul_f64(self.unit())
    }

    /// How long until the next of events that happen so often on average (exponential).
    pub fn next_of(&mut self, per_minute: f64) -> Duration {
        let minutes = -(1.0 - self.unit()).ln() / per_minute.max(1e-6);
        Duration::from_secs_f64((minutes * 60.0).min(1e6))
    }

    /// One of them; there must be one.
    pub fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_the_same_stream_for_ever_and_no_other() {
        let first = |seed, label| Draws::child(seed, label).number();
        assert_eq!(first(7, "network"), first(7, "network"));
        assert_ne!(first(7, "network"), first(8, "network"));
        assert_ne!(first(7, "network"), first(7, "disk"));
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut draws = Draws::child(1, "bounds");
        let (min, max) = (Duration::from_millis(3), Duration::from_millis(9));
        for _ in 0..1_000 {
            assert!((0.0..1.0).contains(&draws.unit()));
            assert!(draws.below(3) < 3);
            assert!((min..=max).contains(&draws.between(min, max)));
        }
        assert!(!draws.chance(0.0) && draws.chance(1.0));
    }
}
