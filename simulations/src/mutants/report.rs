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
    /// Whether one of what was expected was seen.
    pub killed: bool,
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
        let Found { caught, shrunk } = found;
        Self {
            name: mutant.name.clone(),
            breaks: mutant.breaks.clone(),
            kind: match mutant.fault {
                Fault::Source { .. } => "source",
                Fault::World { .. } => "world",
            },
            killed: caught.iter().any(|c| mutant.expect.contains(&c.promise)),
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
            "{} of {} mutants killed; the unmutated copy is clean on {} runs; {:.0} s in all",
            self.killed, self.planted, self.clean_seeds, self.wall_s
        )?;
        if !self.survivors.is_empty() {
            writeln!(f, "not killed: {}", self.survivors.join(", "))?;
        }
        Ok(())
    }
}
