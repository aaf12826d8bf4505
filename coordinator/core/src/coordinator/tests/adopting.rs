//! What agents remember and hand back to a journal that lost it.

use super::*;

/// Node 1 remembers that 2.0.0 (r-2) was withdrawn, and what served instead.
fn remembering(world: &World, serving: u64) -> rollcall_shared::wire::Hello {
    let mut hello = hello();
    hello.withdrawals = vec![Withdrawal {
        model: digits(),
        rollout: RolloutId(2),
        withdrawn: version(2),
        generation: Generation(world.generation().0 + 5),
        serving: Some(version(serving)),
    }];
    hello
}

#[test]
fn an_agent_hands_back_a_lost_withdrawal() {
    let mut world = World::in_shadow(1);
    let journal = world.journal.clone();
    let effects = world.rollback();
    let Effect::Broadcast(Urgent::Withdraw(lost)) = &effects[0] else {
        panic!("{effects:?}");
    };
    // Killed between the broadcast and the append.
    let mut world = World::from_journal(journal, world.now);
    let mut hello = hello();
    hello.held = vec![(digits(), lost.generation)];
    hello.withdrawals = vec![lost.clone()];
    let effects = world.connect(1, hello);
    let [
        Event::KnowledgeAdopted { withdrawals, .. },
        Event::Withdrawn { withdrawal, cause },
    ] = &events(&effects)[..2]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(withdrawals, &vec![lost.clone()]);
    assert_eq!(
        effects[0],
        Effect::Broadcast(Urgent::Withdraw(withdrawal.clone()))
    );
    assert_eq!(withdrawal.rollout, lost.rollout);
    assert!(withdrawal.generation > lost.generation);
    assert_eq!(cause, &Cause::Adopted { node: node(1) });
    let Some(Effect::Send {
        message: ToAgent::Welcome(welcome),
        ..
    }) = effects
        .iter()
        .find(|effect| matches!(effect, Effect::Send { .. }))
    else {
        panic!("{effects:?}");
    };
    assert_eq!(welcome.snapshot.assignments[0].candidate, None);
    assert!(welcome.snapshot.withdrawals.contains(lost));
}

#[test]
fn an_agent_that_hands_back_a_known_withdrawal_teaches_nothing() {
    let mut world = World::in_shadow(2);
    let effects = world.rollback();
    let Effect::Broadcast(Urgent::Withdraw(known)) = &effects[0] else {
        panic!("{effects:?}");
    };
    let mut hello = hello();
    hello.held = vec![(digits(), known.generation)];
    hello.withdrawals = vec![known.clone()];
    assert_eq!(events(&world.connect(1, hello)), vec![]);
}

#[test]
fn a_restored_old_backup_never_reuses_generations_or_rollout_ids() {
    let mut world = World::with_stable(1);
    let backup = world.journal.clone();
    // A past that the backup does not know: r-2 is started and withdrawn, r-3 is running.
    world.start(CANARY);
    world.everybody_ready(1, 2);
    let effects = world.rollback();
    let Effect::Broadcast(Urgent::Withdraw(lost)) = &effects[0] else {
        panic!("{effects:?}");
    };
    let running = world.start(&CANARY.replace("2.0.0", "3.0.0"));
    world.everybody_ready(1, 3);
    let held = world.generation();

    let mut world = World::from_journal(backup, world.now);
    let mut hello = hello();
    hello.held = vec![(digits(), held)];
    hello.withdrawals = vec![lost.clone()];
    world.connect(1, hello);
    assert!(world.generation() > held);
    assert!(world.start(&CANARY.replace("2.0.0", "3.0.0")) > running);
    let plan = rollcall_shared::plan::Plan::from_toml(CANARY).unwrap();
    let again = Command::StartRollout {
        plan,
        dry_run: false,
    };
    assert!(
        world
            .result(admin(), again)
            .unwrap_err()
            .to_string()
            .contains("was withdrawn")
    );
}

#[test]
fn an_adopted_withdrawal_takes_a_stable_version_away() {
    let mut world = World::promoted(1);
    let backup = world.journal.clone();
    let effects = world.rollback();
    let Effect::Broadcast(Urgent::Withdraw(lost)) = &effects[0] else {
        panic!("{effects:?}");
    };
    assert_eq!(lost.serving, Some(version(1)));
    let mut world = World::from_journal(backup, world.now);
    let mut hello = hello();
    hello.withdrawals = vec![lost.clone()];
    world.connect(1, hello);
    assert_eq!(
        world.core.model(&digits()).unwrap().stable,
        Some(version(1).version)
    );
}

