//! Random interleavings: whatever is lost, repeated, reordered, delayed or cut short by a
//! crash, the promises hold after every step, and once faults end the node converges.

mod coordinator;
mod machine;
mod world;

use proptest::prelude::*;

use self::world::World;

/// One thing that happens. Numbers choose among what there is at that moment.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// The coordinator begins a rollout, moves it on, or promotes its candidate.
    Advance(u8),
    /// The coordinator withdraws the running (or else the last finished) rollout.
    Withdraw,
    /// A coordinator that forgot its withdrawals assigns a withdrawn version.
    Forget(u8),
    /// The coordinator repairs: a snapshot as of now.
    Repair,
    /// Any assignment, withdrawal or snapshot ever sent arrives (again).
    Deliver(u16),
    /// The newest of them arrives.
    DeliverNewest,
    /// The coordinator answers a heartbeat; the answer is on its way.
    Answer(u8),
    /// Any answer on its way arrives (again).
    DeliverAnswer(u8),
    Connect,
    Welcome,
    Disconnect,
    /// A preparation ends: well, badly, or for good.
    Prepared(u8, u8),
    /// Time passes; the timer fires when it should.
    Pass(u16),
    /// The process is paused and wakes up late.
    Pause(u16),
    /// kill -9 after so many effects of the next input.
    CrashDuringNext(u8),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => any::<u8>().prop_map(Action::Advance),
        2 => Just(Action::Withdraw),
        1 => any::<u8>().prop_map(Action::Forget),
        1 => Just(Action::Repair),
        4 => any::<u16>().prop_map(Action::Deliver),
        6 => Just(Action::DeliverNewest),
        5 => any::<u8>().prop_map(Action::Answer),
        5 => any::<u8>().prop_map(Action::DeliverAnswer),
        2 => Just(Action::Connect),
        4 => Just(Action::Welcome),
        1 => Just(Action::Disconnect),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Action::Prepared(a, b)),
        6 => (0..3_000u16).prop_map(Action::Pass),
        1 => (0..15_000u16).prop_map(Action::Pause),
        1 => (0..6u8).prop_map(Action::CrashDuringNext),
        1 => Just(Action::Restart),
    ]
}

fn run(actions: &[Action]) -> World {
    let mut world = World::new();
    for action in actions {
        match *action {
            Action::Advance(choice) => world.coordinator.advance(choice),
            Action::Withdraw => world.coordinator.withdraw(world.now),
            Action::Forget(choice) => world.coordinator.forget(choice),
            Action::Repair => world.coordinator.repair(),
            Action::Deliver(choice) => world.deliver(choice.into()),
            Action::DeliverNewest => world.deliver_newest(),
            Action::Answer(choice) => world.answer(choice.into()),
            Action::DeliverAnswer(choice) => world.deliver_answer(choice.into()),
            Action::Connect => world.connect(),
            Action::Welcome => world.welcome(),
            Action::Disconnect => world.disconnect(),
            Action::Prepared(choice, result) => world.prepared(choice.into(), result),
            Action::Pass(milliseconds) => world.pass(milliseconds.into()),
            Action::Pause(milliseconds) => world.pause(milliseconds.into()),
            Action::CrashDuringNext(effects) => world.crash_after(effects.into()),
            Action::Restart => world.restart(),
        }
        world.check();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn promises_hold_after_every_step_and_the_node_converges_when_faults_end(
        actions in prop::collection::vec(action(), 1..160)
    ) {
        let mut world = run(&actions);
        world.heal();
    }
}

/// A generator that never gets a candidate into a route would prove nothing.
#[test]
fn the_interleavings_reach_what_they_are_about() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(action(), 100..160);
    let (mut candidates, mut expiries, mut withdrawals) = (0, 0, 0);
    for _ in 0..200 {
        let actions = strategy.new_tree(&mut runner).unwrap().current();
        let world = run(&actions);
        candidates += usize::from(world.seen.candidate_routed);
        expiries += usize::from(world.seen.lease_expired);
        withdrawals += usize::from(world.seen.withdrawn_while_routed);
    }
    assert!(
        candidates > 50 && expiries > 10 && withdrawals > 10,
        "of 200 runs {candidates} route a candidate, {expiries} see a lease end, \
         {withdrawals} withdraw a routed candidate"
    );
}
