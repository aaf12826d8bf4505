//! What can be left out of a run, one by one: so does shrinking find out what a violation
//! needs, and so do old regressions keep their story when new hazards are added.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::Options;

/// A part of the weather, or of the work, that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(
    missing_docs,
    reason = "the names are those of the options that they calm"
)]
pub enum Hazard {
    Loss,
    Duplicates,
    SlowNetwork,
    Replays,
    Partitions,
    OneWayPartitions,
    SmallQueues,
    AgentCrashes,
    CoordinatorCrashes,
    CrashAtEffect,
    Blackouts,
    AgentPauses,
    CoordinatorPauses,
    ClockDrift,
    WallSteps,
    OldBackups,
    StateLosses,
    StaleWords,
    PrepareFailures,
    PrepareRefusals,
    SlowPreparation,
    Evictions,
    SlowSync,
    SecondModel,
    BadVersions,
    EngineTroubles,
    LongerPlans,
    Repushes,
    Rehearsals,
}

impl Hazard {
    /// Makes the options as if this did not exist.
    fn leave_out(self, options: &mut Options) {
        let ms = Duration::from_millis;
        let number = match self {
            Self::Loss => &mut options.loss,
            Self::Duplicates => &mut options.duplicates,
            Self::Replays => &mut options.replays,
            Self::Partitions => &mut options.partitions_per_minute,
            Self::OneWayPartitions => &mut options.one_way_share,
            Self::AgentCrashes => &mut options.agent_crashes_per_minute,
            Self::CoordinatorCrashes => &mut options.coordinator_crashes_per_minute,
            Self::CrashAtEffect => &mut options.crash_at_effect,
            Self::Blackouts => &mut options.blackouts,
            Self::AgentPauses => &mut options.agent_pauses_per_minute,
            Self::CoordinatorPauses => &mut options.coordinator_pauses_per_minute,
            Self::ClockDrift => &mut options.drift_permille_max,
            Self::OldBackups => &mut options.old_backups,
            Self::StateLosses => &mut options.state_losses,
            Self::StaleWords => &mut options.stale_words,
            Self::PrepareFailures => &mut options.prepare_failures,
            Self::PrepareRefusals => &mut options.prepare_refusals,
            Self::Evictions => &mut options.evictions,
            Self::BadVersions => &mut options.bad_versions,
            Self::EngineTroubles => &mut options.engine_troubles,
            Self::LongerPlans => &mut options.longer_plans,
            Self::Repushes => &mut options.repushes,
            Self::Rehearsals => &mut options.rehearsals,
            Self::SlowNetwork => {
                options.delay_max = options.delay_max.min(options.delay_min + ms(20));
                return;
            }
            Self::SmallQueues => {
                options.queue_max = 64;
                return;
            }
            Self::WallSteps => {
                options.wall_step_max = ms(0);
                return;
            }
            Self::SlowPreparation => {
                options.prepare_max = options.prepare_max.min(ms(200));
                return;
            }
            Self::SlowSync => {
                options.sync_max = options.sync_max.min(ms(10));
                return;
            }
            Self::SecondModel => {
                options.models = 1;
                return;
            }
        };
        *number = 0.0;
    }
}

/// A set of [`Hazard`]s.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Hazards(u32);

impl Hazards {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// These and this one.
    #[must_use]
    pub const fn with(self, hazard: Hazard) -> Self {
        Self(self.0 | 1 << hazard as u32)
    }

    /// Whether it is one of these.
    #[must_use]
    pub const fn contains(self, hazard: Hazard) -> bool {
        self.0 & (1 << hazard as u32) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Hazard> {
        let all = Hazard::value_variants().iter().copied();
        all.filter(move |hazard| self.contains(*hazard))
    }

    /// Makes the options as if none of these existed.
    pub(super) fn leave_out(self, options: &mut Options) {
        self.iter().for_each(|hazard| hazard.leave_out(options));
    }
}

impl FromIterator<Hazard> for Hazards {
    fn from_iter<I: IntoIterator<Item = Hazard>>(hazards: I) -> Self {
        hazards.into_iter().fold(Self::NONE, Self::with)
    }
}

/// As `--without` takes them: `loss,replays`.
impl fmt::Display for Hazards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.iter().filter_map(|hazard| hazard.to_possible_value());
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Hazards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl Serialize for Hazards {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads what [`Hazards`] prints.
///
/// # Errors
/// At the first name that is none; says which there are.
pub fn parse(text: &str) -> Result<Hazards, String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| {
            Hazard::from_str(name, false).map_err(|_| {
                let all: Hazards = Hazard::value_variants().iter().copied().collect();
                format!("there is no hazard {name:?}; there are {all}")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_reads_as_it_prints() {
        let hazards = Hazards::NONE.with(Hazard::Loss).with(Hazard::Repushes);
        assert_eq!(hazards.to_string(), "loss,repushes");
        assert_eq!(parse("loss,repushes").unwrap(), hazards);
        assert_eq!(parse("").unwrap(), Hazards::NONE);
        assert!(parse("rain").unwrap_err().contains("slow-network"));
    }

    #[test]
    fn every_hazard_changes_the_options_of_some_seed() {
        for hazard in Hazard::value_variants() {
            let alone = Hazards::NONE.with(*hazard);
            let changes = (0..200).any(|seed| {
                let drawn = format!("{:?}", Options::draw(seed, Hazards::NONE));
                drawn != format!("{:?}", Options::draw(seed, alone))
            });
            assert!(changes, "{hazard:?} changes nothing");
        }
    }
}
