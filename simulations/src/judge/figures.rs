//! What the runs come to, as JSON and as lines for people, and the targets that they meet.

use std::fmt;

use serde::Serialize;

use super::scenario::{Scenario, Truth};
use super::statistics::{interval, quantile};
use super::{Ending, Who};

/// Share of good candidates that one bad node may take back. The judge promises 5 %, for a node
/// that is bad enough and chance on all others; it is held to less.
const WITH_A_BAD_NODE_MAX: f64 = 0.01;

/// Detection may take so many times the reference's samples.
const REFERENCE_FACTOR: f64 = 1.15;
/// Share of bad candidates that must be found, and of bad nodes.
const FOUND_MIN: f64 = 0.99;

/// What was measured; the JSON of `rollcall-sim judge -o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// What the draws follow from.
    pub seed: u64,
    /// Share of good candidates that Rollcall may roll back.
    pub alpha: f64,
    /// One for each scenario.
    pub scenarios: Vec<Finding>,
}

/// One scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its name.
    pub scenario: &'static str,
    /// In words.
    pub about: &'static str,
    /// Whether `Fail` is the right word.
    pub bad: bool,
    /// How many rollouts.
    pub runs: u64,
    /// Intervals that each lasted at most.
    pub intervals: u32,
    /// Candidate requests an interval on average: the resolution of `median` and `p95`.
    pub candidates_per_interval: f64,
    /// One for each judge.
    pub judges: Vec<Column>,
    /// What Rollcall is held to.
    pub targets: Vec<Target>,
}

/// One judge in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Who.
    pub judge: Who,
    /// Rollouts taken back though nothing was wrong with the candidate, or not yet.
    pub false_alarms: Share,
    /// Bad candidates that were not taken back until the end.
    pub missed: Share,
    /// Candidate requests until `Fail`, of all runs; `None`: fewer than half said so.
    pub median: Option<u64>,
    /// The lower end of its 95 % interval, by ranks: a median of few runs says little.
    pub median_low: Option<u64>,
    /// 95th percentile of the same.
    pub p95: Option<u64>,
    /// Rollouts that were found good enough to go on, at some time before any `Fail`.
    pub passed: u64,
    /// Rollouts in which the bad node, and no other, was the first to be taken out.
    pub node_found: u64,
    /// Rollouts in which another node was.
    pub wrong_node: u64,
    /// Median of candidate requests until a node was taken out.
    pub node_median: Option<u64>,
}

/// A share of runs, with its 95 % interval (Clopper-Pearson).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Of how many.
    pub of: u64,
    /// Lower end, 0 to 1.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What Rollcall is held to.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// In words.
    pub target: String,
    /// What was seen.
    pub seen: String,
    /// What came of it.
    pub state: State,
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Met,
    /// Too few runs to say.
    Open,
    /// It is not.
    Missed,
}

impl Share {
    pub(super) fn of(count: u64, of: u64) -> Self {
        let (low, high) = interval(count, of);
        Self {
            count,
            of,
            low,
            high,
        }
    }

    /// The share itself, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.count as f64 / self.of.max(1) as f64
    }
}

impl Target {
    /// Of a share that must not be above `most`.
    fn at_most(what: &str, share: Share, most: f64) -> Self {
        Self {
            target: format!("{what} at most {} %", percent(most)),
            seen: format!("{} - {} % (95 %)", percent(share.low), percent(share.high)),
            state: if share.high <= most {
                State::Met
            } else if share.low <= most {
                State::Open
            } else {
                State::Missed
            },
        }
    }

    /// Of a median that must not be above `most`.
    fn median(what: String, column: &Column, most: f64) -> Self {
        let within = |median: Option<u64>| median.is_some_and(|median| median as f64 <= most);
        Self {
            target: what,
            seen: or_never(column.median),
            state: if within(column.median) {
                State::Met
            } else if within(column.median_low) {
                State::Open
            } else {
                State::Missed
            },
        }
    }
}

impl Finding {
    /// What a scenario's runs come to.
    #[must_use]
    pub fn of(scenario: &Scenario, alpha: f64, runs: &[[Ending; 4]]) -> Self {
        let truth = scenario.truth();
        let judges: Vec<_> = Who::ALL
            .into_iter()
            .enumerate()
            .map(|(nth, who)| Column::of(who, truth, runs.iter().map(|run| run[nth])))
            .collect();
        let targets = targets(scenario, alpha, &judges[0]);
        Self {
            scenario: scenario.name,
            about: scenario.about,
            bad: truth == Truth::Bad,
            runs: runs.len() as u64,
            intervals: scenario.intervals,
            candidates_per_interval: scenario.candidates,
            judges,
            targets,
        }
    }

    /// What one judge came to.
    #[must_use]
    pub fn column(&self, who: Who) -> Option<&Column> {
        self.judges.iter().find(|column| column.judge == who)
    }
}

