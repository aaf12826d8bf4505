//! Rollbacks as an operator lives them: one command, receipts, and who answers afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use rollcall_simulations::traffic::{Observer, Rows, Tally, Traffic, Way};
use rollcall_tests::{Fleet, canary_plan, model_folder};
use serde_json::Value;
use tokio::time::Instant;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_rollcall-under-test");

async fn answers(fleet: &Fleet, node: usize, keys: u32) -> Result<BTreeMap<String, u32>> {
    let mut versions = BTreeMap::new();
    for key in 0..keys {
        *versions
            .entry(fleet.ask(node, &format!("key-{key}")).await?)
            .or_default() += 1;
    }
    Ok(versions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_is_taken_back_with_a_receipt_from_every_node() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 3).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let id = fleet.rollout(&canary_plan("2.0.0"))?;
    fleet.until_stage(&id, "shadow").await?;
    assert_eq!(
        answers(&fleet, 0, 40).await?.keys().collect::<Vec<_>>(),
        ["1.0.0"]
    );
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_stage(&id, "half").await?;
    for node in 0..3 {
        fleet.until_candidate_answers(node, "2.0.0").await?;
    }
    let mixed = answers(&fleet, 1, 200).await?;
    assert!(
        (60..140).contains(&mixed["2.0.0"]),
        "half of the keys: {mixed:?}"
    );
    for key in ["ana", "bob", "eve", "kim"] {
        let first = fleet.ask(0, key).await?;
        assert_eq!(first, fleet.ask(1, key).await?, "{key} meets two versions");
        assert_eq!(first, fleet.ask(2, key).await?, "{key} meets two versions");
    }

    let told: Value = fleet
        .cluster
        .json(&["rollback", "digits", "--reason", "wrong answers"])?;
    assert_eq!(told["model"], "digits");
    assert_eq!(told["rollout"], id.as_str());
    assert_eq!(told["withdrawn"], "2.0.0");
    assert_eq!(told["serving"], "1.0.0");
    assert_eq!(told["cause"]["kind"], "operator");
    assert_eq!(told["cause"]["reason"], "wrong answers");
    assert_eq!(told["receipts"]["expected"], 3);
    assert_eq!(told["receipts"]["received"], 3);
    assert_eq!(told["receipts"]["fenced"], serde_json::json!([]));
    assert_eq!(told["receipts"]["silent"], serde_json::json!([]));
    assert!(told["propagation_ms"]["max"].as_f64() >= told["propagation_ms"]["p50"].as_f64());
    assert!(told["last_node"].is_string());
    for node in 0..3 {
        assert_eq!(
            answers(&fleet, node, 60).await?.keys().collect::<Vec<_>>(),
            ["1.0.0"]
        );
    }
    let (why, _) = fleet.refusal(&["rollout", "start", &plan_file(&fleet)])?;
    assert!(
        why.contains("withdrawn"),
        "a withdrawn version may not come back: {why}"
    );
    fleet.cluster.print(&["audit", "verify"])?;
    Ok(())
}

