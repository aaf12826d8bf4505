//! Seeded traffic for the tests of the judge's mathematics.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rollcall_shared::histogram::Histogram;
use statrs::distribution::{Binomial, Discrete as _};

use super::Trials;

pub(super) struct Draws(ChaCha8Rng);

impl Draws {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn hits(&mut self, p: f64) -> bool {
        self.0.random::<f64>() < p
    }

    pub(super) fn trials(&mut self, n: u64, p: f64) -> Trials {
        let hits = (0..n).filter(|_| self.hits(p)).count() as u64;
        Trials { n, hits }
    }

    pub(super) fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (self.0.random(), self.0.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Lognormal latencies around 10 ms, each multiplied by `factor`.
    pub(super) fn latencies(
        &mut self,
        n: u64,
        mut factor: impl FnMut(&mut Self) -> f64,
    ) -> Histogram {
        let mut histogram = Histogram::default();
        for _ in 0..n {
            let seconds = 0.01 * (0.6 * self.normal()).exp() * factor(self);
            histogram.record(Duration::from_secs_f64(seconds));
        }
        histogram
    }
}

/// Median and 95th percentile.
pub(super) fn summary(mut runs: Vec<u64>) -> (u64, u64) {
    runs.sort_unstable();
    (runs[runs.len() / 2], runs[runs.len() * 95 / 100])
}

/// The mean of `exp(log)` over every outcome of `n1` and `n0` tries with rates `p1` and `p0`.
pub(super) fn mean_over_outcomes(
    n1: u64,
    n0: u64,
    p1: f64,
    p0: f64,
    log: impl Fn(Trials, Trials) -> f64,
) -> f64 {
    let mut mean = 0.0;
    for x1 in 0..=n1 {
        for x0 in 0..=n0 {
            let (one, two) = (Trials { n: n1, hits: x1 }, Trials { n: n0, hits: x0 });
            mean += probability(one, p1) * probability(two, p0) * log(one, two).exp();
        }
    }
    mean
}

fn probability(trials: Trials, p: f64) -> f64 {
    let binomial = Binomial::new(p, trials.n).unwrap();
    binomial.pmf(trials.hits)
}