impl Column {
    fn of(judge: Who, truth: Truth, endings: impl Iterator<Item = Ending>) -> Self {
        let endings: Vec<_> = endings.collect();
        let runs = endings.len() as u64;
        let count = |which: &dyn Fn(&Ending) -> bool| {
            endings.iter().filter(|ending| which(ending)).count() as u64
        };
        let bad = truth == Truth::Bad;
        let found: Vec<_> = endings.iter().map(|ending| ending.failed).collect();
        let nodes: Vec<_> = endings.iter().map(|ending| ending.quarantined).collect();
        let is_bad = |node| truth == Truth::BadNode(node);
        let mark = |q| quantile(&found, q).filter(|_| bad);
        Self {
            judge,
            false_alarms: Share::of(
                count(&|ending| ending.failed.is_some() && (!bad || ending.early)),
                runs,
            ),
            missed: Share::of(count(&|ending| bad && ending.failed.is_none()), runs),
            median: mark(0.5),
            median_low: mark(0.5 - 0.98 / (runs.max(1) as f64).sqrt()),
            p95: mark(0.95),
            passed: count(&|ending| ending.passed.is_some()),
            node_found: nodes
                .iter()
                .flatten()
                .filter(|(node, _)| is_bad(*node))
                .count() as u64,
            wrong_node: nodes
                .iter()
                .flatten()
                .filter(|(node, _)| !is_bad(*node))
                .count() as u64,
            node_median: quantile(
                &nodes
                    .iter()
                    .map(|node| node.map(|(_, at)| at))
                    .collect::<Vec<_>>(),
                0.5,
            ),
        }
    }
}

fn targets(scenario: &Scenario, alpha: f64, column: &Column) -> Vec<Target> {
    let runs = column.false_alarms.of;
    let mut targets = Vec::new();
    match scenario.truth() {
        Truth::Good => {
            targets.push(Target::at_most("rolled back", column.false_alarms, alpha));
            if scenario.shadow() {
                let stuck = Share::of(runs - column.passed, runs);
                targets.push(Target::at_most("never passed", stuck, 1.0 - FOUND_MIN));
            }
        }
        Truth::BadNode(_) => {
            targets.push(Target::at_most(
                "rolled back",
                column.false_alarms,
                WITH_A_BAD_NODE_MAX,
            ));
            let lost = Share::of(runs - column.node_found, runs);
            targets.push(Target::at_most("node not found", lost, 1.0 - FOUND_MIN));
        }
        Truth::Bad => {
            targets.push(Target::at_most("missed", column.missed, 1.0 - FOUND_MIN));
            if scenario.from > 0 {
                targets.push(Target::at_most(
                    "rolled back before",
                    column.false_alarms,
                    alpha,
                ));
            }
        }
    }
    if let Some(reference) = scenario.reference {
        let ratio = column
            .median
            .map_or(f64::INFINITY, |median| median as f64 / reference);
        let mut target = Target::median(
            format!("median at most {REFERENCE_FACTOR} x {reference}"),
            column,
            REFERENCE_FACTOR * reference,
        );
        target.seen = format!("{} ({ratio:.2} x)", target.seen);
        targets.push(target);
    }
    if let Some(bound) = scenario.bound {
        targets.push(Target::median(
            format!("median at most {bound}"),
            column,
            bound,
        ));
    }
    targets
}

impl Figures {
    /// Whether one is missed for certain.
    #[must_use]
    pub fn misses_a_target(&self) -> bool {
        let mut targets = self.scenarios.iter().flat_map(|finding| &finding.targets);
        targets.any(|target| target.state == State::Missed)
    }
}

/// In percent, to three digits.
fn percent(share: f64) -> f64 {
    let percent = share * 100.0;
    if percent <= 0.0 {
        return 0.0;
    }
    let digits = 10_f64.powi(2 - percent.log10().floor() as i32);
    (percent * digits).round() / digits
}

fn or_never(samples: Option<u64>) -> String {
    samples.map_or_else(|| "never".to_owned(), |samples| samples.to_string())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "alpha {}, seed {}; shares with their 95 % interval; the same draws for every judge",
            self.alpha, self.seed
        )?;
        let part = |bad: bool| {
            self.scenarios
                .iter()
                .filter(move |finding| finding.bad == bad)
        };
        if part(false).next().is_some() {
            writeln!(f, "\ngood candidates: rolled back, % of runs")?;
            header(f)?;
            part(false).try_for_each(|finding| row(f, finding, false_alarms))?;
        }
        if part(true).next().is_some() {
            writeln!(
                f,
                "\nbad candidates: requests of theirs until rolled back, median / p95 (missed, %)"
            )?;
            header(f)?;
            part(true).try_for_each(|finding| row(f, finding, detection))?;
        }
        for finding in self
            .scenarios
            .iter()
            .filter(|finding| finding.judges[0].node_found > 0)
        {
            let column = &finding.judges[0];
            writeln!(
                f,
                "\n{}: rollcall took out that node in {} of {} runs (another: {}), after {} candidate requests (median)",
                finding.scenario,
                column.node_found,
                finding.runs,
                column.wrong_node,
                or_never(column.node_median)
            )?;
        }
        writeln!(f, "\nrollcall's targets:")?;
        for finding in &self.scenarios {
            for Target {
                target,
                seen,
                state,
            } in &finding.targets
            {
                let state = format!("{state:?}").to_lowercase();
                writeln!(f, "{state:<7} {:<24} {target:<28} {seen}", finding.scenario)?;
            }
        }
        Ok(())
    }
}

