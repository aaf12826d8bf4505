//! What came of the mutants: a line each, and the JSON that others read.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FROM;
use super::table::{Fault, Mutant};
use super::workshop::Found;

/// A violation that the explorer found.
#[derive(Clone, Debug, Serialize)]
pub struct Caught {
    /// In which run.
    pub seed: u64,
    /// E.g. `promise 3`.
    pub promise: String,
    /// In words.
    pub what: String,
}

/// The smallest run that was found to notice a mutant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shrunk {
    /// How the explorer is told to run it.
    pub command: String,
    /// What happened last before the violation.
    pub trace: Vec<String>,
    /// How many runs it took to find.
    pub runs: u32,
}

/// What came of one mutant.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Its name.
    pub name: String,
    /// What it breaks.
    pub breaks: String,
    /// `source` or `world`.
    pub kind: &'static str,
    /// Whether one of what was expected was seen, or it never came to an end.
    pub killed: bool,
    /// Whether its exploration did not end in many times the usual time, and was stopped.
    pub timed_out: bool,
    /// What was expected.
    pub expected: Vec<String>,
    /// What the first broken run saw; empty: no run was broken.
    pub caught: Vec<Caught>,
    /// That run made smaller, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Shrunk>,
    /// How many seeds that took, or how many there were.
    pub seeds: u64,
    /// How long its build took.
    pub build_s: f64,
    /// How long its exploration took.
    pub explore_s: f64,
}

/// What came of all of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many were planted.
    pub planted: usize,
    /// How many were noticed as expected.
    pub killed: usize,
    /// How many of these by not coming to an end.
    pub timed_out: usize,
    /// Names of the others.
    pub survivors: Vec<String>,
    /// On how many runs the unmutated copy was clean.
    pub clean_seeds: u64,
    /// How long its build took.
    pub clean_build_s: f64,
    /// How long everything took.
    pub wall_s: f64,
    /// Each of them.
    pub mutants: Vec<Tried>,
}

impl Tried {
    pub(super) fn new(mutant: &Mutant, found: Found, build_s: f64, explore_s: f64) -> Self {
        let timed_out = matches!(found, Found::TimedOut);
        let (caught, shrunk) = match found {
            Found::Ended { caught, shrunk } => (caught, shrunk),
            Found::TimedOut => (Vec::new(), None),
        };
        Self {
            name: mutant.name.clone(),
            breaks: mutant.breaks.clone(),
            kind: match mutant.fault {
                Fault::Source { .. } => "source",
                Fault::World { .. } => "world",
            },
            killed: timed_out || caught.iter().any(|c| mutant.expect.contains(&c.promise)),
            timed_out,
            expected: mutant.expect.clone(),
            seeds: caught.first().map_or(mutant.seeds, |c| c.seed - FROM + 1),
            caught,
            shrunk,
            build_s,
            explore_s,
        }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let expected = self.expected.join(" or ");
        let fate = match self.caught.first() {
            Some(caught) if self.killed => {
                let by = self
                    .caught
                    .iter()
                    .find(|c| self.expected.contains(&c.promise));
                let by = by.unwrap_or(caught);
                let (promise, seed, seeds) = (&by.promise, by.seed, self.seeds);
                format!("{promise:<10} seed {seed:>4} after {seeds:>4} seeds")
            }
            Some(caught) => format!(
                "NOT AS EXPECTED: {} at seed {}, expected {expected}: {}",
                caught.promise, caught.seed, caught.what
            ),
            None if self.timed_out => "time-out: it does not come to an end".to_owned(),
            None => format!("SURVIVED {} seeds, expected {expected}", self.seeds),
        };
        format!(
            "{:<44} {fate}   build {:>4.1} s, exploration {:>4.1} s",
            self.name, self.build_s, self.explore_s
        )
    }
}

impl Report {
    pub(super) fn add(&mut self, tried: Tried) {
        self.planted += 1;
        self.timed_out += usize::from(tried.timed_out);
        if tried.killed {
            self.killed += 1;
        } else {
            self.survivors.push(tried.name.clone());
        }
        self.mutants.push(tried);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tried in &self.mutants {
            writeln!(f, "{}", tried.line())?;
            if let Some(shrunk) = &tried.shrunk {
                writeln!(f, "{}", shrunk.trace.join("\n"))?;
                writeln!(f, "with the fault in place: {}\n", shrunk.command)?;
            }
        }
        writeln!(
            f,
            "{} of {} mutants killed, {} of them by a time-out; the unmutated copy is clean on {} \
             runs; {:.0} s in all",
            self.killed, self.planted, self.timed_out, self.clean_seeds, self.wall_s
        )?;
        if !self.survivors.is_empty() {
            writeln!(f, "not killed: {}", self.survivors.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant() -> Mutant {
        Mutant {
            name: "endless".to_owned(),
            breaks: "a core never comes back".to_owned(),
            expect: vec!["liveness".to_owned()],
            seeds: 50,
            agents: 5,
            seconds: 180,
            fault: Fault::World {
                sabotage: "lease-ignored".to_owned(),
            },
        }
    }

    #[test]
    fn a_mutant_that_never_ends_is_killed_and_said_to_be_by_a_time_out() {
        let mut report = Report::default();
        report.add(Tried::new(&mutant(), Found::TimedOut, 1.0, 300.0));
        assert_eq!((report.killed, report.timed_out), (1, 1));
        assert!(report.survivors.is_empty());
        let text = report.to_string();
        assert!(
            text.contains("time-out: it does not come to an end"),
            "{text}"
        );
        assert!(
            text.contains("1 of 1 mutants killed, 1 of them by a time-out"),
            "{text}"
        );
    }

    #[test]
    fn a_mutant_that_nothing_notices_survives() {
        let unnoticed = Found::Ended {
            caught: Vec::new(),
            shrunk: None,
        };
        let mut report = Report::default();
        report.add(Tried::new(&mutant(), unnoticed, 1.0, 2.0));
        assert_eq!((report.killed, report.timed_out), (0, 0));
        assert_eq!(report.survivors, ["endless"]);
    }
}
