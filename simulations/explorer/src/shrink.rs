//! From a run that broke a promise to a smaller one that breaks the same promise.
//!
//! Smaller means: shorter, fewer agents, and fewer hazards (delta debugging over what can be
//! left out: halves of the hazards first, then quarters, down to single ones). A change is
//! kept when the seed still breaks that promise, wherever and however. Deterministic, and
//! bounded by a number of runs, none of which is larger than the first.

use std::time::Duration;

use clap::ValueEnum as _;
use serde::Serialize;

use crate::checkers::Violation;
use crate::explore::command_line;
use crate::faults::{Hazard, Hazards, Options, Setup};
use crate::world::{self, CALM, Outcome, START};

/// How many runs may be tried.
pub const RUNS_MAX: u32 = 400;

/// Lines of the trace that are shown, and how much of each.
const TAIL: usize = 30;
const LINE_CHARS: usize = 200;

/// A smaller run that breaks the same promise.
#[derive(Clone, Debug, Serialize)]
pub struct Shrunk {
    /// What is broken.
    pub violation: Violation,
    /// What the run is given.
    pub setup: Setup,
    /// What is left of the seed's options.
    pub options: Options,
    /// How to see it again.
    pub command: String,
    /// What happened last before it.
    pub trace: Vec<String>,
    /// How many runs it took to find.
    pub runs: u32,
}

struct Search {
    seed: u64,
    promise: u8,
    best: Setup,
    /// When it was broken in the best run, since the faults began.
    after: Duration,
    runs: u32,
}

/// Shrinks a broken run of this setup; `None` when it did not break anything.
#[must_use]
pub fn shrink(broken: &Outcome, setup: &Setup) -> Option<Shrunk> {
    let first = broken.violations.first()?;
    let mut search = Search {
        seed: broken.seed,
        promise: first.promise,
        best: Setup {
            trace: false,
            ..*setup
        },
        after: since_calm(first),
        runs: 0,
    };
    loop {
        let before = search.best;
        search.shorten();
        search.send_agents_home();
        search.calm_hazards();
        if search.best == before || search.runs >= RUNS_MAX {
            break;
        }
    }
    let setup = Setup {
        trace: true,
        ..search.best
    };
    let outcome = world::run(search.seed, &setup);
    let tail = outcome.trace.len().saturating_sub(TAIL);
    let broken = |violation: &&Violation| violation.promise == search.promise;
    Some(Shrunk {
        violation: outcome.violations.iter().find(broken)?.clone(),
        setup: search.best,
        command: command_line(search.seed, &search.best),
        trace: outcome.trace[tail..]
            .iter()
            .map(|line| short(line))
            .collect(),
        options: outcome.options,
        runs: search.runs,
    })
}

/// The beginning of a line says what happened.
fn short(line: &str) -> String {
    match line.char_indices().nth(LINE_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

fn since_calm(violation: &Violation) -> Duration {
    violation.at.since(START + CALM)
}

impl Search {
    /// Keeps a setup if it still breaks the promise.
    fn keeps(&mut self, setup: Setup) -> bool {
        if setup == self.best || self.runs >= RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let violations = world::run(self.seed, &setup).violations;
        let promise = self.promise;
        let Some(same) = violations.iter().find(|v| v.promise == promise) else {
            return false;
        };
        (self.best, self.after) = (setup, since_calm(same));
        true
    }

    /// Ends right after the violation; or, where it shows only after everything healed, heals
    /// ever earlier.
    fn shorten(&mut self) {
        let whole_seconds = Duration::from_secs(self.after.as_secs() + 1);
        if whole_seconds < self.best.faults_for {
            let faults_for = whole_seconds;
            self.keeps(Setup {
                faults_for,
                ..self.best
            });
        }
        while self.best.faults_for > Duration::from_secs(1) {
            let faults_for = Duration::from_secs(self.best.faults_for.as_secs() * 3 / 4);
            if !self.keeps(Setup {
                faults_for,
                ..self.best
            }) {
                break;
            }
        }
    }

    /// As few agents as will do.
    fn send_agents_home(&mut self) {
        let mut agents = 1;
        while agents < self.best.agents {
            if self.keeps(Setup {
                agents,
                ..self.best
            }) {
                return;
            }
            agents += 1 + agents / 4;
        }
    }

    /// As few hazards as will do.
    fn calm_hazards(&mut self) {
        let all = Hazard::value_variants().iter().copied();
        let left = |without: Hazards| -> Vec<Hazard> {
            all.clone().filter(|h| !without.contains(*h)).collect()
        };
        let mut size = left(self.best.without).len();
        while size > 0 {
            for some in left(self.best.without).chunks(size) {
                let without = some.iter().copied().fold(self.best.without, Hazards::with);
                self.keeps(Setup {
                    without,
                    ..self.best
                });
            }
            size /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::explore;
    use crate::faults::Sabotage;

    #[test]
    fn a_broken_run_shrinks_to_a_smaller_one_that_breaks_the_same_promise() {
        let setup = Setup {
            agents: 6,
            faults_for: Duration::from_secs(180),
            sabotage: Some(Sabotage::AppendNotSynced),
            without: Hazards::NONE,
            trace: false,
        };
        let explored = explore(1, 20, &setup, 1, |_| {});
        let broken = &explored.broken[0];
        let shrunk = shrink(broken, &setup).unwrap();
        assert_eq!(shrunk.violation.promise, broken.violations[0].promise);
        assert!(shrunk.setup.faults_for <= setup.faults_for);
        assert!(shrunk.setup.agents < setup.agents, "{:?}", shrunk.setup);
        assert!(
            shrunk.setup.without.iter().count() > 10,
            "{:?}",
            shrunk.setup
        );
        assert!(shrunk.runs <= RUNS_MAX);
        let again = world::run(broken.seed, &shrunk.setup);
        assert!(again.violations.contains(&shrunk.violation));
        assert_eq!(shrink(broken, &setup).unwrap().command, shrunk.command);
    }

    #[test]
    fn what_is_whole_does_not_shrink() {
        let setup = Setup {
            agents: 1,
            faults_for: Duration::from_secs(1),
            sabotage: None,
            without: Hazards::NONE,
            trace: false,
        };
        assert!(shrink(&world::run(1, &setup), &setup).is_none());
    }
}
