//! What came of answers, as an operator lives it: labels and outcomes go in by the command
//! line, and come out as a verdict.

use anyhow::{Context, Result};
use rollcall_tests::{Fleet, canary_plan, good_request};
use serde_json::{Value, json};

const PROGRAMS: &str = env!("CARGO_BIN_EXE_rollcall-under-test");

/// Asks for an answer by name: the version that answered and the label that it gave.
async fn ask(fleet: &Fleet, node: usize, id: &str) -> Result<(String, i64)> {
    let mut request = good_request();
    request["id"] = json!(id);
    let address = fleet.cluster.agents[node];
    let url = format!("http://{address}/v2/models/digits/infer");
    let answer = fleet.http.post(url).json(&request).send().await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    let version = answer["model_version"].as_str().context("no version")?;
    let outputs = answer["outputs"].as_array().context("no outputs")?;
    let label = outputs.iter().find(|output| output["name"] == "label");
    let label = label.and_then(|label| label["data"][0].as_i64());
    Ok((version.to_owned(), label.context("no label")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_labels_prove_wrong_is_withdrawn() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let policy = "[policy]\naccuracy_min = 0.9\nmin_labels = 10\n";
    let plan = canary_plan("2.0.0").replace("[policy]\n", policy);
    let id = fleet.rollout(&plan)?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_stage(&id, "half").await?;
    for node in 0..2 {
        fleet.until_candidate_answers(node, "2.0.0").await?;
    }

    let mut labels = "id,label,spend\n".to_owned();
    for request in 0..200 {
        let name = format!("order-{request}");
        let (version, label) = ask(&fleet, request % 2, &name).await?;
        // Stable was right, and the candidate never.
        let truth = if version == "2.0.0" { label + 1 } else { label };
        labels.push_str(&format!("{name},{truth},2.5\n"));
    }
    let file = fleet.dir.path().join("labels.csv");
    std::fs::write(&file, labels)?;
    let file = file.to_str().context("UTF-8 path")?;
    let sent: Value = fleet
        .cluster
        .json(&["label", "push", file, "--model", "digits"])?;
    assert_eq!((&sent["items"], &sent["nodes"]), (&200.into(), &2.into()));
    assert_eq!(sent["too_old"], 0);

    let rollout = fleet.until_state(&id, "withdrawn").await?;
    let cause = rollout["cause"].to_string();
    assert!(cause.contains("accuracy"), "{cause}");
    let said = fleet.cluster.print(&["rollout", "explain", &id])?;
    assert!(said.contains("accuracy"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_and_labels_that_make_no_sense_are_refused_with_what_to_do() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let record = |version: &str, value: &str| -> Vec<String> {
        let words = ["kpi", "record", "--model", "digits", "--name", "spend"];
        let words = words
            .into_iter()
            .chain(["--version", version, "--value", value]);
        words.map(str::to_owned).collect()
    };
    let refused = |words: Vec<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        fleet.refusal(&words)
    };
    let (why, code) = refused(record("1.0.0", "2.5"))?;
    assert!(code == 1 && why.contains("no live rollout"), "{why}");
    let id = fleet.rollout(&canary_plan("2.0.0"))?;
    fleet.until_stage(&id, "shadow").await?;
    let (why, code) = refused(record("9.0.0", "2.5"))?;
    assert!(code == 1 && why.contains("not registered"), "{why}");
    let (why, code) = refused(record("2.0.0", "NaN"))?;
    assert!(code == 2 && why.contains("not a number"), "{why}");
    for version in ["1.0.0", "2.0.0"] {
        let words = record(version, "-2.5");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = fleet.cluster.print(&words)?;
        assert!(said.contains("Recorded spend = -2.5"), "{said}");
    }

    let file = fleet.dir.path().join("labels.csv");
    let push = |text: &str, model: &str| -> Result<(String, i32)> {
        std::fs::write(&file, text)?;
        let file = file.to_str().context("UTF-8 path")?;
        fleet.refusal(&["label", "push", file, "--model", model])
    };
    for (text, model, says) in [
        ("order-1,3\n", "digits", "must name the columns"),
        ("id,label\norder-1,\n", "digits", "line 2"),
        ("id,label\n", "digits", "holds no labels"),
        ("id,label\norder-1,3\n", "wine", "there is no model wine"),
    ] {
        let (why, code) = push(text, model)?;
        assert!(code == 1 && why.contains(says), "{why}");
    }
    Ok(())
}
