use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{ConnectionId, Generation};
use rollcall_shared::limits::REHEARSAL_MAX;
use rollcall_shared::report::ReadyState;
use rollcall_shared::wire::{FromAgent, Missing, Rehearsal, Rehearsed};
use serde_json::{Value, json};

use crate::coordinator::fixtures::*;
use crate::view::{RehearsalView, RollbackNodeState};
use crate::{Command, Done, Effect, Event, Input, Refusal, Urgent};

fn rehearse() -> Command {
    Command::Rehearse {
        model: digits(),
        version: None,
        reason: "a drill".to_owned(),
    }
}

/// Begins a rehearsal; what was broadcast.
fn begin(world: &mut World) -> Rehearsal {
    let effects = world.command(admin(), rehearse());
    let [Effect::Broadcast(Urgent::Rehearse(rehearsal)), rest @ ..] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    let done = Done::Rehearsing {
        model: digits(),
        rehearsal: rehearsal.rehearsal,
    };
    let result = Ok(done);
    assert!(rest.contains(&Effect::Reply {
        ticket: TICKET,
        result
    }));
    rehearsal.clone()
}

fn answer(rehearsal: &Rehearsal, serving: Option<VersionRef>) -> Rehearsed {
    Rehearsed {
        rehearsal: rehearsal.rehearsal,
        model: digits(),
        held: Generation(1),
        serving,
        missing: None,
    }
}

/// Node `n` says that it is ready for it.
fn say_ready(world: &mut World, n: u64, rehearsal: &Rehearsal) -> Vec<Effect> {
    let ready = answer(rehearsal, rehearsal.as_if.serving);
    world.say(n, FromAgent::Rehearsed(ready))
}

fn view(world: &World) -> RehearsalView {
    world.core.rehearsal(&digits()).unwrap()
}

fn ended(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Append(records)
            if records.iter().any(|r| matches!(r.event, Event::RehearsalEnded { .. })))
    })
}

/// The durable state without the journal's head.
fn durable(world: &World) -> Value {
    let mut state = serde_json::to_value(world.core.state()).unwrap();
    for head in ["seq", "hash"] {
        state.as_object_mut().unwrap().remove(head).unwrap();
    }
    state
}

#[test]
fn the_json_of_a_rehearsal_is_the_documented_one() {
    let mut world = World::in_shadow(1);
    let rehearsal = begin(&mut world);
    world.now = world.now + Duration::from_micros(3_100);
    assert!(ended(&say_ready(&mut world, 1, &rehearsal)));
    let json = serde_json::to_value(view(&world)).unwrap();
    let expected = json!({
        "rehearsal": true, "number": rehearsal.rehearsal,
        "model": "digits", "rollout": "r-2", "generation": world.generation().next(),
        "withdrawn": "2.0.0", "serving": "1.0.0",
        "cause": {"kind": "operator", "actor": "ana", "reason": "a drill"},
        "decided_at": json["decided_at"],
        "receipts": {"expected": 1, "received": 1, "fenced": [], "silent": []},
        "propagation_ms": {"p50": 3.1, "p99": 3.1, "max": 3.1},
        "last_node": "node-1",
        "settled": true,
        "histogram": json["histogram"],
        "nodes": [{"node": "node-1", "state": "receipt", "after_ms": 3.1, "serving": "1.0.0",
                   "until": null, "why": null}],
        "nodes_unlisted": 0,
        "unready": [],
        "expected_ms": 3.1,
    });
    assert_eq!(json, expected);
    assert_eq!(json["histogram"].as_array().unwrap().len(), 1);
    let read: RehearsalView = serde_json::from_value(json).unwrap();
    assert_eq!(read, view(&world));
}

#[test]
fn a_rehearsal_changes_nothing_and_is_what_the_rollback_then_is() {
    for mut world in [World::in_shadow(3), World::promoted(3)] {
        world.disconnect(3);
        world.pass(4);
        let (before, generation) = (durable(&world), world.generation());
        let rehearsal = begin(&mut world);
        say_ready(&mut world, 1, &rehearsal);
        say_ready(&mut world, 2, &rehearsal);
        assert_eq!(durable(&world), before, "a rehearsal changed the state");
        assert_eq!(world.generation(), generation);
        let rehearsed = view(&world);

        let effects = world.rollback();
        assert_eq!(
            effects[0],
            Effect::Broadcast(Urgent::Withdraw(rehearsal.as_if.clone()))
        );
        let id = rehearsal.as_if.rollout;
        let real = world.core.rollback(id, world.now).unwrap();
        assert_eq!(real.receipts.expected, rehearsed.as_if.receipts.expected);
        let (real, rehearsed) = (&real.nodes[2], &rehearsed.as_if.nodes[2]);
        assert_eq!((real.state, real.until), (rehearsed.state, rehearsed.until));
        assert_eq!(real.why, rehearsed.why);
    }
}

