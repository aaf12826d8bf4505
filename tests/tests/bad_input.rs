//! Bad input of every kind: a clear error, and nothing changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rollcall_simulations::multicall::Programs;
use rollcall_tests::{Fleet, canary_plan, direct_plan, good_request, model_folder, refusal};
use serde_json::{Value, json};

const PROGRAMS: &str = env!("CARGO_BIN_EXE_rollcall-under-test");

fn push(fleet: &Fleet, file: &Path, version: &str) -> Result<(String, i32)> {
    let path = file.to_str().context("UTF-8 path")?;
    fleet.refusal(&[
        "version",
        "push",
        path,
        "--model",
        "digits",
        "--version",
        version,
    ])
}

fn records(fleet: &Fleet) -> Result<usize> {
    let log: Vec<Value> = fleet.cluster.json(&["audit", "log"])?;
    Ok(log.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_are_none_are_refused_at_the_door() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    let before = records(&fleet)?;
    for (file, word) in [
        ("truncated.onnx", "cut off"),
        ("not-onnx.onnx", "ONNX"),
        ("empty.onnx", "empty"),
        ("no-such-file.onnx", "no-such-file.onnx"),
    ] {
        let (why, code) = push(
            &fleet,
            &model_folder().join("malformed").join(file),
            "1.0.0",
        )?;
        assert_eq!(code, 1, "{file}: {why}");
        assert!(why.contains(word), "{file}: {why}");
    }
    assert_eq!(records(&fleet)?, before, "a refused push left a record");

    fleet.push("1.0.0")?;
    let (why, _) = push(&fleet, &model_folder().join("digits/2.0.0"), "1.0.0")?;
    assert!(
        why.contains("already registered"),
        "a version is immutable: {why}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_that_make_no_sense_are_refused_and_start_nothing() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    fleet.push("2.0.0")?;
    let before = records(&fleet)?;
    let good = canary_plan("2.0.0");
    for (plan, word) in [
        (good.replace("lease", "leese"), "leese"),
        (
            good.replace("share_percent = 50", "share_percent = 150"),
            "100",
        ),
        (
            good.replace("mode = \"shadow\"", "mode = \"full\""),
            "order",
        ),
        (good.replace("2.0.0", "9.9.9"), "9.9.9"),
        (good.replace("2.0.0", "1.0.0"), "stable"),
        (good.replace("digits", "no-such-model"), "no-such-model"),
        ("this is no plan".to_owned(), "plan"),
    ] {
        let file = fleet.dir.path().join("bad.toml");
        std::fs::write(&file, &plan)?;
        let (why, code) = fleet.refusal(&["rollout", "start", file.to_str().context("UTF-8")?])?;
        assert_eq!(code, 1, "{why}\n{plan}");
        assert!(
            why.contains(word),
            "expected {word:?} in {why:?} for\n{plan}"
        );
    }
    assert_eq!(records(&fleet)?, before, "a refused plan left a record");
    Ok(())
}

struct Enrolment<'a> {
    fleet: &'a Fleet,
    token: String,
}

fn one_time_token(fleet: &Fleet, ttl: &str) -> Result<String> {
    let arguments = ["token", "create", "--kind", "agent", "--ttl", ttl];
    let token: Value = fleet.cluster.json(&arguments)?;
    Ok(token["token"].as_str().context("no token")?.to_owned())
}

impl Enrolment<'_> {
    fn command(&self, node: &str) -> (Command, PathBuf) {
        let dir = self.fleet.dir.path().join(format!("try-{node}"));
        let mut command = Programs::at(PROGRAMS.into()).agent();
        let coordinator = self.fleet.cluster.last_link.address().to_string();
        command.args([
            "enroll",
            "--coordinator",
            &coordinator,
            "--token",
            &self.token,
        ]);
        command.args(["--node", node, "--dir"]).arg(&dir);
        (command, dir)
    }

    fn refused(&self, node: &str, code: i32, word: &str) -> Result<()> {
        let (mut command, dir) = self.command(node);
        let (why, exit) = refusal(&mut command)?;
        assert_eq!(exit, code, "{why}");
        assert!(why.contains(word), "expected {word:?} in {why:?}");
        assert!(
            !dir.join("agent.toml").exists(),
            "a refused enrolment left a configuration"
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_let_one_node_in_once_in_time_to_the_right_fleet() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    let once = Enrolment {
        fleet: &fleet,
        token: one_time_token(&fleet, "1h")?,
    };
    once.refused("node-1", 1, "already")?;
    let (mut good, _) = once.command("node-9");
    assert!(
        good.status()?.success(),
        "a refusal must not use the token up"
    );
    once.refused("node-10", 1, "used")?;

    let expired = Enrolment {
        fleet: &fleet,
        token: one_time_token(&fleet, "1ms")?,
    };
    expired.refused("node-11", 1, "expired")?;

    let token = one_time_token(&fleet, "1h")?;
    let (front, fingerprint) = token.rsplit_once('.').context("a token has parts")?;
    let other_ca = format!("{front}.{}", "0".repeat(fingerprint.len()));
    Enrolment {
        fleet: &fleet,
        token: other_ca,
    }
    .refused("node-12", 3, "fingerprint")?;
    Enrolment {
        fleet: &fleet,
        token: "nonsense".to_owned(),
    }
    .refused("node-13", 2, "token")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_another_fleet_is_not_let_in() -> Result<()> {
    let (ours, theirs) = (
        Fleet::start(PROGRAMS, 1).await?,
        Fleet::start(PROGRAMS, 1).await?,
    );
    let config = theirs.dir.path().join("node-1/agent.toml");
    let text = std::fs::read_to_string(&config)?;
    let (own, other) = (
        theirs.cluster.last_link.address(),
        ours.cluster.last_link.address(),
    );
    assert!(text.contains(&own.to_string()));
    let mut theirs = theirs;
    theirs.cluster.kill_agent(0);
    std::fs::write(&config, text.replace(&own.to_string(), &other.to_string()))?;
    theirs.cluster.start_agent(0)?;
    let log = theirs.dir.path().join("node-1.log");
    let refused = || Ok(std::fs::read_to_string(&log)?.contains("certificate"));
    theirs
        .cluster
        .until("the agent says why it cannot connect", refused)
        .await?;
    let nodes: Vec<Value> = ours.cluster.json(&["agent", "list"])?;
    assert_eq!(nodes.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_get_a_4xx_that_says_why() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    let url = format!("http://{}/v2/models/digits/infer", fleet.cluster.agents[0]);
    let tensor = |name: &str, datatype: &str, shape: &[i64], data: Value| {
        json!({ "inputs": [{ "name": name, "datatype": datatype, "shape": shape, "data": data }] })
            .to_string()
    };
    let ones = json!(vec![1.0; 64]);
    for (body, word) in [
        (tensor("pixels", "FP32", &[1, 64], ones.clone()), "missing"),
        (
            tensor("input", "INT64", &[1, 64], json!(vec![1; 64])),
            "FP32",
        ),
        (
            tensor("input", "FP32", &[1, 63], json!(vec![1.0; 63])),
            "64",
        ),
        (tensor("input", "FP32", &[2, 64], ones.clone()), "[2, 64]"),
        (tensor("input", "FP32", &[-1, 64], ones.clone()), "-1"),
        (tensor("input", "FP32", &[1, 64], json!("text")), "data"),
        ("{\"inputs\": [{\"name\": \"input\"".to_owned(), ""),
        (
            tensor("input", "FP32", &[1, 64], ones.clone()).replacen("1.0", "NaN", 1),
            "",
        ),
        (
            tensor("input", "FP32", &[1, 64], ones.clone()).replacen("1.0", "1e999", 1),
            "",
        ),
        ("{}".to_owned(), "inputs"),
        ("\u{0}".to_owned(), ""),
    ] {
        let answer = fleet.http.post(&url).body(body.clone()).send().await?;
        let status = answer.status();
        let error: Value = answer.json().await?;
        let error = error["error"]
            .as_str()
            .context("every error is {\"error\": ...}")?
            .to_owned();
        assert_eq!(status.as_u16(), 400, "{body}: {error}");
        assert!(
            error.contains(word),
            "expected {word:?} in {error:?} for {body}"
        );
    }
    let unknown = format!("http://{}/v2/models/nothing/infer", fleet.cluster.agents[0]);
    assert_eq!(
        fleet
            .http
            .post(unknown)
            .json(&good_request())
            .send()
            .await?
            .status()
            .as_u16(),
        404
    );
    assert_eq!(fleet.ask(0, "key").await?, "1.0.0", "the node still serves");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_a_gigabyte_is_refused_unread() -> Result<()> {
    use std::io::{Read, Write};
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    let mut socket = std::net::TcpStream::connect(fleet.cluster.agents[0])?;
    let head =
        "POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n";
    socket.write_all(head.as_bytes())?;
    let mut answer = [0; 12];
    socket.read_exact(&mut answer)?;
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert_eq!(fleet.ask(0, "key").await?, "1.0.0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_errors_and_an_absent_coordinator_have_their_own_exit_codes() -> Result<()> {
    let programs = Programs::at(PROGRAMS.into());
    let dir = tempfile::tempdir()?;
    let rollcall = |arguments: &[&str]| {
        let mut command = programs.rollcall();
        command
            .env("ROLLCALL_CONFIG_DIR", dir.path())
            .args(arguments);
        refusal(&mut command)
    };
    assert_eq!(rollcall(&["rollback"])?.1, 2);
    assert_eq!(rollcall(&["rollout", "start", "--no-such-flag"])?.1, 2);
    let (why, code) = rollcall(&["status"])?;
    assert_eq!(code, 2, "{why}");
    assert!(why.contains("rollcall login"), "it says what to do: {why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_token_changes_nothing() -> Result<()> {
    let fleet = Fleet::start(PROGRAMS, 1).await?;
    fleet.make_stable("1.0.0").await?;
    let plan = fleet.dir.path().join("first.toml");
    std::fs::write(&plan, direct_plan("1.0.0", "1s"))?;
    let mut command = fleet
        .cluster
        .operator(&["rollback", "digits", "--reason", "x"]);
    command.env(
        "ROLLCALL_TOKEN",
        format!("rollcallop1.{}.{}", "a".repeat(16), "b".repeat(52)),
    );
    let (why, code) = refusal(&mut command)?;
    assert_eq!(code, 1, "{why}");
    assert!(why.contains("token"), "{why}");
    assert_eq!(fleet.ask(0, "key").await?, "1.0.0");
    Ok(())
}