fn plan_file(fleet: &Fleet) -> String {
    fleet.dir.path().join("plan.toml").display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_rollout_goes_back_to_the_version_before_it() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.make_stable("2.0.0").await?;
    fleet.until_answers(0, "2.0.0").await?;
    let told: Value = fleet
        .cluster
        .json(&["rollback", "digits", "--reason", "late regret"])?;
    assert_eq!(
        (&told["withdrawn"], &told["serving"]),
        (&"2.0.0".into(), &"1.0.0".into())
    );
    assert_eq!(told["receipts"]["received"], 2);
    for node in 0..2 {
        assert_eq!(fleet.ask(node, "key").await?, "1.0.0");
    }
    let (why, code) = fleet.refusal(&["rollback", "digits", "--reason", "again"])?;
    assert_eq!(code, 1, "there is nothing left to go back to: {why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_reported_fenced_and_not_before_its_lease_is_over() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    // Long enough for a look at the node while it is silent.
    let id = fleet.rollout(&canary_plan("2.0.0").replace("3s", "8s"))?;
    fleet.until_stage(&id, "shadow").await?;
    fleet.cluster.print(&["rollout", "advance", &id])?;
    fleet.until_candidate_answers(1, "2.0.0").await?;
    fleet.cluster.last_link.cut(true);
    // Decided at once; that not everybody answered is in the exit code.
    let (why, code) = fleet.refusal(&[
        "rollback", "digits", "--reason", "cut off", "--wait", "500ms",
    ])?;
    assert_eq!(code, 4, "{why}");
    assert!(why.contains("these nodes are silent: node-2"), "{why}");
    let receipts = || fleet.cluster.json::<Value>(&["rollout", "receipts", &id]);
    let waiting = &receipts()?["nodes"][1];
    assert_eq!(waiting["state"], "waiting", "{waiting}");
    assert!(
        waiting["until"].is_string() && waiting["why"].is_string(),
        "{waiting}"
    );
    fleet
        .cluster
        .until("the rollback is settled", || {
            Ok(receipts()?["settled"] == true)
        })
        .await?;
    let told = receipts()?;
    assert_eq!(told["receipts"]["received"], 1, "{told}");
    assert_eq!(told["receipts"]["fenced"][0]["node"], "node-2", "{told}");
    let (node_1, node_2) = (&told["nodes"][0], &told["nodes"][1]);
    assert_eq!(
        (&node_1["state"], &node_1["serving"]),
        (&"receipt".into(), &"1.0.0".into())
    );
    assert!(node_1["after_ms"].as_f64() > Some(0.0), "{node_1}");
    assert_eq!(node_2["state"], "fenced");
    assert_eq!(node_2["until"], told["receipts"]["fenced"][0]["at"]);
    assert_eq!(told["histogram"].as_array().map(Vec::len), Some(1));
    // What needs a look stands first.
    let text = fleet.cluster.print(&["rollout", "receipts", &id])?;
    let place = |node: &str| text.find(&format!("\n{node} "));
    assert!(
        place("node-2").is_some() && place("node-2") < place("node-1"),
        "{text}"
    );
    for command in [["rollout", "show", &id], ["rollout", "explain", &id]] {
        let text = fleet.cluster.print(&command)?;
        let summary = "1 of 2 nodes sent receipts, 1 fenced, 0 silent";
        assert!(text.contains(summary), "{command:?}: {text}");
    }
    assert_eq!(
        answers(&fleet, 1, 60).await?.keys().collect::<Vec<_>>(),
        ["1.0.0"],
        "it fenced itself"
    );
    fleet.cluster.last_link.cut(false);
    fleet.cluster.wait_for_agents(2).await?;
    assert_eq!(
        answers(&fleet, 1, 60).await?.keys().collect::<Vec<_>>(),
        ["1.0.0"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_version_is_held_in_shadow_and_no_client_waits_for_it() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 2).await?;
    fleet.make_stable("2.0.0").await?;
    fleet.push("4.0.0")?;
    let observer = Observer::default();
    let rows = Arc::new(Rows::read(
        &model_folder().join("digits/2.0.0/validation.json"),
    )?);
    let began = Instant::now();
    let nodes = &fleet.cluster.agents;
    let _traffic = Traffic::start(nodes, "digits", Way::ALL, &rows, 40, &observer);
    let id = fleet.rollout(
        "model = \"digits\"\ncandidate = \"4.0.0\"\nstrategy = \"shadow\"\n\
         [policy]\nmin_requests = 50\ncheck_every = \"200ms\"\nlatency_multiplier_max = 2\n\
         [[stage]]\nname = \"shadow\"\nmode = \"shadow\"\nhold = \"10m\"\n",
    )?;
    // Proven, and yet no failure: a shadow runs at low priority.
    let is_proven = |rollout: &Value| {
        let findings = rollout["verdict"]["findings"].as_array();
        let latency = findings
            .into_iter()
            .flatten()
            .find(|f| f["metric"] == "latency_p95");
        latency.is_some_and(|finding| {
            let of = |name: &str| finding["test"][name].as_f64();
            finding["outcome"] == "insufficient" && of("log_e") >= of("log_e_needed")
        })
    };
    let rollout = fleet
        .until(&id, "its latency is proven to be worse", is_proven)
        .await?;
    assert_eq!(rollout["state"], "running", "{rollout}");
    let tally = Tally::of(&observer.since(began));
    assert_eq!(
        (tally.errors, tally.versions.keys().collect::<Vec<_>>()),
        (0, vec![&"2.0.0".to_owned()])
    );
    Ok(())
}
