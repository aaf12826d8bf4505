//! A one-sided two-proportion z-test at 1 %, looked at after every interval: right for one look
//! at a sample of a size that was fixed before, and used for as many looks as there are.
//!
//! One test compares the share of failed requests, one the share of answers slower than stable's
//! p95; shadows are held to the required agreement by the test of one proportion. Counts are
//! pooled since the beginning. The textbook's caution for small samples is kept: no look before
//! [`SAMPLES_MIN`] candidate requests.

use super::super::draws::Interval;
use super::super::statistics::Z_99;
use super::super::{Judge, Setting, Word};
use super::Sums;

/// Candidate requests before the first look.
const SAMPLES_MIN: u64 = 100;

/// See the module.
#[derive(Debug)]
pub(in super::super) struct ZTest {
    agreement_min: Option<f64>,
    candidate: Sums,
    stable: Sums,
}

impl ZTest {
    pub(in super::super) fn new(setting: &Setting) -> Self {
        Self {
            agreement_min: setting.agreement_min,
            candidate: Sums::default(),
            stable: Sums::default(),
        }
    }
}

impl Judge for ZTest {
    fn see(&mut self, interval: &Interval) {
        self.candidate.add(&interval.fleet.candidate.counts);
        self.stable.add(&interval.fleet.stable.counts);
    }

    fn verdict(&mut self) -> Word {
        let Self {
            candidate, stable, ..
        } = self;
        if candidate.requests < SAMPLES_MIN {
            return Word::Hold;
        }
        let (bin, slow) = stable.p95();
        let errors = z(
            candidate.failures,
            candidate.requests,
            stable.failures,
            stable.requests,
        );
        let latency = z(
            candidate.above(bin),
            candidate.answered,
            slow,
            stable.answered,
        );
        let disagreement = self.agreement_min.map_or(0.0, |least| {
            let n = candidate.compared as f64;
            (least - candidate.agreed as f64 / n) / (least * (1.0 - least) / n).sqrt()
        });
        if errors.max(latency).max(disagreement) > Z_99 {
            Word::Fail
        } else {
            Word::Hold
        }
    }
}

/// By how many standard errors the first share is above the second.
fn z(hits: u64, of: u64, other_hits: u64, other_of: u64) -> f64 {
    let [x1, n1, x0, n0] = [hits, of, other_hits, other_of].map(|count| count as f64);
    let pooled = (x1 + x0) / (n1 + n0);
    let error = (pooled * (1.0 - pooled) * (1.0 / n1 + 1.0 / n0)).sqrt();
    // Without any hit, or with nothing to compare, nothing is above anything.
    let z = (x1 / n1 - x0 / n0) / error;
    if z.is_nan() { 0.0 } else { z }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z_is_that_of_the_textbook() {
        // 30 of 200 against 60 of 800: pooled .09, standard error .022624.
        assert!((z(30, 200, 60, 800) - 3.315).abs() < 1e-3);
        assert!(z(0, 100, 0, 900).abs() < 1e-12);
        assert!(z(0, 0, 0, 0).abs() < 1e-12);
    }
}
