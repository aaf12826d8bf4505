//! What an assignment does, and which ones do nothing.

use super::*;

#[test]
fn a_first_assignment_is_persisted_pinned_and_prepared_in_that_order() {
    let wanted = Assignment {
        previous: Some(version(9)),
        ..assignment(1, 1)
    };
    assert_eq!(
        assign(&mut fresh(), &wanted, 0),
        [
            persist(&wanted, &[]),
            pin(&[1, 9]),
            prepare(1),
            prepare(9),
            Swap(route(0, None)),
            Send(readiness(1, ReadyState::Fetching)),
            Send(readiness(9, ReadyState::Fetching)),
        ]
    );
}

#[test]
fn the_generation_is_reached_and_receipted_when_its_stable_is_ready() {
    let mut agent = fresh();
    assign(&mut agent, &assignment(1, 1), 0);
    assert_eq!(
        ready(&mut agent, 1, 1),
        [
            Swap(route(1, 1)),
            Send(receipt(1, &[(Role::Stable, 1)])),
            Send(readiness(1, ReadyState::Ready)),
        ]
    );
}

#[test]
fn an_assignment_of_nothing_is_reached_at_once() {
    let wanted = assignment(1, None);
    assert_eq!(
        assign(&mut fresh(), &wanted, 0),
        [
            persist(&wanted, &[]),
            Swap(route(1, None)),
            Send(receipt(1, &[])),
        ]
    );
}

#[test]
fn the_old_stable_serves_under_its_generation_until_the_new_one_is_ready() {
    let mut agent = serving_1();
    let wanted = Assignment {
        previous: Some(version(1)),
        ..assignment(2, 2)
    };
    assert_eq!(
        assign(&mut agent, &wanted, 1),
        [
            persist(&wanted, &[]),
            pin(&[1, 2]),
            prepare(2),
            Send(readiness(2, ReadyState::Fetching)),
        ]
    );
    assert_eq!(
        ready(&mut agent, 2, 2),
        [
            Swap(route(2, 2)),
            Send(receipt(2, &[(Role::Stable, 2)])),
            Send(readiness(2, ReadyState::Ready)),
        ]
    );
}

#[test]
fn an_old_stable_that_is_nobodys_previous_is_unloaded_after_the_swap() {
    let mut agent = serving_1();
    assign(&mut agent, &assignment(2, 2), 1);
    assert_eq!(
        ready(&mut agent, 2, 2),
        [
            Swap(route(2, 2)),
            Send(receipt(2, &[(Role::Stable, 2)])),
            Send(readiness(2, ReadyState::Ready)),
            unload(1),
        ]
    );
}

#[test]
fn promotion_is_one_swap_without_a_gap() {
    let promoted = Assignment {
        previous: Some(version(1)),
        ..assignment(3, 2)
    };
    assert_eq!(
        assign(&mut with_canary(), &promoted, 2),
        [
            persist(&promoted, &[]),
            Swap(route(3, 2)),
            Send(receipt(3, &[(Role::Stable, 2)])),
        ]
    );
}

#[test]
fn a_finished_rollout_is_rolled_back_to_the_warm_previous_in_one_swap() {
    let mut agent = with_canary();
    let promoted = Assignment {
        previous: Some(version(1)),
        ..assignment(3, 2)
    };
    assign(&mut agent, &promoted, 2);
    let rollback = withdrawal(4, 1, 2, 1);
    assert_eq!(
        withdraw(&mut agent, &rollback, 3),
        [
            Swap(route(4, 1)),
            persist(&assignment(4, 1), &[rollback]),
            Send(receipt(4, &[(Role::Stable, 1)])),
            pin(&[1]),
            unload(2),
        ]
    );
}

#[test]
fn an_older_assignment_is_ignored() {
    let mut agent = with_canary();
    assert_eq!(assign(&mut agent, &assignment(1, 7), 2), []);
}

#[test]
fn the_same_generation_again_only_repeats_the_receipt() {
    let mut agent = serving_1();
    assert_eq!(
        assign(&mut agent, &assignment(1, 1), 1),
        [Send(receipt(1, &[(Role::Stable, 1)]))]
    );
    assign(&mut agent, &assignment(2, 2), 2);
    assert_eq!(assign(&mut agent, &assignment(2, 2), 3), []);
}

#[test]
fn a_model_that_is_not_hosted_is_ignored() {
    let identity = AgentIdentity {
        models: vec![ModelName::new("fraud-detector").unwrap()],
        ..AgentIdentity::default()
    };
    let (mut agent, _) = Agent::restore(identity, DurableState::default(), at(0));
    assert_eq!(assign(&mut agent, &assignment(1, 1), 0), []);
    assert_eq!(withdraw(&mut agent, &withdrawal(2, 1, 2, 1), 0), []);
}

