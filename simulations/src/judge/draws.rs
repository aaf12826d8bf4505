//! The draws: what every node counts in every interval, for all judges the same.
//!
//! Requests come as a Poisson stream for each node and arm (or evenly, see
//! [`Weather::Even`]), and are drawn one by one: a normal
//! deviate gives a latency's bin at once, since the bins are as wide as each other in
//! logarithms. Failed requests have no latency, as in reports.
//!
//! A third arm, [`Arms::control`], is a part of stable's requests, of the candidate's size: judges
//! that compare per-interval figures are told to compare deployments of the same size.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Geometric, Poisson, StandardNormal};
use rollcall_shared::histogram::BINS;
use rollcall_shared::report::{Counts, Segment};

use super::scenario::{Fault, NODES, SHARE, Scenario, Weather};
use crate::seed::Draws;

/// Of the logarithm of latencies.
const SIGMA: f64 = 0.6;
/// Stable's median latency in microseconds: far above the millisecond that never counts, so that
/// a multiple is judged and not that floor.
const MEDIAN_US: f64 = 100_000.0;
/// How often a client tries again in one interval.
const RETRIES_AN_INTERVAL: u64 = 2;

/// What all nodes counted in one interval.
#[derive(Clone, Debug, Default)]
pub struct Interval {
    /// Node by node.
    pub nodes: Vec<Arms>,
    /// All nodes together.
    pub fleet: Arms,
}

/// What one node counted, or all.
#[derive(Clone, Debug, Default)]
pub struct Arms {
    /// The version on trial.
    pub candidate: Observed,
    /// Stable, at the same time.
    pub stable: Observed,
    /// A part of stable that has as many requests as the candidate, on average.
    pub control: Counts,
}

/// Counts of one version.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Of all requests.
    pub counts: Counts,
    /// Of each segment.
    pub segments: Vec<Segment>,
}

impl Observed {
    fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        for theirs in &other.segments {
            match self
                .segments
                .iter_mut()
                .find(|mine| mine.name == theirs.name)
            {
                Some(mine) => mine.counts.merge(&theirs.counts),
                None => self.segments.push(theirs.clone()),
            }
        }
    }
}

/// One run's intervals.
pub struct Stream {
    scenario: &'static Scenario,
    draws: ChaCha8Rng,
    at: u32,
    /// Intervals that a burst of traffic, and one of errors, goes on for.
    crowd: u32,
    storm: u32,
    stormy: [bool; NODES],
    /// Tries left of each client that retries, by node and arm.
    retries: [[Vec<u64>; 3]; NODES],
}

/// How requests fare on one node.
#[derive(Clone, Copy, Debug)]
struct Conditions {
    /// Share that fails.
    errors: f64,
    /// Factor of the latency, as a logarithm.
    slower: f64,
    /// Share of requests with a factor of their own.
    tail: (f64, f64),
    /// Share of pairs that agree.
    agreement: Option<f64>,
}

/// Shares of the candidate, of its control, and of the rest of stable.
const ARMS: [f64; 3] = [SHARE, SHARE, 1.0 - 2.0 * SHARE];

impl Stream {
    /// Run number `run` under a seed.
    #[must_use]
    pub fn new(scenario: &'static Scenario, seed: u64, run: u64) -> Self {
        Self {
            scenario,
            draws: Draws::child(seed, &format!("judge/{}/{run}", scenario.name)).generator(),
            at: 0,
            crowd: 0,
            storm: 0,
            stormy: [false; NODES],
            retries: Default::default(),
        }
    }

    /// The next interval.
    pub fn next_interval(&mut self) -> Interval {
        let (traffic, conditions) = self.weather();
        let mut interval = Interval::default();
        let arrivals = self.arrivals(traffic);
        for (node, arrivals) in arrivals.into_iter().enumerate() {
            let stable = if self.stormy[node] && self.storm > 0 {
                Conditions {
                    errors: 0.2,
                    slower: conditions.slower + 3_f64.ln(),
                    ..conditions
                }
            } else {
                conditions
            };
            let candidate = self.faulty(node, stable);
            let mut arms = [0, 1, 2].map(|arm| {
                let conditions = if arm == 0 { candidate } else { stable };
                self.observe(node, arm, arrivals[arm], conditions)
            });
            let control = arms[1].counts.clone();
            let [candidate, stable, rest] = &mut arms;
            stable.merge(rest);
            let arms = Arms {
                candidate: std::mem::take(candidate),
                stable: std::mem::take(stable),
                control,
            };
            interval.fleet.candidate.merge(&arms.candidate);
            interval.fleet.stable.merge(&arms.stable);
            interval.fleet.control.merge(&arms.control);
            interval.nodes.push(arms);
        }
        self.at += 1;
        interval
    }

