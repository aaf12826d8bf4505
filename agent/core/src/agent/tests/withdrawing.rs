//! A withdrawal is for good.

use super::*;

#[test]
fn a_withdrawal_swaps_first_then_persists_then_gives_its_receipt() {
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(
        withdraw(&mut with_canary(), &gone, 2),
        [
            Swap(route(3, 1)),
            persist(&assignment(3, 1), &[gone]),
            Send(receipt(3, &[(Role::Stable, 1)])),
            pin(&[1]),
            unload(2),
        ]
    );
}

#[test]
fn the_second_copy_of_a_withdrawal_only_repeats_the_receipt() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    withdraw(&mut agent, &gone, 2);
    let receipt = Send(receipt(3, &[(Role::Stable, 1)]));
    assert_eq!(withdraw(&mut agent, &gone, 2), [receipt]);
}

#[test]
fn a_withdrawal_of_an_old_generation_still_strips_the_candidate() {
    let gone = withdrawal(1, 1, 2, 1);
    assert_eq!(
        withdraw(&mut with_canary(), &gone, 2),
        [
            Swap(route(2, 1)),
            persist(&assignment(2, 1), &[gone]),
            Send(receipt(2, &[(Role::Stable, 1)])),
            pin(&[1]),
            unload(2),
        ]
    );
}

#[test]
fn a_withdrawal_of_an_old_generation_and_another_rollout_is_remembered_only() {
    let gone = withdrawal(1, 7, 8, 1);
    assert_eq!(
        withdraw(&mut with_canary(), &gone, 2),
        [persist(&canary_assignment(2), &[gone])]
    );
}

#[test]
fn a_withdrawn_rollout_or_version_is_stripped_from_later_assignments() {
    for (rollout, major) in [(1, 3), (2, 2)] {
        let mut agent = with_canary();
        let gone = withdrawal(3, 1, 2, 1);
        withdraw(&mut agent, &gone, 2);
        let again = Assignment {
            candidate: Some(candidate(rollout, major, canary(100.0))),
            ..assignment(4, 1)
        };
        assert_eq!(
            assign(&mut agent, &again, 3),
            [
                persist(&assignment(4, 1), &[gone]),
                Swap(route(4, 1)),
                Send(receipt(4, &[(Role::Stable, 1)])),
            ]
        );
    }
}

#[test]
fn a_withdrawn_version_is_refused_as_stable_and_as_previous() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    withdraw(&mut agent, &gone, 2);
    for (generation, stable, previous) in [(4, 2, 1), (5, 1, 2)] {
        let wrong = Assignment {
            previous: Some(version(previous)),
            ..assignment(generation, stable)
        };
        let held = Assignment {
            previous: (previous == 1).then(|| version(1)),
            ..assignment(generation, 1)
        };
        assert_eq!(
            assign(&mut agent, &wrong, 3),
            [
                persist(&held, std::slice::from_ref(&gone)),
                Swap(route(generation, 1)),
                Send(receipt(generation, &[(Role::Stable, 1)])),
            ]
        );
    }
}

#[test]
fn a_withdrawal_for_a_model_that_is_not_held_is_remembered_and_taken() {
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(
        withdraw(&mut fresh(), &gone, 0),
        [
            Swap(route(0, None)),
            persist(&assignment(3, 1), &[gone]),
            pin(&[1]),
            prepare(1),
            Send(readiness(1, ReadyState::Fetching)),
        ]
    );
}

#[test]
fn a_withdrawn_stable_leaves_even_when_nothing_is_ready_instead() {
    let gone = withdrawal(2, 1, 1, 9);
    assert_eq!(
        withdraw(&mut serving_1(), &gone, 1),
        [
            Swap(route(1, None)),
            persist(&assignment(2, 9), &[gone]),
            Send(receipt(1, &[])),
            pin(&[9]),
            prepare(9),
            Send(readiness(9, ReadyState::Fetching)),
            unload(1),
        ]
    );
}

#[test]
fn the_first_version_ever_is_withdrawn_to_nothing() {
    let gone = withdrawal(2, 1, 1, None);
    assert_eq!(
        withdraw(&mut serving_1(), &gone, 1),
        [
            Swap(route(2, None)),
            persist(&assignment(2, None), &[gone]),
            Send(receipt(2, &[])),
            pin(&[]),
            unload(1),
        ]
    );
}

#[test]
fn a_withdrawal_survives_a_restart_and_is_handed_back() {
    let gone = withdrawal(3, 1, 2, 1);
    let state = durable(&canary_assignment(3), std::slice::from_ref(&gone));
    let (mut agent, effects) = Agent::restore(AgentIdentity::default(), state, at(0));
    assert_eq!(
        effects,
        [
            persist(&assignment(3, 1), std::slice::from_ref(&gone)),
            pin(&[1]),
            prepare(1),
            Swap(route(0, None)),
            Send(readiness(1, ReadyState::Fetching)),
        ],
        "a disk that says otherwise is corrected"
    );
    let hello = agent.handle(Input::Connected, at(1));
    assert!(
        matches!(&hello[..], [Send(FromAgent::Hello(hello))] if hello.withdrawals == [gone]),
        "{hello:?}"
    );
}

#[test]
fn the_generation_of_a_model_that_is_not_hosted_today_stays_on_disk() {
    let other = ModelName::new("fraud-detector").unwrap();
    let elsewhere = Assignment {
        model: other.clone(),
        ..assignment(7, 1)
    };
    let mut state = durable(&assignment(1, 1), &[]);
    state.assignments.insert(other, elsewhere);
    let identity = AgentIdentity {
        models: vec![model()],
        ..AgentIdentity::default()
    };
    let (mut agent, effects) = Agent::restore(identity, state.clone(), at(0));
    assert_eq!(
        effects,
        [
            pin(&[1]),
            prepare(1),
            Swap(route(0, None)),
            Send(readiness(1, ReadyState::Fetching)),
        ]
    );
    let next = assignment(2, 1);
    state.assignments.insert(model(), next.clone());
    assert_eq!(assign(&mut agent, &next, 0), [Persist(state)]);
}
