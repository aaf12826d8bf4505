//! Kill -9 at awkward moments: stable serves all along, nothing acknowledged is lost.

use std::sync::Arc;

use anyhow::Result;
use rollcall_simulations::traffic::{Observer, Rows, Tally, Traffic, Way};
use rollcall_tests::{Fleet, canary_plan, model_folder};
use serde_json::Value;
use tokio::time::Instant;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_rollcall-under-test");

fn traffic(fleet: &Fleet, observer: &Observer) -> Result<Traffic> {
    let rows = Rows::read(&model_folder().join("digits/1.0.0/validation.json"))?;
    let (nodes, rows) = (&fleet.cluster.agents, Arc::new(rows));
    Ok(Traffic::start(
        nodes,
        "digits",
        &[Way::Json],
        &rows,
        40,
        observer,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_in_a_canary_takes_the_rollout_up_again() -> Result<()> {
    let mut fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let observer = Observer::default();
    let _traffic = traffic(&fleet, &observer)?;
    let began = Instant::now();
    let id = fleet.rollout(&canary_plan("2.0.0"))?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_candidate_answers(1, "2.0.0").await?;

    fleet.cluster.kill_coordinator();
    // Without a coordinator the lease runs out and stable alone answers.
    fleet.until_stable_alone(1, "1.0.0").await?;
    fleet.cluster.start_coordinator()?;
    fleet.cluster.wait_for_agents(2).await?;
    fleet.until_stage(&id, "half").await?;
    fleet.until_candidate_answers(1, "2.0.0").await?;

    fleet.cluster.kill_coordinator();
    fleet.cluster.start_coordinator()?;
    fleet.cluster.wait_for_agents(2).await?;
    let told: Value = fleet
        .cluster
        .json(&["rollback", "digits", "--reason", "enough"])?;
    assert_eq!(told["receipts"]["received"], 2, "{told}");

    fleet.cluster.kill_coordinator();
    fleet.cluster.start_coordinator()?;
    fleet.cluster.wait_for_agents(2).await?;
    let rollout: Value = fleet.cluster.json(&["rollout", "show", &id])?;
    assert_eq!(
        rollout["state"], "withdrawn",
        "an acknowledged rollback was lost"
    );
    assert_eq!(fleet.ask(0, "key").await?, "1.0.0");
    fleet.cluster.print(&["audit", "verify"])?;
    let tally = Tally::of(&observer.since(began));
    assert_eq!(tally.errors, 0, "of {} requests", tally.total);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_boots_and_serves_stable_with_no_coordinator_in_sight() -> Result<()> {
    let mut fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let id = fleet.rollout(&canary_plan("2.0.0"))?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_candidate_answers(0, "2.0.0").await?;

    fleet.cluster.kill_coordinator();
    fleet.cluster.kill_agent(0);
    fleet.cluster.start_agent(0)?;
    fleet.until_answers(0, "1.0.0").await?;
    // Nobody renewed the candidate's lease since the restart: it answers nobody.
    for key in 0..50 {
        assert_eq!(fleet.ask(0, &format!("key-{key}")).await?, "1.0.0");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_index_is_damaged_comes_back_with_what_it_served() -> Result<()> {
    let mut fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.cluster.kill_coordinator();
    fleet.cluster.kill_agent(0);
    let mut damaged = 0;
    for entry in std::fs::read_dir(fleet.dir.path().join("node-1/index"))? {
        let path = entry?.path();
        if path.is_file() {
            let bytes = std::fs::read(&path)?;
            std::fs::write(&path, bytes.iter().map(|byte| !byte).collect::<Vec<_>>())?;
            damaged += 1;
        }
    }
    assert!(damaged > 0, "there was no index to damage");
    fleet.cluster.start_agent(0)?;
    fleet.until_answers(0, "1.0.0").await
}
