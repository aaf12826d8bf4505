//! How good the judge is: many rollouts whose truth is known, drawn and judged, by Rollcall's
//! judge and, on the same draws, by the tests that others use.
//!
//! | module | holds |
//! | --- | --- |
//! | [`scenario`] | what can be true of a candidate: one row each |
//! | [`draws`] | what nodes count then, from a seed |
//! | `rollcall` | the judge that ships, as the coordinator calls it |
//! | `peers` | the others, and where each was read |
//! | [`figures`] | false alarms, requests until `Fail`, targets; a table and JSON |
//! | [`chart`] | the same as a picture |
//!
//! Runs are independent, each from a labelled child of the seed: figures are the same on any
//! number of threads. `samples` are always candidate requests of all nodes together, counted at
//! the end of the interval in which a judge spoke.

pub mod chart;
pub mod draws;
pub mod figures;
mod peers;
mod rollcall;
pub mod scenario;
mod statistics;

use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::storm::Output;
use draws::{Interval, Stream};
use figures::{Figures, Finding};
use scenario::{SCENARIOS, Scenario, Truth};

/// `rollcall-sim judge`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What is true of the candidate
    #[arg(long, default_value = "all", value_parser = names())]
    scenario: Choice,
    /// How many rollouts of each good candidate; of bad ones, a tenth
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    runs: u64,
    /// What the draws follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of good candidates that Rollcall may roll back
    #[arg(long, default_value_t = 0.001, value_parser = share)]
    alpha: f64,
    /// How to print; the default is a table
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Draw the figures as an SVG here
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

/// `all`, or a name of the table.
#[derive(Clone, Debug)]
struct Choice(Vec<&'static Scenario>);

fn names() -> impl clap::builder::TypedValueParser<Value = Choice> {
    let names = SCENARIOS.iter().map(|scenario| scenario.name);
    PossibleValuesParser::new(std::iter::once("all").chain(names)).map(|name| {
        let chosen = SCENARIOS.iter();
        Choice(
            chosen
                .filter(|scenario| name == "all" || name == scenario.name)
                .collect(),
        )
    })
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (1e-6..=0.1).contains(share));
    share.ok_or_else(|| "alpha is a share from 0.000001 to 0.1, e.g. 0.001".to_owned())
}

/// What judges are told before the first interval.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Share of good candidates that may be rolled back.
    pub alpha: f64,
    /// For a candidate that only shadows: the share on which it must agree.
    pub agreement_min: Option<f64>,
}

/// What a judge says after an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Nothing yet.
    Hold,
    /// Good enough to go on.
    Pass,
    /// Take the candidate off this node.
    Quarantine(usize),
    /// Roll back.
    Fail,
}

/// Somebody who judges one rollout.
trait Judge {
    /// Takes an interval in.
    fn see(&mut self, interval: &Interval);
    /// Says what follows from all that was seen.
    fn verdict(&mut self) -> Word;
}

/// Who judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// The judge that ships.
    Rollcall,
    /// A z-test at 1 %, looked at again and again.
    ZTest,
    /// Kayenta's.
    MannWhitney,
    /// Limits.
    Thresholds,
}

impl Who {
    /// All of them, Rollcall first.
    pub const ALL: [Self; 4] = [
        Self::Rollcall,
        Self::ZTest,
        Self::MannWhitney,
        Self::Thresholds,
    ];

    /// As tables and charts call them.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rollcall => "rollcall",
            Self::ZTest => "z-test",
            Self::MannWhitney => "mann-whitney",
            Self::Thresholds => "thresholds",
        }
    }

    fn judge(self, setting: &Setting) -> Box<dyn Judge> {
        match self {
            Self::Rollcall => Box::new(rollcall::Rollcall::new(setting)),
            Self::ZTest => Box::new(peers::z_test::ZTest::new(setting)),
            Self::MannWhitney => Box::new(peers::mann_whitney::MannWhitney::new(setting)),
            Self::Thresholds => Box::new(peers::thresholds::Thresholds::new(setting)),
        }
    }
}

