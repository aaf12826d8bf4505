//! How others judge a candidate, on the same draws.
//!
//! | module | whose way |
//! | --- | --- |
//! | [`z_test`] | a fixed-sample test, looked at again and again |
//! | [`mann_whitney`] | the judge of Kayenta, Spinnaker's canary analysis |
//! | [`thresholds`] | limits as users of Argo Rollouts and Flagger write them |
//!
//! Each says `Fail` or nothing. They see what all nodes counted together, failures as they come
//! (a client that tries again fails again), and no segments: neither knows of nodes or segments
//! unless somebody writes the rule for each of them.

pub(super) mod mann_whitney;
pub(super) mod thresholds;
pub(super) mod z_test;

use rollcall_shared::histogram::BINS;
use rollcall_shared::report::Counts;

/// Counts that can be taken away again.
#[derive(Clone, Debug)]
struct Sums {
    requests: u64,
    failures: u64,
    compared: u64,
    agreed: u64,
    answered: u64,
    bins: [u64; BINS],
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            requests: 0,
            failures: 0,
            compared: 0,
            agreed: 0,
            answered: 0,
            bins: [0; BINS],
        }
    }
}

impl Sums {
    fn add(&mut self, counts: &Counts) {
        self.requests += counts.requests;
        self.failures += counts.failures();
        self.compared += counts.compared;
        self.agreed += counts.agreed;
        for (bin, count) in counts.latency.bins() {
            self.bins[bin] += count;
            self.answered += count;
        }
    }

    fn take(&mut self, counts: &Counts) {
        self.requests -= counts.requests;
        self.failures -= counts.failures();
        self.compared -= counts.compared;
        self.agreed -= counts.agreed;
        for (bin, count) in counts.latency.bins() {
            self.bins[bin] -= count;
            self.answered -= count;
        }
    }

    fn error_rate(&self) -> f64 {
        self.failures as f64 / self.requests.max(1) as f64
    }

    /// The bin that holds the 95th percentile, and how many latencies lie above that bin.
    fn p95(&self) -> (usize, u64) {
        let rare = self.answered as f64 * 0.05;
        let mut above = 0;
        for bin in (0..BINS).rev() {
            if (above + self.bins[bin]) as f64 > rare {
                return (bin, above);
            }
            above += self.bins[bin];
        }
        (0, above)
    }

    fn above(&self, bin: usize) -> u64 {
        self.bins[bin + 1..].iter().sum()
    }
}
