//! E-processes that may start at any interval.
//!
//! An e-process is evidence against "the candidate is not worse" of which everyone may take a
//! look at any time: under that hypothesis it exceeds `1/alpha`, ever, with probability `alpha`
//! at most. The plain one is a product of likelihood ratios from the first interval on. A
//! candidate that behaves for hours and then breaks has by then talked that product down to
//! almost nothing, and is found only after as long again.
//!
//! So the evidence is a mixture over the interval from which the product is taken, as in a
//! Shiryaev-Roberts procedure. With `l_h` the log likelihood ratio of hypothesis `h` in interval
//! `t`, and `w_t` the share of the mass that starts there,
//!
//! ```text
//! M_h <- exp(l_h) (M_h + w_t)          E = mean of M_h over h, + mass that has not started
//! ```
//!
//! Source: Shin, Ramdas, Rinaldo, "E-detectors" (arXiv 2203.03532). They sum with mass 1 at every
//! start and bound the average run length; here the mass sums to 1, so E starts at 1, stays a
//! supermartingale, and Ville's inequality bounds the error over the whole rollout.
//!
//! Nine tenths of the mass start at the first interval (a cost of 0.105 nats against the plain
//! product); of the rest `1/10 / ln(e + t - 1)` still waits after interval `t`. So interval `t`
//! gets about `1 / (10 t ln^2 t)`: whatever the interval, the price is about
//! `ln(10 t) + 2 ln ln t` nats, and much less where evidence comes slowly, as neighbouring
//! starts share in it.
//!
//! Measured with [`super::rare`], 10 % of traffic, alpha .001, candidate requests until found
//! (median): 1 % failures that become 5 % need 234 from the start (the plain product too); after
//! 72,000 good requests 547, where the plain product needs 3,269.
//!
//! Holds while every `exp(l_h)` has an expectation of 1 at most given the past. An interval in
//! which every `l_h` is 0 says nothing and does not count as a start: "the interval after the
//! last one that said something" is known in advance, so the mixture stays valid, and rare
//! events pay for their own number instead of for the clock.

use serde::{Deserialize, Serialize};

/// Mass that does not start at the first interval.
const LATE: f64 = 0.1;

/// When the mass starts. Shared by everything whose evidence is mixed over starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    intervals: u64,
}

impl Starts {
    /// The mass that starts at the next interval.
    pub fn take(&mut self) -> f64 {
        let t = super::count(self.intervals);
        self.intervals += 1;
        if self.intervals == 1 {
            return 1.0 - LATE;
        }
        // waiting(t) - waiting(t + 1), without their cancellation.
        let x = std::f64::consts::E + t - 1.0;
        LATE * x.recip().ln_1p() / (x.ln() * (x + 1.0).ln())
    }

    /// The mass that has not started.
    #[must_use]
    pub fn waiting(self) -> f64 {
        match self.intervals {
            0 => 1.0,
            t => LATE / (std::f64::consts::E + super::count(t) - 1.0).ln(),
        }
    }
}

/// Evidence against one null, mixed over hypotheses and over starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnyStart {
    starts: Starts,
    /// `ln M_h`; empty before the first start.
    logs: Vec<f64>,
}

impl AnyStart {
    /// Nothing seen.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            starts: Starts { intervals: 0 },
            logs: Vec::new(),
        }
    }

    /// Takes in one interval: the log likelihood ratio of each hypothesis, always the same
    /// hypotheses in the same order. Ratios that are all 0 change nothing.
    pub fn see(&mut self, ratios: &[f64]) {
        if ratios.iter().all(|ratio| *ratio == 0.0) {
            return;
        }
        debug_assert!(self.logs.is_empty() || self.logs.len() == ratios.len());
        let mass = self.starts.take().ln();
        if self.logs.is_empty() {
            self.logs = ratios.iter().map(|ratio| mass + ratio).collect();
            return;
        }
        for (log, ratio) in self.logs.iter_mut().zip(ratios) {
            *log = ln_add(*log, mass) + ratio;
        }
    }

    /// `ln E` as it stands now; 0 before anything was seen. Reject once it has reached
    /// `ln(1/alpha)`.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let waiting = self.starts.waiting().ln();
        if self.logs.is_empty() {
            return waiting;
        }
        ln_add(ln_mean(&self.logs), waiting)
    }
}

/// `ln(e^a + e^b)`.
pub(super) fn ln_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY {
        return high;
    }
    high + (low - high).exp().ln_1p()
}

/// `ln` of the sum of `e^x`; of nothing, minus infinity.
pub(super) fn ln_sum(logs: &[f64]) -> f64 {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + logs.iter().map(|log| (log - most).exp()).sum::<f64>().ln()
}