/// How one rollout went before one judge; in candidate requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// It was rolled back before anything was wrong with it.
    pub early: bool,
    /// Requests until it was rolled back, from when something was wrong.
    pub failed: Option<u64>,
    /// Requests until it was good enough to go on.
    pub passed: Option<u64>,
    /// The first node that it was taken off, and requests until then.
    pub quarantined: Option<(usize, u64)>,
}

/// Judges and prints.
///
/// # Errors
/// When the chart cannot be written.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let Choice(scenarios) = &arguments.scenario;
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(
            scenarios
                .iter()
                .map(|scenario| runs(scenario, arguments.runs))
                .sum(),
        )
    } else {
        ProgressBar::hidden()
    };
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let findings = scenarios.iter().map(|scenario| {
        let runs = runs(scenario, arguments.runs);
        let endings = judge(
            scenario,
            arguments.alpha,
            arguments.seed,
            runs,
            threads,
            &bar,
        );
        Finding::of(scenario, arguments.alpha, &endings)
    });
    let figures = Figures {
        seed: arguments.seed,
        alpha: arguments.alpha,
        scenarios: findings.collect(),
    };
    bar.finish_and_clear();
    if let Some(path) = &arguments.chart {
        std::fs::write(path, chart::svg(&figures))
            .with_context(|| format!("the chart cannot be written to {}", path.display()))?;
    }
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(&figures)?),
        Output::Table => print!("{figures}"),
    }
    Ok(if figures.misses_a_target() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// A rare false alarm takes many runs to be seen, a median few.
fn runs(scenario: &Scenario, runs: u64) -> u64 {
    if scenario.truth() == Truth::Bad && scenario.from == 0 {
        (runs / 10).max(10)
    } else {
        runs
    }
}

/// Runs a scenario so many times; the endings in order of [`Who::ALL`], run by run.
#[must_use]
pub fn judge(
    scenario: &'static Scenario,
    alpha: f64,
    seed: u64,
    runs: u64,
    threads: NonZeroUsize,
    progress: &ProgressBar,
) -> Vec<[Ending; 4]> {
    let setting = scenario.setting(alpha);
    let next = AtomicU64::new(0);
    let endings = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| {
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= runs {
                        return;
                    }
                    let ending = roll_out(scenario, &setting, Stream::new(scenario, seed, run));
                    progress.inc(1);
                    let mut endings = endings.lock().unwrap_or_else(PoisonError::into_inner);
                    endings.push((run, ending));
                }
            });
        }
    });
    let mut endings = endings.into_inner().unwrap_or_else(PoisonError::into_inner);
    endings.sort_unstable_by_key(|(run, _)| *run);
    endings.into_iter().map(|(_, ending)| ending).collect()
}

/// One rollout before all judges, until each has said `Fail` or it is over.
fn roll_out(scenario: &Scenario, setting: &Setting, mut stream: Stream) -> [Ending; 4] {
    let mut judges = Who::ALL.map(|who| Some(who.judge(setting)));
    let mut endings = [Ending::default(); 4];
    let mut samples = 0;
    for at in 0..scenario.intervals {
        let interval = stream.next_interval();
        let early = at < scenario.from;
        samples += interval.fleet.candidate.counts.requests;
        if at == scenario.from {
            samples = interval.fleet.candidate.counts.requests;
        }
        for (judge, ending) in judges.iter_mut().zip(&mut endings) {
            let Some(sitting) = judge else { continue };
            sitting.see(&interval);
            match sitting.verdict() {
                Word::Hold => {}
                Word::Pass => ending.passed = ending.passed.or(Some(samples)),
                Word::Quarantine(node) => {
                    ending.quarantined = ending.quarantined.or(Some((node, samples)));
                }
                Word::Fail => {
                    ending.early = early;
                    ending.failed = Some(samples);
                    *judge = None;
                }
            }
        }
        if judges.iter().all(Option::is_none) {
            break;
        }
    }
    endings
}