    /// How many requests each arm of each node gets.
    fn arrivals(&mut self, traffic: f64) -> [[u64; 3]; NODES] {
        let mut arrivals = [[0; 3]; NODES];
        let mean = ARMS.map(|share| self.scenario.candidates / SHARE * share * traffic);
        for (arm, mean) in mean.into_iter().enumerate() {
            if self.scenario.weather == Weather::Even {
                for _ in 0..mean.round() as u64 {
                    arrivals[self.draws.random_range(0..NODES)][arm] += 1;
                }
                continue;
            }
            for node in &mut arrivals {
                let poisson = Poisson::new(mean / NODES as f64);
                node[arm] = poisson.map_or(0, |poisson| poisson.sample(&mut self.draws) as u64);
            }
        }
        arrivals
    }

    /// A factor of the traffic, and what it is like on nodes that no storm hits.
    fn weather(&mut self) -> (f64, Conditions) {
        let mut conditions = Conditions {
            errors: self.scenario.errors,
            slower: 0.0,
            tail: (0.0, 1.0),
            agreement: None,
        };
        let traffic = match self.scenario.weather {
            Weather::Constant | Weather::Even | Weather::Retries => 1.0,
            Weather::Drifting => {
                let day = f64::from(self.at) / f64::from(self.scenario.intervals);
                let wave = |phase: f64| (std::f64::consts::TAU * (day + phase)).sin();
                conditions.errors *= (0.8 * wave(0.15)).exp();
                conditions.slower = 0.3 * wave(0.3);
                (0.7 * wave(0.0)).exp()
            }
            Weather::Bursts => {
                self.crowd = self.crowd.saturating_sub(1);
                self.storm = self.storm.saturating_sub(1);
                if self.draws.random_bool(0.01) {
                    self.crowd = 10;
                }
                if self.storm == 0 && self.draws.random_bool(0.005) {
                    self.storm = self.draws.random_range(5..30);
                    self.stormy = self.draws.random();
                }
                if self.crowd > 0 { 8.0 } else { 1.0 }
            }
        };
        (traffic, conditions)
    }

    /// What the candidate makes of it.
    fn faulty(&self, node: usize, conditions: Conditions) -> Conditions {
        if self.at < self.scenario.from {
            return conditions;
        }
        let mut faulty = conditions;
        match self.scenario.fault {
            Fault::Nothing | Fault::Segment(..) => {}
            Fault::Errors(errors) => faulty.errors = errors,
            Fault::Slower(factor) => faulty.slower += factor.ln(),
            Fault::Tail(share, factor) => faulty.tail = (share, factor),
            Fault::Node(bad, errors) if bad == node => faulty.errors = errors,
            Fault::Node(..) => {}
            Fault::Agreement(share) => faulty.agreement = Some(share),
        }
        faulty
    }

    /// What one node counts of one arm, segment by segment where there are any.
    fn observe(
        &mut self,
        node: usize,
        arm: usize,
        requests: u64,
        conditions: Conditions,
    ) -> Observed {
        let mut observed = Observed::default();
        if self.scenario.segments.is_empty() {
            self.count(&mut observed.counts, requests, conditions);
        }
        for (segment, requests) in self.deal(requests).into_iter().enumerate() {
            let mut conditions = conditions;
            if let Fault::Segment(bad, errors) = self.scenario.fault
                && (bad, 0) == (segment, arm)
                && self.at >= self.scenario.from
            {
                conditions.errors = errors;
            }
            let mut counts = Counts::default();
            self.count(&mut counts, requests, conditions);
            if counts.requests > 0 {
                observed.counts.merge(&counts);
                observed.segments.push(Segment {
                    name: format!("segment-{segment}"),
                    counts,
                });
            }
        }
        if self.scenario.weather == Weather::Retries {
            self.retry(&mut observed.counts, node, arm);
        }
        observed
    }

    /// Which segments requests name.
    fn deal(&mut self, requests: u64) -> Vec<u64> {
        let shares = self.scenario.segments;
        let mut dealt = vec![0; shares.len()];
        for _ in 0..if shares.is_empty() { 0 } else { requests } {
            let mut at = self.draws.random::<f64>();
            let below = |share: &f64| {
                at -= share;
                at < 0.0
            };
            let segment = shares.iter().position(below);
            dealt[segment.unwrap_or(shares.len() - 1)] += 1;
        }
        dealt
    }

    fn count(&mut self, counts: &mut Counts, requests: u64, conditions: Conditions) {
        counts.requests += requests;
        for _ in 0..requests {
            if self.draws.random_bool(conditions.errors) {
                counts.errors += 1;
                counts.failed_keys += 1;
            } else {
                let bin = self.latency(conditions);
                counts.latency.add(bin, 1);
                if let Some(agreement) = conditions.agreement {
                    counts.compared += 1;
                    counts.agreed += u64::from(self.draws.random_bool(agreement));
                }
            }
        }
    }

