use proptest::prelude::*;
use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::report::{ReadyState, Role as ServingRole};
use rollcall_shared::wire::{FromAgent, Heartbeat, HeartbeatAnswer, ToAgent};

use super::fixtures::*;
use crate::{Cause, Command, DisconnectCause, Done, Effect, Event, Input, Record, State, Urgent};

mod adopting;

fn events(effects: &[Effect]) -> Vec<Event> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Append(records) => Some(records),
            _ => None,
        })
        .flatten()
        .map(|record| record.event.clone())
        .collect()
}

#[test]
fn a_withdrawal_is_broadcast_before_it_is_durable() {
    let mut world = World::in_shadow(1);
    let generation = world.generation().next();
    let withdrawal = Withdrawal {
        model: digits(),
        rollout: RolloutId(2),
        withdrawn: version(2),
        generation,
        serving: Some(version(1)),
    };
    let record = Record {
        seq: world.core.state().seq() + 1,
        at: world.now,
        actor: admin(),
        event: Event::Withdrawn {
            withdrawal: withdrawal.clone(),
            cause: Cause::Operator {
                actor: "ana".to_owned(),
                reason: "it is bad".to_owned(),
            },
        },
        previous: world.core.state().hash(),
    };
    assert_eq!(
        world.rollback(),
        vec![
            Effect::Broadcast(Urgent::Withdraw(withdrawal)),
            Effect::Append(vec![record]),
            Effect::Reply {
                ticket: TICKET,
                result: Ok(Done::Withdrawn {
                    rollout: RolloutId(2),
                    generation,
                }),
            },
        ]
    );
}

