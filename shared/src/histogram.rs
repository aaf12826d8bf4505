//! Latency histograms with edges that are the same on every node and never
//! change, so that they add up across nodes and windows without loss, and two
//! versions can be compared edge by edge.
//!
//! Edges are log-spaced with ratio `sqrt(1.2)`, from 1 us: two edges are a
//! factor of 1.2, so "20 % slower" is a whole number of edges. A quantile is
//! off by at most 9.6 %. The last bin takes everything above the last edge (84 s).

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Number of bins; bin `k` holds latencies up to `edge(k)`.
pub const BINS: usize = 202;

/// Upper edge of bin `k`: `1 us * 1.2^(k/2)`.
#[must_use]
pub fn edge(k: usize) -> Duration {
    let halves = i32::try_from(k).unwrap_or(i32::MAX);
    Duration::from_secs_f64(1e-6 * 1.2_f64.sqrt().powi(halves))
}

/// Counts of latencies. A few hundred bytes on the wire when the latencies are close together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    /// Bin of the first count.
    first: u8,
    /// Counts from there; no zero at either end.
    counts: Vec<u64>,
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        self.add(bin(latency), 1);
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (bin, count) in other.bins() {
            self.add(bin, count);
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many latencies were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Non-empty bins in order: index and count.
    pub fn bins(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let first = usize::from(self.first);
        self.counts
            .iter()
            .enumerate()
            .map(move |(i, n)| (first + i, *n))
            .filter(|(_, n)| *n > 0)
    }

    /// How many latencies lie above `edge(k)`.
    #[must_use]
    pub fn above(&self, k: usize) -> u64 {
        self.bins()
            .filter(|(bin, _)| *bin > k)
            .map(|(_, count)| count)
            .sum()
    }

    /// The latency below which a share `q` (0 to 1) of the counts lies, placed
    /// within its bin by log-linear interpolation. `None` when nothing was counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let rank = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        let mut last = 0;
        for (bin, n) in self.bins() {
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let n = n as f64;
            if below + n >= rank {
                let within = ((rank - below) / n).clamp(0.0, 1.0);
                let upper = edge(bin).as_secs_f64();
                return Some(Duration::from_secs_f64(
                    upper * 1.2_f64.powf((within - 1.0) / 2.0),
                ));
            }
            below += n;
            last = bin;
        }
        Some(edge(last))
    }

    /// Counts `count` latencies of bin `bin`; there is none beyond the last.
    pub fn add(&mut self, bin: usize, count: u64) {
        let bin = bin.min(BINS - 1);
        if count == 0 {
            return;
        }
        if self.counts.is_empty() {
            self.first = u8::try_from(bin).unwrap_or(u8::MAX);
            self.counts.push(0);
        }
        let first = usize::from(self.first);
        if bin < first {
            self.counts
                .splice(0..0, std::iter::repeat_n(0, first - bin));
            self.first = u8::try_from(bin).unwrap_or(u8::MAX);
        }
        let index = bin - usize::from(self.first);
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(count);
    }
}

fn bin(latency: Duration) -> usize {
    let microseconds = latency.as_secs_f64() * 1e6;
    if microseconds <= 1.0 {
        return 0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, small"
    )]
    let bin = (2.0 * microseconds.ln() / 1.2_f64.ln()).ceil() as usize;
    bin.min(BINS - 1)
}

/// A histogram from outside must fit the edges.
impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Histogram {
            first: u8,
            counts: Vec<u64>,
        }
        let Histogram { first, counts } = Histogram::deserialize(deserializer)?;
        if usize::from(first) + counts.len() > BINS {
            return Err(de::Error::custom(
                "a histogram has counts beyond the last bin",
            ));
        }
        Ok(Self { first, counts })
    }
}

const _: () = assert!(BINS <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_edges_double_check_by_hand() {
        assert_eq!(edge(0), Duration::from_micros(1));
        assert_eq!(edge(2).as_nanos(), 1_200);
        assert!(edge(BINS - 2) > Duration::from_secs(80));
    }

    proptest! {
        #[test]
        fn a_latency_lies_within_its_bin(nanos in 1u64..60_000_000_000) {
            let latency = Duration::from_nanos(nanos);
            let bin = bin(latency);
            let slack = 1.000_001;
            prop_assert!(latency.as_secs_f64() <= edge(bin).as_secs_f64() * slack);
            prop_assert!(bin == 0 || latency.as_secs_f64() * slack >= edge(bin - 1).as_secs_f64());
        }

        #[test]
        fn quantiles_are_off_by_at_most_a_bin(mut nanos in prop::collection::vec(1_000u64..1_000_000_000, 1..200), q in 0.01f64..1.0) {
            let mut histogram = Histogram::default();
            for &n in &nanos { histogram.record(Duration::from_nanos(n)); }
            nanos.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let exact = nanos[((q * nanos.len() as f64).ceil() as usize).max(1) - 1] as f64 / 1e9;
            let estimate = histogram.quantile(q).unwrap().as_secs_f64();
            prop_assert!(estimate <= exact * 1.1 && exact <= estimate * 1.1, "{exact} {estimate}");
        }

        #[test]
        fn merging_is_the_same_as_recording_everything_in_one(a in prop::collection::vec(0u64..10_000_000_000, 0..50), b in prop::collection::vec(0u64..10_000_000_000, 0..50)) {
            let record = |nanos: &[u64]| {
                let mut histogram = Histogram::default();
                for &n in nanos { histogram.record(Duration::from_nanos(n)); }
                histogram
            };
            let mut merged = record(&a);
            merged.merge(&record(&b));
            let all: Vec<_> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(merged, record(&all));
        }
    }
}
