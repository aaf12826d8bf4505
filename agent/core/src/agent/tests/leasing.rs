//! Hello, heartbeats and the lease of a candidate.

use super::*;

/// Sends heartbeat number `seq` of `with_canary` at second `seq + 1`.
fn heartbeat(agent: &mut Agent, seq: u64) {
    let effects = agent.handle(Input::TimePassed, at(seq + 1));
    assert_eq!(effects, [Send(heartbeat_word(seq, 2))]);
}

fn heartbeat_word(seq: u64, generation: u64) -> FromAgent {
    FromAgent::Heartbeat(Heartbeat {
        seq,
        held: vec![(model(), Generation(generation))],
    })
}

#[test]
fn hello_says_everything_a_coordinator_may_have_lost() {
    let gone = withdrawal(1, 7, 8, 1);
    let identity = AgentIdentity {
        labels: BTreeMap::from([("zone".to_owned(), "eu-1".to_owned())]),
        models: vec![model()],
        software: "rollcall-agent 0.1.0".to_owned(),
    };
    let state = durable(&canary_assignment(2), std::slice::from_ref(&gone));
    let (mut agent, _) = Agent::restore(identity.clone(), state, at(0));
    ready(&mut agent, 1, 1);
    let receipts = match receipt(2, &[(Role::Stable, 1)]) {
        FromAgent::Receipt(receipt) => vec![receipt],
        other => panic!("{other:?}"),
    };
    let ready = [(1, ReadyState::Ready), (2, ReadyState::Fetching)];
    let ready = ready.map(|(major, state)| Readiness {
        model: model(),
        version: version(major),
        state,
    });
    let mut sorted = ready.to_vec();
    sorted.sort_by_key(|r| r.version);
    assert_eq!(
        agent.handle(Input::Connected, at(2)),
        [Send(FromAgent::Hello(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol: PROTOCOL,
            software: identity.software,
            labels: identity.labels,
            models: identity.models,
            held: vec![(model(), Generation(2))],
            withdrawals: vec![gone],
            receipts,
            ready: sorted,
        }))]
    );
}

#[test]
fn a_candidate_joins_when_ready_under_the_lease_that_the_welcome_granted() {
    let mut agent = serving_1();
    agent.handle(Input::Connected, at(1));
    agent.handle(welcome(&[canary_assignment(2)]), at(3));
    assert_eq!(
        ready(&mut agent, 2, 4),
        [
            Swap(canary_route(2, 11)),
            Send(receipt(2, &[(Role::Stable, 1), (Role::Candidate, 2)])),
            Send(readiness(2, ReadyState::Ready)),
        ],
        "from the sending of hello at second 1, not from the welcome at second 3"
    );
}

#[test]
fn a_welcome_grants_once_and_a_sync_never() {
    let mut agent = with_canary();
    assert_eq!(
        agent.handle(welcome(&[canary_assignment(2)]), at(2)),
        [],
        "a second welcome on one connection answers no hello"
    );
    let snapshot = Snapshot {
        assignments: vec![canary_assignment(2)],
        withdrawals: vec![],
    };
    let serving = [(Role::Stable, 1), (Role::Candidate, 2)];
    assert_eq!(
        agent.handle(Input::Sync(snapshot), at(2)),
        [Send(receipt(2, &serving))]
    );
}

#[test]
fn a_welcome_to_an_older_generation_grants_nothing() {
    let state = durable(&canary_assignment(2), &[]);
    let (mut agent, _) = Agent::restore(AgentIdentity::default(), state, at(0));
    ready(&mut agent, 1, 0);
    ready(&mut agent, 2, 0);
    agent.handle(Input::Connected, at(1));
    assert_eq!(agent.handle(welcome(&[canary_assignment(1)]), at(1)), []);
}

#[test]
fn heartbeats_are_sent_as_often_as_the_welcome_says_and_only_while_welcomed() {
    let mut agent = with_canary();
    assert_eq!(agent.next_wakeup(), Some(at(2)));
    heartbeat(&mut agent, 1);
    assert_eq!(agent.next_wakeup(), Some(at(3)));
    let late = agent.handle(Input::TimePassed, at(7));
    assert_eq!(late, [Send(heartbeat_word(2, 2))], "one, not five");
    assert_eq!(agent.next_wakeup(), Some(at(8)));
    assert_eq!(agent.handle(Input::Disconnected, at(7)), []);
    assert_eq!(agent.next_wakeup(), Some(at(11)), "the lease is next");
    assert_eq!(agent.handle(Input::TimePassed, at(9)), []);
}

