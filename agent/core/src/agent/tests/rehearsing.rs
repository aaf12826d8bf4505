//! A rehearsal says what a withdrawal would come to, and changes nothing.

use rollcall_shared::wire::{Missing, Rehearsal, Rehearsed};

use super::*;

fn rehearsal(number: u64, as_if: &Withdrawal) -> Input {
    Input::Rehearse(Rehearsal {
        rehearsal: number,
        as_if: as_if.clone(),
    })
}

fn answer(held: u64, serving: Option<u64>, missing: Option<(u64, Option<ReadyState>)>) -> Effect {
    Send(FromAgent::Rehearsed(Rehearsed {
        rehearsal: 57,
        model: model(),
        held: Generation(held),
        serving: serving.map(version),
        missing: missing.map(|(major, state)| Missing {
            version: version(major),
            state,
        }),
    }))
}

fn rehearse(agent: &mut Agent, as_if: &Withdrawal, seconds: u64) -> Vec<Effect> {
    rehearse_and_compare(agent, rehearsal(57, as_if), at(seconds))
}

#[test]
fn a_rehearsal_says_what_would_serve_and_changes_nothing() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(rehearse(&mut agent, &gone, 2), [answer(2, Some(1), None)]);
    // The candidate is not withdrawn: it goes on, and a real withdrawal is news.
    let effects = withdraw(&mut agent, &gone, 3);
    assert_eq!(effects[0], Swap(route(3, 1)));
    assert_eq!(effects[1], persist(&assignment(3, 1), &[gone]));
}

#[test]
fn a_repeated_rehearsal_is_answered_again_an_old_one_is_not() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(rehearse(&mut agent, &gone, 2).len(), 1);
    assert_eq!(
        rehearse(&mut agent, &gone, 2).len(),
        1,
        "the answer was lost"
    );
    assert_eq!(agent.handle(rehearsal(58, &gone), at(2)).len(), 1);
    assert_eq!(rehearse(&mut agent, &gone, 2), [], "an old one");
    agent.handle(Input::Disconnected, at(2));
    agent.handle(Input::Connected, at(2));
    assert_eq!(agent.handle(rehearsal(58, &gone), at(2)).len(), 1);
}

#[test]
fn a_version_that_is_still_loading_is_named_as_missing() {
    let mut agent = serving_1();
    let promoted = Assignment {
        previous: Some(version(1)),
        ..assignment(2, 2)
    };
    assign(&mut agent, &promoted, 1);
    ready(&mut agent, 2, 1);
    let late_regret = withdrawal(3, 1, 2, 1);
    assert_eq!(
        rehearse(&mut agent, &late_regret, 2),
        [answer(2, Some(1), None)]
    );

    // The same after a restart, with the version before it not yet loaded.
    let state = durable(&promoted, &[]);
    let mut agent = Agent::restore(AgentIdentity::default(), state, at(3)).0;
    ready(&mut agent, 2, 4);
    let fetching = Some(ReadyState::Fetching);
    assert_eq!(
        rehearse(&mut agent, &late_regret, 4),
        [answer(2, None, Some((1, fetching)))]
    );
    prepared(&mut agent, 1, failure("the disk is full", true), 5);
    let said = Some(failed("the disk is full", true));
    agent.rehearsed = None;
    assert_eq!(
        rehearse(&mut agent, &late_regret, 5),
        [answer(2, None, Some((1, said)))]
    );
}

#[test]
fn a_version_that_nobody_named_before_is_missing_and_what_is_here_would_stand_in() {
    let mut agent = serving_1();
    let elsewhere = withdrawal(5, 1, 2, 3);
    assert_eq!(
        rehearse(&mut agent, &elsewhere, 1),
        [answer(1, Some(1), Some((3, None)))]
    );
}

#[test]
fn with_nothing_left_nothing_would_serve() {
    let mut agent = fresh();
    let first_ever = Assignment {
        candidate: Some(candidate(1, 2, canary(10.0))),
        ..assignment(1, None)
    };
    assign(&mut agent, &first_ever, 0);
    ready(&mut agent, 2, 0);
    let gone = withdrawal(2, 1, 2, None);
    assert_eq!(rehearse(&mut agent, &gone, 1), [answer(1, None, None)]);
}

#[test]
fn a_model_that_is_not_hosted_here_is_not_rehearsed() {
    let identity = AgentIdentity {
        models: vec![ModelName::new("wine").unwrap()],
        ..AgentIdentity::default()
    };
    let mut agent = Agent::restore(identity, DurableState::default(), at(0)).0;
    assert_eq!(rehearse(&mut agent, &withdrawal(3, 1, 2, 1), 1), []);
}

#[test]
fn a_rehearsal_neither_ends_a_lease_nor_says_that_it_ended() {
    let mut agent = with_canary();
    // The lease is over at second 11; the timer is late.
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(rehearse(&mut agent, &gone, 12), [answer(2, Some(1), None)]);
    let effects = agent.handle(Input::TimePassed, at(12));
    assert!(effects.contains(&Send(lease_expired())), "{effects:?}");
}
