use std::time::Duration;

use rollcall_shared::ids::RolloutId;

use crate::coordinator::fixtures::*;
use crate::view::{FencedNode, RollbackNodeState, RollbackView};
use crate::{Command, Done, Effect, Event, Refusal};

/// The rollback of r-2, as shown now.
fn view(world: &World) -> RollbackView {
    world.core.rollback(RolloutId(2), world.now).unwrap()
}

fn settled(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| {
        matches!(effect, Effect::Append(records)
            if records.iter().any(|r| matches!(r.event, Event::RollbackSettled { .. })))
    })
}

fn states(view: &RollbackView) -> Vec<RollbackNodeState> {
    view.nodes.iter().map(|node| node.state).collect()
}

#[test]
fn receipts_settle_a_rollback_and_say_how_fast_it_was() {
    let mut world = World::in_shadow(2);
    world.rollback();
    let generation = world.generation().0;
    world.now = world.now + Duration::from_millis(3);
    assert!(!settled(&world.receipt(1, generation, 1)));
    world.now = world.now + Duration::from_millis(5);
    assert!(settled(&world.receipt(2, generation, 1)));
    let view = view(&world);
    assert_eq!((view.receipts.expected, view.receipts.received), (2, 2));
    assert_eq!(view.propagation_ms.p50, Some(3.0));
    assert_eq!(view.propagation_ms.max, Some(8.0));
    assert_eq!(view.last_node, Some(node(2)));
    assert!(view.settled);
    assert_eq!(view.serving, Some(version(1).version));
}

#[test]
fn the_json_of_a_rollback_is_the_documented_one() {
    let mut world = World::in_shadow(1);
    world.rollback();
    let generation = world.generation();
    world.now = world.now + Duration::from_micros(3_100);
    world.receipt(1, generation.0, 1);
    let json = serde_json::to_value(view(&world)).unwrap();
    let expected = serde_json::json!({
        "model": "digits", "rollout": "r-2", "generation": generation,
        "withdrawn": "2.0.0", "serving": "1.0.0",
        "cause": {"kind": "operator", "actor": "ana", "reason": "it is bad"},
        "decided_at": json["decided_at"],
        "receipts": {"expected": 1, "received": 1, "fenced": [], "silent": []},
        "propagation_ms": {"p50": 3.1, "p99": 3.1, "max": 3.1},
        "last_node": "node-1",
        "settled": true,
        "histogram": [{"le_ms": json["histogram"][0]["le_ms"], "count": 1}],
        "nodes": [{"node": "node-1", "state": "receipt", "after_ms": 3.1, "serving": "1.0.0",
                   "until": null, "why": null}],
        "nodes_unlisted": 0,
    });
    let le_ms = json["histogram"][0]["le_ms"].as_f64().unwrap();
    assert!((3.1..3.1 * 1.1).contains(&le_ms), "{le_ms}");
    assert_eq!(json, expected);
}

#[test]
fn late_receipt_of_an_old_generation_is_ignored() {
    let mut world = World::in_shadow(1);
    world.rollback();
    let generation = world.generation().0;
    assert_eq!(world.receipt(1, generation - 1, 1), vec![]);
    assert_eq!(view(&world).receipts.received, 0);
}

#[test]
fn a_receipt_that_still_names_the_withdrawn_version_does_not_count() {
    let mut world = World::in_shadow(1);
    world.rollback();
    let generation = world.generation().0;
    assert_eq!(world.receipt(1, generation, 2), vec![]);
    assert_eq!(view(&world).receipts.received, 0);
}

#[test]
fn a_receipt_of_a_newer_generation_counts() {
    let mut world = World::in_shadow(1);
    world.rollback();
    world.start(&CANARY.replace("2.0.0", "3.0.0"));
    let generation = world.generation().0;
    assert!(settled(&world.receipt(1, generation, 1)));
}

#[test]
fn a_silent_node_is_never_a_success() {
    let mut world = World::in_shadow(2);
    world.heartbeat(2, world.generation().0);
    let fenced_at = world.now + Duration::from_millis(10_100);
    world.disconnect(2);
    world.pass(4);
    world.rollback();
    let generation = world.generation().0;
    assert!(!settled(&world.receipt(1, generation, 1)));
    let waiting = view(&world);
    assert_eq!(waiting.receipts.silent, vec![node(2)]);
    assert_eq!(
        states(&waiting),
        vec![RollbackNodeState::Receipt, RollbackNodeState::Waiting]
    );
    assert_eq!(waiting.nodes[1].until, Some(fenced_at));
    let why = waiting.nodes[1].why.clone().unwrap();
    assert!(why.starts_with("not connected, last heard at "), "{why}");
    assert!(!waiting.settled);

    assert!(settled(&world.pass(7)));
    let after = view(&world);
    assert_eq!(after.receipts.received, 1);
    assert_eq!(
        after.receipts.fenced,
        vec![FencedNode {
            node: node(2),
            at: fenced_at
        }]
    );
    assert_eq!(after.receipts.silent, vec![]);
}

