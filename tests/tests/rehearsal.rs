//! Rehearsals of a rollback as an operator lives them: who would answer, who would not, and
//! not a single request that is answered by anything else because of it.

use std::path::Path;

use anyhow::{Context, Result};
use rollcall_tests::{Fleet, canary_plan};
use serde_json::{Value, json};

const PROGRAMS: &str = env!("CARGO_BIN_EXE_rollcall-under-test");

/// What `rollback --rehearse -o json` prints, what it complains of, and its exit code.
fn rehearse(fleet: &Fleet) -> Result<(Value, String, i32)> {
    let mut command = fleet.cluster.operator(&[
        "rollback",
        "digits",
        "--rehearse",
        "--reason",
        "a drill",
        "-o",
        "json",
    ]);
    let output = command.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let view = serde_json::from_slice(&output.stdout).with_context(|| complaint.clone())?;
    Ok((view, complaint, output.status.code().context("killed")?))
}

/// Which version answers each of many keys on each node.
async fn answers(fleet: &Fleet, nodes: usize) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for node in 0..nodes {
        for key in 0..60 {
            versions.push(fleet.ask(node, &format!("key-{key}")).await?);
        }
    }
    Ok(versions)
}

/// What `status` shows of models and rollouts, without what changes every moment.
fn standing(fleet: &Fleet) -> Result<Value> {
    let status: Value = fleet.cluster.json(&["status"])?;
    let of_rollout = |rollout: &Value| {
        json!([
            rollout["id"],
            rollout["state"],
            rollout["stage"],
            rollout["history"]
        ])
    };
    let rollouts = status["rollouts"].as_array().context("no rollouts")?;
    let rollouts: Vec<Value> = rollouts.iter().map(of_rollout).collect();
    Ok(json!([status["models"], rollouts, status["rollbacks"]]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rehearsal_changes_no_answer_and_foretells_the_rollback() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 3).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    // A lease that no slow machine lets run out between two answers.
    let id = fleet.rollout(&canary_plan("2.0.0").replace("3s", "60s"))?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_stage(&id, "half").await?;
    for node in 0..3 {
        fleet.until_candidate_answers(node, "2.0.0").await?;
    }
    let before = (answers(&fleet, 3).await?, standing(&fleet)?);
    assert!(before.0.contains(&"2.0.0".to_owned()));

    let (view, complaint, code) = rehearse(&fleet)?;
    assert_eq!((complaint.as_str(), code), ("", 0), "{view}");
    assert_eq!(view["rehearsal"], true);
    assert_eq!(view["rollout"], id.as_str());
    assert_eq!(
        (&view["withdrawn"], &view["serving"]),
        (&"2.0.0".into(), &"1.0.0".into())
    );
    assert_eq!(
        view["receipts"],
        json!({"expected": 3, "received": 3, "fenced": [], "silent": []})
    );
    assert_eq!(view["unready"], json!([]));
    assert_eq!(view["expected_ms"], view["propagation_ms"]["max"]);
    assert!(view["propagation_ms"]["p50"].as_f64() > Some(0.0), "{view}");

    let after = (answers(&fleet, 3).await?, standing(&fleet)?);
    assert_eq!(after, before, "the rehearsal changed something");
    let log = fleet.cluster.print(&["audit", "log"])?;
    assert!(
        log.contains("rehearsal_began") && log.contains("rehearsal_ended"),
        "{log}"
    );
    let text =
        fleet
            .cluster
            .print(&["rollback", "digits", "--rehearse", "--reason", "for people"])?;
    assert!(text.contains("nothing was changed"), "{text}");
    assert!(text.contains("3 of 3 nodes, 0 not ready"), "{text}");

    let told: Value = fleet
        .cluster
        .json(&["rollback", "digits", "--reason", "wrong answers"])?;
    for same in ["rollout", "withdrawn", "serving", "generation", "receipts"] {
        assert_eq!(told[same], view[same], "{same}");
    }
    assert_eq!(told["rehearsal"], Value::Null);
    fleet.cluster.print(&["audit", "verify"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_is_silent_until_its_lease_in_a_rehearsal() -> Result<()> {
    let mut fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let id = fleet.rollout(&canary_plan("2.0.0"))?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.kill_agent(1);

    let (view, complaint, code) = rehearse(&fleet)?;
    assert_eq!(code, 4, "{complaint}");
    assert!(complaint.contains("node-2"), "{complaint}");
    assert_eq!(view["receipts"]["received"], 1, "{view}");
    assert_eq!(view["receipts"]["silent"], json!(["node-2"]));
    assert_eq!(view["receipts"]["fenced"], json!([]));
    let silent = &view["nodes"][1];
    assert_eq!(silent["state"], "waiting");
    assert!(
        silent["until"].is_string() && silent["why"].is_string(),
        "{silent}"
    );
    assert!(view["expected_ms"].as_f64() > view["propagation_ms"]["max"].as_f64());
    let rollout: Value = fleet.cluster.json(&["rollout", "show", &id])?;
    assert_eq!(rollout["state"], "running", "nobody was withdrawn");
    Ok(())
}

/// Removes the file of this name from wherever it is under `folder`.
fn remove(folder: &Path, name: &str) -> Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed += remove(&entry.path(), name)?;
        } else if entry.file_name() == name {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_the_version_before_is_named_unready_with_what_it_lacks() -> Result<()> {
    let mut fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.make_stable("2.0.0").await?;
    fleet.until_answers(1, "2.0.0").await?;
    let (view, _, code) = rehearse(&fleet)?;
    assert_eq!((code, &view["unready"]), (0, &json!([])), "{view}");

    // Its disk loses the file while it is down, and so does the coordinator's store.
    fleet.cluster.kill_agent(1);
    let version: Value = fleet.cluster.json(&["version", "show", "digits@1.0.0"])?;
    let file = version["files"][0]["digest"].as_str().context("no file")?;
    for folder in ["node-2", "coordinator"] {
        let folder = fleet.dir.path().join(folder);
        assert_eq!(remove(&folder, file)?, 1, "{}", folder.display());
    }
    fleet.cluster.start_agent(1)?;
    fleet.until_answers(1, "2.0.0").await?;
    let shown = || fleet.cluster.json::<Value>(&["agent", "show", "node-2"]);
    fleet
        .cluster
        .until("node-2 says that it cannot load 1.0.0", || {
            let readiness = shown()?["models"][0]["readiness"].to_string();
            Ok(readiness.contains("failed"))
        })
        .await?;

    let (view, complaint, code) = rehearse(&fleet)?;
    assert_eq!(code, 1, "{complaint}");
    assert!(
        complaint.contains("not ready") && complaint.contains("node-2"),
        "{complaint}"
    );
    assert_eq!(view["receipts"]["received"], 2, "{view}");
    let unready = view["unready"].as_array().context("unready")?;
    assert_eq!(unready.len(), 1, "{view}");
    assert_eq!(unready[0]["node"], "node-2");
    assert_eq!(
        (&unready[0]["missing"], &unready[0]["serving"]),
        (&"1.0.0".into(), &Value::Null)
    );
    let why = unready[0]["why"].as_str().context("why")?;
    assert!(why.contains("would have to load 1.0.0 first"), "{why}");
    // It serves 2.0.0 by right: no lease would end that.
    assert_eq!(view["expected_ms"], Value::Null);
    assert_eq!(fleet.ask(1, "key").await?, "2.0.0");
    Ok(())
}
