//! What the judge says, and on what evidence. Stored with every decision, so
//! that it can be recomputed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The three answers of a judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Good enough to go on.
    Pass,
    /// Not enough seen: hold. Missing data is never a pass nor a failure.
    Insufficient,
    /// Broken: withdraw.
    Fail,
}

/// What was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of requests that failed.
    ErrorRate,
    /// Median latency in milliseconds.
    LatencyP50,
    /// 95th percentile of latency in milliseconds.
    LatencyP95,
    /// 99th percentile of latency in milliseconds.
    LatencyP99,
    /// Share of shadowed requests on which both versions agree.
    Agreement,
    /// Nodes on which the candidate could not be loaded or warmed.
    LoadFailures,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ErrorRate => "error rate",
            Self::LatencyP50 => "p50 ms",
            Self::LatencyP95 => "p95 ms",
            Self::LatencyP99 => "p99 ms",
            Self::Agreement => "agreement",
            Self::LoadFailures => "load failures",
        })
    }
}

/// One rule held against the numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was judged.
    pub metric: Metric,
    /// What came of it.
    pub outcome: Outcome,
    /// The candidate's value, if it has one.
    pub candidate: Option<f64>,
    /// Stable's value at the same time, where the rule compares.
    pub stable: Option<f64>,
    /// The value at which the rule breaks.
    pub threshold: f64,
    /// Candidate requests the value rests on.
    pub candidate_samples: u64,
    /// Stable requests the value rests on.
    pub stable_samples: u64,
    /// The rule in words, e.g. `p95 at most 1.5 x stable`.
    pub rule: String,
}

/// An outcome with its evidence: the worst of its findings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The answer.
    pub outcome: Outcome,
    /// One for each rule of the policy.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// The verdict that follows from findings: one failure fails; else one
    /// insufficient holds; no rules at all pass.
    #[must_use]
    pub fn of(findings: Vec<Finding>) -> Self {
        let outcome = findings
            .iter()
            .map(|finding| finding.outcome)
            .max()
            .unwrap_or(Outcome::Pass);
        Self { outcome, findings }
    }

    /// The findings that decided.
    pub fn decisive(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == self.outcome)
    }
}