#[test]
fn a_node_that_this_process_never_heard_is_fenced_a_whole_lease_after_the_decision() {
    let mut world = World::in_shadow(2).restart();
    world.connect(1, hello());
    world.rollback();
    let until = world.now + Duration::from_millis(10_100);
    assert_eq!(view(&world).nodes[1].until, Some(until));
}

#[test]
fn a_restart_waits_for_unsettled_rollbacks_again() {
    let mut world = World::in_shadow(1);
    world.rollback();
    let mut world = world.restart();
    assert_eq!(view(&world).receipts.silent, vec![node(1)]);
    assert_eq!(
        view(&world).nodes[0].until,
        Some(world.now + Duration::from_millis(10_100))
    );
    assert!(settled(&world.pass(20)));
    // What was settled is still known after another restart.
    let world = world.restart();
    assert_eq!(view(&world).receipts.fenced.len(), 1);
    assert!(view(&world).settled);
}

#[test]
fn a_withdrawn_stable_is_never_fenced() {
    let mut world = World::promoted(2);
    world.disconnect(2);
    world.rollback();
    let generation = world.generation().0;
    world.receipt(1, generation, 1);
    world.pass(100_000);
    let lasting = view(&world);
    assert_eq!(lasting.receipts.silent, vec![node(2)]);
    assert_eq!(
        states(&lasting),
        vec![RollbackNodeState::Receipt, RollbackNodeState::Silent]
    );
    assert!(!lasting.settled);
    world.connect(2, hello());
    assert!(settled(&world.receipt(2, generation, 1)));
}

/// 1.0.0 was stable, is the version before now, and is on trial again by r-3. Node 2 heard
/// of none of it, unless `told`, and is cut off.
fn former_stable_on_trial(told: bool) -> World {
    let mut world = World::awaiting_approval(2);
    world.receipt(2, world.generation().0, 1);
    if !told {
        world.disconnect(2);
    }
    world.promote();
    assert_eq!(world.start(&CANARY.replace("2.0.0", "1.0.0")), RolloutId(3));
    if told {
        world.receipt(2, world.generation().0, 2);
        world.heartbeat(2, world.generation().0);
        world.disconnect(2);
    }
    world.rollback();
    world.receipt(1, world.generation().0, 2);
    world
}

#[test]
fn a_node_that_may_hold_the_withdrawn_version_as_stable_is_silent_never_fenced() {
    let mut world = former_stable_on_trial(false);
    let view = |world: &World| world.core.rollback(RolloutId(3), world.now).unwrap();
    let expected = [RollbackNodeState::Receipt, RollbackNodeState::Silent];
    assert_eq!(states(&view(&world)), expected);
    world.pass(100_000);
    assert_eq!(states(&view(&world)), expected);
    let mut world = world.restart();
    world.connect(1, hello());
    world.receipt(1, world.generation().0, 2);
    world.pass(100_000);
    assert_eq!(states(&view(&world)), expected);
    assert!(!view(&world).settled);
    world.connect(2, hello());
    assert!(settled(&world.receipt(2, world.generation().0, 2)));
}

#[test]
fn a_node_that_has_receipted_what_replaced_a_former_stable_is_fenced_by_its_lease() {
    let mut world = former_stable_on_trial(true);
    let view = |world: &World| world.core.rollback(RolloutId(3), world.now).unwrap();
    let states_of = |world: &World| states(&view(world));
    let receipt = RollbackNodeState::Receipt;
    assert_eq!(states_of(&world), [receipt, RollbackNodeState::Waiting]);
    world.pass(11);
    assert_eq!(states_of(&world), [receipt, RollbackNodeState::Fenced]);
    assert!(view(&world).settled);
}

#[test]
fn a_node_may_hold_the_longer_lease_of_an_earlier_trial() {
    let shadow = "model='digits'\ncandidate='2.0.0'\nstrategy='shadow'\nlease='60s'\n[policy]\n\
                  min_requests=100\ncheck_every='1s'";
    let mut world = World::with_stable(1);
    world.start(shadow);
    world.everybody_ready(1, 2);
    world.disconnect(1);
    world.pass(1);
    world.connect(1, hello());
    world.done(
        admin(),
        crate::Command::Advance {
            rollout: RolloutId(2),
        },
    );
    let answered_at = world.now;
    world.disconnect(1);
    world.start(CANARY);
    world.rollback();
    let view = world.core.rollback(RolloutId(3), world.now).unwrap();
    assert_eq!(
        view.nodes[0].until,
        Some(answered_at + Duration::from_millis(60_600))
    );
}

#[test]
fn who_owes_a_receipt_is_a_matter_of_the_journals_order_not_of_the_clock() {
    let world = World::with_stable(1);
    // The clock steps back to before the enrolment.
    let mut world = World::from_journal(world.journal, seconds(10));
    world.connect(1, hello());
    world.start(CANARY);
    assert!(!settled(&world.rollback()));
    assert_eq!(view(&world).receipts.expected, 1);
    world.enroll(2);
    let world = World::from_journal(world.journal, seconds(5));
    assert_eq!(view(&world).receipts.expected, 1);
}