#[test]
fn a_model_beyond_the_bound_is_ignored_and_those_within_it_go_on() {
    let mut agent = fresh();
    for i in 0..MODELS_PER_NODE_MAX {
        let model = ModelName::new(format!("model-{i}")).unwrap();
        let wanted = Assignment {
            model,
            ..assignment(1, 1)
        };
        assert!(!assign(&mut agent, &wanted, 0).is_empty());
    }
    assert_eq!(assign(&mut agent, &assignment(1, 1), 0), []);
    let wanted = Assignment {
        model: ModelName::new("model-0").unwrap(),
        ..assignment(2, 1)
    };
    assert!(!assign(&mut agent, &wanted, 0).is_empty());
}

#[test]
fn a_coordinator_that_forgot_what_is_stable_does_not_stop_it() {
    assert_eq!(
        assign(&mut serving_1(), &assignment(2, None), 1),
        [
            persist(&assignment(2, 1), &[]),
            Swap(route(2, 1)),
            Send(receipt(2, &[(Role::Stable, 1)])),
        ]
    );
}

#[test]
fn a_changed_share_keeps_the_lease_and_is_one_swap_and_a_receipt() {
    let mut agent = with_canary();
    let wider = Assignment {
        candidate: Some(candidate(1, 2, canary(50.0))),
        ..assignment(3, 1)
    };
    let mut expected = canary_route(3, 11);
    if let Some(candidate) = &mut expected.candidate {
        candidate.usage = CandidateUsage::Canary(Share::from_percent(50.0).unwrap());
    }
    assert_eq!(
        assign(&mut agent, &wider, 2),
        [
            persist(&wider, &[]),
            Swap(expected),
            Send(receipt(3, &[(Role::Stable, 1), (Role::Candidate, 2)])),
        ]
    );
}

#[test]
fn a_candidate_waits_for_a_stable_that_is_not_ready() {
    let mut agent = with_canary();
    let both_new = Assignment {
        candidate: Some(candidate(1, 2, canary(10.0))),
        ..assignment(3, 3)
    };
    assert_eq!(
        assign(&mut agent, &both_new, 2),
        [
            persist(&both_new, &[]),
            pin(&[2, 3]),
            prepare(3),
            Swap(route(2, 1)),
            Send(receipt(2, &[(Role::Stable, 1)])),
            Send(readiness(3, ReadyState::Fetching)),
        ]
    );
}

#[test]
fn a_sync_of_what_is_served_repeats_the_receipt() {
    let snapshot = Snapshot {
        assignments: vec![assignment(1, 1)],
        withdrawals: vec![],
    };
    assert_eq!(
        serving_1().handle(Input::Sync(snapshot), at(1)),
        [Send(receipt(1, &[(Role::Stable, 1)]))]
    );
}

#[test]
fn a_sync_applies_withdrawals_on_their_fast_road_before_assignments() {
    let gone = withdrawal(3, 1, 2, 1);
    let next = Assignment {
        candidate: Some(candidate(2, 3, canary(10.0))),
        ..assignment(4, 1)
    };
    let snapshot = Snapshot {
        assignments: vec![next.clone()],
        withdrawals: vec![gone.clone()],
    };
    assert_eq!(
        with_canary().handle(Input::Sync(snapshot), at(2)),
        [
            Swap(route(3, 1)),
            persist(&assignment(3, 1), std::slice::from_ref(&gone)),
            Send(receipt(3, &[(Role::Stable, 1)])),
            persist(&next, &[gone]),
            pin(&[1, 3]),
            prepare(3),
            Swap(route(4, 1)),
            Send(receipt(4, &[(Role::Stable, 1)])),
            Send(readiness(3, ReadyState::Fetching)),
            unload(2),
        ]
    );
}

#[test]
#[should_panic(expected = "time went backwards")]
fn time_may_not_go_backwards() {
    let mut agent = fresh();
    agent.handle(Input::TimePassed, at(5));
    agent.handle(Input::TimePassed, at(4));
}

#[test]
fn an_event_of_the_serving_path_is_passed_on() {
    let event = AgentEvent::BreakerClosed {
        model: model(),
        rollout: RolloutId(1),
    };
    assert_eq!(
        fresh().handle(Input::Event(event.clone()), at(1)),
        [Send(FromAgent::Event(event))]
    );
}

#[test]
fn the_status_says_what_serves_and_what_is_waited_for() {
    let mut agent = with_canary();
    agent.handle(Input::TimePassed, at(11));
    let status = agent.status(at(11)).remove(0);
    assert_eq!(status.mode, "canary");
    assert_eq!(status.generation, status.generation_served);
    assert_eq!(status.lease_left_ms, None);
    assert_eq!(status.serving.len(), 1);
    assert_eq!(
        status.waiting,
        [WaitingFor::Lease {
            version: version(2)
        }]
    );
}
