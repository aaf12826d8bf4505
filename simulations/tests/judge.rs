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
    let finding = finding("aa-constant", 40, 2);
    let share = column(&finding, Who::ZTest).false_alarms;
    assert!(share.low > 0.05 && share.high < 0.6, "{share:?}");
    assert_eq!(column(&finding, Who::Rollcall).false_alarms.count, 0);
}

#[test]
fn somebody_who_tries_again_and_again_has_failed_once() {
    let finding = finding("aa-retries", 12, 2);
    assert_eq!(column(&finding, Who::Rollcall).false_alarms.count, 0);
    assert!(column(&finding, Who::ZTest).false_alarms.share() > 0.5);
}

#[test]
fn one_bad_node_is_taken_out_and_the_candidate_goes_on() {
    let finding = finding("one-bad-node", 20, 2);
    let column = column(&finding, Who::Rollcall);
    assert_eq!(column.false_alarms.count, 0);
    assert_eq!((column.node_found, column.wrong_node), (20, 0));
}

/// Not the targets of the command, which take hundreds of runs; a judge that has gone blind.
#[test]
fn what_is_broken_is_found_not_long_after_its_reference() {
    for name in ["errors-1-to-50-percent", "errors-x10", "latency-x2"] {
        let finding = finding(name, 20, 2);
        let column = column(&finding, Who::Rollcall);
        assert_eq!(column.missed.count, 0, "{name}");
        let mut scenarios = SCENARIOS.iter();
        let scenario = scenarios.find(|scenario| scenario.name == name).unwrap();
        let median = column.median.unwrap() as f64;
        assert!(
            median < 3.0 * scenario.reference.unwrap(),
            "{name}: {median}"
        );
    }
}