/// `ln` of the mean of `e^x`.
pub(super) fn ln_mean(logs: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a few hypotheses")]
    let n = logs.len() as f64;
    ln_sum(logs) - n.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::{Draws, summary};

    #[test]
    fn the_mass_that_started_and_the_mass_that_waits_are_all_there_is() {
        let mut starts = Starts::default();
        let mut started = 0.0;
        for _ in 0..100_000 {
            started += starts.take();
            assert!((started + starts.waiting() - 1.0).abs() < 1e-11);
        }
        assert!(starts.waiting() > 0.0);
    }

    #[test]
    fn nothing_overflows_and_nothing_seen_is_no_evidence() {
        let mut evidence = AnyStart::new();
        evidence.see(&[0.0, 0.0]);
        assert_eq!(evidence, AnyStart::new());
        assert!(evidence.log_e().abs() < 1e-12);
        for _ in 0..1_000 {
            evidence.see(&[-1e5, 1e5]);
        }
        assert!((evidence.log_e() / 1e8 - 1.0).abs() < 1e-6);
        for _ in 0..2_000 {
            evidence.see(&[-1e5, -1e5]);
        }
        assert!(evidence.log_e() < 0.0 && evidence.log_e() > -10.0);
    }

    #[test]
    fn a_sum_over_starts_written_out_is_the_same() {
        let ratios = [[0.3, -0.2], [-1.0, 0.4], [0.9, 0.1], [0.2, 0.8]];
        let mut evidence = AnyStart::new();
        let mut starts = Starts::default();
        let mut mean = 0.0;
        for (start, _) in ratios.iter().enumerate() {
            let mass = starts.take();
            for h in 0..2 {
                let product: f64 = ratios[start..].iter().map(|l| l[h]).sum();
                mean += mass * product.exp() / 2.0;
            }
        }
        for interval in &ratios {
            evidence.see(interval);
        }
        let expected = (mean + starts.waiting()).ln();
        assert!((evidence.log_e() - expected).abs() < 1e-12);
    }

    /// Log likelihood ratio of a coin with 30 % against one with 20 %.
    fn coin(hit: bool) -> f64 {
        if hit { 1.5_f64.ln() } else { 0.875_f64.ln() }
    }

    #[test]
    fn over_all_that_can_happen_under_the_null_the_mean_of_e_is_one() {
        let normaliser = (0.2 * 1.5_f64.powi(3) + 0.8 * 0.875_f64.powi(3)).ln();
        for flips in [1, 2, 12] {
            let mean: f64 = (0..1_u32 << flips)
                .map(|outcome| {
                    let mut evidence = AnyStart::new();
                    let mut probability = 1.0;
                    for flip in 0..flips {
                        let hit = outcome >> flip & 1 == 1;
                        evidence.see(&[coin(hit), 3.0 * coin(hit) - normaliser]);
                        probability *= if hit { 0.2 } else { 0.8 };
                    }
                    probability * evidence.log_e().exp()
                })
                .sum();
            assert!((mean - 1.0).abs() < 1e-12, "{flips}: {mean}");
        }
    }

    #[test]
    fn false_alarms_at_any_look_are_as_rare_as_promised() {
        let mut draws = Draws::seeded(1);
        let crossed = (0..1_000)
            .filter(|_| {
                let mut evidence = AnyStart::new();
                (0..300).any(|_| {
                    evidence.see(&[coin(draws.hits(0.2))]);
                    evidence.log_e() >= 20_f64.ln()
                })
            })
            .count();
        assert!(crossed <= 50, "{crossed} of 1,000 false alarms at 5 %");
    }

    #[test]
    fn a_late_change_is_found_much_sooner_than_by_the_plain_product() {
        let mut draws = Draws::seeded(2);
        let (mut any, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..60 {
            let mut evidence = AnyStart::new();
            let mut product = 0.0;
            for _ in 0..1_000 {
                let ratio = coin(draws.hits(0.2));
                evidence.see(&[ratio]);
                product += ratio;
            }
            let (mut t, mut found) = (0, None);
            while found.is_none() || product < 1_000_f64.ln() {
                t += 1;
                let ratio = coin(draws.hits(0.3));
                evidence.see(&[ratio]);
                product += ratio;
                if evidence.log_e() >= 1_000_f64.ln() {
                    found = found.or(Some(t));
                }
            }
            any.push(found.unwrap());
            plain.push(t);
        }
        let ((any, _), (plain, _)) = (summary(any), summary(plain));
        assert!(any * 2 < plain, "{any} {plain}");
    }
}
