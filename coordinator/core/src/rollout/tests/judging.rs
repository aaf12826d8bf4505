//! What the judge's word does to a rollout.

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::Generation;
use rollcall_shared::report::{AgentEvent, ClassCounts, Counts};
use rollcall_shared::version::Version;
use rollcall_shared::wire::FromAgent;

use super::*;
use crate::judge::follows;
use crate::view::Step;

fn opened(world: &mut World, n: u64) -> Vec<Effect> {
    let event = AgentEvent::BreakerOpened {
        model: digits(),
        rollout: R2,
        failures: 5,
    };
    world.say(n, FromAgent::Event(event))
}

/// In the canary stage, with `nodes` nodes.
fn in_canary(nodes: u64) -> World {
    let mut world = World::in_shadow(nodes);
    world.done(admin(), Command::Advance { rollout: R2 });
    assert_eq!(world.trip().stage_name.as_deref(), Some("canary"));
    world
}

/// Two seconds in which `bad` nodes of `nodes` see half of the candidate's answers fail.
fn two_seconds(world: &mut World, nodes: u64, bad: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..2 {
        for n in 1..=nodes {
            let errors = if n <= bad { 10 } else { 0 };
            world.report(n, ServingRole::Candidate, 2, counts(20, errors, 5));
            world.report(n, ServingRole::Stable, 1, good(180));
        }
        effects.extend(world.pass(1));
    }
    effects
}

#[test]
fn a_breaker_on_one_node_is_borne_and_on_two_withdraws_at_once() {
    let mut world = in_canary(3);
    assert_eq!(opened(&mut world, 1), vec![]);
    assert_eq!(opened(&mut world, 1), vec![]);
    let effects = opened(&mut world, 2);
    let expected = ("canary".to_owned(), vec![Metric::Breakers]);
    assert_eq!(withdrawn_by_judge(&effects), expected);
}

#[test]
fn a_breaker_of_another_rollout_says_nothing() {
    let mut world = in_canary(1);
    let event = AgentEvent::BreakerOpened {
        model: digits(),
        rollout: RolloutId(1),
        failures: 5,
    };
    assert_eq!(world.say(1, FromAgent::Event(event)), vec![]);
    assert!(world.trip().state.is_live());
}

#[test]
fn one_bad_node_loses_the_candidate_and_the_stage_goes_on() {
    let mut world = in_canary(3);
    let before = world.generation();
    let effects = two_seconds(&mut world, 3, 1);
    assert!(!effects.iter().any(|e| matches!(e, Effect::Broadcast(_))));
    assert_eq!(mode_of(&world, 1), None);
    assert!(mode_of(&world, 2).is_some());
    assert!(world.generation() > before);
    let trip = world.trip();
    let barred = trip.history.iter().find_map(|entry| match &entry.step {
        Step::Barred { node, verdict } => Some((node.clone(), verdict.blamed.clone())),
        _ => None,
    });
    assert_eq!(barred, Some((node(1), Some(node(1)))));
    assert_eq!(trip.stage_name.as_deref(), Some("canary"));
    // What the barred node still reports does not count, and the others carry on.
    for _ in 0..5 {
        world.report(1, ServingRole::Candidate, 2, counts(100, 100, 5));
        for n in 2..=3 {
            world.report(n, ServingRole::Candidate, 2, good(50));
            world.report(n, ServingRole::Stable, 1, good(450));
        }
        world.pass(2);
    }
    let security = WaitingOn::Approval {
        role: "security".to_owned(),
    };
    assert_eq!(world.trip().waiting_on, vec![security]);
    assert_eq!(mode_of(&world.restart(), 1), None);
}

#[test]
fn two_bad_nodes_are_a_bad_candidate() {
    let mut world = in_canary(3);
    let effects = two_seconds(&mut world, 3, 2);
    let withdraws = |effect: &Effect| matches!(effect, Effect::Broadcast(_));
    assert!(effects.iter().any(withdraws), "{effects:?}");
    assert_eq!(world.trip().state, RolloutPhase::Withdrawn);
}

