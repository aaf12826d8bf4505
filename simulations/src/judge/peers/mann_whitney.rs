//! The judge of Kayenta (`NetflixACAJudge`), the best-known open canary judge, as its source
//! has it (github.com/spinnaker/kayenta: `NetflixACAJudge.scala`, `MannWhitneyClassifier.scala`,
//! `MannWhitney.scala`, `IQRDetector.scala`) and as spinnaker.io's "How canary judgment works"
//! and "Best practices for configuring canary" say to use it.
//!
//! For each metric the values of candidate and baseline are compared, point by point: error
//! rate, p50, p95 and p99. Outliers are cut by its fences (three times the interquartile range,
//! or the 1st and 99th percentile where those are wider). A metric is `High` when the lower end
//! of the 98 % confidence interval of the shift (Mann-Whitney, asymptotic, with ties and
//! continuity correction, as R's `wilcox.test`) is above a quarter of the Hodges-Lehmann
//! estimate of the shift, and the mean has not fallen.
//!
//! - Data: at least 50 points a judgment, several judgments a canary, over all points since the
//!   beginning ("growing"): it is looked at after every 50th point. A point is a minute unless
//!   one tunes it to the traffic, as the best practices ask; here it is the fewest intervals
//!   that hold [`REQUESTS`] candidate requests. With fewer, nearly every point has no error at
//!   all, and a shift of the median of nothing is nothing.
//! - The baseline is as large as the candidate ([`Arms::control`]), as the best practices ask:
//!   rates of unequal samples have unequal ranks even when nothing differs.
//! - Metrics go in direction `increase`, missing values are removed, each is critical: one
//!   `High` fails the canary. Effect sizes are the default (any).
//! - Simplified: one series for all nodes instead of one a server. The roots that it finds to
//!   1e-4 are needed for the estimate alone, since the statistic only falls with the shift.
//!   Where both sides are constant it adds noise; here the ties are left. Its score and its
//!   marginal range have no part where every metric is critical. Shadow agreement has no
//!   baseline: it has nothing to say there.

use rollcall_shared::report::Counts;

use super::super::draws::{Arms, Interval};
use super::super::statistics::{Z_99, bisect};
use super::super::{Judge, Setting, Word};

/// Points a judgment needs.
const POINTS: u64 = 50;
/// Candidate requests in a point.
const REQUESTS: u64 = 20;
/// Share of the estimated shift that the confidence interval must lie above.
const TOLERANCE: f64 = 0.25;
/// Error rate, p50, p95, p99.
const METRICS: usize = 4;

/// Values in order.
type Series = Vec<f64>;

/// See the module.
#[derive(Debug, Default)]
pub(in super::super) struct MannWhitney {
    points: u64,
    /// The point that has not enough requests yet.
    point: Arms,
    candidate: [Series; METRICS],
    baseline: [Series; METRICS],
}

impl MannWhitney {
    pub(in super::super) fn new(_: &Setting) -> Self {
        Self::default()
    }
}

impl Judge for MannWhitney {
    fn see(&mut self, interval: &Interval) {
        let Arms {
            candidate, control, ..
        } = &mut self.point;
        candidate.counts.merge(&interval.fleet.candidate.counts);
        control.merge(&interval.fleet.control);
    }

    fn verdict(&mut self) -> Word {
        if self.point.candidate.counts.requests < REQUESTS {
            return Word::Hold;
        }
        let point = std::mem::take(&mut self.point);
        record(&mut self.candidate, &point.candidate.counts);
        record(&mut self.baseline, &point.control);
        self.points += 1;
        if !self.points.is_multiple_of(POINTS) {
            return Word::Hold;
        }
        let mut metrics = self.candidate.iter().zip(&self.baseline);
        if metrics.any(|(candidate, baseline)| is_high(candidate, baseline)) {
            Word::Fail
        } else {
            Word::Hold
        }
    }
}

/// Adds a value to each series that has one at this point.
fn record(series: &mut [Series; METRICS], counts: &Counts) {
    let errors = (counts.requests > 0).then(|| counts.failures() as f64 / counts.requests as f64);
    let ms = |q| {
        counts
            .latency
            .quantile(q)
            .map(|latency| latency.as_secs_f64() * 1e3)
    };
    let values = [errors, ms(0.5), ms(0.95), ms(0.99)];
    for (series, value) in series.iter_mut().zip(values) {
        if let Some(value) = value {
            let place = series.partition_point(|other| *other <= value);
            series.insert(place, value);
        }
    }
}

