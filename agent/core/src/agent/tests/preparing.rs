//! Preparations, their failures and their retries.

use super::*;

#[test]
fn a_retryable_failure_says_so_and_is_tried_again_when_its_time_has_come() {
    let mut agent = fresh();
    assign(&mut agent, &assignment(1, 1), 0);
    assert_eq!(
        prepared(&mut agent, 1, failure("no route to host", true), 1),
        [Send(readiness(1, failed("no route to host", true)))]
    );
    let retry_at = agent.next_wakeup().unwrap();
    assert!(retry_at >= at(2) && retry_at <= at(3));
    assert_eq!(agent.handle(Input::TimePassed, at(1)), []);
    assert_eq!(
        agent.handle(Input::TimePassed, retry_at),
        [prepare(1), Send(readiness(1, ReadyState::Fetching))]
    );
    assert_eq!(agent.next_wakeup(), None);
}

#[test]
fn retries_back_off() {
    let mut agent = fresh();
    assign(&mut agent, &assignment(1, 1), 0);
    let mut now = at(0);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let input = Input::Prepared {
            model: model(),
            version: version(1),
            result: failure("no route to host", true),
        };
        agent.handle(input, now);
        let retry_at = agent.next_wakeup().unwrap();
        pauses.push(retry_at.since(now));
        now = retry_at;
        agent.handle(Input::TimePassed, now);
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[7] >= Duration::from_secs(60) && pauses[7] <= Duration::from_secs(75));
}

#[test]
fn a_final_failure_is_tried_again_only_under_another_generation() {
    let mut agent = fresh();
    assign(&mut agent, &assignment(1, 1), 0);
    assert_eq!(
        prepared(&mut agent, 1, failure("a smoke case failed", false), 1),
        [Send(readiness(1, failed("a smoke case failed", false)))]
    );
    assert_eq!(agent.next_wakeup(), None);
    assert_eq!(agent.handle(Input::TimePassed, at(9_999)), []);
    let again = assignment(2, 1);
    assert_eq!(
        assign(&mut agent, &again, 9_999),
        [
            persist(&again, &[]),
            prepare(1),
            Send(readiness(1, ReadyState::Fetching)),
        ]
    );
}

#[test]
fn a_candidate_that_cannot_be_prepared_leaves_stable_alone() {
    let mut agent = serving_1();
    assert_eq!(
        assign(&mut agent, &canary_assignment(2), 1),
        [
            persist(&canary_assignment(2), &[]),
            pin(&[1, 2]),
            prepare(2),
            Swap(route(2, 1)),
            Send(receipt(2, &[(Role::Stable, 1)])),
            Send(readiness(2, ReadyState::Fetching)),
        ]
    );
    assert_eq!(
        prepared(&mut agent, 2, failure("refused by the engine", false), 2),
        [Send(readiness(2, failed("refused by the engine", false)))]
    );
}

#[test]
fn a_candidate_that_is_here_already_is_said_to_be_ready_with_every_new_rollout() {
    let mut agent = with_canary();
    let promoted = Assignment {
        previous: Some(version(1)),
        ..assignment(3, 2)
    };
    assign(&mut agent, &promoted, 2);
    let again = |generation, mode| Assignment {
        candidate: Some(candidate(2, 1, mode)),
        ..assignment(generation, 2)
    };
    let first = again(4, CandidateMode::Prepare);
    assert_eq!(
        assign(&mut agent, &first, 3),
        [
            persist(&first, &[]),
            Swap(route(4, 2)),
            Send(receipt(4, &[(Role::Stable, 2)])),
            Send(readiness(1, ReadyState::Ready)),
        ]
    );
    let next = again(5, canary(10.0));
    let effects = assign(&mut agent, &next, 4);
    assert!(!effects.contains(&Send(readiness(1, ReadyState::Ready))));
}

#[test]
fn a_preparation_that_nobody_wants_any_more_is_ended_and_its_result_ignored() {
    let mut agent = serving_1();
    assign(&mut agent, &assignment(2, 2), 1);
    let other = assignment(3, 3);
    assert_eq!(
        assign(&mut agent, &other, 2),
        [
            persist(&other, &[]),
            pin(&[3]),
            prepare(3),
            Send(readiness(3, ReadyState::Fetching)),
            unload(2),
        ]
    );
    assert_eq!(ready(&mut agent, 2, 3), []);
}

#[test]
fn a_failed_version_is_not_unloaded_since_it_was_never_loaded() {
    let mut agent = serving_1();
    assign(&mut agent, &assignment(2, 2), 1);
    prepared(&mut agent, 2, failure("disk full", true), 2);
    let back = assignment(3, 1);
    assert_eq!(
        assign(&mut agent, &back, 3),
        [
            persist(&back, &[]),
            pin(&[1]),
            Swap(route(3, 1)),
            Send(receipt(3, &[(Role::Stable, 1)])),
        ]
    );
    assert_eq!(agent.next_wakeup(), None);
}

#[test]
fn after_a_restart_stable_serves_without_any_coordinator() {
    let state = durable(&assignment(5, 1), &[]);
    let (mut agent, effects) = Agent::restore(AgentIdentity::default(), state, at(0));
    assert_eq!(
        effects,
        [
            pin(&[1]),
            prepare(1),
            Swap(route(0, None)),
            Send(readiness(1, ReadyState::Fetching)),
        ]
    );
    assert_eq!(
        ready(&mut agent, 1, 1),
        [
            Swap(route(5, 1)),
            Send(receipt(5, &[(Role::Stable, 1)])),
            Send(readiness(1, ReadyState::Ready)),
        ]
    );
}

#[test]
fn after_a_restart_previous_stands_in_for_a_stable_that_cannot_be_fetched() {
    let wanted = Assignment {
        previous: Some(version(1)),
        ..assignment(5, 2)
    };
    let state = durable(&wanted, &[]);
    let (mut agent, _) = Agent::restore(AgentIdentity::default(), state, at(0));
    prepared(&mut agent, 2, failure("no coordinator", true), 1);
    assert_eq!(
        ready(&mut agent, 1, 1),
        [
            Swap(route(0, 1)),
            Send(receipt(0, &[(Role::Stable, 1)])),
            Send(readiness(1, ReadyState::Ready)),
        ]
    );
}