#[test]
fn everything_else_is_durable_before_it_is_sent() {
    let mut world = World::in_shadow(2);
    let command = Command::Quarantine { node: node(2) };
    let effects = world.command(admin(), command);
    let [
        Effect::Append(records),
        Effect::Send {
            message: ToAgent::Assign(first),
            ..
        },
        Effect::Send {
            message: ToAgent::Assign(second),
            ..
        },
        Effect::Reply { .. },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    assert_eq!(records[0].event, Event::NodeQuarantined { node: node(2) });
    assert!(first.candidate.is_some());
    assert_eq!(second.candidate, None);
    assert_eq!(first.generation, world.generation());
}

#[test]
fn a_restart_skips_a_generation() {
    let world = World::in_shadow(1);
    let before = world.generation();
    let world = world.restart();
    assert!(world.generation() > before.next());
}

#[test]
fn a_version_on_trial_again_is_not_kept_to_go_back_to_as_well() {
    let mut world = World::promoted(1);
    let assigned = |world: &World| world.core.assignment_for(&digits(), &node(1)).unwrap();
    assert_eq!(assigned(&world).previous, Some(version(1)));
    world.start(&CANARY.replace("2.0.0", "1.0.0"));
    assert_eq!(assigned(&world).previous, None);
    assert_eq!(assigned(&world).candidate.unwrap().version, version(1));
}

#[test]
fn a_heartbeat_is_answered_and_what_was_missed_is_sent_again() {
    let mut world = World::with_stable(1);
    let current = world.generation();
    let connection = world.connection(1);
    let answer = |effects: &[Effect]| effects[0].clone();
    let expected = Effect::Send {
        node: node(1),
        connection,
        message: ToAgent::HeartbeatAnswer(HeartbeatAnswer {
            seq: 1,
            current: vec![(digits(), current)],
        }),
    };
    let fresh = world.heartbeat(1, current.0);
    assert_eq!(fresh, vec![expected.clone()]);
    let stale = world.heartbeat(1, current.0 - 1);
    assert_eq!(answer(&stale), expected);
    assert!(
        matches!(&stale[1], Effect::Send { message: ToAgent::Sync(snapshot), .. }
            if snapshot.assignments[0].generation == current)
    );
}

#[test]
fn the_latest_connection_wins_and_the_older_one_is_ignored() {
    let mut world = World::with_stable(1);
    let old = world.connection(1);
    let effects = world.connect(1, hello());
    assert_eq!(
        effects[0],
        Effect::Disconnect {
            node: node(1),
            connection: old,
            cause: DisconnectCause::Superseded,
        }
    );
    let message = FromAgent::Heartbeat(Heartbeat {
        seq: 9,
        held: vec![],
    });
    let input = Input::FromAgent {
        connection: old,
        node: node(1),
        message,
    };
    assert_eq!(world.handle(input), vec![]);
    let gone = Input::AgentDisconnected {
        connection: old,
        node: node(1),
    };
    assert_eq!(world.handle(gone), vec![]);
    assert!(world.core.node(&node(1)).unwrap().connected);
}

#[test]
fn a_hello_that_cannot_be_kept_is_refused_with_a_reason() {
    let mut world = World::with_nodes(1);
    let refusal = |world: &mut World, n, change: &dyn Fn(&mut rollcall_shared::wire::Hello)| {
        let mut hello = hello();
        change(&mut hello);
        match world.connect(n, hello).as_slice() {
            [
                Effect::Disconnect {
                    cause: DisconnectCause::Refused(reason),
                    ..
                },
            ] => reason.clone(),
            other => panic!("{other:?}"),
        }
    };
    let newer = refusal(&mut world, 1, &|h| (h.protocol_min, h.protocol) = (8, 9));
    assert!(newer.contains("protocols 8 to 9"), "{newer}");
    let held = vec![(digits(), Generation(1)); 65];
    let many = refusal(&mut world, 1, &|h| h.held.clone_from(&held));
    assert!(many.contains("at most 64"), "{many}");
    assert!(refusal(&mut world, 9, &|_| {}).contains("not enrolled"));
}

#[test]
fn a_node_that_serves_what_was_not_approved_is_named() {
    let mut world = World::with_stable(1);
    let generation = world.generation().0;
    world.receipt(1, generation, 1);
    assert!(!world.core.node(&node(1)).unwrap().unauthorised);
    world.receipt(1, generation, 3);
    let view = world.core.node(&node(1)).unwrap();
    assert_eq!(view.models[0].unauthorised, vec![version(3)]);
    assert!(world.core.fleet_status(world.now).alerts[0].contains("node-1 serves digits@3.0.0"));
}

#[test]
fn a_revoked_node_is_cut_off_and_never_let_in() {
    let mut world = World::with_nodes(1);
    let connection = world.connection(1);
    let effects = world.command(admin(), Command::RevokeNode { node: node(1) });
    let cut = Effect::Disconnect {
        node: node(1),
        connection,
        cause: DisconnectCause::Revoked,
    };
    assert!(effects.contains(&cut));
    assert!(matches!(
        world.connect(1, hello()).as_slice(),
        [Effect::Disconnect {
            cause: DisconnectCause::Revoked,
            ..
        }]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fold_of_records_equals_live_state(actions in prop::collection::vec((0u8..14, 1u64..4), 1..60)) {
        let mut world = World::with_stable(3);
        for (action, n) in actions {
            act(&mut world, action, n);
            world.now = world.now + std::time::Duration::from_millis(200);
            let generation = world.generation();
            let model = &world.core.state().models[&digits()];
            prop_assert!(generation >= model.known);
            for named in [model.stable, world.core.state().previous(&digits())] {
                let lingers = |v: VersionRef| model.rights.may_linger(v.version, generation);
                prop_assert!(named.is_none_or(lingers));
            }
        }
        let folded = State::from_records(world.journal.clone()).unwrap();
        prop_assert_eq!(&folded, world.core.state());
        let json = serde_json::to_vec(&world.journal).unwrap();
        let read: Vec<Record> = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(&State::from_records(read).unwrap(), &folded);
        let snapshot = serde_json::to_vec(&folded).unwrap();
        prop_assert_eq!(&serde_json::from_slice::<State>(&snapshot).unwrap(), &folded);
        // Whatever can be shown can be shown.
        let status = world.core.fleet_status(world.now);
        let json = serde_json::to_string(&status).unwrap();
        prop_assert_eq!(serde_json::from_str::<crate::view::FleetStatus>(&json).unwrap(), status);
    }
}

/// One thing that can happen; refusals are part of it.
fn act(world: &mut World, action: u8, n: u64) {
    let live = world.core.model(&digits()).unwrap().rollout;
    let rollout = live.unwrap_or(RolloutId(n));
    let generation = world.generation().0;
    let is_connected = world.core.node(&node(n)).unwrap().connected;
    let command = match action {
        0 | 1 => {
            let plan = CANARY.replace("2.0.0", &format!("{n}.0.0"));
            let plan = rollcall_shared::plan::Plan::from_toml(&plan).unwrap();
            Command::StartRollout {
                plan,
                dry_run: n == 1,
            }
        }
        2 => Command::Pause { rollout },
        3 => Command::Resume { rollout },
        4 => Command::Advance { rollout },
        5 => Command::Quarantine { node: node(n) },
        6 => Command::Release { node: node(n) },
        7 => {
            let gate = "security".to_owned();
            let approve = Command::Approve {
                rollout,
                gate,
                note: None,
            };
            world.command(security("sven"), approve);
            return;
        }
        8 if n == 1 => Command::Rollback {
            version: None,
            model: digits(),
            reason: String::new(),
        },
        9 if is_connected => {
            world.receipt(n, generation, 1);
            return;
        }
        10 | 11 if is_connected => {
            for major in 1..=3 {
                world.readiness(n, major, ReadyState::Ready);
            }
            world.report(n, ServingRole::Shadow, 2, good(500));
            world.report(n, ServingRole::Candidate, 2, counts(500, 3, 7));
            world.report(n, ServingRole::Stable, 1, good(500));
            return;
        }
        12 if is_connected => return world.disconnect(n),
        8..=12 => {
            let mut hello = hello();
            hello.held = vec![(digits(), Generation(generation))];
            world.connect(n, hello);
            return;
        }
        _ => {
            world.pass(3 * n);
            return;
        }
    };
    world.command(admin(), command);
}