/// Whether the candidate's values are `High`.
fn is_high(candidate: &[f64], baseline: &[f64]) -> bool {
    let (x, y) = (without_outliers(candidate), without_outliers(baseline));
    let (Some(x_min), Some(x_max), Some(y_min), Some(y_max)) =
        (x.first(), x.last(), y.first(), y.last())
    else {
        return false;
    };
    // The interval lies above zero at least.
    if x == y || deviate(x, y, 0.0) <= Z_99 {
        return false;
    }
    let estimate = bisect(x_min - y_max, x_max - y_min, |shift| {
        deviate(x, y, shift) < 0.0
    });
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    deviate(x, y, TOLERANCE * estimate.abs()) > Z_99 && mean(x) >= mean(y)
}

fn without_outliers(sorted: &[f64]) -> &[f64] {
    let [p01, p25, p75, p99] = [0.01, 0.25, 0.75, 0.99].map(|q| percentile(sorted, q));
    let (low, high) = (
        p01.min(p25 - 3.0 * (p75 - p25)),
        p99.max(p75 + 3.0 * (p75 - p25)),
    );
    let first = sorted.partition_point(|value| *value < low);
    &sorted[first..sorted.partition_point(|value| *value <= high)]
}

/// The percentile that the source takes: at rank q (n + 1), between values linearly.
fn percentile(sorted: &[f64], q: f64) -> f64 {
    let rank = q * (sorted.len() + 1) as f64;
    let below = rank.floor() as usize;
    match (
        below.checked_sub(1).and_then(|i| sorted.get(i)),
        sorted.get(below),
    ) {
        (Some(low), Some(high)) => low + (rank - rank.floor()) * (high - low),
        (Some(only), None) | (None, Some(only)) => *only,
        (None, None) => sorted.last().copied().unwrap_or(f64::NAN),
    }
}

/// The standardized rank sum of `x`, each less `shift`, among `y`; both in order.
fn deviate(x: &[f64], y: &[f64], shift: f64) -> f64 {
    let (m, n) = (x.len() as f64, y.len() as f64);
    let (mut i, mut j) = (0, 0);
    let (mut ranks, mut ties) = (0.0, 0.0);
    while i < x.len() || j < y.len() {
        let value = match (x.get(i), y.get(j)) {
            (Some(x), Some(y)) => (x - shift).min(*y),
            (Some(x), None) => x - shift,
            (None, Some(y)) => *y,
            (None, None) => break,
        };
        let of_x = x[i..].iter().take_while(|x| **x - shift <= value).count();
        let of_y = y[j..].iter().take_while(|y| **y <= value).count();
        let tied = (of_x + of_y) as f64;
        // Ranks from i + j + 1 on; equal values share their middle.
        ranks += of_x as f64 * ((i + j) as f64 + (tied + 1.0) / 2.0);
        ties += tied.powi(3) - tied;
        i += of_x;
        j += of_y;
    }
    let above = ranks - m * (m + 1.0) / 2.0 - m * n / 2.0;
    let variance = m * n / 12.0 * (m + n + 1.0 - ties / ((m + n) * (m + n - 1.0)));
    let corrected = if above == 0.0 {
        0.0
    } else {
        above - 0.5 * above.signum()
    };
    if variance > 0.0 {
        corrected / variance.sqrt()
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By SciPy 1: `mannwhitneyu(x, y, use_continuity=True, method="asymptotic")` gives U = 22.5
    /// and p = .045866, two-sided: a deviate of 1.99662.
    #[test]
    fn the_deviate_is_that_of_the_published_procedure() {
        let x = [3.0, 4.0, 6.0, 7.0, 9.0];
        let y = [1.0, 2.0, 2.0, 3.0, 5.0];
        assert!((deviate(&x, &y, 0.0) - 1.996_62).abs() < 1e-5);
        assert!((deviate(&y, &x, 0.0) + 1.996_62).abs() < 1e-5);
        assert!(deviate(&x, &y, 100.0) < -2.5);
    }

    #[test]
    fn a_clear_shift_is_high_and_noise_is_not() {
        let even: Vec<f64> = (0..100).map(f64::from).collect();
        let odd: Vec<f64> = (0..100).map(|i| f64::from(i) + 0.5).collect();
        let far: Vec<f64> = (0..100).map(|i| f64::from(i) + 40.0).collect();
        assert!(!is_high(&odd, &even));
        assert!(is_high(&far, &even));
        assert!(!is_high(&even, &far));
        assert!(!is_high(&[], &even));
        assert!(!is_high(&[0.0; 60], &[0.0; 60]));
    }

    #[test]
    fn only_what_lies_outside_both_fences_is_cut() {
        let mut values: Vec<f64> = (0..200).map(f64::from).collect();
        values.extend([1e4, 1e4, 1e4]);
        assert_eq!(
            without_outliers(&values).len(),
            203,
            "the 99th percentile is 1e4 itself"
        );
        let mut values: Vec<f64> = (0..2_000).map(f64::from).collect();
        values.push(1e6);
        assert_eq!(without_outliers(&values).len(), 2_000);
    }
}
