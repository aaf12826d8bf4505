//! How a rollout should go: a TOML file checked once, at the door.
//!
//! [`Plan::from_toml`] is the only way in from outside: what comes out has
//! stages in order, shares within bounds and a lease that can be kept.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::assignment::Share;
use crate::ids::ModelName;
use crate::limits::{LABELS_MAX, LEASE_MAX, LEASE_MIN, PLAN_BYTES_MAX, STAGES_MAX, TEXT_BYTES_MAX};
use crate::time::{display_duration, human};
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
    /// Nothing is judged on fewer candidate requests.
    pub min_requests: u64,
    /// How often the judge looks.
    #[serde(with = "human")]
    pub check_every: Duration,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    model: ModelName,
    candidate: Version,
    strategy: Strategy,
    owner: Option<String>,
    #[serde(default = "default_lease", with = "human")]
    lease: Duration,
    #[serde(default)]
    policy: PolicyFile,
    #[serde(default)]
    stage: Vec<StageFile>,
}

fn default_lease() -> Duration {
    Duration::from_secs(10)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    preset: Preset,
    error_rate_max: Option<f64>,
    error_multiplier_max: Option<f64>,
    latency_p50_max_ms: Option<f64>,
    latency_p95_max_ms: Option<f64>,
    latency_p99_max_ms: Option<f64>,
    latency_multiplier_max: Option<f64>,
    agreement_min: Option<f64>,
    min_requests: Option<u64>,
    check_every: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageFile {
    name: String,
    mode: ModeName,
    by: Option<By>,
    share_percent: Option<f64>,
    percent: Option<f64>,
    count: Option<u32>,
    #[serde(default)]
    selector: BTreeMap<String, String>,
    hold: Option<String>,
    watch: Option<String>,
    #[serde(default)]
    approvals: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ModeName {
    Shadow,
    Canary,
    Full,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum By {
    Request,
    Node,
}

fn invalid<T>(why: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError::Invalid(why.into()))
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// When the text is no plan, or a plan that could not be kept; the error says
    /// which line or stage, and what to write instead.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        if text.len() > PLAN_BYTES_MAX {
            return Err(PlanError::TooLarge { bytes: text.len() });
        }
        let file: PlanFile =
            toml::from_str(text).map_err(|error| PlanError::Malformed(Box::new(error)))?;
        if !(LEASE_MIN..=LEASE_MAX).contains(&file.lease) {
            return invalid(format!(
                "lease is {}; it must be {} to {}",
                display_duration(file.lease),
                display_duration(LEASE_MIN),
                display_duration(LEASE_MAX)
            ));
        }
        if file
            .owner
            .as_ref()
            .is_some_and(|owner| owner.len() > TEXT_BYTES_MAX)
        {
            return invalid(format!("owner is longer than {TEXT_BYTES_MAX} bytes"));
        }
        let policy = file.policy.check()?;
        let stages = if file.stage.is_empty() {
            ready_made_stages(file.strategy, policy.check_every)
        } else {
            file.stage
                .into_iter()
                .map(StageFile::check)
                .collect::<Result<Vec<_>, _>>()?
        };
        check_stages(file.strategy, &stages)?;
        Ok(Self {
            model: file.model,
            candidate: file.candidate,
            strategy: file.strategy,
            owner: file.owner,
            lease: file.lease,
            policy,
            stages,
        })
    }
}