fn header(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{:<24} {:>6}", "scenario", "runs")?;
    for who in Who::ALL {
        write!(f, " {:>22}", who.name())?;
    }
    writeln!(f, "  what is true")
}

fn row(f: &mut fmt::Formatter<'_>, finding: &Finding, cell: fn(&Column) -> String) -> fmt::Result {
    write!(f, "{:<24} {:>6}", finding.scenario, finding.runs)?;
    for column in &finding.judges {
        write!(f, " {:>22}", cell(column))?;
    }
    writeln!(f, "  {}", finding.about)
}

fn false_alarms(column: &Column) -> String {
    let share = column.false_alarms;
    let [value, low, high] = [share.share(), share.low, share.high].map(percent);
    format!("{value} ({low}-{high})")
}

fn detection(column: &Column) -> String {
    let mut cell = format!(
        "{} / {} ({})",
        or_never(column.median),
        or_never(column.p95),
        percent(column.missed.share())
    );
    if column.false_alarms.count > 0 {
        cell.push('*');
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::scenario::SCENARIOS;

    /// Runs that ended like this before Rollcall, and in nothing before the others.
    fn finding(scenario: &str, endings: impl Iterator<Item = Ending>) -> Finding {
        let mut rows = SCENARIOS.iter();
        let scenario = rows.find(|row| row.name == scenario).unwrap();
        let runs: Vec<_> = endings
            .map(|ending| {
                let mut run = [Ending::default(); 4];
                run[0] = ending;
                run
            })
            .collect();
        Finding::of(scenario, 0.001, &runs)
    }

    fn failed(samples: u64) -> Ending {
        Ending {
            failed: Some(samples),
            ..Ending::default()
        }
    }

    fn states(finding: &Finding) -> Vec<State> {
        finding.targets.iter().map(|target| target.state).collect()
    }

    #[test]
    fn a_bound_is_met_missed_or_open_while_runs_are_few() {
        let good = |runs, alarms| {
            let endings = (0..runs).map(move |run| {
                if run < alarms {
                    failed(9)
                } else {
                    Ending::default()
                }
            });
            states(&finding("aa-constant", endings))
        };
        assert_eq!(good(4_000, 0), [State::Met]);
        assert_eq!(good(1_000, 0), [State::Open]);
        assert_eq!(good(4_000, 3), [State::Open]);
        assert_eq!(good(4_000, 12), [State::Missed]);
    }

    #[test]
    fn a_bad_candidate_must_be_found_and_soon() {
        let found = |samples: u64| {
            let endings = (0..1_000).map(move |_| failed(samples));
            states(&finding("latency-tail", endings))
        };
        assert_eq!(found(1_300), [State::Met; 3]);
        assert_eq!(found(1_450), [State::Met, State::Missed, State::Met]);
        assert_eq!(found(1_501), [State::Met, State::Missed, State::Missed]);
        let never = finding("errors-x2", (0..1_000).map(|_| Ending::default()));
        assert_eq!(states(&never), [State::Missed; 2]);
        assert_eq!((never.judges[0].median, never.judges[0].p95), (None, None));
    }

    #[test]
    fn a_rollback_before_the_break_is_a_false_alarm() {
        let early = Ending {
            early: true,
            ..failed(12)
        };
        let late = finding("late-break", [early, failed(300), failed(400)].into_iter());
        assert_eq!(late.judges[0].false_alarms.count, 1);
        assert_eq!(late.judges[0].missed.count, 0);
    }

    #[test]
    fn the_right_node_is_told_from_a_wrong_one() {
        let took = |node| Ending {
            quarantined: Some((node, 100)),
            ..Ending::default()
        };
        let column = &finding("one-bad-node", [took(3), took(3), took(1)].into_iter()).judges[0];
        assert_eq!((column.node_found, column.wrong_node), (2, 1));
        assert_eq!(column.node_median, Some(100));
    }

    #[test]
    fn percents_keep_three_digits() {
        assert_eq!(
            [0.0, 0.001, 0.012_345_6, 1.0].map(|share| percent(share).to_string()),
            ["0", "0.1", "1.23", "100"]
        );
    }
}
