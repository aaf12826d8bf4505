//! The simulator as a test: the shipping cores keep their promises under faults, and
//! the checkers notice when a guard is taken away.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use rollcall_simulations::explore::{describe, explore};
use rollcall_simulations::faults::{Hazards, Sabotage, Setup, parse_hazards};
use rollcall_simulations::world::{self, Outcome};

const SETUP: Setup = Setup {
    agents: 5,
    faults_for: Duration::from_secs(180),
    sabotage: None,
    without: Hazards::NONE,
    trace: false,
};

/// `seed agents seconds without`, then words.
const REGRESSIONS: &str = include_str!("regressions.txt");

fn assert_unbroken(outcomes: &[Outcome], setup: &Setup) {
    let stories: Vec<_> = outcomes
        .iter()
        .take(3)
        .map(|outcome| describe(outcome, setup))
        .collect();
    assert!(
        outcomes.is_empty(),
        "{} runs broke a promise:\n{}",
        outcomes.len(),
        stories.join("\n")
    );
}

#[test]
fn two_hundred_random_seeds_keep_every_promise() {
    // From the system, through the only door that needs no clock and no crate.
    let from = RandomState::new().build_hasher().finish() >> 16;
    println!("seeds {from} to {}", from + 199);
    let explored = explore(from, 200, &SETUP, usize::MAX, |_| {});
    assert_eq!(explored.seeds, 200);
    assert_unbroken(&explored.broken, &SETUP);
}

#[test]
fn seeds_that_once_broke_a_promise_keep_every_promise() {
    let lines = REGRESSIONS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let setup = Setup {
            agents: words[1].parse().expect(line),
            faults_for: Duration::from_secs(words[2].parse().expect(line)),
            without: match words[3] {
                "-" => Hazards::NONE,
                hazards => parse_hazards(hazards).expect(line),
            },
            ..SETUP
        };
        let outcome = world::run(words[0].parse().expect(line), &setup);
        let broken: Vec<_> = Some(outcome)
            .into_iter()
            .filter(|outcome| !outcome.violations.is_empty())
            .collect();
        assert_unbroken(&broken, &setup);
    }
}

#[test]
fn two_runs_of_a_seed_are_the_same_run_event_for_event() {
    let setup = Setup {
        trace: true,
        ..SETUP
    };
    for seed in [1, 2, 3, u64::MAX] {
        let (first, second) = (world::run(seed, &setup), world::run(seed, &setup));
        assert!(
            first.trace.len() > 500,
            "a run of seed {seed} has {} lines",
            first.trace.len()
        );
        let differs = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None);
        assert_eq!(
            (first.events, first.trace_hash),
            (second.events, second.trace_hash)
        );
        assert_eq!(first.fired, second.fired);
    }
    assert_ne!(
        world::run(1, &setup).trace_hash,
        world::run(2, &setup).trace_hash
    );
}

#[test]
fn every_fault_really_happens() {
    let explored = explore(1, 120, &SETUP, usize::MAX, |_| {});
    let quiet: Vec<_> = explored
        .fired
        .counts()
        .filter(|(_, count)| *count == 0)
        .collect();
    assert!(
        quiet.is_empty(),
        "never happened in {} runs: {quiet:?}",
        explored.seeds
    );
}

/// Takes a guard away and expects one of these promises to be seen broken within so
/// many seeds, in a run that keeps every promise when the guard is in place.
fn assert_caught(sabotage: Sabotage, promises: &[u8], seeds_max: u64) {
    let sabotaged = Setup {
        sabotage: Some(sabotage),
        ..SETUP
    };
    let caught = (1..=seeds_max).find(|seed| {
        let outcome = world::run(*seed, &sabotaged);
        let seen = outcome
            .violations
            .iter()
            .any(|violation| promises.contains(&violation.promise));
        seen && world::run(*seed, &SETUP).violations.is_empty()
    });
    assert!(
        caught.is_some(),
        "{sabotage:?} was not noticed in {seeds_max} seeds"
    );
}

#[test]
fn an_agent_that_forgets_withdrawals_is_caught() {
    assert_caught(Sabotage::AgentForgetsWithdrawalsOnRestart, &[2], 150);
}

#[test]
fn an_agent_that_does_not_sync_is_caught() {
    assert_caught(Sabotage::AgentPersistNotSynced, &[2, 7], 20);
}

#[test]
fn a_journal_that_does_not_sync_is_caught() {
    assert_caught(Sabotage::AppendNotSynced, &[6], 20);
}

#[test]
fn a_lease_that_never_ends_is_caught() {
    assert_caught(Sabotage::LeaseIgnored, &[3], 150);
}

#[test]
fn an_old_assignment_that_is_taken_for_new_is_caught() {
    assert_caught(Sabotage::OldGenerationsAccepted, &[7], 5);
}

#[test]
fn a_coordinator_that_speaks_before_it_writes_is_caught() {
    assert_caught(Sabotage::SendBeforeAppend, &[5], 30);
}
