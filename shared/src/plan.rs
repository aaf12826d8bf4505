//! How a rollout should go: a TOML file checked once, at the door.
//!
//! [`Plan::from_toml`] is the only way in from outside: what comes out has
//! stages in order, shares within bounds and a lease that can be kept.

mod file;
mod order;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::assignment::Share;
use crate::ids::ModelName;
use crate::limits::PLAN_BYTES_MAX;
use crate::time::human;
use crate::version::Version;

/// A checked plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model.
    pub model: ModelName,
    /// The version on trial.
    pub candidate: Version,
    /// The order of stages that is enforced.
    pub strategy: Strategy,
    /// Who answers for the rollout.
    pub owner: Option<String>,
    /// How long an agent may use the candidate without hearing from the coordinator.
    #[serde(with = "human")]
    pub lease: Duration,
    /// What the judge holds the candidate to.
    pub policy: Policy,
    /// The trip, in order; never empty.
    pub stages: Vec<Stage>,
}

/// Which stages a rollout must go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Straight to every node. For a model's first version, and for emergencies.
    Direct,
    /// Shadow only: measured, never promoted.
    Shadow,
    /// Shadow, then growing canaries, then full.
    Canary,
    /// The files of stable once more, under another number, beside stable: a failure would be
    /// the judge's error. Measured, never promoted nor withdrawn.
    Aa,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Unique in the plan.
    pub name: String,
    /// Who gets the candidate, and how.
    pub mode: StageMode,
    /// How long the stage must last at least.
    #[serde(with = "human")]
    pub hold: Duration,
    /// Roles that must approve before the stage begins.
    pub approvals: Vec<String>,
}

/// Who gets the candidate, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageMode {
    /// A share of requests is copied to it; it answers none.
    Shadow {
        /// The share.
        share: Share,
    },
    /// It answers a share of requests on every node.
    CanaryByRequest {
        /// The share.
        share: Share,
    },
    /// It answers all requests of a set of nodes.
    CanaryByNode {
        /// How many of the eligible nodes.
        size: CohortSize,
        /// Labels a node must have to be eligible.
        selector: BTreeMap<String, String>,
    },
    /// It answers everything, under a lease until the watch is over; then it is stable.
    Full,
}

/// How many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CohortSize {
    /// Percent of the eligible nodes, rounded up: never zero.
    Percent(f64),
    /// That many.
    Count(u32),
}

/// What the judge holds a candidate to. Limits that are `None` are not judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Largest share of requests that may fail, 0 to 1.
    pub error_rate_max: Option<f64>,
    /// Error rate at most this multiple of stable's (counted only above `error_rate_max / 10`).
    pub error_multiplier_max: Option<f64>,
    /// Latency limits in milliseconds.
    pub latency_p50_max_ms: Option<f64>,
    /// See [`Self::latency_p50_max_ms`].
    pub latency_p95_max_ms: Option<f64>,
    /// See [`Self::latency_p50_max_ms`].
    pub latency_p99_max_ms: Option<f64>,
    /// p95 at most this multiple of stable's, measured at the same time.
    pub latency_multiplier_max: Option<f64>,
    /// Least share of shadowed requests on which both versions agree, 0 to 1.
    pub agreement_min: Option<f64>,
    /// Nothing passes on fewer candidate requests. What is proven to be broken needs none.
    pub min_requests: u64,
    /// Probability of taking a good candidate back, over a whole stage and however often one
    /// looks; above 0, at most .1.
    // Skipped at its default, and what follows too, as in records of earlier releases: the
    // chain of hashes is over the bytes.
    #[serde(default = "alpha", skip_serializing_if = "is_alpha")]
    pub alpha: f64,
    /// Whether the multiple of stable's error rate passes only when it is proven to be kept. With
    /// rare errors that takes many more requests than `min_requests`; with none, for ever.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prove_errors: bool,
    /// Nothing about labels, KPIs and groups passes on fewer of them.
    #[serde(default = "min_labels", skip_serializing_if = "is_min_labels")]
    pub min_labels: u64,
    /// How far scores may drift from stable's (population stability index).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_max: Option<f64>,
    /// Least share of labelled answers that are right, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_min: Option<f64>,
    /// Least F1, mean over classes, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1_min: Option<f64>,
    /// Largest calibration error, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_error_max: Option<f64>,
    /// Largest gap between segments in how often the positive class is named, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias_max: Option<f64>,
    /// The class that `bias_max` is about; `1` if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive_class: Option<String>,
    /// By outcome, how far its mean may lie below stable's, as a part of it: .1 is 10 %.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kpi_drop_max: BTreeMap<String, f64>,
    /// How often the judge looks.
    #[serde(with = "human")]
    pub check_every: Duration,
}

/// One in a thousand.
const fn alpha() -> f64 {
    0.001
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    clippy::float_cmp,
    reason = "serde asks so"
)]
fn is_alpha(value: &f64) -> bool {
    *value == alpha()
}

const fn min_labels() -> u64 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_min_labels(value: &u64) -> bool {
    *value == min_labels()
}

/// A starting point for a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// .5 % errors, latency x 1.2, 500 requests, every 30 s.
    Conservative,
    /// 1 % errors, latency x 1.5, 1,000 requests, every 60 s.
    #[default]
    Balanced,
    /// 2 % errors, latency x 2, 5,000 requests, every 300 s.
    Aggressive,
}

impl Preset {
    /// The preset's limits.
    #[must_use]
    pub fn policy(self) -> Policy {
        let (error_rate, latency_multiplier, min_requests, seconds) = match self {
            Self::Conservative => (0.005, 1.2, 500, 30),
            Self::Balanced => (0.01, 1.5, 1_000, 60),
            Self::Aggressive => (0.02, 2.0, 5_000, 300),
        };
        Policy {
            error_rate_max: Some(error_rate),
            error_multiplier_max: None,
            latency_p50_max_ms: None,
            latency_p95_max_ms: None,
            latency_p99_max_ms: None,
            latency_multiplier_max: Some(latency_multiplier),
            agreement_min: Some(0.95),
            min_requests,
            alpha: alpha(),
            prove_errors: false,
            min_labels: min_labels(),
            drift_max: None,
            accuracy_min: None,
            f1_min: None,
            calibration_error_max: None,
            bias_max: None,
            positive_class: None,
            kpi_drop_max: BTreeMap::new(),
            check_every: Duration::from_secs(seconds),
        }
    }
}

/// A plan that is refused.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not TOML, or not the form of a plan.
    #[error("the plan cannot be read: {0}")]
    Malformed(#[source] Box<toml::de::Error>),
    /// Over the size bound.
    #[error("a plan of {bytes} bytes is over the bound of {PLAN_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Readable, but it makes no sense.
    #[error("the plan is refused: {0}")]
    Invalid(String),
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
