//! The real `rollcall` binary: streams and exit codes.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests")]

use std::process::{Command, Output};

fn rollcall(args: &[&str]) -> Output {
    let config = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(args)
        .env_remove("ROLLCALL_URL")
        .env_remove("ROLLCALL_TOKEN")
        .env("ROLLCALL_CONFIG_DIR", config.path())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_goes_to_standard_output_and_names_every_command() {
    let output = rollcall(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for command in [
        "init", "serve", "version", "rollout", "rollback", "agent", "audit",
    ] {
        assert!(help.contains(command), "{command} is not in {help}");
    }
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let output = rollcall(&["status", "--nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--nonsense"));
}

#[test]
fn a_command_without_a_coordinator_says_how_to_log_in() {
    let output = rollcall(&["status"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("rollcall login"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn an_unreachable_coordinator_has_its_own_exit_code() {
    // Port 1 is not served on any machine that runs tests.
    let token = format!("rollcallop1.a.{}", "0".repeat(40));
    let output = rollcall(&["status", "--url", "https://127.0.0.1:1", "--token", &token]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("does not answer"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn init_prints_the_next_two_commands_and_refuses_the_same_folder_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("fleet");
    let dir = dir.to_str().unwrap();
    let output = rollcall(&["init", "--dir", dir, "--fleet", "payments"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("rollcall serve --config") && text.contains("rollcall login https://"));
    let again = rollcall(&["init", "--dir", dir]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is not empty"));
}

#[test]
fn an_exported_log_is_verified_without_a_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    std::fs::write(&file, "{\"seq\":1}\n").unwrap();
    let output = rollcall(&["audit", "verify", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("damaged at record 1"),
        "{}",
        stderr(&output)
    );
}

/// A coordinator process on free ports.
struct Daemon {
    process: std::process::Child,
    url: String,
}

impl Daemon {
    fn start(config: &str) -> Self {
        use std::io::{BufRead, BufReader};
        let mut process = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["serve", "--config", config])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let serving = log
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("serving"));
        let serving = serving.expect("the coordinator ended");
        let port = serving
            .rsplit("127.0.0.1:")
            .next()
            .unwrap()
            .trim_end_matches(')')
            .to_owned();
        // Whoever stops reading makes the writer wait.
        std::thread::spawn(move || log.for_each(drop));
        Self {
            process,
            url: format!("https://127.0.0.1:{port}"),
        }
    }
}

#[test]
fn what_was_reported_as_done_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("fleet");
    let any = "127.0.0.1:0";
    let init = [
        "init",
        "--dir",
        dir.to_str().unwrap(),
        "--quic",
        any,
        "--https",
        any,
        "-o",
        "json",
    ];
    let made: serde_json::Value = serde_json::from_slice(&rollcall(&init).stdout).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    let (config, ca, token) = (text("config"), text("ca"), text("token"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits/1.0.0");
    let push = ["version", "push", model, "--model", "digits", "--version"];

    let mut pushed = Vec::new();
    for version in ["1.0.0", "1.0.1", "1.0.2"] {
        let mut daemon = Daemon::start(&config);
        let with = |args: &[&str]| {
            let access = [
                "--url",
                &daemon.url,
                "--token",
                &token,
                "--ca",
                &ca,
                "-o",
                "json",
            ];
            rollcall(&[args, &access].concat())
        };
        let output = with(&[&push[..], &[version]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        pushed.push(version);
        let listed = with(&["version", "list"]).stdout;
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed).unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|v| v["version"].as_str().unwrap())
            .collect();
        assert_eq!(listed, pushed);
        let verified = with(&["audit", "verify"]);
        assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
        daemon.process.kill().unwrap();
        daemon.process.wait().unwrap();
    }
}
