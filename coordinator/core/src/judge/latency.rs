//! The whole latency distribution: is the candidate slower than allowed at any quantile?
//!
//! A multiple of p95 looks at one quantile, and waits until that quantile is known. Here every
//! edge of the histogram is looked at: allowed is a candidate latency that is stochastically at
//! most `max(stable (1 + margin), stable + floor)` (the floor, as some microseconds more are the
//! scheduler's and not the model's; it counts as the edge nearest to it). If so, then for every
//! edge `k`, and the first edge `j` at or above `edge(k) (1 + margin)` and nearest to
//! `edge(k) + floor` if that is higher, answers of the candidate above `j` are at most as likely
//! as answers of stable above `k`. That is a comparison of two shares, done by [`super::exact`]
//! for several odds ratios; evidence is averaged over edges and odds ratios, which is valid
//! whatever their dependence (a mean of e-values is an e-value).
//!
//! Which edges: each that can never fire dilutes the average, and a set picked by looking at the
//! same counts would not be valid. So the mass that starts at an interval ([`super::anystart`])
//! is spread over the edges that *stable's past* makes interesting: from the first that a tenth of
//! its answers stayed under up to six (a factor of 1.7) beyond the first that none exceeded, since
//! a short past has not seen the tail. Whatever starts at `t` is a product
//! of factors with expectation 1 at most, times a share that was known before `t`; the shares sum
//! to 1. Edges with the same `j` say the same, and only the highest of them is used. Edges that
//! leave the range keep what has started there.
//!
//! The range and the odds ratios are those that measured best over slowness of everything (x1.2 to
//! x2) and of a few (5 % x5, 2 % x5, 1 % x20, 0.5 % x100), for wide and narrow distributions. More
//! low edges, weights by how common an edge is, and four or six ratios were slower for most of
//! them; every second edge was no faster.
//!
//! Source: the test of one share is Turner, Ly, Gruenwald (arXiv 2106.02693); the average over
//! edges is this project's. Assumes what they do: within an interval, answers that are about
//! independent given the load, and the same kind of traffic for both. A load that slows both
//! down alike is no evidence, as both are compared in the same interval.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::histogram::{BINS, Histogram, edge};
use serde::{Deserialize, Serialize};

use super::Trials;
use super::anystart::{Starts, ln_add, ln_mean};
use super::exact::{LEARNT, MEMORY, log_ratio, share};

/// Edges that more of stable's answers than this exceed are not looked at.
const COMMON: f64 = 0.9;

/// Edges beyond the first that none of stable's answers exceeded.
const BEYOND: usize = 6;

/// Odds ratios of the candidate against stable, if it is slower.
const ODDS: [f64; 3] = [1.7, 4.0, 15.0];

/// The histogram's edges are `1 us * GAMMA_SQUARED^(k/2)`.
const GAMMA_SQUARED: f64 = 1.2;

/// The test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyTest {
    margin: f64,
    floor: Duration,
    /// What stable did, as far as it is remembered: `newer` is filling up.
    older: Histogram,
    newer: Histogram,
    starts: Starts,
    /// `ln M` of each odds ratio, by stable's edge; edges where mass has started.
    edges: BTreeMap<u8, [f64; ODDS.len()]>,
}

impl LatencyTest {
    /// Slower is what is slower than stable by more than `margin` (0.2: 20 %) *and* by more than
    /// `floor`. The margin is finite and at least 0.
    #[must_use]
    pub fn new(margin: f64, floor: Duration) -> Self {
        Self {
            margin,
            floor,
            older: Histogram::default(),
            newer: Histogram::default(),
            starts: Starts::default(),
            edges: BTreeMap::new(),
        }
    }

