//! What the judge says, and on what evidence. Stored with every decision, so
//! that it can be recomputed.

use std::fmt;

use crate::ids::NodeId;
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
    /// Nodes whose circuit breaker took the candidate out of service.
    Breakers,
    /// How far the candidate's scores lie from stable's: population stability index.
    Drift,
    /// Share of labelled answers that were right.
    Accuracy,
    /// F1, mean over the classes.
    F1,
    /// Expected calibration error, without its bias.
    Calibration,
    /// Largest gap between groups in how often the positive class is named.
    Bias,
    /// Mean of an outcome.
    Kpi,
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
            Self::Breakers => "open breakers",
            Self::Drift => "drift",
            Self::Accuracy => "accuracy",
            Self::F1 => "F1",
            Self::Calibration => "calibration error",
            Self::Bias => "bias",
            Self::Kpi => "KPI",
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
    /// The segment it is about; `None`: all requests.
    // Skipped when empty, as in records of earlier releases: the chain of hashes is over the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// The test behind the rule, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Test>,
}

/// How strong the evidence is that a rule is broken. Logarithms are natural.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// `ln` of the e-value: 0 is no evidence, and under the rule it exceeds `ln(1/a)`, ever,
    /// with probability `a` at most.
    pub log_e: f64,
    /// From where on the rule is broken: `ln` of 1 over the part of alpha that the rule has.
    pub log_e_needed: f64,
    /// What is left of the evidence without the group of nodes that says most. `None`: not
    /// asked, as there is too little evidence to begin with, only one node, or no verdict that
    /// could rest on it (a shadow's latency).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_e_without_worst: Option<f64>,
}

/// An outcome with its evidence: the worst of its findings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The answer.
    pub outcome: Outcome,
    /// One for each rule of the policy.
    pub findings: Vec<Finding>,
    /// The node that alone is to blame, if one is: it should go on without the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blamed: Option<NodeId>,
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
        Self {
            outcome,
            findings,
            blamed: None,
        }
    }

    /// The findings that decided.
    pub fn decisive(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == self.outcome)
    }
}
