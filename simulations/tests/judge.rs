//! A short form of `rollcall-sim judge` whose outcome is certain for its seed. The long form,
//! which takes enough runs for small shares, is the command.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario that is not there fails the test"
)]

use std::num::NonZeroUsize;

use indicatif::ProgressBar;
use rollcall_simulations::judge::figures::{Column, Finding};
use rollcall_simulations::judge::scenario::SCENARIOS;
use rollcall_simulations::judge::{Who, judge};

const ALPHA: f64 = 0.001;

fn finding(name: &str, runs: u64, threads: usize) -> Finding {
    let mut scenarios = SCENARIOS.iter();
    let scenario = scenarios.find(|scenario| scenario.name == name).unwrap();
    let threads = NonZeroUsize::new(threads).unwrap();
    let endings = judge(scenario, ALPHA, 1, runs, threads, &ProgressBar::hidden());
    Finding::of(scenario, ALPHA, &endings)
}

fn column(finding: &Finding, who: Who) -> &Column {
    finding.column(who).unwrap()
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let figures = |threads| serde_json::to_string(&finding("errors-x10", 12, threads)).unwrap();
    assert_eq!(figures(1), figures(3));
}

/// The harness sees false alarms where there are some: one test at 1 %, looked at after 100
/// candidate requests and again some two thousand times, for errors and for latencies.
#[test]
fn a_test_that_is_looked_at_again_and_again_fires_far_more_often_than_it_says() {
    let finding = finding("aa-constant", 60, 2);
    let share = column(&finding, Who::ZTest).false_alarms;
    assert!(share.low > 0.05 && share.high < 0.6, "{share:?}");
}
