//! The rules that a policy makes, each of them a hypothesis: "the candidate keeps to this".
//!
//! A limit stands by itself, a multiple compares with stable at the same time. Where the
//! candidate answers everything there is no stable left to measure: then its multiples become
//! limits, from what earlier verdicts of the rollout recorded of stable.
//!
//! All rules together may be wrong about a good candidate with probability `alpha`. It is
//! divided among them beforehand: most of it for the multiples, little for what is told apart by
//! large numbers anyway. A part of a half costs `ln 2` nats of evidence, some 7 % more requests;
//! latency pays it more easily than failures do, as its test spends more on not knowing where to
//! look. (Averaging e-values with these parts as weights would be as valid and a little sooner;
//! but then no rule could be read by itself.)

use std::fmt;

use rollcall_shared::limits::SEGMENTS_MAX;
use rollcall_shared::plan::Policy;
use rollcall_shared::verdict::{Finding, Metric};
use serde::{Deserialize, Serialize};

/// Latencies that differ by less are the same: a multiple of some microseconds is noise of the
/// scheduler, not a slower model.
pub const LATENCY_NOISE_MS: f64 = 1.0;

/// Parts of alpha.
const OF_ERRORS: f64 = 0.52;
const OF_LATENCY: f64 = 0.38;
const OF_SEGMENTS: f64 = 0.06;
const OF_LIMITS: f64 = 0.02;
/// For labels and KPIs together.
pub(super) const OF_OUTCOMES: f64 = 0.02;

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// What is held to it.
    pub metric: Metric,
    /// How.
    pub kind: Kind,
    /// The largest value, or multiple, that keeps to it; of agreement the least.
    pub most: f64,
}

/// What a rule compares with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing.
    Limit,
    /// Stable at the same time.
    Multiple,
    /// Stable as it was.
    Remembered {
        /// Its value then.
        stable: f64,
        /// The requests that it rests on.
        samples: u64,
    },
}

/// What there is to compare with in a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Baseline<'a> {
    /// Stable, at the same time.
    Concurrent,
    /// The candidate answers everything: stable as it was judged in the stages before.
    Remembered(&'a [Finding]),
    /// There is no stable version: multiples are not judged.
    Nothing,
}

impl Rule {
    /// The value of the candidate from which on the rule is broken, if stable's is `stable`.
    #[must_use]
    pub fn threshold(&self, policy: &Policy, stable: Option<f64>) -> f64 {
        let of = |stable: f64| match self.metric {
            Metric::ErrorRate => (stable * self.most).max(error_floor(policy)),
            _ => (stable * self.most).max(stable + LATENCY_NOISE_MS),
        };
        match self.kind {
            Kind::Limit => self.most,
            Kind::Multiple => of(stable.unwrap_or_default()),
            Kind::Remembered { stable, .. } => of(stable),
        }
    }

    /// The part of alpha that the rule has, in all requests or in one segment.
    pub(super) fn part(&self, rules: &[Self], in_segment: bool) -> f64 {
        let like = |kind: Kind| matches!(kind, Kind::Multiple);
        let alike = rules.iter().filter(|r| like(r.kind) == like(self.kind));
        match (self.kind, in_segment) {
            // Every segment's two multiples, and those of `other`.
            (_, true) => OF_SEGMENTS / (2.0 * (super::count(SEGMENTS_MAX as u64) + 1.0)),
            (Kind::Multiple, false) if self.metric == Metric::ErrorRate => OF_ERRORS,
            (Kind::Multiple, false) => OF_LATENCY,
            (Kind::Limit | Kind::Remembered { .. }, false) => {
                OF_LIMITS / super::count(alike.count().max(1) as u64)
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (metric, most) = (self.metric, self.most);
        match (metric, self.kind) {
            (Metric::ErrorRate, Kind::Limit) => {
                write!(f, "at most {} % of requests fail", percent(most))
            }
            (Metric::Agreement, _) => {
                write!(f, "at least {} % of shadowed answers agree", percent(most))
            }
            (_, Kind::Limit) => write!(f, "{metric} at most {most}"),
            (Metric::ErrorRate, Kind::Multiple) => {
                write!(f, "error rate at most {most} x stable")
            }
            (_, Kind::Multiple) => write!(
                f,
                "latency at most {most} x stable at every quantile (differences under \
                 {LATENCY_NOISE_MS} ms do not count)"
            ),
            (_, Kind::Remembered { .. }) => {
                write!(f, "{metric} at most {most} x what stable's was before")
            }
        }
    }
}

/// The rules of a policy, in the order in which people think of them.
#[must_use]
pub fn rules(policy: &Policy, baseline: &Baseline<'_>, shadow: bool) -> Vec<Rule> {
    let limits = [
        (Metric::ErrorRate, policy.error_rate_max),
        (Metric::LatencyP50, policy.latency_p50_max_ms),
        (Metric::LatencyP95, policy.latency_p95_max_ms),
        (Metric::LatencyP99, policy.latency_p99_max_ms),
        (Metric::Agreement, policy.agreement_min.filter(|_| shadow)),
    ];
    let limits = limits.into_iter().filter_map(|(metric, most)| {
        Some(Rule {
            metric,
            kind: Kind::Limit,
            most: most?,
        })
    });
    let multiples = [
        (Metric::LatencyP95, policy.latency_multiplier_max),
        (Metric::ErrorRate, policy.error_multiplier_max),
    ];
    let multiples = multiples.into_iter().filter_map(|(metric, most)| {
        let kind = match baseline {
            Baseline::Concurrent => Kind::Multiple,
            Baseline::Remembered(findings) => remembered(metric, findings)?,
            Baseline::Nothing => return None,
        };
        Some(Rule {
            metric,
            kind,
            most: most?,
        })
    });
    limits.chain(multiples).collect()
}

/// What earlier findings say of stable: the one that rests on most.
fn remembered(metric: Metric, findings: &[Finding]) -> Option<Kind> {
    let told = findings
        .iter()
        .filter(|f| f.metric == metric && f.segment.is_none() && f.stable.is_some())
        .max_by_key(|f| f.stable_samples)?;
    Some(Kind::Remembered {
        stable: told.stable?,
        samples: told.stable_samples,
    })
}

/// Below this error rate a multiple of stable's does not count.
pub(super) fn error_floor(policy: &Policy) -> f64 {
    policy.error_rate_max.map_or(0.0, |max| max / 10.0)
}

/// A fraction in percent, without the noise of binary fractions.
pub(super) fn percent(fraction: f64) -> f64 {
    (fraction * 1e8).round() / 1e6
}
