use rollcall_shared::report::Role as ServingRole;

use super::*;
use crate::coordinator::fixtures::*;
use crate::input::{Command, Role};

fn record(major: u64, name: &str, value: f64, count: u64) -> Command {
    Command::RecordKpi {
        model: digits(),
        record: KpiRecord {
            version: Version::new(major, 0, 0),
            name: name.to_owned(),
            value,
            count,
        },
    }
}

fn spend(world: &World, arm: Arm) -> Option<Moments> {
    let trial = world.core.trials.values().next().unwrap();
    let seen = &trial.watch.all.seen;
    let counts = match arm {
        Arm::Candidate => &seen.candidate,
        Arm::Stable => &seen.stable,
    };
    counts.quality.kpis.get("spend").copied()
}

#[test]
fn outcomes_are_evidence_of_the_version_that_they_are_about() {
    let mut world = World::in_shadow(1);
    let operator = person("otto", [Role::Operator]);
    world.done(operator, record(2, "spend", 2.0, 3));
    world.done(admin(), record(2, "spend", -1.0, 1));
    world.done(admin(), record(1, "spend", 5.0, 1));
    let moments = |count, sum, squares| Moments {
        count,
        sum,
        squares,
    };
    assert_eq!(spend(&world, Arm::Candidate), Some(moments(4, 5.0, 13.0)));
    assert_eq!(spend(&world, Arm::Stable), Some(moments(1, 5.0, 25.0)));
    // They are evidence of this stage only.
    world.report(1, ServingRole::Shadow, 2, good(1_000));
    world.report(1, ServingRole::Stable, 1, good(1_000));
    world.pass(10);
    assert_eq!(spend(&world, Arm::Candidate), None);
}

#[test]
fn outcomes_that_nothing_could_rest_on_are_refused() {
    let mut world = World::in_shadow(1);
    let mut refused = |command| world.result(admin(), command).unwrap_err().to_string();
    for (command, says) in [
        (record(9, "spend", 1.0, 1), "not registered"),
        (record(3, "spend", 1.0, 1), "neither the candidate of r-2"),
        (record(2, "spend", f64::NAN, 1), "must be a number"),
        (record(2, "spend", 1e16, 1), "must be a number"),
        (record(2, "spend", 1.0, 0), "count of spend"),
        (record(2, "", 1.0, 1), "1 to 48 bytes"),
    ] {
        let why = refused(command);
        assert!(why.contains(says), "{why}");
    }
    for i in 0..KPIS_MAX {
        world.done(admin(), record(2, &i.to_string(), 1.0, 1));
    }
    let why = world.result(admin(), record(2, "spend", 1.0, 1));
    assert!(why.unwrap_err().to_string().contains("no room"));

    let mut idle = World::with_stable(1);
    let why = idle.result(admin(), record(1, "spend", 1.0, 1));
    assert!(why.unwrap_err().to_string().contains("no live rollout"));
    idle.start(CANARY);
    let why = idle.result(admin(), record(2, "spend", 1.0, 1));
    assert!(why.unwrap_err().to_string().contains("first stage"));
}