#[test]
fn a_rehearsal_is_refused_when_the_rollback_would_be() {
    let mut worlds = [
        World::with_nodes(1),
        World::with_stable(1),
        World::promoted(1),
    ];
    worlds[2].rollback();
    for mut world in worlds {
        let rollback = Command::Rollback {
            model: digits(),
            version: None,
            reason: "a drill".to_owned(),
        };
        let refused = world.result(admin(), rehearse());
        assert!(matches!(refused, Err(Refusal::Conflict(_))), "{refused:?}");
        assert_eq!(refused, world.result(admin(), rollback));
        assert_eq!(world.core.rehearsal(&digits()), None);
    }
}

#[test]
fn silent_nodes_are_named_with_the_end_of_their_lease_and_never_fenced() {
    let mut world = World::in_shadow(3);
    world.heartbeat(3, world.generation().0);
    let fenced_at = world.now + Duration::from_millis(10_100);
    world.disconnect(3);
    world.pass(1);
    let rehearsal = begin(&mut world);
    assert!(!ended(&say_ready(&mut world, 1, &rehearsal)));
    // Node 2 is asked and loses its connection: nobody is left to wait for.
    let connection = world.connection(2);
    let gone = Input::AgentDisconnected {
        connection,
        node: node(2),
    };
    assert!(ended(&world.handle(gone)));
    world.pass(100);
    let view = view(&world);
    assert!(view.as_if.settled);
    assert_eq!(view.as_if.receipts.silent, [node(2), node(3)]);
    assert_eq!(view.as_if.receipts.fenced, []);
    assert_eq!(view.as_if.nodes[2].until, Some(fenced_at));
    assert_eq!(view.as_if.nodes[2].state, RollbackNodeState::Waiting);
    let why = |n: usize| view.as_if.nodes[n].why.clone().unwrap();
    assert!(why(1).contains("ended before it answered"), "{}", why(1));
    assert!(why(2).starts_with("not connected"), "{}", why(2));
    // As long as the longest lease of those that were silent.
    let last = view.as_if.nodes.iter().filter_map(|n| n.until).max();
    let longest = last.unwrap().since(view.as_if.decided_at);
    assert_eq!(view.expected_ms, Some(longest.as_secs_f64() * 1e3));
}

#[test]
fn a_silent_node_that_may_serve_by_right_would_never_be_settled() {
    let mut world = World::promoted(2);
    world.disconnect(2);
    let rehearsal = begin(&mut world);
    say_ready(&mut world, 1, &rehearsal);
    let view = view(&world);
    assert_eq!(view.as_if.nodes[1].state, RollbackNodeState::Silent);
    assert_eq!(view.expected_ms, None);
}

#[test]
fn who_does_not_answer_in_time_is_silent_and_late_answers_change_nothing() {
    let mut world = World::in_shadow(1);
    let rehearsal = begin(&mut world);
    let due = world.now + REHEARSAL_MAX;
    let running = world.result(admin(), rehearse());
    assert!(matches!(running, Err(Refusal::Conflict(_))), "{running:?}");
    assert_eq!(world.core.next_wakeup().map(|at| at <= due), Some(true));
    assert!(ended(&world.pass(REHEARSAL_MAX.as_secs())));
    assert_eq!(say_ready(&mut world, 1, &rehearsal), vec![]);
    assert_eq!(view(&world).as_if.receipts.silent, [node(1)]);
    begin(&mut world);
}

#[test]
fn unready_nodes_are_named_with_what_they_lack() {
    let mut world = World::in_shadow(4);
    let rehearsal = begin(&mut world);
    let loading = Rehearsed {
        missing: Some(Missing {
            version: version(1),
            state: Some(ReadyState::Fetching),
        }),
        ..answer(&rehearsal, None)
    };
    let lies = answer(&rehearsal, Some(rehearsal.as_if.withdrawn));
    let nothing = answer(&rehearsal, None);
    let other = answer(&rehearsal, Some(version(3)));
    for (n, said) in [(1, loading), (2, lies), (3, nothing), (4, other)] {
        world.say(n, FromAgent::Rehearsed(said));
    }
    let view = view(&world);
    assert_eq!(view.as_if.receipts.received, 4);
    let why: Vec<&str> = view.unready.iter().map(|u| u.why.as_str()).collect();
    let start = [
        "would have to load 1.0.0 first (being fetched and loaded); meanwhile nothing",
        "says that it would go on with 2.0.0",
        "nothing would be left to serve",
        "would serve 3.0.0",
    ];
    for (why, start) in why.iter().zip(start) {
        assert!(why.starts_with(start), "{why}");
    }
    assert_eq!(why.len(), start.len());
    assert_eq!(view.unready[0].missing, Some(version(1).version));
    // Only their leases are sure to end it.
    assert!(view.expected_ms > Some(1_000.0), "{:?}", view.expected_ms);
    let Some(Event::RehearsalEnded { unready, .. }) = world.journal.last().map(|r| &r.event) else {
        panic!("{:?}", world.journal.last());
    };
    assert_eq!(unready.len(), 4);
}