#[test]
fn what_was_decided_follows_from_the_record_before_it() {
    let mut world = in_canary(2);
    two_seconds(&mut world, 2, 2);
    let policy = world.trip().plan.policy;
    let mut decided = 0;
    for pair in world.journal.windows(2) {
        let Event::Judged { evidence, .. } = &pair[0].event else {
            continue;
        };
        let verdict = match &pair[1].event {
            Event::StageEntered { verdict, .. } => verdict.as_ref(),
            Event::Withdrawn {
                cause: Cause::Judge { verdict, .. },
                ..
            } => Some(verdict),
            _ => None,
        };
        if let Some(verdict) = verdict {
            assert!(follows(&policy, evidence, verdict), "{verdict:?}");
            decided += 1;
        }
    }
    assert_eq!(decided, 2, "shadow was passed, and the candidate withdrawn");
}

#[test]
fn labels_that_come_in_after_their_stage_still_count() {
    let plan = CANARY.replace(
        "min_requests = 100",
        "min_requests = 100\naccuracy_min = 0.9",
    );
    let mut world = World::with_stable(2);
    world.start(&plan);
    world.everybody_ready(2, 2);
    let in_shadow = world.generation();
    world.done(admin(), Command::Advance { rollout: R2 });
    let labels = |correct| {
        let class = ClassCounts {
            predicted: 200,
            actual: 200,
            correct,
        };
        let mut counts = Counts::default();
        counts.quality.labelled.insert("7".to_owned(), class);
        counts
    };
    // Those of another rollout do not.
    let before = Generation(in_shadow.0 - 2);
    world.report_of(before, 1, ServingRole::Shadow, 2, labels(20));
    assert_eq!(world.pass(1), vec![]);
    world.report_of(in_shadow, 1, ServingRole::Shadow, 2, labels(20));
    let expected = ("canary".to_owned(), vec![Metric::Accuracy]);
    assert_eq!(withdrawn_by_judge(&world.pass(1)), expected);
}

const AA: &str = "model='digits'\ncandidate='9.0.0'\nstrategy='aa'\n[policy]\nmin_requests=100\n\
                  check_every='1s'\n[[stage]]\nname='aa'\nmode='canary'\nby='request'\n\
                  share_percent=50\nhold='10s'";

/// 1.0.0 beside its copy.
fn in_aa() -> (World, VersionRef) {
    let mut world = World::with_stable(2);
    let (signed, manifest) = signed(Version::new(COPY, 0, 0));
    world.done(admin(), Command::RegisterVersion { signed, manifest });
    world.start(AA);
    world.everybody_ready(2, COPY);
    (world, version(COPY))
}

#[test]
fn an_aa_rollout_takes_a_copy_of_stable_and_nothing_else() {
    let mut world = World::with_stable(1);
    let plan = AA.replace("9.0.0", "2.0.0");
    let plan = rollcall_shared::plan::Plan::from_toml(&plan).unwrap();
    let start = Command::StartRollout {
        plan,
        dry_run: false,
    };
    let refused = world.result(admin(), start).unwrap_err().to_string();
    assert!(refused.contains("under a new version number"), "{refused}");
}

#[test]
fn an_aa_rollout_ends_as_it_began() {
    let (mut world, copy) = in_aa();
    for n in 1..=2 {
        world.report(n, ServingRole::Candidate, copy.version.major, good(500));
        world.report(n, ServingRole::Stable, 1, good(500));
    }
    world.pass(11);
    assert_eq!(world.trip().state, RolloutPhase::Finished);
    assert_eq!(world.trip().verdict.unwrap().outcome, Outcome::Pass);
}

#[test]
fn a_false_alarm_of_an_aa_rollout_withdraws_nothing() {
    let (mut world, copy) = in_aa();
    for _ in 0..2 {
        for n in 1..=2 {
            world.report(
                n,
                ServingRole::Candidate,
                copy.version.major,
                counts(500, 250, 5),
            );
            world.report(n, ServingRole::Stable, 1, good(500));
        }
        world.pass(1);
    }
    let trip = world.trip();
    assert_eq!(trip.state, RolloutPhase::Finished);
    assert_eq!(trip.verdict.unwrap().outcome, Outcome::Fail);
    assert!(trip.rollback.is_none());
    let model = world.core.model(&digits()).unwrap();
    assert_eq!(model.stable, Some(Version::new(1, 0, 0)));
}
