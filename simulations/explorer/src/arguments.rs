//! The command-line arguments of one run, the same wherever a run is asked for.

use std::time::Duration;

use crate::faults::{Hazards, Sabotage, Setup, parse_hazards};

/// What a run is given on a command line.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArguments {
    /// How many agents
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub agents: u16,
    /// How long faults rage, in simulated hours
    #[arg(long, default_value = "0.1", value_parser = hours)]
    pub hours: Duration,
    /// Take a guard of the shells away, to see whether it is noticed
    #[arg(long)]
    pub sabotage: Option<Sabotage>,
    /// Leave out what the seed drew of these, e.g. loss,replays
    #[arg(long, default_value = "", hide_default_value = true, value_parser = parse_hazards)]
    pub without: Hazards,
}

/// To a millisecond, so that whole seconds read back as they were printed.
fn hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse::<f64>().ok();
    hours
        .and_then(|hours| Duration::try_from_secs_f64((hours * 3_600e3).round() / 1e3).ok())
        .ok_or_else(|| "hours are a number that is not negative, e.g. .1".to_owned())
}

impl RunArguments {
    /// As the world wants it.
    #[must_use]
    pub fn setup(&self, trace: bool) -> Setup {
        Setup {
            agents: usize::from(self.agents),
            faults_for: self.hours,
            sabotage: self.sabotage,
            without: self.without,
            trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_survive_being_printed_as_hours() {
        for seconds in 1..4_000 {
            let lasts = Duration::from_secs(seconds);
            let text = (lasts.as_secs_f64() / 3_600.0).to_string();
            assert_eq!(hours(&text), Ok(lasts));
        }
        assert!(hours("-1").is_err());
        assert!(hours("soon").is_err());
    }
}