#[test]
fn a_long_reason_from_a_node_is_cut() {
    let mut world = World::in_shadow(1);
    let rehearsal = begin(&mut world);
    let failed = ReadyState::Failed {
        reason: "x".repeat(1 << 20),
        retrying: true,
    };
    let said = Rehearsed {
        missing: Some(Missing {
            version: version(1),
            state: Some(failed),
        }),
        ..answer(&rehearsal, None)
    };
    world.say(1, FromAgent::Rehearsed(said));
    let why = &view(&world).unready[0].why;
    assert!(why.len() <= rollcall_shared::limits::TEXT_BYTES_MAX);
}

#[test]
fn a_node_of_protocol_1_is_not_waited_for_and_named_too_old() {
    let mut world = World::in_shadow(2);
    let mut old = hello();
    old.protocol = 1;
    world.connect(2, old);
    let rehearsal = begin(&mut world);
    assert!(ended(&say_ready(&mut world, 1, &rehearsal)));
    let view = view(&world);
    assert_eq!(view.as_if.receipts.silent, [node(2)]);
    let why = view.as_if.nodes[1].why.clone().unwrap();
    assert_eq!(why, "cannot rehearse: software too old (agent test)");
    // Whatever it says, it was not asked.
    assert_eq!(say_ready(&mut world, 2, &rehearsal), vec![]);
}

#[test]
fn answers_that_nobody_waits_for_are_ignored() {
    let mut world = World::in_shadow(2);
    let rehearsal = begin(&mut world);
    let mut unknown = answer(&rehearsal, Some(version(1)));
    unknown.rehearsal += 1;
    let mut elsewhere = answer(&rehearsal, Some(version(1)));
    elsewhere.model = "wine".parse().unwrap();
    for said in [unknown, elsewhere] {
        assert_eq!(world.say(1, FromAgent::Rehearsed(said)), vec![]);
    }
    // A connection that was superseded, and the one that came after the question.
    let superseded = world.connection(1);
    world.connect(1, hello());
    let late = Input::FromAgent {
        connection: superseded,
        node: node(1),
        message: FromAgent::Rehearsed(answer(&rehearsal, Some(version(1)))),
    };
    assert_eq!(world.handle(late), vec![]);
    assert_eq!(say_ready(&mut world, 1, &rehearsal), vec![]);
    let foreign = Input::FromAgent {
        connection: ConnectionId(999_999),
        node: node(2),
        message: FromAgent::Rehearsed(answer(&rehearsal, Some(version(1)))),
    };
    assert_eq!(world.handle(foreign), vec![]);
    assert_eq!(view(&world).as_if.receipts.received, 0);

    // The second copy of an answer moves nothing.
    let mut elsewhere = World::in_shadow(2);
    let rehearsal = begin(&mut elsewhere);
    say_ready(&mut elsewhere, 1, &rehearsal);
    let first = view(&elsewhere);
    elsewhere.now = elsewhere.now + Duration::from_millis(5);
    assert_eq!(say_ready(&mut elsewhere, 1, &rehearsal), vec![]);
    assert_eq!(view(&elsewhere), first);
    assert!(!first.as_if.settled);
}

#[test]
fn a_rehearsal_stands_in_no_ones_way() {
    let mut world = World::in_shadow(1);
    begin(&mut world);
    assert!(matches!(
        world.rollback().as_slice(),
        [
            Effect::Broadcast(Urgent::Withdraw(_)),
            Effect::Append(_),
            Effect::Reply { result: Ok(_), .. }
        ]
    ));
    let effects = world.command(admin(), Command::RevokeNode { node: node(1) });
    assert!(ended(&effects), "a node that left owes no answer");
    assert_eq!(view(&world).as_if.receipts.expected, 0);
}

#[test]
fn a_restart_forgets_a_rehearsal_and_folds_the_same_state() {
    let mut world = World::in_shadow(1);
    let before = durable(&world);
    begin(&mut world);
    let state = crate::State::from_records(world.journal.clone()).unwrap();
    assert_eq!(&state, world.core.state());
    assert_eq!(durable(&world), before);
    assert_eq!(world.restart().core.rehearsal(&digits()), None);
}
