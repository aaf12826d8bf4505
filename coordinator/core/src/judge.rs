//! The judge: numbers against limits.
//!
//! Two kinds of rule stand here, as operators think in them: absolute limits, and multiples
//! of stable measured at the same time. Every limit of a [`Policy`] that is set becomes one
//! [`Finding`] with its numbers, its threshold and its rule in words, so that a verdict can
//! be read, and recomputed, from its record alone.
//!
//! Missing data holds: with fewer than `min_requests` a finding is `Insufficient`, neither a
//! pass nor a failure.
//!
//! Every limit is held to the whole stage, and once more to the last checks alone, where a
//! breach late in a long watch is not diluted by the good hours before it; those findings say
//! `(recent)` in their rule. The recent counts stand in a verdict where they have something to
//! say of their own: only part of the stage, and enough of it. They never hold a gate.
//!
//! Looking often at a fixed threshold is not a test with a bounded error; the sequential tests
//! stand beside these rules later, not instead.
//!
//! Pure: a function of its arguments.

pub mod agreement;
pub mod anystart;
#[cfg(test)]
mod draws;
pub mod exact;
pub mod latency;
pub mod rare;
mod rule;

use std::time::Duration;

use rollcall_shared::plan::Policy;
use rollcall_shared::report::Counts;
use rollcall_shared::verdict::{Finding, Metric, Outcome, Verdict};
use serde::{Deserialize, Serialize};

pub use self::rule::{follows, outcome};

/// p95s that differ by less are the same: a multiple of some microseconds is noise of the
/// scheduler, not a slower model.
pub const LATENCY_NOISE_MS: f64 = 1.0;

/// What a candidate is judged on.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// What was seen of the candidate in this stage; `None` before the first stage.
    pub candidate: Option<&'a Counts>,
    /// What was seen over the last checks of the stage.
    pub recent: Recent<'a>,
    /// Whether the candidate only shadows.
    pub shadow: bool,
    /// What it is compared with.
    pub baseline: Baseline<'a>,
    /// How loading it went.
    pub loads: Loads,
}

/// The last checks' part of the evidence.
#[derive(Clone, Copy, Debug)]
pub struct Recent<'a> {
    /// What was seen of the candidate.
    pub candidate: &'a Counts,
    /// What was seen of stable, where that is compared with.
    pub stable: &'a Counts,
}

/// What a candidate is compared with.
#[derive(Clone, Debug)]
pub enum Baseline<'a> {
    /// Stable, at the same time.
    Concurrent(&'a Counts),
    /// The candidate answers everything: stable as it was judged in the stages before.
    Remembered(Vec<Finding>),
    /// There is no stable version: multiples are not judged.
    Nothing,
}

/// Nodes that tried to load the candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// Nodes that may try it.
    pub nodes: u64,
    /// Of these, nodes that gave up on it.
    pub failed: u64,
}

/// Independent tries, and how many of them were hits: failures, answers above an edge,
/// agreements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    /// Tries.
    pub n: u64,
    /// Hits among them; never more than the tries.
    pub hits: u64,
}

/// Holds the evidence to the policy.
#[must_use]
pub fn judge(policy: &Policy, evidence: &Evidence<'_>) -> Verdict {
    let mut findings = vec![loads(policy, evidence.loads)];
    if let Some(candidate) = evidence.candidate {
        let stage = Bench {
            policy,
            candidate,
            baseline: &evidence.baseline,
        };
        findings.extend(stage.findings(evidence.shadow));
        findings.extend(recent(policy, candidate, evidence));
    }
    Verdict::of(findings)
}

/// What the last checks alone say, if they are not all of the stage.
fn recent(policy: &Policy, stage: &Counts, evidence: &Evidence<'_>) -> Vec<Finding> {
    let Recent { candidate, stable } = evidence.recent;
    if candidate == stage {
        return Vec::new();
    }
    let concurrent = Baseline::Concurrent(stable);
    let bench = Bench {
        policy,
        candidate,
        baseline: match evidence.baseline {
            Baseline::Concurrent(_) => &concurrent,
            Baseline::Remembered(_) | Baseline::Nothing => &evidence.baseline,
        },
    };
    let mut findings = bench.findings(evidence.shadow);
    findings.retain(|finding| finding.outcome != Outcome::Insufficient);
    for finding in &mut findings {
        finding.rule.push_str(" (recent)");
    }
    findings
}

/// One bad node is not a bad candidate; two are, and so is the only one.
fn loads(policy: &Policy, loads: Loads) -> Finding {
    let limit = if loads.nodes == 1 { 1 } else { 2 };
    let finding = Finding {
        metric: Metric::LoadFailures,
        outcome: Outcome::Insufficient,
        candidate: Some(count(loads.failed)),
        stable: None,
        threshold: count(limit),
        candidate_samples: loads.nodes,
        stable_samples: 0,
        rule: format!("fewer than {limit} nodes fail to load it"),
    };
    rule::decided(policy, finding)
}