#[test]
fn a_rollout_ends_when_its_candidate_becomes_stable_by_a_withdrawal() {
    let mut world = World::promoted(1);
    let again = world.start(&CANARY.replace("2.0.0", "1.0.0"));
    let effects = world.connect(1, remembering(&world, 1));
    let [
        Event::KnowledgeAdopted { .. },
        Event::Withdrawn { withdrawal, .. },
        Event::RolloutFinished { rollout, .. },
    ] = &events(&effects)[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(withdrawal.serving, Some(version(1)));
    assert_eq!(*rollout, again);
    let model = world.core.model(&digits()).unwrap();
    assert_eq!(
        (model.stable, model.previous),
        (Some(version(1).version), None)
    );
    assert_eq!(model.rollout, None);
    // There is nothing to roll back to, and nothing is withdrawn in favour of itself.
    assert_eq!(events(&world.rollback()), vec![]);
}

#[test]
fn a_withdrawal_that_was_adopted_but_not_carried_out_is_carried_out_when_it_is_heard_again() {
    let mut world = World::promoted(1);
    let hello = remembering(&world, 1);
    world.connect(1, hello.clone());
    let is_adoption = |r: &Record| matches!(r.event, Event::KnowledgeAdopted { .. });
    let adopted = world.journal.iter().position(is_adoption).unwrap();
    world.journal.truncate(adopted + 1);
    let mut world = World::from_journal(world.journal, world.now);
    let stable = |world: &World| world.core.model(&digits()).unwrap().stable;
    assert_eq!(stable(&world), Some(version(2).version));
    world.connect(1, hello);
    assert_eq!(stable(&world), Some(version(1).version));
}

#[test]
fn an_agents_word_makes_nothing_stable_that_never_was() {
    let mut world = World::promoted(1);
    world.connect(1, remembering(&world, 3));
    let stable = world.core.model(&digits()).unwrap().stable;
    assert_eq!(stable, Some(version(1).version));
}

#[test]
fn a_generation_that_nobody_gave_out_is_stepped_over_once() {
    let mut world = World::with_stable(2);
    let foreign = Generation(world.generation().0 + 50);
    let effects = world.heartbeat(1, foreign.0);
    assert!(matches!(
        events(&effects)[..],
        [Event::KnowledgeAdopted { .. }]
    ));
    assert_eq!(world.generation(), foreign.next());
    assert_eq!(events(&world.heartbeat(2, foreign.0)), vec![]);
}

#[test]
fn numbers_that_no_backup_can_have_lost_are_refused_and_change_nothing() {
    let mut world = World::in_shadow(1);
    let before = world.generation();
    let mut held = hello();
    held.held = vec![(digits(), Generation(u64::MAX))];
    let mut withdrawn = remembering(&world, 1);
    withdrawn.withdrawals[0].generation = Generation(u64::MAX);
    let mut numbered = remembering(&world, 1);
    numbered.withdrawals[0].rollout = RolloutId(u64::MAX);
    for lie in [held, withdrawn, numbered] {
        let effects = world.connect(1, lie);
        let refused = |effect: &Effect| {
            matches!(
                effect,
                Effect::Disconnect {
                    cause: DisconnectCause::Refused(_),
                    ..
                }
            )
        };
        assert!(effects.iter().any(refused), "{effects:?}");
        assert_eq!(events(&effects), []);
    }
    assert_eq!(world.generation(), before);
}

#[test]
fn heartbeats_teach_once_a_connection() {
    let mut world = World::in_shadow(1);
    world.connect(1, hello());
    let mut adoptions = 0;
    for seq in 1..=5 {
        let held = vec![(digits(), Generation(world.generation().0 + 7))];
        let effects = world.say(1, FromAgent::Heartbeat(Heartbeat { seq, held }));
        adoptions += events(&effects).len();
    }
    assert_eq!(adoptions, 1);
}

#[test]
fn invented_models_and_withdrawals_are_adopted_up_to_the_bounds() {
    let mut world = World::in_shadow(1);
    let mut lie = remembering(&world, 1);
    let invented = lie.withdrawals.remove(0);
    lie.withdrawals = (0..2_000)
        .map(|number| Withdrawal {
            rollout: RolloutId(100 + number),
            ..invented.clone()
        })
        .collect();
    world.connect(1, lie);
    for batch in 0..5 {
        let mut lie = hello();
        let model = |n: usize| ModelName::new(format!("m-{batch}-{n}")).unwrap();
        lie.held = (0..64).map(|n| (model(n), Generation(9))).collect();
        world.connect(1, lie);
    }
    let models = &world.core.state().models;
    let withdrawals = models[&digits()].withdrawals.len();
    assert_eq!(withdrawals, 512 + 1, "what came of them is the last");
    assert!(models.len() <= 1 + 2 * 64, "{}", models.len());
}
