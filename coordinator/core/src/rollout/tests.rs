mod judging;

use rollcall_shared::assignment::{CandidateMode, Share};
use rollcall_shared::ids::RolloutId;
use rollcall_shared::report::{ReadyState, Role as ServingRole};
use rollcall_shared::verdict::{Metric, Outcome};

use crate::coordinator::fixtures::*;
use crate::view::{RolloutPhase, VersionStage, WaitingOn};
use crate::{Cause, Command, Effect, Event};

const R2: RolloutId = RolloutId(2);

fn approve() -> Command {
    Command::Approve {
        rollout: R2,
        gate: "security".to_owned(),
        note: None,
    }
}

fn failed() -> ReadyState {
    ReadyState::Failed {
        reason: "smoke case 2 failed".to_owned(),
        retrying: false,
    }
}

/// The verdict by which r-2 was withdrawn in these effects, and in which stage.
fn withdrawn_by_judge(effects: &[Effect]) -> (String, Vec<Metric>) {
    assert!(matches!(effects[0], Effect::Broadcast(_)), "{effects:?}");
    let Effect::Append(records) = &effects[1] else {
        panic!("{effects:?}");
    };
    let is_evidence = matches!(records[0].event, Event::Judged { .. });
    match &records[records.len() - 1].event {
        Event::Withdrawn {
            cause: Cause::Judge { stage, verdict },
            ..
        } => {
            assert_eq!(is_evidence, stage != "staging", "{records:?}");
            assert_eq!(verdict.outcome, Outcome::Fail);
            let mut metrics: Vec<Metric> = verdict.decisive().map(|f| f.metric).collect();
            metrics.dedup();
            (stage.clone(), metrics)
        }
        other => panic!("{other:?}"),
    }
}

fn mode_of(world: &World, n: u64) -> Option<CandidateMode> {
    let assignment = world.core.assignment_for(&digits(), &node(n)).unwrap();
    assignment.candidate.map(|candidate| candidate.mode)
}