    /// The bin of one latency.
    fn latency(&mut self, conditions: Conditions) -> usize {
        let deviate: f64 = StandardNormal.sample(&mut self.draws);
        let mut log_us = MEDIAN_US.ln() + SIGMA * deviate + conditions.slower;
        let (share, factor) = conditions.tail;
        if share > 0.0 && self.draws.random_bool(share) {
            log_us += factor.ln();
        }
        ((2.0 * log_us / 1.2_f64.ln()).ceil().max(0.0) as usize).min(BINS - 1)
    }

    /// Clients that try again: a few more requests that fail, of keys that have failed before.
    fn retry(&mut self, counts: &mut Counts, node: usize, arm: usize) {
        let clients = &mut self.retries[node][arm];
        for tries in clients.iter_mut() {
            let now = RETRIES_AN_INTERVAL.min(*tries);
            *tries -= now;
            counts.requests += now;
            counts.errors += now;
        }
        clients.retain(|tries| *tries > 0);
        for _ in 0..counts.failed_keys {
            if self.draws.random_bool(0.2)
                && let Ok(tries) = Geometric::new(0.1)
            {
                self.retries[node][arm].push(1 + tries.sample(&mut self.draws));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rollcall_shared::histogram::Histogram;

    use super::*;
    use crate::judge::scenario::SCENARIOS;

    fn scenario(name: &str) -> &'static Scenario {
        SCENARIOS
            .iter()
            .find(|scenario| scenario.name == name)
            .unwrap()
    }

    fn whole_run(name: &str) -> Arms {
        let mut stream = Stream::new(scenario(name), 3, 0);
        let mut sum = Arms::default();
        for _ in 0..scenario(name).intervals {
            let Interval { nodes, fleet } = stream.next_interval();
            assert_eq!(nodes.len(), NODES);
            sum.candidate.merge(&fleet.candidate);
            sum.stable.merge(&fleet.stable);
            sum.control.merge(&fleet.control);
        }
        sum
    }

    fn rate(counts: &Counts) -> f64 {
        counts.failures() as f64 / counts.requests as f64
    }

    #[test]
    fn a_run_has_the_shares_rates_and_latencies_of_its_row() {
        let Arms {
            candidate,
            stable,
            control,
        } = whole_run("errors-x2");
        let share = candidate.counts.requests as f64
            / (candidate.counts.requests + stable.counts.requests) as f64;
        assert!((share - SHARE).abs() < 0.002, "{share}");
        assert!((rate(&candidate.counts) - 0.02).abs() < 0.003);
        assert!((rate(&stable.counts) - 0.01).abs() < 0.001);
        assert!((rate(&control) - 0.01).abs() < 0.003);
        let ratio = control.requests as f64 / candidate.counts.requests as f64;
        assert!((ratio - 1.0).abs() < 0.03, "{ratio}");
        let median = stable.counts.latency.quantile(0.5).unwrap().as_secs_f64() * 1e6;
        assert!((median / MEDIAN_US - 1.0).abs() < 0.02, "{median}");
        assert_eq!(
            stable.counts.latency.count() + stable.counts.errors,
            stable.counts.requests
        );
    }

    #[test]
    fn a_bin_is_that_of_the_latency_itself() {
        for us in [3.0_f64, 20_000.0, 123_456.0] {
            let mut recorded = Histogram::default();
            recorded.record(Duration::from_secs_f64(us * 1e-6));
            let bin = (2.0 * us.ln() / 1.2_f64.ln()).ceil() as usize;
            assert_eq!(recorded.bins().next(), Some((bin, 1)));
        }
    }

    #[test]
    fn who_tries_again_fails_many_times_and_has_one_key() {
        let counts = whole_run("aa-retries").stable.counts;
        assert!(counts.errors > 2 * counts.failed_keys, "{counts:?}");
        assert!((counts.failed_keys as f64 / counts.requests as f64 - 0.01).abs() < 0.002);
    }

    #[test]
    fn only_the_segment_or_the_node_that_is_meant_breaks() {
        let sum = whole_run("one-segment");
        for segment in &sum.candidate.segments {
            let bad = segment.name == "segment-2";
            assert_eq!(rate(&segment.counts) > 0.1, bad, "{}", segment.name);
        }
        assert_eq!(sum.candidate.segments.len(), 5);
        let mut stream = Stream::new(scenario("one-bad-node"), 3, 0);
        let mut nodes = [0; NODES];
        for _ in 0..500 {
            for (sum, arms) in nodes.iter_mut().zip(stream.next_interval().nodes) {
                *sum += arms.candidate.counts.errors;
            }
        }
        let most = (0..NODES).max_by_key(|node| nodes[*node]);
        assert_eq!(most, Some(3), "{nodes:?}");
    }

    #[test]
    fn the_same_seed_and_run_draw_the_same_and_no_others_do() {
        let first = |seed, run| {
            let mut stream = Stream::new(scenario("aa-bursts"), seed, run);
            stream.next_interval().fleet.stable.counts
        };
        assert_eq!(first(1, 1), first(1, 1));
        assert_ne!(first(1, 1), first(1, 2));
        assert_ne!(first(1, 1), first(2, 1));
    }
}
