//! Many seeds, on all cores; each run is single-threaded and knows nothing of the others.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::checkers::promise_name;
use crate::faults::{Fired, Setup};
use crate::shrink::{Shrunk, shrink};
use crate::world::{self, Outcome, START};

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Explored {
    /// How many seeds were run.
    pub seeds: u64,
    /// Runs in which something was broken, in order of seed.
    pub broken: Vec<Outcome>,
    /// Events of all runs.
    pub events: u64,
    /// Simulated time of all runs.
    pub simulated: Duration,
    /// How often each knob fired in all runs.
    pub fired: Fired,
}

/// The JSON that others read.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the contract")]
pub struct Summary<'a> {
    pub seeds: u64,
    pub from: u64,
    pub violations: &'a [Outcome],
    pub events: u64,
    pub simulated_s: f64,
    pub wall_s: f64,
    /// The first broken run made smaller, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Shrunk>,
}

impl<'a> Summary<'a> {
    /// What came of it in figures; `wall` is how long it took.
    #[must_use]
    pub fn of(explored: &'a Explored, from: u64, wall: Duration) -> Self {
        Self {
            seeds: explored.seeds,
            from,
            violations: &explored.broken,
            events: explored.events,
            simulated_s: explored.simulated.as_secs_f64(),
            wall_s: wall.as_secs_f64(),
            shrunk: None,
        }
    }
}

/// Runs `seeds` seeds from `from` on; `each` is told of every run that is over. Stops
/// early once `enough` runs were broken.
pub fn explore(
    from: u64,
    seeds: u64,
    setup: &Setup,
    enough: usize,
    each: impl Fn(&Outcome) + Sync,
) -> Explored {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicU64::new(0);
    let explored = Mutex::new(Explored::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= seeds {
                        return;
                    }
                    let outcome = world::run(from.wrapping_add(nth), setup);
                    each(&outcome);
                    let Ok(mut explored) = explored.lock() else {
                        return;
                    };
                    explored.add(outcome);
                    if explored.broken.len() >= enough {
                        next.store(seeds, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut explored = explored.into_inner().unwrap_or_default();
    explored.broken.sort_by_key(|outcome| outcome.seed);
    explored
}

impl Explored {
    /// The first broken run made smaller; `None` when none is broken.
    #[must_use]
    pub fn shrunk(&self, setup: &Setup) -> Option<Shrunk> {
        self.broken.first().and_then(|broken| shrink(broken, setup))
    }

    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.simulated += outcome.simulated;
        self.fired.merge(&outcome.fired);
        if !outcome.violations.is_empty() {
            self.broken.push(outcome);
        }
    }
}

/// Everything that somebody needs to look into a broken run.
#[must_use]
pub fn describe(outcome: &Outcome, setup: &Setup) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for violation in &outcome.violations {
        let node = violation.node.as_deref().unwrap_or("coordinator");
        let at = violation.at.since(START).as_secs_f64();
        let promise = promise_name(violation.promise);
        let _ = writeln!(
            text,
            "{promise} broken at {at:.6} s on {node}: {}",
            violation.what
        );
    }
    let _ = writeln!(text, "seed {}: {:?}", outcome.seed, outcome.options);
    let _ = writeln!(
        text,
        "replay: {} --trace /tmp/trace.txt",
        command_line(outcome.seed, setup)
    );
    text
}

/// A smaller run, as people read it: what led to it, what is broken, how to see it again.
#[must_use]
pub fn describe_shrunk(shrunk: &Shrunk) -> String {
    let Shrunk {
        violation,
        setup,
        options,
        command,
        trace,
        runs,
    } = shrunk;
    let promise = promise_name(violation.promise);
    let seconds = setup.faults_for.as_secs_f64();
    let node = violation.node.as_deref().unwrap_or("coordinator");
    format!(
        "{}\n{promise} broken on {node}: {}\nshrunk in {runs} runs to {} agents, {seconds} s of \
         faults, without {}\n{options:?}\nreplay: {command}\n",
        trace.join("\n"),
        violation.what,
        setup.agents,
        setup.without
    )
}

/// How to run this seed with this setup again.
#[must_use]
pub fn command_line(seed: u64, setup: &Setup) -> String {
    let hours = setup.faults_for.as_secs_f64() / 3_600.0;
    let sabotage = setup.sabotage.and_then(|sabotage| {
        let value = clap::ValueEnum::to_possible_value(&sabotage)?;
        Some(format!(" --sabotage {}", value.get_name()))
    });
    let without = if setup.without.is_empty() {
        String::new()
    } else {
        format!(" --without {}", setup.without)
    };
    format!(
        "rollcall-sim replay {seed} --agents {} --hours {hours}{}{without}",
        setup.agents,
        sabotage.unwrap_or_default()
    )
}