#[test]
fn a_clock_that_stepped_over_a_restart_moves_no_fence() {
    for restarted_at in [seconds(5), seconds(100_000)] {
        let mut world = World::in_shadow(1);
        world.rollback();
        let mut world = World::from_journal(world.journal, restarted_at);
        assert_eq!(states(&view(&world)), [RollbackNodeState::Waiting]);
        world.pass(10);
        assert_eq!(states(&view(&world)), [RollbackNodeState::Waiting]);
        assert!(settled(&world.pass(1)));
        assert_eq!(states(&view(&world)), [RollbackNodeState::Fenced]);
    }
}

#[test]
fn in_a_journal_that_lost_its_past_only_receipts_prove_anything() {
    let mut world = World::with_stable(2);
    world.disconnect(2);
    // Another life of this fleet, in which anything may have been stable on node 2.
    world.heartbeat(1, world.generation().0 + 50);
    let rollout = world.start(CANARY);
    world.receipt(1, world.generation().0, 1);
    world.disconnect(1);
    world.rollback();
    let view = world.core.rollback(rollout, world.now).unwrap();
    assert_eq!(
        states(&view),
        [RollbackNodeState::Waiting, RollbackNodeState::Silent]
    );
}

#[test]
fn a_node_that_leaves_the_fleet_owes_no_receipt() {
    let mut world = World::in_shadow(1);
    world.rollback();
    let effects = world.command(admin(), crate::Command::RevokeNode { node: node(1) });
    assert!(settled(&effects));
    assert_eq!(view(&world).receipts.expected, 0);
}

#[test]
fn a_rollback_with_nothing_to_go_back_to_is_refused() {
    let mut world = World::with_stable(1);
    let effects = world.rollback();
    let [
        Effect::Reply {
            result: Err(refusal),
            ..
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    assert!(refusal.to_string().contains("no version before 1.0.0"));
}

#[test]
fn a_rollback_repeated_after_a_lost_answer_does_not_take_the_good_version_too() {
    let mut world = World::promoted(1);
    world.start(&CANARY.replace("2.0.0", "3.0.0"));
    world.rollback();
    let before = world.journal.len();
    let again = |version| Command::Rollback {
        model: digits(),
        version,
        reason: "it is bad".to_owned(),
    };
    for wrong in [None, Some(version(3).version)] {
        assert!(matches!(
            world.result(admin(), again(wrong)),
            Err(Refusal::Conflict(_))
        ));
    }
    assert_eq!(
        world.journal.len(),
        before,
        "a refused rollback left a record"
    );

    let meant = world.done(admin(), again(Some(version(2).version)));
    assert!(matches!(
        meant,
        Done::Withdrawn {
            rollout: RolloutId(2),
            ..
        }
    ));
    assert_eq!(
        world.core.model(&digits()).unwrap().stable,
        Some(version(1).version)
    );
}

#[test]
fn what_was_settled_is_shown_from_the_journal_with_its_histogram() {
    let mut world = World::in_shadow(3);
    world.disconnect(3);
    world.rollback();
    let generation = world.generation().0;
    for n in 1..=2 {
        world.now = world.now + Duration::from_millis(3);
        world.receipt(n, generation, 1);
    }
    world.pass(20);
    let lived = view(&world);
    let world = world.restart();
    let mut read = view(&world);
    assert_eq!(read.histogram.iter().map(|bin| bin.count).sum::<u64>(), 2);
    let of_rollout = world.core.rollout(RolloutId(2), world.now).unwrap();
    let summary = of_rollout.rollback.unwrap();
    assert_eq!(summary.histogram, read.histogram);
    assert_eq!(
        (
            summary.expected,
            summary.received,
            summary.fenced,
            summary.silent
        ),
        (3, 2, 1, 0)
    );
    // The reasons of that day are gone; everything else is there.
    read.nodes[2].why.clone_from(&lived.nodes[2].why);
    assert_eq!(read, lived);
}

#[test]
fn a_node_that_serves_something_else_says_so_in_its_receipt_and_in_the_record() {
    let mut world = World::in_shadow(2);
    world.rollback();
    let generation = world.generation().0;
    world.receipt(1, generation, 1);
    world.receipt(2, generation, 3);
    for world in [
        &world,
        &World::from_journal(world.journal.clone(), world.now),
    ] {
        let serving: Vec<_> = view(world).nodes.iter().map(|n| n.serving).collect();
        assert_eq!(
            serving,
            [Some(version(1).version), Some(version(3).version)]
        );
    }
}

#[test]
fn monitoring_counts_receipts_as_they_come_and_fences_when_it_settles() {
    let mut world = World::in_shadow(3);
    world.disconnect(3);
    world.rollback();
    let generation = world.generation().0;
    world.receipt(1, generation, 1);
    world.receipt(1, generation, 1);
    let figures = |world: &World| world.core.rollback_figures().pop().unwrap();
    let now = figures(&world);
    assert_eq!((now.receipts.count(), now.silent, now.fenced), (1, 2, 0));
    world.receipt(2, generation, 1);
    world.pass(20);
    let now = figures(&world);
    assert_eq!((now.receipts.count(), now.silent, now.fenced), (2, 0, 1));
    assert_eq!((now.rehearsals, now.rehearsed.count()), (0, 0));
}