struct Bench<'a> {
    policy: &'a Policy,
    candidate: &'a Counts,
    baseline: &'a Baseline<'a>,
}

/// A value and the requests that it rests on.
#[derive(Clone, Copy)]
struct Measured {
    value: Option<f64>,
    samples: u64,
}

impl Bench<'_> {
    fn findings(&self, shadow: bool) -> Vec<Finding> {
        let agreement = shadow.then(|| self.agreement()).flatten();
        self.absolute()
            .chain(self.multiples())
            .chain(agreement)
            .collect()
    }

    fn absolute(&self) -> impl Iterator<Item = Finding> {
        let policy = self.policy;
        let limits = [
            (Metric::ErrorRate, policy.error_rate_max),
            (Metric::LatencyP50, policy.latency_p50_max_ms),
            (Metric::LatencyP95, policy.latency_p95_max_ms),
            (Metric::LatencyP99, policy.latency_p99_max_ms),
        ];
        limits.into_iter().filter_map(|(metric, limit)| {
            let limit = limit?;
            let rule = if metric == Metric::ErrorRate {
                format!("at most {} % of requests fail", percent(limit))
            } else {
                format!("{metric} at most {limit}")
            };
            Some(self.finding(metric, measure(metric, self.candidate), None, limit, rule))
        })
    }

    fn multiples(&self) -> impl Iterator<Item = Finding> {
        let policy = self.policy;
        let latency = policy.latency_multiplier_max.map(|multiple| {
            let rule = format!(
                "p95 at most {multiple} x stable (differences under {LATENCY_NOISE_MS} ms do not count)"
            );
            self.multiple(Metric::LatencyP95, multiple, rule)
        });
        let errors = policy.error_multiplier_max.map(|multiple| {
            let rule = format!(
                "error rate at most {multiple} x stable (counted above {} %)",
                percent(rule::error_floor(policy))
            );
            self.multiple(Metric::ErrorRate, multiple, rule)
        });
        latency.into_iter().chain(errors).flatten()
    }

    fn multiple(&self, metric: Metric, multiple: f64, rule: String) -> Option<Finding> {
        let stable = match self.baseline {
            Baseline::Nothing => return None,
            Baseline::Concurrent(counts) => measure(metric, counts),
            Baseline::Remembered(findings) => remembered(metric, findings),
        };
        let seen = measure(metric, self.candidate);
        let limit = stable.value.unwrap_or_default() * multiple;
        Some(self.finding(metric, seen, Some(stable), limit, rule))
    }

    fn agreement(&self) -> Option<Finding> {
        let least = self.policy.agreement_min?;
        let seen = measure(Metric::Agreement, self.candidate);
        let rule = format!("at least {} % of shadowed answers agree", percent(least));
        Some(self.finding(Metric::Agreement, seen, None, least, rule))
    }

    fn finding(
        &self,
        metric: Metric,
        seen: Measured,
        stable: Option<Measured>,
        threshold: f64,
        rule: String,
    ) -> Finding {
        let finding = Finding {
            metric,
            outcome: Outcome::Insufficient,
            candidate: seen.value,
            stable: stable.and_then(|s| s.value),
            threshold,
            candidate_samples: seen.samples,
            stable_samples: stable.map_or(0, |s| s.samples),
            rule,
        };
        rule::decided(self.policy, finding)
    }
}

fn measure(metric: Metric, counts: &Counts) -> Measured {
    let quantile = |q| Measured {
        value: counts.latency.quantile(q).map(millis),
        samples: counts.latency.count(),
    };
    match metric {
        Metric::ErrorRate => Measured {
            value: share(counts.failures(), counts.requests),
            samples: counts.requests,
        },
        Metric::LatencyP50 => quantile(0.5),
        Metric::LatencyP95 => quantile(0.95),
        Metric::LatencyP99 => quantile(0.99),
        Metric::Agreement => Measured {
            value: share(counts.agreed, counts.compared),
            samples: counts.compared,
        },
        Metric::LoadFailures => Measured {
            value: None,
            samples: 0,
        },
    }
}

/// What earlier findings say of stable.
fn remembered(metric: Metric, findings: &[Finding]) -> Measured {
    let of_metric = findings.iter().filter(|f| f.metric == metric);
    of_metric
        .filter(|f| f.stable.is_some())
        .max_by_key(|f| f.stable_samples)
        .map_or(
            Measured {
                value: None,
                samples: 0,
            },
            |f| Measured {
                value: f.stable,
                samples: f.stable_samples,
            },
        )
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| count(part) / count(whole))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
const fn count(n: u64) -> f64 {
    n as f64
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A fraction in percent, without the noise of binary fractions.
fn percent(fraction: f64) -> f64 {
    (fraction * 1e8).round() / 1e6
}

#[cfg(test)]
mod tests;
