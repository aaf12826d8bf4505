//! One test for each rule, over the same requests.

use std::time::Duration;

use rollcall_shared::histogram::{BINS, edge};
use rollcall_shared::plan::Policy;
use rollcall_shared::verdict::Metric;
use serde::{Deserialize, Serialize};

use super::Trials;
use super::history::{Pair, Sample};
use super::latency::LatencyTest;
use super::limit::LimitTest;
use super::rare::RareEvents;
use super::rules::{Kind, LATENCY_NOISE_MS, Rule, error_floor};

/// Tests of all rules, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Battery(Vec<Test>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Test {
    /// Worse than the multiple allows, and not next to nothing: the smaller evidence counts.
    Errors {
        multiple: RareEvents,
        floor: LimitTest,
    },
    Latency(LatencyTest),
    Limit {
        of: Hits,
        test: LimitTest,
    },
}

/// What counts as a hit against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hits {
    Failures,
    /// Latencies above this edge.
    Above(usize),
    /// Pairs that do not agree.
    Disagreements,
}

impl Battery {
    /// Tests that have seen nothing.
    #[must_use]
    pub fn new(policy: &Policy, rules: &[Rule]) -> Self {
        Self(rules.iter().map(|rule| Test::of(policy, rule)).collect())
    }

    /// The test of rule number `rule` alone: what it says is what it says among the others.
    pub(super) fn only(policy: &Policy, rules: &[Rule], rule: usize) -> Self {
        let rule = rules.get(rule).map(|rule| Test::of(policy, rule));
        Self(rule.into_iter().collect())
    }

    /// Takes in one interval.
    pub fn see(&mut self, pair: &Pair) {
        for test in &mut self.0 {
            test.see(pair);
        }
    }

    /// `ln` of the e-value against "the candidate's error rate is above the multiple", if that is
    /// what rule number `rule` is about.
    pub(super) fn log_e_kept(&self, rule: usize) -> Option<f64> {
        match self.0.get(rule)? {
            Test::Errors { multiple, .. } => Some(multiple.log_e_not_worse()),
            Test::Latency(_) | Test::Limit { .. } => None,
        }
    }

    /// What counts against rule number `rule` in a sample.
    pub(super) fn hits(&self, rule: usize, sample: &Sample) -> Trials {
        self.0
            .get(rule)
            .map_or_else(Trials::default, |test| test.hits().in_sample(sample))
    }

    /// `ln` of the e-value against rule number `rule`.
    #[must_use]
    pub fn log_e(&self, rule: usize) -> f64 {
        self.0.get(rule).map_or(0.0, Test::log_e)
    }
}

impl Test {
    fn of(policy: &Policy, rule: &Rule) -> Self {
        let margin = rule.most - 1.0;
        let slower = |share| Self::Limit {
            of: Hits::Above(edge_at(rule.threshold(policy, None))),
            test: LimitTest::new(share),
        };
        match (rule.metric, rule.kind) {
            (Metric::ErrorRate, Kind::Multiple) => Self::Errors {
                multiple: RareEvents::new(margin),
                floor: LimitTest::new(error_floor(policy)),
            },
            (Metric::ErrorRate, Kind::Limit | Kind::Remembered { .. }) => Self::Limit {
                of: Hits::Failures,
                test: LimitTest::new(rule.threshold(policy, None)),
            },
            (_, Kind::Multiple) => {
                let noise = Duration::from_secs_f64(LATENCY_NOISE_MS / 1e3);
                Self::Latency(LatencyTest::new(margin.max(0.0), noise))
            }
            (Metric::Agreement, _) => Self::Limit {
                of: Hits::Disagreements,
                test: LimitTest::new(1.0 - rule.most),
            },
            (Metric::LatencyP50, _) => slower(0.5),
            (Metric::LatencyP99, _) => slower(0.01),
            (_, _) => slower(0.05),
        }
    }

    fn see(&mut self, Pair { candidate, stable }: &Pair) {
        match self {
            Self::Errors { multiple, floor } => {
                multiple.see(candidate.failed(), stable.failed());
                floor.see(candidate.failed());
            }
            Self::Latency(test) => test.see(&candidate.latency, &stable.latency),
            Self::Limit { of, test } => test.see(of.in_sample(candidate)),
        }
    }

    /// What a node is told from the others by.
    fn hits(&self) -> Hits {
        match self {
            Self::Errors { .. } => Hits::Failures,
            Self::Latency(test) => {
                let loudest = test
                    .loudest()
                    .map(|(latency, _)| latency.as_secs_f64() * 1e3);
                Hits::Above(loudest.map_or(BINS, edge_at))
            }
            Self::Limit { of, .. } => *of,
        }
    }

    fn log_e(&self) -> f64 {
        match self {
            Self::Errors { multiple, floor } => multiple.log_e_worse().min(floor.log_e()),
            Self::Latency(test) => test.log_e(),
            Self::Limit { test, .. } => test.log_e(),
        }
    }
}

impl Hits {
    fn in_sample(self, sample: &Sample) -> Trials {
        match self {
            Self::Failures => sample.failed(),
            Self::Disagreements => Trials {
                n: sample.compared,
                hits: sample.disagreed,
            },
            Self::Above(edge) => Trials {
                n: sample.latency.count(),
                hits: sample.latency.above(edge),
            },
        }
    }
}

/// The first edge that is not below `ms`: what lies above it broke the limit for certain.
fn edge_at(ms: f64) -> usize {
    (0..BINS)
        .find(|k| edge(*k).as_secs_f64() * 1e3 >= ms)
        .unwrap_or(BINS)
}