    /// Takes in one interval: latencies of both at the same time. The first requests only teach
    /// what stable is like; its past from before the rollout may be shown first, with an empty
    /// candidate.
    pub fn see(&mut self, candidate: &Histogram, stable: &Histogram) {
        let past = Above::of(&[&self.older, &self.newer]);
        if past.n >= LEARNT && !candidate.is_empty() && !stable.is_empty() {
            self.bet(&past, &Above::of(&[candidate]), &Above::of(&[stable]));
        }
        self.newer.merge(stable);
        if self.newer.count() >= MEMORY {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    fn bet(&mut self, past: &Above, candidate: &Above, stable: &Above) {
        let interesting = self.interesting(past);
        #[expect(clippy::cast_precision_loss, reason = "at most 202 edges")]
        let mass = (self.starts.take() / interesting.len().max(1) as f64).ln();
        for k in interesting {
            let logs = self
                .edges
                .entry(k)
                .or_insert([f64::NEG_INFINITY; ODDS.len()]);
            for log in logs {
                *log = ln_add(*log, mass);
            }
        }
        for (k, logs) in &mut self.edges {
            let k = usize::from(*k);
            let Some(j) = counterpart(k, self.margin, self.floor) else {
                continue;
            };
            let theta0 = share(past.trials(k));
            for (log, odds) in logs.iter_mut().zip(ODDS) {
                *log += log_ratio(theta0, odds, candidate.trials(j), stable.trials(k));
            }
        }
    }

    /// Stable's edges over which the mass that starts now is spread.
    fn interesting(&self, past: &Above) -> Vec<u8> {
        let counterpart = |k| counterpart(k, self.margin, self.floor);
        let first = (0..BINS).find(|k| share(past.trials(*k)) <= COMMON);
        let last = (0..BINS).find(|k| past.trials(*k).hits == 0);
        let (Some(first), Some(last)) = (first, last) else {
            return Vec::new();
        };
        let end = last + BEYOND;
        // Of edges with one counterpart the highest says most.
        let says_most = |k: &usize| *k == end || counterpart(*k) != counterpart(*k + 1);
        (first.min(last)..=end)
            .filter(|k| counterpart(*k).is_some() && says_most(k))
            .filter_map(|k| u8::try_from(k).ok())
            .collect()
    }

    /// `ln E` against "the candidate is at no quantile slower than allowed". Reject once it
    /// reaches `ln(1/alpha)`.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let waiting = self.starts.waiting().ln();
        self.edges
            .values()
            .fold(waiting, |sum, logs| ln_add(sum, ln_mean(logs)))
    }

    /// The latency of stable at which most of the evidence lies, and how much (nats, as `log_e`):
    /// to tell people which quantile it is. The lowest of those that say the same. `None` before
    /// any evidence.
    #[must_use]
    pub fn loudest(&self) -> Option<(Duration, f64)> {
        self.edges
            .iter()
            .rev()
            .map(|(k, logs)| (edge(usize::from(*k)), ln_mean(logs)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// The edge above which an allowed candidate is at most as often as stable is above `edge(k)`.
/// `None` if it lies beyond the last edge.
fn counterpart(k: usize, margin: f64, floor: Duration) -> Option<usize> {
    #[expect(clippy::cast_precision_loss, reason = "at most 202 edges")]
    let from = GAMMA_SQUARED.powf(k as f64 / 2.0);
    let edges = |to: f64| 2.0 * to.ln() / GAMMA_SQUARED.ln();
    // A margin that is a whole number of edges stays one. A floor of less than half an edge is
    // none: rounded up it would be a margin of a tenth, however slow the model.
    let j = (edges(from * (1.0 + margin)) - 1e-6)
        .ceil()
        .max(edges(from + floor.as_secs_f64() * 1e6).round());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 0; too large is beyond the last edge"
    )]
    let j = j as usize;
    (j < BINS - 1).then_some(j)
}

/// For each edge, how many latencies lie above it.
struct Above {
    n: u64,
    above: [u64; BINS],
}

impl Above {
    /// Of the sum of `parts`.
    fn of(parts: &[&Histogram]) -> Self {
        let mut above = [0; BINS];
        for (bin, n) in parts.iter().flat_map(|part| part.bins()) {
            above[bin] += n;
        }
        let mut n = 0;
        for bin in above.iter_mut().rev() {
            (n, *bin) = (n + *bin, n);
        }
        Self { n, above }
    }

    const fn trials(&self, k: usize) -> Trials {
        Trials {
            n: self.n,
            hits: self.above[k],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::draws::{Draws, summary};

    type Factor = fn(&mut Draws) -> f64;

    /// Candidate requests until `Fail` at alpha .001, at a share of 10 %.
    fn detection(margin: f64, factor: Factor, per_look: u64, runs: u64) -> (u64, u64) {
        let run = |seed| {
            let mut draws = Draws::seeded(seed);
            let mut test = LatencyTest::new(margin, Duration::ZERO);
            let looks = (1..20_000 / per_look)
                .find(|_| {
                    let candidate = draws.latencies(per_look, factor);
                    let stable = draws.latencies(9 * per_look, |_| 1.0);
                    test.see(&candidate, &stable);
                    test.log_e() >= 1_000_f64.ln()
                })
                .unwrap_or(20_000 / per_look);
            looks * per_look
        };
        summary((0..runs).map(run).collect())
    }

    /// At most 1.15 times the reference medians of a test that may start once and averages over
    /// all edges (295, 60, 375 requests).
    #[test]
    fn slower_at_all_quantiles_or_at_a_few_is_found() {
        let tail: Factor = |draws| if draws.hits(0.05) { 5.0 } else { 1.0 };
        let found = [
            (detection(0.0, |_| 1.2, 10, 101), 340),
            (detection(0.0, |_| 1.5, 2, 61), 69),
            (detection(0.0, tail, 10, 21), 430),
            (detection(0.2, |_| 1.5, 10, 21), 230),
        ];
        for ((median, _), most) in found {
            assert!(median <= most, "{found:?}");
        }
    }

    fn look(test: &mut LatencyTest, draws: &mut Draws, candidate: f64, stable: f64) {
        let candidate = draws.latencies(10, |_| candidate);
        test.see(&candidate, &draws.latencies(90, |_| stable));
    }

    #[test]
    fn what_breaks_late_is_found_about_as_fast_and_load_on_both_is_not_blamed() {
        let mut draws = Draws::seeded(3);
        let mut test = LatencyTest::new(0.2, Duration::from_millis(1));
        for _ in 0..150 {
            look(&mut test, &mut draws, 1.0, 1.0);
        }
        for _ in 0..50 {
            look(&mut test, &mut draws, 3.0, 3.0);
            assert!(test.log_e() < 3.0);
        }
        let looks = (1..100).find(|_| {
            look(&mut test, &mut draws, 6.0, 3.0);
            test.log_e() >= 1_000_f64.ln()
        });
        assert!(looks.is_some_and(|looks| looks <= 20), "{looks:?}");
    }

    #[test]
    fn a_version_within_margin_and_floor_is_not_slower() {
        for (margin, floor, factor) in [(0.2, 0, 1.2), (0.0, 100, 3.0)] {
            let mut draws = Draws::seeded(4);
            let mut test = LatencyTest::new(margin, Duration::from_millis(floor));
            for _ in 0..100 {
                look(&mut test, &mut draws, factor, 1.0);
                assert!(test.log_e() < 3.0);
            }
        }
    }

    #[test]
    fn the_loudest_edge_is_where_stable_and_candidate_part() {
        let mut test = LatencyTest::new(0.2, Duration::ZERO);
        assert_eq!(test.loudest(), None);
        let all = |millis, n| {
            let mut histogram = Histogram::default();
            for _ in 0..n {
                histogram.record(Duration::from_millis(millis));
            }
            histogram
        };
        test.see(&Histogram::default(), &all(10, 100));
        assert_eq!(test.loudest(), None);
        test.see(&all(15, 10), &all(10, 90));
        let (latency, evidence) = test.loudest().unwrap();
        let (least, most) = (Duration::from_millis(10), Duration::from_millis(15));
        assert!(least <= latency && latency < most, "{latency:?}");
        assert!(evidence > 5.0 && evidence <= test.log_e(), "{evidence}");
        let memory = serde_json::to_string(&test).unwrap();
        assert_eq!(serde_json::from_str::<LatencyTest>(&memory).unwrap(), test);
    }

    #[test]
    fn equal_versions_raise_no_more_false_alarms_than_promised() {
        let alarms = (0..100)
            .filter(|seed| {
                let mut draws = Draws::seeded(*seed);
                let mut test = LatencyTest::new(0.0, Duration::ZERO);
                (0..30).any(|_| {
                    test.see(&draws.latencies(5, |_| 1.0), &draws.latencies(20, |_| 1.0));
                    test.log_e() >= 20_f64.ln()
                })
            })
            .count();
        assert!(alarms <= 5, "{alarms} of 100 at 5 %");
    }

    #[test]
    fn the_counterpart_is_the_first_edge_that_an_allowed_candidate_cannot_exceed_more_often() {
        let ms = Duration::from_millis;
        assert_eq!(counterpart(100, 0.0, Duration::ZERO), Some(100));
        assert_eq!(counterpart(100, 0.2, Duration::ZERO), Some(102));
        assert_eq!(counterpart(100, 0.25, Duration::ZERO), Some(103));
        let j = counterpart(50, 0.2, ms(1)).unwrap();
        assert!(edge(j) >= edge(50) + ms(1) && edge(j - 1) < edge(50) + ms(1));
        assert_eq!(counterpart(BINS - 2, 0.2, Duration::ZERO), None);
        assert_eq!(counterpart(0, 0.2, ms(100_000)), None);
    }

    #[test]
    fn counts_above_edges_are_those_of_the_histogram() {
        let histogram = Draws::seeded(1).latencies(200, |_| 1.0);
        let above = Above::of(&[&histogram, &histogram]);
        for k in 0..BINS {
            assert_eq!(above.trials(k).hits, 2 * histogram.above(k));
        }
        assert_eq!(above.n, 400);
    }
}