impl PolicyFile {
    fn check(self) -> Result<Policy, PlanError> {
        let preset = self.preset.policy();
        let fraction = |name: &str, value: Option<f64>| match value {
            Some(v) if !(0.0..=1.0).contains(&v) => invalid(format!(
                "policy.{name} is {v}; it is a fraction from 0 to 1"
            )),
            other => Ok(other),
        };
        let positive = |name: &str, value: Option<f64>| match value {
            Some(v) if !(v > 0.0 && v.is_finite()) => {
                invalid(format!("policy.{name} is {v}; it must be above 0"))
            }
            other => Ok(other),
        };
        let check_every = duration("policy.check_every", self.check_every.as_deref())?
            .unwrap_or(preset.check_every);
        if check_every < Duration::from_millis(100) {
            return invalid("policy.check_every must be at least 100ms");
        }
        Ok(Policy {
            error_rate_max: fraction("error_rate_max", self.error_rate_max)?
                .or(preset.error_rate_max),
            error_multiplier_max: positive("error_multiplier_max", self.error_multiplier_max)?
                .or(preset.error_multiplier_max),
            latency_p50_max_ms: positive("latency_p50_max_ms", self.latency_p50_max_ms)?,
            latency_p95_max_ms: positive("latency_p95_max_ms", self.latency_p95_max_ms)?,
            latency_p99_max_ms: positive("latency_p99_max_ms", self.latency_p99_max_ms)?,
            latency_multiplier_max: positive(
                "latency_multiplier_max",
                self.latency_multiplier_max,
            )?
            .or(preset.latency_multiplier_max),
            agreement_min: fraction("agreement_min", self.agreement_min)?.or(preset.agreement_min),
            min_requests: self.min_requests.unwrap_or(preset.min_requests).max(1),
            check_every,
        })
    }
}

fn duration(what: &str, text: Option<&str>) -> Result<Option<Duration>, PlanError> {
    text.map(crate::time::parse_duration)
        .transpose()
        .map_err(|error| PlanError::Invalid(format!("{what}: {error}")))
}

impl StageFile {
    fn check(self) -> Result<Stage, PlanError> {
        let name = self.name;
        if name.is_empty() || name.len() > TEXT_BYTES_MAX || self.selector.len() > LABELS_MAX {
            return invalid(format!(
                "stage {name:?}: its name or selector is empty or too long"
            ));
        }
        let share = |value: Option<f64>| match value.map(Share::from_percent) {
            None => invalid(format!("stage {name:?} needs share_percent")),
            Some(Err(error)) => invalid(format!("stage {name:?}: {error}")),
            Some(Ok(Share::NONE)) => {
                invalid(format!("stage {name:?}: a share of 0 % tests nothing"))
            }
            Some(Ok(share)) => Ok(share),
        };
        let by_node_fields =
            self.percent.is_some() || self.count.is_some() || !self.selector.is_empty();
        let mode = match (self.mode, self.by) {
            (ModeName::Shadow, None) if !by_node_fields => StageMode::Shadow {
                share: share(self.share_percent.or(Some(100.0)))?,
            },
            (ModeName::Canary, Some(By::Request)) if !by_node_fields => {
                StageMode::CanaryByRequest {
                    share: share(self.share_percent)?,
                }
            }
            (ModeName::Canary, Some(By::Node)) if self.share_percent.is_none() => {
                StageMode::CanaryByNode {
                    size: cohort_size(&name, self.percent, self.count)?,
                    selector: self.selector,
                }
            }
            (ModeName::Canary, None) => {
                return invalid(format!(
                    "stage {name:?} needs by = \"request\" or by = \"node\""
                ));
            }
            (ModeName::Full, None) if !by_node_fields && self.share_percent.is_none() => {
                StageMode::Full
            }
            (ModeName::Shadow | ModeName::Canary | ModeName::Full, _) => {
                return invalid(format!(
                    "stage {name:?} has fields of another mode: shadow takes share_percent; canary \
                     by request takes share_percent; canary by node takes percent or count, and \
                     selector; full takes watch"
                ));
            }
        };
        if self.hold.is_some() && self.watch.is_some() {
            return invalid(format!("stage {name:?}: write hold or watch, not both"));
        }
        if self.watch.is_some() && mode != StageMode::Full {
            return invalid(format!(
                "stage {name:?}: watch is for the full stage; write hold"
            ));
        }
        let hold = duration(
            &format!("stage {name:?}"),
            self.hold.or(self.watch).as_deref(),
        )?;
        Ok(Stage {
            name,
            mode,
            hold: hold.unwrap_or_default(),
            approvals: self.approvals,
        })
    }
}

