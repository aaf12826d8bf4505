//! The real binary beside a scripted coordinator: enrol, run, serve, stop.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test that unwraps nothing has failed; one story stays in one piece"
)]

#[path = "support/coordinator.rs"]
mod coordinator;
#[path = "support/grpc.rs"]
mod port;
mod support;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use coordinator::{Coordinator, TOKEN_SECRET};
use rollcall_shared::assignment::Assignment;
use rollcall_shared::ids::Generation;
use serde_json::Value;

/// Resident memory that an idle agent with one small model may take.
const RESIDENT_BYTES_MAX: u64 = 40 << 20;

async fn agent(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-agent"));
    command.args(args);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn enroll(coordinator: &Coordinator, token: &str, dir: &Path) -> Output {
    let address = coordinator.address.to_string();
    let dir = dir.to_str().unwrap();
    let args = [
        "enroll",
        "--coordinator",
        &address,
        "--token",
        token,
        "--node",
        "node-4",
        "--label",
        "zone=eu-1",
        "--grpc",
        "127.0.0.1:0",
        "--dir",
        dir,
    ];
    agent(&args).await
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_enrols_runs_serves_within_its_memory_and_stops_in_order() {
    let (coordinator, mut heard) = Coordinator::start();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("agent");

    let refused = enroll(&coordinator, &coordinator.token(&"f".repeat(32)), &dir).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the token is spent"));
    let foreign = format!("rollcall1.k7.{TOKEN_SECRET}.{}", "0".repeat(64));
    let unknown = enroll(&coordinator, &foreign, &dir).await;
    assert_eq!(
        unknown.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&unknown.stderr)
    );

    let enrolled = enroll(&coordinator, &coordinator.token(TOKEN_SECRET), &dir).await;
    assert_eq!(
        enrolled.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&enrolled.stderr)
    );
    assert!(String::from_utf8_lossy(&enrolled.stdout).contains("rollcall-agent run --config"));
    let mode = |name: &str| {
        std::fs::metadata(dir.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("node.key"), mode("node.pem")), (0o600, 0o644));

    let config = dir.join("agent.toml");
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("# http = \"127.0.0.1:8080\"", &format!("http = \"{port}\""));
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap().to_owned();
    let stable = coordinator.publish("1.0.0");
    let assignment = Assignment {
        model: support::digits(),
        generation: Generation(1),
        stable: Some(stable),
        previous: None,
        candidate: None,
    };
    coordinator.assign(assignment).await;

    let mut running = Running(
        Command::new(env!("CARGO_BIN_EXE_rollcall-agent"))
            .args(["run", "--config", &config])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut status = Value::Null;
    for _ in 0..200 {
        let output = agent(&["status", "--config", &config, "-o", "json"]).await;
        if output.status.success() {
            status = serde_json::from_slice(&output.stdout).unwrap();
            if status["models"][0]["serving"][0]["version"] == "1.0.0" {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status["node"], "node-4");
    assert_eq!(
        status["models"][0]["serving"][0]["digest"],
        stable.digest.to_string()
    );
    let table = agent(&["status", "--config", &config, "-o", "table"]).await;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("digits") && table.contains("1.0.0 (stable)"),
        "{table}"
    );
    let address = status["grpc"].as_str().unwrap().parse().unwrap();
    let row = port::request(&support::rows()[..1]);
    let answer = port::Client::connect(address).await.infer(row).await;
    assert_eq!(answer.unwrap().into_inner().model_version, "1.0.0");
    let busy = agent(&["cache", "list", "--config", &config]).await;
    assert_eq!(
        busy.status.code(),
        Some(1),
        "the cache of a running agent is its own"
    );

    // A report says that everything which an idle agent does has been done once.
    assert!(heard.reports.recv().await.unwrap().resources.process_memory > 0);
    let resident = resident_bytes(running.0.id());
    assert!(
        resident < RESIDENT_BYTES_MAX,
        "{resident} bytes resident when idle"
    );

    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let code = tokio::task::spawn_blocking(move || running.0.wait().unwrap())
        .await
        .unwrap();
    assert_eq!(code.code(), Some(0));
    let list = agent(&["cache", "list", "--config", &config, "-o", "json"]).await;
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(
        (&list[0]["version"], &list[0]["bytes_missing"]),
        (&"1.0.0".into(), &0.into())
    );
    assert_eq!(
        agent(&["cache", "verify", "--config", &config])
            .await
            .status
            .code(),
        Some(0)
    );
    assert_eq!(
        agent(&["cache", "gc", "--config", &config])
            .await
            .status
            .code(),
        Some(0)
    );
}
