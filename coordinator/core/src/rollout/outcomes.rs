//! Outcomes that an operator records by hand: a conversion rate from the warehouse, a cost
//! from the bill. They stand beside those that agents report, in the evidence of the stage
//! under way; like it they are memory only, and the record of a verdict that rests on them
//! keeps them.

use rollcall_shared::feedback::{TAG, is_kpi_value, is_tag};
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::KPIS_MAX;
use rollcall_shared::report::Moments;
use rollcall_shared::version::Version;

use crate::coordinator::Coordinator;
use crate::effect::{Done, Refusal};
use crate::judge::watch::Arm;
use crate::rollout::trial::Trial;

/// Outcomes in one record: sums stay exact enough.
const COUNT_MAX: u64 = 1_000_000_000;

/// An outcome, seen so many times.
#[derive(Clone, Debug, PartialEq)]
pub struct KpiRecord {
    /// Of which version: the candidate of the model's rollout, or its stable.
    pub version: Version,
    /// Which outcome, as the plan's policy names it.
    pub name: String,
    /// What it was.
    pub value: f64,
    /// How many times.
    pub count: u64,
}

impl KpiRecord {
    fn check(&self) -> Result<(), Refusal> {
        let Self {
            name, value, count, ..
        } = self;
        let why = if !is_tag(name) {
            format!("the KPI {name:?} is no {TAG}")
        } else if !is_kpi_value(*value) {
            format!("the value of {name} must be a number, of 10^15 at most")
        } else if !(1..=COUNT_MAX).contains(count) {
            format!("the count of {name} must be 1 to {COUNT_MAX}")
        } else {
            return Ok(());
        };
        Err(Refusal::Invalid(why))
    }

    fn moments(&self) -> Moments {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let times = self.count as f64;
        Moments {
            count: self.count,
            sum: self.value * times,
            squares: self.value * self.value * times,
        }
    }
}

impl Coordinator {
    pub(crate) fn on_record_kpi(
        &mut self,
        model: &ModelName,
        record: &KpiRecord,
    ) -> Result<Done, Refusal> {
        record.check()?;
        let version = self.registered(model, record.version)?.1.version;
        let stable = self.state.models.get(model).and_then(|m| m.stable);
        let Some(rollout) = self.state.live_rollout(model) else {
            return Err(Refusal::Conflict(format!(
                "{model} has no live rollout that {} could be evidence of",
                record.name
            )));
        };
        let arm = if version == rollout.candidate {
            Arm::Candidate
        } else if Some(version) == stable {
            Arm::Stable
        } else {
            return Err(Refusal::Conflict(format!(
                "{model}@{} is neither the candidate of {} ({}) nor stable",
                record.version, rollout.id, rollout.candidate.version
            )));
        };
        let id = rollout.id;
        if rollout.stage.is_none() {
            return Err(Refusal::Conflict(format!(
                "{id} has not entered its first stage: what happens before is no evidence"
            )));
        }
        let trial = self.trials.get_mut(&id);
        let full = trial.is_some_and(|trial| !trial.note_outcomes(arm, record));
        if full {
            return Err(Refusal::Conflict(format!(
                "this stage of {id} has {KPIS_MAX} other KPIs: there is no room for {}",
                record.name
            )));
        }
        Ok(Done::Done)
    }
}

impl Trial {
    /// Adds outcomes to what the judge sees of the stage; false: there is no room for the name.
    fn note_outcomes(&mut self, arm: Arm, record: &KpiRecord) -> bool {
        let seen = &mut self.watch.all.seen;
        let counts = match arm {
            Arm::Candidate => &mut seen.candidate,
            Arm::Stable => &mut seen.stable,
        };
        let kpis = &mut counts.quality.kpis;
        if kpis.len() >= KPIS_MAX && !kpis.contains_key(&record.name) {
            return false;
        }
        let moments = kpis.entry(record.name.clone()).or_default();
        moments.merge(&record.moments());
        true
    }
}

#[cfg(test)]
#[path = "outcomes/tests.rs"]
mod tests;