fn cohort_size(
    name: &str,
    percent: Option<f64>,
    count: Option<u32>,
) -> Result<CohortSize, PlanError> {
    match (percent, count) {
        (Some(percent), None) if percent > 0.0 && percent <= 100.0 => {
            Ok(CohortSize::Percent(percent))
        }
        (None, Some(count)) if count > 0 => Ok(CohortSize::Count(count)),
        _ => invalid(format!(
            "stage {name:?} needs either percent (above 0, at most 100) or count (1 or more)"
        )),
    }
}

/// What a strategy means when the plan lists no stages.
fn ready_made_stages(strategy: Strategy, hold: Duration) -> Vec<Stage> {
    let stage = |name: &str, mode| Stage {
        name: name.to_owned(),
        mode,
        hold,
        approvals: vec![],
    };
    let shadow = || stage("shadow", StageMode::Shadow { share: Share::ALL });
    let full = || stage("full", StageMode::Full);
    match strategy {
        Strategy::Direct => vec![full()],
        Strategy::Shadow => vec![shadow()],
        Strategy::Canary => {
            let canaries = [5.0, 25.0, 50.0].map(|percent| {
                let share = Share::from_percent(percent).unwrap_or(Share::ALL);
                stage(
                    &format!("canary-{percent}"),
                    StageMode::CanaryByRequest { share },
                )
            });
            [shadow()]
                .into_iter()
                .chain(canaries)
                .chain([full()])
                .collect()
        }
    }
}

fn check_stages(strategy: Strategy, stages: &[Stage]) -> Result<(), PlanError> {
    if stages.len() > STAGES_MAX {
        return invalid(format!("more than {STAGES_MAX} stages"));
    }
    for (i, stage) in stages.iter().enumerate() {
        if stages[..i].iter().any(|earlier| earlier.name == stage.name) {
            return invalid(format!("two stages are named {:?}", stage.name));
        }
    }
    let rank = |mode: &StageMode| match mode {
        StageMode::Shadow { .. } => 0,
        StageMode::CanaryByRequest { .. } | StageMode::CanaryByNode { .. } => 1,
        StageMode::Full => 2,
    };
    for pair in stages.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        if rank(&before.mode) > rank(&after.mode) || after.mode == before.mode {
            return invalid(format!(
                "stage {:?} cannot follow {:?}: the order is shadow, then growing canaries, then full",
                after.name, before.name
            ));
        }
        if shrinks(&before.mode, &after.mode) {
            return invalid(format!(
                "stage {:?} gives the candidate less than {:?} did: shares only grow",
                after.name, before.name
            ));
        }
    }
    let ranks: Vec<_> = stages.iter().map(|stage| rank(&stage.mode)).collect();
    let (fits, need) = match strategy {
        Strategy::Direct => (ranks == [2], "one full stage and no other"),
        Strategy::Shadow => (ranks.iter().all(|&rank| rank == 0), "shadow stages only"),
        Strategy::Canary => (
            ranks.first() == Some(&0) && ranks.contains(&1) && ranks.last() == Some(&2),
            "a shadow stage first, then at least one canary, and full last",
        ),
    };
    if fits {
        Ok(())
    } else {
        invalid(format!("this strategy takes {need}"))
    }
}

fn shrinks(before: &StageMode, after: &StageMode) -> bool {
    match (before, after) {
        (StageMode::Shadow { share: a }, StageMode::Shadow { share: b })
        | (StageMode::CanaryByRequest { share: a }, StageMode::CanaryByRequest { share: b }) => {
            b < a
        }
        (
            StageMode::CanaryByNode {
                size: CohortSize::Percent(a),
                selector: s,
            },
            StageMode::CanaryByNode {
                size: CohortSize::Percent(b),
                selector: t,
            },
        ) => s == t && b < a,
        (
            StageMode::CanaryByNode {
                size: CohortSize::Count(a),
                selector: s,
            },
            StageMode::CanaryByNode {
                size: CohortSize::Count(b),
                selector: t,
            },
        ) => s == t && b < a,
        (
            StageMode::Shadow { .. }
            | StageMode::CanaryByRequest { .. }
            | StageMode::CanaryByNode { .. }
            | StageMode::Full,
            _,
        ) => false,
    }
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
