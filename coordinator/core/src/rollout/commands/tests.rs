use rollcall_shared::ids::RolloutId;
use rollcall_shared::report::Role as ServingRole;

use crate::coordinator::fixtures::*;
use crate::view::{RolloutPhase, WaitingOn};
use crate::{Cause, Command, Done, Effect, Refusal, Role};

const R2: RolloutId = RolloutId(2);

fn approve() -> Command {
    Command::Approve {
        rollout: R2,
        gate: "security".to_owned(),
        note: None,
    }
}

#[test]
fn an_approval_is_used_up_by_the_stage_that_it_lets_begin() {
    let twice = CANARY.replace(
        "share_percent = 10",
        "share_percent = 10\napprovals = [\"security\"]",
    );
    let mut world = World::with_stable(1);
    world.start(&twice);
    world.everybody_ready(1, 2);
    world.done(security("sven"), approve());
    world.done(admin(), Command::Advance { rollout: R2 });
    assert_eq!(world.trip().stage_name.as_deref(), Some("canary"));
    let waiting = world.trip().waiting_on;
    let approval = WaitingOn::Approval {
        role: "security".to_owned(),
    };
    assert!(waiting.contains(&approval), "{waiting:?}");
}

#[test]
fn nobody_approves_their_own_rollout() {
    let mut world = World::awaiting_approval(1);
    // Ana started it, Olga is named as its owner.
    for name in ["ana", "Olga"] {
        let refusal = world.result(security(name), approve()).unwrap_err();
        assert!(refusal.to_string().contains("nobody approves their own"));
    }
    let refusal = world.result(admin(), approve()).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::Forbidden(
            "ana may not approve this: it needs the role approver:security".to_owned()
        )
    );
    assert_eq!(world.result(security("sven"), approve()), Ok(Done::Done));
    assert_eq!(world.trip().stage_name.as_deref(), Some("full"));
}

#[test]
fn a_rejection_withdraws() {
    let mut world = World::awaiting_approval(1);
    let reject = Command::Reject {
        rollout: R2,
        note: Some("no card".to_owned()),
    };
    assert!(
        world
            .result(person("bo", [Role::Operator]), reject.clone())
            .is_err()
    );
    let effects = world.command(security("sven"), reject);
    assert!(matches!(effects[0], Effect::Broadcast(_)));
    assert_eq!(
        world.trip().cause,
        Some(Cause::Rejected {
            actor: "sven".to_owned(),
            note: Some("no card".to_owned())
        })
    );
}

#[test]
fn advance_skips_hold_and_samples_but_never_an_approval() {
    let mut world = World::in_shadow(1);
    world.done(admin(), Command::Advance { rollout: R2 });
    assert_eq!(world.trip().stage_name.as_deref(), Some("canary"));
    let refusal = world.result(admin(), Command::Advance { rollout: R2 });
    assert_eq!(
        refusal,
        Err(Refusal::Conflict(
            "the next stage of r-2 needs the approval of security".to_owned()
        ))
    );
}

#[test]
fn advance_never_goes_past_a_failure() {
    let mut world = World::in_shadow(1);
    world.report(1, ServingRole::Shadow, 2, counts(1_000, 900, 5));
    let refusal = world.result(admin(), Command::Advance { rollout: R2 });
    assert!(refusal.unwrap_err().to_string().contains("withdrawn"));
    assert_eq!(world.trip().state, RolloutPhase::Withdrawn);
}

#[test]
fn a_rollout_that_cannot_begin_is_refused_with_what_to_do() {
    let refusal = |world: &mut World, plan: &str| {
        let plan = rollcall_shared::plan::Plan::from_toml(plan).unwrap();
        let dry_run = false;
        let start = Command::StartRollout { plan, dry_run };
        world.result(admin(), start).unwrap_err().to_string()
    };
    let mut world = World::with_nodes(1);
    assert!(refusal(&mut world, CANARY).contains("strategy = \"direct\""));
    let mut world = World::with_stable(1);
    assert!(refusal(&mut world, &CANARY.replace("2.0.0", "9.0.0")).contains("not registered"));
    assert!(refusal(&mut world, DIRECT).contains("stable already"));
    world.start(CANARY);
    assert!(refusal(&mut world, CANARY).contains("on rollout r-2"));
    world.rollback();
    assert!(refusal(&mut world, CANARY).contains("withdrawn"));
    let archive = Command::Archive {
        model: digits(),
        version: version(3).version,
    };
    world.done(admin(), archive);
    assert!(refusal(&mut world, &CANARY.replace("2.0.0", "3.0.0")).contains("archived"));
}

#[test]
fn a_dry_run_says_who_would_get_what_and_changes_nothing() {
    let mut world = World::with_stable(2);
    let before = world.core.state().clone();
    let plan = rollcall_shared::plan::Plan::from_toml(CANARY).unwrap();
    let dry_run = Command::StartRollout {
        plan,
        dry_run: true,
    };
    let Done::Preview(preview) = world.done(person("vic", [Role::Viewer]), dry_run) else {
        panic!("no preview");
    };
    assert_eq!(preview.stages[1].mode, "canary, 10 % of requests");
    assert_eq!(preview.stages[1].nodes, vec![node(1), node(2)]);
    assert_eq!(preview.stages[2].approvals, vec!["security"]);
    assert_eq!(preview.warnings, Vec::<String>::new());
    assert_eq!(*world.core.state(), before);
}
