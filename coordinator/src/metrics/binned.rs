//! A histogram of the core's, as Prometheus reads histograms.
//!
//! The buckets are edges of the core's bins, so that their counts are exact. Only the sum is
//! made of the bins' middles, and is off by at most 5 %.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};
use rollcall_shared::histogram::{Histogram, edge};

/// The edges that are buckets: from .6 ms to 58 s, each 1.73 times the one before.
const FIRST: usize = 70;
const STEP: usize = 6;
const LAST: usize = 200;

/// What was counted so far; copies share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Binned(Arc<Mutex<Histogram>>);

impl Binned {
    /// Puts a later picture of the same counts in place of the one before.
    pub(super) fn set(&self, histogram: Histogram) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = histogram;
    }
}

impl TypedMetric for Binned {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Binned {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let histogram = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let buckets = buckets(&histogram);
        let sum = sum_seconds(&histogram);
        encoder.encode_histogram::<[(&str, &str); 0]>(sum, histogram.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Upper bounds in seconds, and how many lie below each and above the one before.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = (FIRST..=LAST)
        .step_by(STEP)
        .map(|bin| (edge(bin).as_secs_f64(), 0))
        .collect();
    buckets.push((f64::INFINITY, 0));
    for (bin, count) in histogram.bins() {
        let bucket = bin.saturating_sub(FIRST).div_ceil(STEP);
        let last = buckets.len() - 1;
        buckets[bucket.min(last)].1 += count;
    }
    buckets
}

fn sum_seconds(histogram: &Histogram) -> f64 {
    let middle = |bin| edge(bin).as_secs_f64() / 1.2_f64.powf(0.25);
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let parts = histogram.bins().map(|(bin, n)| middle(bin) * n as f64);
    parts.sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buckets_hold_what_lies_below_their_bound_and_above_the_one_before() {
        let mut histogram = Histogram::default();
        let latencies =
            [10, 590, 1_100, 3_000, 3_000, 90_000, 400_000_000].map(Duration::from_micros);
        for latency in latencies {
            histogram.record(latency);
        }
        let buckets = buckets(&histogram);
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        let mut lower = 0.0;
        for (upper, count) in &buckets {
            let within = latencies
                .iter()
                .map(Duration::as_secs_f64)
                .filter(|seconds| *seconds > lower && *seconds <= *upper);
            assert_eq!(*count, within.count() as u64, "up to {upper} s");
            lower = *upper;
        }
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn the_sum_is_off_by_at_most_a_twentieth() {
        let mut histogram = Histogram::default();
        let latencies = [3, 7, 12, 40, 700].map(Duration::from_millis);
        for latency in latencies {
            histogram.record(latency);
        }
        let exact: f64 = latencies.iter().map(Duration::as_secs_f64).sum();
        let sum = sum_seconds(&histogram);
        assert!((sum / exact - 1.0).abs() < 0.05, "{sum} for {exact}");
    }
}