#[test]
fn however_rare_heartbeats_shall_be_a_lease_is_tried_four_times_before_it_ends() {
    let mut agent = serving_1();
    agent.handle(Input::Connected, at(1));
    let Input::Welcome(mut welcome) = welcome(&[assignment(1, 1)]) else {
        unreachable!("it says so");
    };
    welcome.heartbeat_every_ms = 5_000;
    agent.handle(Input::Welcome(welcome), at(1));
    assert_eq!(agent.next_wakeup(), Some(at(6)));
    assign(&mut agent, &canary_assignment(2), 1);
    assert_eq!(
        agent.next_wakeup(),
        Some(at(1) + Duration::from_millis(2_500))
    );
}

#[test]
fn an_answer_renews_from_the_sending_of_its_heartbeat_with_one_swap() {
    let mut agent = with_canary();
    heartbeat(&mut agent, 1);
    assert_eq!(
        agent.handle(answer(1, 2), at(6)),
        [Swap(canary_route(2, 12))]
    );
    assert_eq!(
        agent.handle(answer(1, 2), at(7)),
        [],
        "an answer counts once"
    );
}

#[test]
fn answers_out_of_order_never_shorten_a_lease() {
    let mut agent = with_canary();
    heartbeat(&mut agent, 1);
    heartbeat(&mut agent, 2);
    assert_eq!(
        agent.handle(answer(2, 2), at(4)),
        [Swap(canary_route(2, 13))]
    );
    assert_eq!(agent.handle(answer(1, 2), at(4)), []);
}

#[test]
fn an_answer_that_shows_a_newer_generation_renews_nothing_until_it_is_held() {
    let mut agent = with_canary();
    heartbeat(&mut agent, 1);
    heartbeat(&mut agent, 2);
    assert_eq!(agent.handle(answer(2, 3), at(4)), []);
    assert_eq!(
        agent.handle(answer(1, 2), at(4)),
        [],
        "overtaken: we know of generation 3"
    );
    let next = canary_assignment(3);
    assert_eq!(
        assign(&mut agent, &next, 4),
        [
            persist(&next, &[]),
            Swap(canary_route(3, 11)),
            Send(receipt(3, &[(Role::Stable, 1), (Role::Candidate, 2)])),
        ],
        "the same candidate keeps the time it has, no more"
    );
}

#[test]
fn answers_to_unknown_heartbeats_renew_nothing() {
    let mut agent = with_canary();
    assert_eq!(agent.handle(answer(1, 2), at(2)), [], "never sent");
    heartbeat(&mut agent, 1);
    agent.handle(Input::Disconnected, at(2));
    assert_eq!(agent.handle(answer(1, 2), at(3)), [], "another connection");
}

#[test]
fn an_answer_to_a_heartbeat_beyond_the_bound_renews_nothing() {
    let mut agent = with_canary();
    for i in 0..=HEARTBEATS_IN_FLIGHT_MAX as u64 {
        agent.handle(Input::TimePassed, at(2 + i));
    }
    let last = 2 + HEARTBEATS_IN_FLIGHT_MAX as u64;
    assert_eq!(agent.handle(answer(1, 2), at(last)), []);
}

#[test]
fn a_lease_that_ends_takes_the_candidate_out_and_says_so() {
    let mut agent = with_canary();
    agent.handle(Input::Disconnected, at(2));
    assert_eq!(agent.next_wakeup(), Some(at(11)));
    assert_eq!(
        agent.handle(Input::TimePassed, at(11)),
        [
            Swap(route(2, 1)),
            Send(receipt(2, &[(Role::Stable, 1)])),
            Send(lease_expired()),
        ]
    );
    assert_eq!(agent.handle(Input::TimePassed, at(12)), []);
    assert_eq!(agent.next_wakeup(), None);
}

#[test]
fn a_candidate_comes_back_when_its_lease_is_renewed_later() {
    let mut agent = with_canary();
    agent.handle(Input::Disconnected, at(2));
    agent.handle(Input::TimePassed, at(11));
    agent.handle(Input::Connected, at(20));
    assert_eq!(
        agent.handle(welcome(&[canary_assignment(2)]), at(21)),
        [
            Swap(canary_route(2, 30)),
            Send(receipt(2, &[(Role::Stable, 1), (Role::Candidate, 2)])),
        ]
    );
}

