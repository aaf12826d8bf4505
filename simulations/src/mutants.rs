//! Faults planted in the source that ships, to see whether the simulator finds them.
//!
//! A checker that never fires proves nothing. Each entry of `mutants/table.toml` takes one
//! guard out of the words or of a core (or out of the simulated shells around them), and says
//! which promise should be seen broken within how many seeds. The needed folders of the
//! checkout are copied, so that the checkout itself is never touched; the copy must first be
//! clean on the same seeds; then each fault is planted, built, explored and taken out again.
//!
//! | module | holds |
//! | --- | --- |
//! | `table` | the mutants |
//! | `workshop` | the copy: edits, builds, runs |
//! | `report` | what came of it |

mod report;
mod table;
mod workshop;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;

pub use report::{Caught, Report, Tried};
pub use table::{Fault, Mutant, table};
pub use workshop::checkout_of;

use workshop::{Exploration, Found, Workshop};

/// The first seed of every exploration.
const FROM: u64 = 1;

/// No exploration of the unmutated copy takes so long.
const CLEAN_LIMIT: Duration = Duration::from_secs(3_600);

/// A mutant may take this many times as long as the unmutated copy took for all seeds, and so
/// much more. Few take longer than the copy did.
const LIMIT_TIMES: u32 = 10;
const LIMIT_MORE: Duration = Duration::from_secs(300);

/// Plants every mutant, or the one that is named, and explores; with `shrink` makes what
/// notices it small.
///
/// # Errors
/// When there is no checkout or no cargo, when an edit does not apply or does not compile,
/// and when the unmutated copy is not clean.
#[expect(
    clippy::disallowed_methods,
    reason = "how long builds and explorations took"
)]
pub fn run(
    checkout: &Path,
    only: Option<&str>,
    shrink: bool,
    bar: &ProgressBar,
) -> anyhow::Result<Report> {
    let began = std::time::Instant::now();
    let all = table()?;
    let known: Vec<&str> = all.iter().map(|m| m.name.as_str()).collect();
    if let Some(only) = only.filter(|only| !known.contains(only)) {
        bail!(
            "there is no mutant {only:?}; there are: {}",
            known.join(", ")
        );
    }
    let chosen: Vec<&Mutant> = all
        .iter()
        .filter(|mutant| only.is_none_or(|only| mutant.name == only))
        .collect();
    for mutant in &chosen {
        mutant.check(checkout)?;
    }
    bar.set_length(chosen.len() as u64 + 1);
    bar.set_message("the unmutated copy");
    let workshop = Workshop::set_up(checkout)?;
    let clean_build_s = workshop.build()?;
    let explored = std::time::Instant::now();
    let mut report = Report {
        clean_build_s,
        clean_seeds: prove_clean(&workshop, &chosen)?,
        ..Report::default()
    };
    let limit = explored.elapsed() * LIMIT_TIMES + LIMIT_MORE;
    bar.inc(1);
    for mutant in chosen {
        bar.set_message(mutant.name.clone());
        let tried = try_mutant(&workshop, mutant, shrink, limit)
            .with_context(|| format!("the mutant {} could not be tried", mutant.name))?;
        bar.println(tried.line());
        report.add(tried);
        bar.inc(1);
    }
    // What is left behind is the clean copy, built: the next run begins with it.
    workshop.build()?;
    report.wall_s = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Explores the unmutated copy on all seeds that any mutant gets; gives how many.
fn prove_clean(workshop: &Workshop, chosen: &[&Mutant]) -> anyhow::Result<u64> {
    let mut wanted = BTreeMap::new();
    for mutant in chosen {
        let seeds: &mut u64 = wanted.entry((mutant.agents, mutant.seconds)).or_default();
        *seeds = mutant.seeds.max(*seeds);
    }
    for ((agents, seconds), seeds) in &wanted {
        let exploration = Exploration {
            seeds: *seeds,
            agents: *agents,
            seconds: *seconds,
            sabotage: None,
            shrink: false,
        };
        let caught = match workshop.explore(&exploration, CLEAN_LIMIT)? {
            Found::Ended { caught, .. } => caught,
            Found::TimedOut => bail!(
                "without any mutant, {seeds} seeds of {agents} agents and {seconds} s are not \
                 explored within {CLEAN_LIMIT:?}: find the one that does not end"
            ),
        };
        if let Some(caught) = caught.first() {
            bail!(
                "without any mutant, seed {} breaks {}: {}. Mend that first: rollcall-sim replay {} \
                 --agents {agents} --hours {}",
                caught.seed,
                caught.promise,
                caught.what,
                caught.seed,
                exploration.hours()
            );
        }
    }
    Ok(wanted.values().sum())
}

#[expect(clippy::disallowed_methods, reason = "how long the exploration took")]
fn try_mutant(
    workshop: &Workshop,
    mutant: &Mutant,
    shrink: bool,
    limit: Duration,
) -> anyhow::Result<Tried> {
    let exploration = Exploration {
        seeds: mutant.seeds,
        agents: mutant.agents,
        seconds: mutant.seconds,
        sabotage: match &mutant.fault {
            Fault::World { sabotage } => Some(sabotage.clone()),
            Fault::Source { .. } => None,
        },
        shrink,
    };
    let _planted = workshop.plant(mutant)?;
    let build_s = match mutant.fault {
        Fault::Source { .. } => workshop.build()?,
        Fault::World { .. } => 0.0,
    };
    let began = std::time::Instant::now();
    let found = workshop.explore(&exploration, limit)?;
    Ok(Tried::new(
        mutant,
        found,
        build_s,
        began.elapsed().as_secs_f64(),
    ))
}
