use std::time::Duration;

use rollcall_shared::ids::RolloutId;

use crate::coordinator::fixtures::*;
use crate::view::{FencedNode, RollbackNodeState, RollbackView};
use crate::{Effect, Event};

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
        "nodes": [{"node": "node-1", "state": "receipt", "after_ms": 3.1, "until": null}],
    });
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
    let decided_at = world.now;
    let mut world = world.restart();
    assert_eq!(view(&world).receipts.silent, vec![node(1)]);
    assert_eq!(
        view(&world).nodes[0].until,
        Some(decided_at + Duration::from_millis(10_100))
    );
    assert!(settled(&world.pass(20)));
    // What was settled is still known after another restart.
    let world = world.restart();
    assert_eq!(view(&world).receipts.fenced.len(), 1);
    assert!(view(&world).settled);
}

#[test]
fn a_withdrawn_stable_is_never_fenced() {
    let mut world = World::awaiting_approval(2);
    let approve = crate::Command::Approve {
        rollout: RolloutId(2),
        gate: "security".to_owned(),
        note: None,
    };
    world.done(security("sven"), approve);
    world.report(1, rollcall_shared::report::Role::Candidate, 2, good(1_000));
    world.pass(10);
    assert_eq!(
        world.core.model(&digits()).unwrap().previous,
        Some(version(1).version)
    );
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