#[test]
fn another_rollout_begins_without_a_lease() {
    let mut agent = with_canary();
    heartbeat(&mut agent, 1);
    let retried = CandidateAssignment {
        rollout: RolloutId(2),
        ..candidate(1, 2, canary(10.0))
    };
    let next = Assignment {
        candidate: Some(retried),
        ..assignment(3, 1)
    };
    assert_eq!(
        assign(&mut agent, &next, 3),
        [
            persist(&next, &[]),
            Swap(route(3, 1)),
            Send(receipt(3, &[(Role::Stable, 1)])),
            Send(readiness(2, ReadyState::Ready)),
        ]
    );
    let mut expected = canary_route(3, 12);
    if let Some(candidate) = &mut expected.candidate {
        candidate.rollout = RolloutId(2);
    }
    assert_eq!(
        agent.handle(answer(1, 3), at(3)),
        [
            Swap(expected),
            Send(receipt(3, &[(Role::Stable, 1), (Role::Candidate, 2)])),
        ],
        "the answer names the generation that we hold"
    );
}

#[test]
fn a_prepared_candidate_under_lease_enters_the_route_with_its_mode() {
    let mut agent = serving_1();
    let prepare_only = Assignment {
        candidate: Some(candidate(1, 2, CandidateMode::Prepare)),
        ..assignment(2, 1)
    };
    agent.handle(Input::Connected, at(1));
    agent.handle(welcome(std::slice::from_ref(&prepare_only)), at(1));
    assert_eq!(
        ready(&mut agent, 2, 1),
        [Send(readiness(2, ReadyState::Ready))],
        "loaded and warm, and nothing more"
    );
    let shadow = Assignment {
        candidate: Some(candidate(1, 2, CandidateMode::Shadow(Share::ALL))),
        ..assignment(3, 1)
    };
    let mut expected = canary_route(3, 11);
    if let Some(candidate) = &mut expected.candidate {
        candidate.usage = CandidateUsage::Shadow(Share::ALL);
    }
    assert_eq!(
        assign(&mut agent, &shadow, 2),
        [
            persist(&shadow, &[]),
            Swap(expected),
            Send(receipt(3, &[(Role::Stable, 1), (Role::Shadow, 2)])),
        ]
    );
}

#[test]
fn after_a_restart_there_is_no_lease_until_a_coordinator_answers() {
    let state = durable(&canary_assignment(2), &[]);
    let (mut agent, _) = Agent::restore(AgentIdentity::default(), state, at(0));
    ready(&mut agent, 1, 0);
    assert_eq!(
        ready(&mut agent, 2, 0),
        [Send(readiness(2, ReadyState::Ready))]
    );
    agent.handle(Input::Connected, at(1));
    assert_eq!(
        agent.handle(welcome(&[canary_assignment(2)]), at(1)),
        [
            Swap(canary_route(2, 11)),
            Send(receipt(2, &[(Role::Stable, 1), (Role::Candidate, 2)])),
        ]
    );
}

#[test]
fn a_receipt_is_never_repeated_for_a_candidate_whose_lease_ended_unnoticed() {
    let ended = [
        Swap(route(2, 1)),
        Send(receipt(2, &[(Role::Stable, 1)])),
        Send(lease_expired()),
        Send(receipt(2, &[(Role::Stable, 1)])),
    ];
    let mut agent = with_canary();
    assert_eq!(assign(&mut agent, &canary_assignment(2), 11), ended);
    let snapshot = Snapshot {
        assignments: vec![canary_assignment(2)],
        withdrawals: vec![],
    };
    let mut agent = with_canary();
    assert_eq!(agent.handle(Input::Sync(snapshot), at(11)), ended);
}

#[test]
fn hello_is_the_first_word_even_when_a_lease_ended_unnoticed() {
    let mut agent = with_canary();
    agent.handle(Input::Disconnected, at(2));
    let effects = agent.handle(Input::Connected, at(11));
    let [Swap(swapped), Send(FromAgent::Hello(hello)), Send(event)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(swapped, &route(2, 1));
    assert_eq!(hello.receipts[0].serving.len(), 1);
    assert_eq!(event, &lease_expired());
}