#[test]
fn a_good_candidate_goes_from_staging_to_stable() {
    let mut world = World::with_stable(2);
    world.start(CANARY);
    assert_eq!(world.trip().state, RolloutPhase::Staging);
    assert_eq!(mode_of(&world, 1), Some(CandidateMode::Prepare));
    world.everybody_ready(2, 2);
    assert_eq!(mode_of(&world, 1), Some(CandidateMode::Shadow(Share::ALL)));
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(10);
    let tenth = Share::from_percent(10.0).unwrap();
    assert_eq!(mode_of(&world, 1), Some(CandidateMode::Canary(tenth)));
    world.report(1, ServingRole::Candidate, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(10);
    assert_eq!(world.trip().state, RolloutPhase::AwaitingApproval);
    world.done(security("sven"), approve());
    assert_eq!(mode_of(&world, 1), Some(CandidateMode::Canary(Share::ALL)));
    world.report(1, ServingRole::Candidate, 2, good(1_000));
    world.pass(10);
    assert_eq!(world.trip().state, RolloutPhase::Promoted);
    let model = world.core.model(&digits()).unwrap();
    assert_eq!(model.stable, Some(version(2).version));
    assert_eq!(model.previous, Some(version(1).version));
    assert_eq!(model.versions[1].stage, VersionStage::Production);
    assert_eq!(mode_of(&world, 1), None);
}

#[test]
fn a_first_version_is_promoted_without_traffic_or_a_stable_to_compare_with() {
    let mut world = World::with_nodes(1);
    world.start(DIRECT);
    world.everybody_ready(1, 1);
    world.pass(4);
    assert_eq!(world.core.model(&digits()).unwrap().stable, None);
    world.pass(1);
    assert_eq!(
        world.core.model(&digits()).unwrap().stable,
        Some(version(1).version)
    );
}

#[test]
fn nothing_is_promoted_while_nobody_is_there() {
    let mut world = World::with_nodes(1);
    world.start(DIRECT);
    world.everybody_ready(1, 1);
    let mut world = world.restart();
    world.pass(60);
    assert_eq!(world.core.model(&digits()).unwrap().stable, None);
    world.connect(1, hello());
    world.everybody_ready(1, 1);
    assert_eq!(
        world.core.model(&digits()).unwrap().stable,
        Some(version(1).version)
    );
}

#[test]
fn staging_waits_for_every_connected_node_by_name() {
    let mut world = World::with_stable(2);
    world.start(CANARY);
    world.readiness(1, 2, ReadyState::Ready);
    world.pass(30);
    assert_eq!(
        world.trip().waiting_on,
        vec![WaitingOn::Nodes {
            not_ready: vec![node(2)]
        }]
    );
    world.disconnect(2);
    world.pass(1);
    assert_eq!(world.trip().stage_name.as_deref(), Some("shadow"));
}

#[test]
fn a_fleet_with_nobody_there_waits_for_nodes() {
    let mut world = World::with_stable(1);
    world.disconnect(1);
    world.start(CANARY);
    world.pass(5);
    assert_eq!(world.trip().waiting_on, vec![WaitingOn::NoNodes]);
}

#[test]
fn insufficient_evidence_holds_the_gate() {
    let mut world = World::in_shadow(1);
    world.report(1, ServingRole::Shadow, 2, good(99));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    assert_eq!(world.pass(60), vec![]);
    let samples = |metric| WaitingOn::Samples {
        metric,
        role: ServingRole::Shadow,
        have: 99,
        need: 100,
    };
    let missing = [Metric::ErrorRate, Metric::Agreement, Metric::LatencyP95];
    assert_eq!(world.trip().waiting_on, missing.map(samples).to_vec());
    // All of 100 agree: that may still be less than 95 %.
    world.report(1, ServingRole::Shadow, 2, good(1));
    world.pass(1);
    let waiting_on = world.trip().waiting_on;
    assert!(
        matches!(&waiting_on[..], [WaitingOn::Evidence { metric, .. }] if *metric == Metric::Agreement),
        "{waiting_on:?}"
    );
    world.report(1, ServingRole::Shadow, 2, good(30));
    world.pass(1);
    assert_eq!(world.trip().stage_name.as_deref(), Some("canary"));
}

#[test]
fn a_hold_is_kept_however_good_the_numbers_are() {
    let mut world = World::in_shadow(1);
    world.report(1, ServingRole::Shadow, 2, good(10_000));
    world.report(1, ServingRole::Stable, 1, good(10_000));
    assert_eq!(world.pass(9), vec![]);
    assert_eq!(
        world.trip().waiting_on,
        vec![WaitingOn::Hold { left_ms: 1_000 }]
    );
    world.pass(1);
    assert_eq!(world.trip().stage_name.as_deref(), Some("canary"));
}

#[test]
fn breach_during_approval_wait_withdraws() {
    let mut world = World::awaiting_approval(1);
    assert_eq!(world.trip().state, RolloutPhase::AwaitingApproval);
    world.report(1, ServingRole::Candidate, 2, counts(1_000, 500, 5));
    let effects = world.pass(1);
    let (stage, metrics) = withdrawn_by_judge(&effects);
    assert_eq!(
        (stage.as_str(), metrics),
        ("canary", vec![Metric::ErrorRate])
    );
}

#[test]
fn a_breach_late_in_a_long_watch_withdraws_at_the_next_check() {
    let mut world = World::awaiting_approval(1);
    for _ in 0..1_000 {
        world.report(1, ServingRole::Candidate, 2, good(100));
        world.report(1, ServingRole::Stable, 1, good(100));
        assert_eq!(world.pass(1), vec![]);
    }
    world.report(1, ServingRole::Candidate, 2, counts(100, 50, 5));
    let (_, metrics) = withdrawn_by_judge(&world.pass(1));
    assert_eq!(metrics, vec![Metric::ErrorRate]);
}

#[test]
fn paused_rollouts_still_roll_back() {
    let mut world = World::in_shadow(1);
    world.done(admin(), Command::Pause { rollout: R2 });
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    assert_eq!(world.pass(60), vec![]);
    assert_eq!(world.trip().waiting_on, vec![WaitingOn::Paused]);
    world.report(1, ServingRole::Shadow, 2, counts(1_000, 900, 5));
    let effects = world.pass(1);
    assert_eq!(withdrawn_by_judge(&effects).0, "shadow");
}

#[test]
fn a_slower_shadow_holds_and_a_slower_candidate_is_withdrawn() {
    let slow = |world: &mut World, role| {
        world.report(1, ServingRole::Stable, 1, counts(1_000, 0, 5));
        assert_eq!(world.pass(1), vec![]);
        world.report(1, role, 2, counts(1_000, 0, 50));
        world.report(1, ServingRole::Stable, 1, counts(1_000, 0, 5));
        world.pass(1)
    };
    let mut world = World::in_shadow(1);
    assert_eq!(slow(&mut world, ServingRole::Shadow), vec![]);
    world.pass(60);
    assert_eq!(world.trip().stage_name.as_deref(), Some("shadow"));
    world.done(admin(), Command::Advance { rollout: R2 });
    let effects = slow(&mut world, ServingRole::Candidate);
    assert_eq!(withdrawn_by_judge(&effects).1, vec![Metric::LatencyP95]);
}

#[test]
fn the_full_stage_is_compared_with_stable_as_it_was_recorded() {
    let mut world = World::awaiting_approval(1).restart();
    world.connect(1, hello());
    world.readiness(1, 2, ReadyState::Ready);
    world.report(1, ServingRole::Candidate, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(1);
    world.done(security("sven"), approve());
    assert_eq!(world.trip().stage_name.as_deref(), Some("full"));
    world.report(1, ServingRole::Candidate, 2, counts(1_000, 0, 50));
    let effects = world.pass(1);
    assert_eq!(withdrawn_by_judge(&effects).0, "full");
}

#[test]
fn a_full_stage_without_traffic_waits_until_somebody_advances() {
    let mut world = World::awaiting_approval(1);
    world.done(security("sven"), approve());
    assert_eq!(world.pass(60), vec![]);
    assert!(matches!(
        world.trip().waiting_on[0],
        WaitingOn::Samples { have: 0, .. }
    ));
    world.done(admin(), Command::Advance { rollout: R2 });
    assert_eq!(world.trip().state, RolloutPhase::Promoted);
}

#[test]
fn what_was_measured_in_the_stage_before_does_not_count() {
    let mut world = World::in_shadow(1);
    let before = world.generation();
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(10);
    assert!(world.generation() > before);
    world.report(1, ServingRole::Shadow, 2, counts(1_000, 900, 5));
    assert_eq!(world.pass(5), vec![]);
}

#[test]
fn what_a_route_of_the_stage_before_still_reports_does_not_count() {
    let mut world = World::in_shadow(1);
    let before = world.generation();
    world.done(admin(), Command::Advance { rollout: R2 });
    world.report_of(before, 1, ServingRole::Candidate, 2, counts(1_000, 900, 5));
    assert_eq!(world.pass(5), vec![]);
}

#[test]
fn two_nodes_that_cannot_load_it_withdraw_a_candidate() {
    let mut world = World::with_stable(3);
    world.start(CANARY);
    assert_eq!(world.readiness(1, 2, failed()), vec![]);
    let effects = world.readiness(2, 2, failed());
    let expected = ("staging".to_owned(), vec![Metric::LoadFailures]);
    assert_eq!(withdrawn_by_judge(&effects), expected);
}

#[test]
fn one_node_of_several_that_cannot_load_it_holds_until_it_is_quarantined() {
    let mut world = World::with_stable(2);
    world.start(CANARY);
    world.readiness(1, 2, failed());
    world.readiness(2, 2, ReadyState::Ready);
    world.pass(5);
    assert_eq!(
        world.trip().waiting_on,
        vec![WaitingOn::CandidateFailed {
            node: node(1),
            reason: "smoke case 2 failed".to_owned()
        }]
    );
    world.done(admin(), Command::Quarantine { node: node(1) });
    world.pass(1);
    assert_eq!(world.trip().stage_name.as_deref(), Some("shadow"));
    assert_eq!(mode_of(&world, 1), None);
}

#[test]
fn the_only_node_that_cannot_load_it_withdraws_a_candidate() {
    let mut world = World::with_stable(1);
    world.start(CANARY);
    let effects = world.readiness(1, 2, failed());
    assert_eq!(withdrawn_by_judge(&effects).0, "staging");
}

#[test]
fn a_node_cohort_gets_everything_and_the_others_only_prepare() {
    let by_node = CANARY.replace(
        "by = \"request\"\nshare_percent = 10",
        "by = \"node\"\npercent = 50",
    );
    let mut world = World::with_stable(4);
    world.start(&by_node);
    world.everybody_ready(4, 2);
    world.done(admin(), Command::Advance { rollout: R2 });
    let cohort = world.trip().cohort.unwrap();
    assert_eq!(cohort.len(), 2);
    for n in 1..=4 {
        let mode = if cohort.contains(&node(n)) {
            CandidateMode::Canary(Share::ALL)
        } else {
            CandidateMode::Prepare
        };
        assert_eq!(mode_of(&world, n), Some(mode));
    }
    // New nodes start on stable.
    world.enroll(5);
    world.connect(5, hello());
    assert_eq!(mode_of(&world, 5), Some(CandidateMode::Prepare));
}

#[test]
fn a_later_node_cohort_keeps_every_node_of_the_one_before() {
    let grow = "by = \"node\"\npercent = 25\n[[stage]]\nname = \"more\"\nmode = \"canary\"\n\
                by = \"node\"\npercent = 50";
    let mut world = World::with_stable(4);
    world.start(&CANARY.replace("by = \"request\"\nshare_percent = 10", grow));
    world.everybody_ready(4, 2);
    world.done(admin(), Command::Advance { rollout: R2 });
    let first = world.trip().cohort.unwrap();
    let n = (1..=4).find(|n| first.contains(&node(*n))).unwrap();
    world.disconnect(n);
    world.done(admin(), Command::Advance { rollout: R2 });
    let second = world.trip().cohort.unwrap();
    assert!(second.is_superset(&first));
    assert_eq!((first.len(), second.len()), (1, 2));
}

#[test]
fn a_node_cohort_is_compared_with_the_nodes_outside_it() {
    let by_node = "by = \"node\"\ncount = 1";
    let mut world = World::with_stable(2);
    world.start(&CANARY.replace("by = \"request\"\nshare_percent = 10", by_node));
    world.everybody_ready(2, 2);
    world.done(admin(), Command::Advance { rollout: R2 });
    let cohort = world.trip().cohort.unwrap();
    let (inside, outside) = if cohort.contains(&node(1)) {
        (1, 2)
    } else {
        (2, 1)
    };
    world.report(inside, ServingRole::Candidate, 2, counts(1_000, 0, 50));
    world.report(inside, ServingRole::Stable, 1, counts(1_000, 0, 5));
    assert_eq!(world.pass(1), vec![]);
    world.report(outside, ServingRole::Stable, 1, counts(1_000, 0, 5));
    assert_eq!(world.pass(1), vec![]);
    world.report(inside, ServingRole::Candidate, 2, counts(1_000, 0, 50));
    world.report(outside, ServingRole::Stable, 1, counts(1_000, 0, 5));
    assert_eq!(
        withdrawn_by_judge(&world.pass(1)).1,
        vec![Metric::LatencyP95]
    );
}

#[test]
fn a_candidate_that_was_let_go_must_be_loaded_again() {
    let plan = "model='digits'\ncandidate='2.0.0'\nstrategy='shadow'\n[policy]\nmin_requests=100\n\
                check_every='1s'";
    let mut world = World::with_stable(1);
    world.start(plan);
    world.everybody_ready(1, 2);
    world.done(admin(), Command::Advance { rollout: R2 });
    assert_eq!(world.trip().state, RolloutPhase::Finished);
    world.readiness(1, 2, ReadyState::Ready);
    let again = world.start(plan);
    let waiting = world.core.rollout(again, world.now).unwrap().waiting_on;
    let not_ready = vec![node(1)];
    assert_eq!(waiting, vec![WaitingOn::Nodes { not_ready }]);
}

#[test]
fn a_plan_without_a_full_stage_ends_without_a_promotion() {
    let plan = "model='digits'\ncandidate='2.0.0'\nstrategy='shadow'\n[policy]\nmin_requests=100\n\
                check_every='1s'";
    let mut world = World::with_stable(1);
    world.start(plan);
    world.everybody_ready(1, 2);
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(2);
    assert_eq!(world.trip().state, RolloutPhase::Finished);
    let model = world.core.model(&digits()).unwrap();
    assert_eq!(model.stable, Some(version(1).version));
    assert_eq!(model.versions[1].stage, VersionStage::Registered);
}

#[test]
fn a_restart_keeps_the_stage_and_its_hold_but_not_the_evidence() {
    let mut world = World::in_shadow(1);
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    let since = world.trip().stage_since;
    world.pass(5);
    let mut world = world.restart();
    assert_eq!(world.trip().stage_since, since);
    world.connect(1, hello());
    world.readiness(1, 2, ReadyState::Ready);
    world.pass(10);
    assert!(matches!(
        world.trip().waiting_on[0],
        WaitingOn::Samples { have: 0, .. }
    ));
}
