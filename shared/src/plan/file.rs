//! A plan as people write it: TOML, unknown fields refused, checked field by field
//! on the way to the trusted [`Plan`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::order::{check_stages, ready_made_stages};
use super::{CohortSize, Plan, PlanError, Policy, Preset, Stage, StageMode, Strategy};
use crate::assignment::Share;
use crate::ids::ModelName;
use crate::limits::{
    KPIS_MAX, LABELS_MAX, LEASE_MAX, LEASE_MIN, NAME_BYTES_MAX, PLAN_BYTES_MAX, TEXT_BYTES_MAX,
};
use crate::time::{display_duration, human};
use crate::version::Version;

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
    alpha: Option<f64>,
    prove_errors: bool,
    min_labels: Option<u64>,
    drift_max: Option<f64>,
    accuracy_min: Option<f64>,
    f1_min: Option<f64>,
    calibration_error_max: Option<f64>,
    bias_max: Option<f64>,
    positive_class: Option<String>,
    kpi_drop_max: BTreeMap<String, f64>,
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

pub(super) fn invalid<T>(why: impl Into<String>) -> Result<T, PlanError> {
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
            alpha: match self.alpha {
                Some(alpha) if !(alpha > 0.0 && alpha <= 0.1) => {
                    return invalid(format!(
                        "policy.alpha is {alpha}; it is above 0 and at most 0.1: the probability \
                         of taking a good candidate back"
                    ));
                }
                alpha => alpha.unwrap_or(preset.alpha),
            },
            prove_errors: self.prove_errors,
            min_labels: self.min_labels.unwrap_or(preset.min_labels).max(2),
            drift_max: positive("drift_max", self.drift_max)?,
            accuracy_min: fraction("accuracy_min", self.accuracy_min)?,
            f1_min: fraction("f1_min", self.f1_min)?,
            calibration_error_max: fraction("calibration_error_max", self.calibration_error_max)?,
            bias_max: fraction("bias_max", self.bias_max)?,
            positive_class: text("positive_class", self.positive_class)?,
            kpi_drop_max: kpis(self.kpi_drop_max)?,
            check_every,
        })
    }
}

fn text(name: &str, value: Option<String>) -> Result<Option<String>, PlanError> {
    match value {
        Some(text) if text.len() > TEXT_BYTES_MAX => invalid(format!(
            "policy.{name} is longer than {TEXT_BYTES_MAX} bytes"
        )),
        other => Ok(other),
    }
}

fn kpis(drops: BTreeMap<String, f64>) -> Result<BTreeMap<String, f64>, PlanError> {
    if drops.len() > KPIS_MAX {
        return invalid(format!(
            "policy.kpi_drop_max names over {KPIS_MAX} outcomes"
        ));
    }
    for (name, drop) in &drops {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !(0.0..=1.0).contains(drop) {
            return invalid(format!(
                "policy.kpi_drop_max: {name:?} = {drop}; write a name of at most {NAME_BYTES_MAX} \
                 bytes and a fraction from 0 to 1: 0.1 allows a mean 10 % below stable's"
            ));
        }
    }
    Ok(drops)
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
