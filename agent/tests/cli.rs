//! The real binary's command line.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rollcall-agent"))
        .args(args)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_exits_0() {
    let output = agent(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for command in ["enroll", "run", "status", "cache"] {
        assert!(text.contains(command), "{text}");
    }
    for args in [
        ["enroll", "--help"],
        ["run", "--help"],
        ["status", "--help"],
        ["cache", "--help"],
    ] {
        assert_eq!(agent(&args).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &["--colour"][..],
        &[],
        &["run"],
        &["run", "--config"],
        &["cache", "list"],
        &[
            "enroll",
            "--coordinator",
            "x:1",
            "--token",
            "nonsense",
            "--dir",
            "d",
        ],
        &["status", "-o", "xml"],
    ] {
        assert_eq!(agent(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_bad_configuration_is_refused_in_one_line_that_names_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let key = "00".repeat(32);
    let run = |text: &str| {
        std::fs::write(&path, text).unwrap();
        agent(&["run", "--config", path.to_str().unwrap()])
    };
    let unknown = run(&format!(
        "dir = \".\"\nregistry_key = \"{key}\"\ncolour = 1\n"
    ));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("colour"), "{}", stderr(&unknown));
    let zero = run(&format!(
        "dir = \".\"\nregistry_key = \"{key}\"\n[serving]\nshadow_queue = 0\n"
    ));
    assert_eq!(zero.status.code(), Some(1));
    assert!(
        stderr(&zero).contains("serving.shadow_queue = 0"),
        "{}",
        stderr(&zero)
    );
    let not_enrolled = run(&format!(
        "dir = \".\"\nhttp = \"127.0.0.1:0\"\nregistry_key = \"{key}\"\n"
    ));
    assert_eq!(not_enrolled.status.code(), Some(1));
    assert!(
        stderr(&not_enrolled).contains("enroll"),
        "{}",
        stderr(&not_enrolled)
    );
    let absent = agent(&["run", "--config", "/nonexistent/agent.toml"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("/nonexistent/agent.toml"));
}

#[test]
fn status_without_an_agent_exits_3() {
    let output = agent(&["status", "--url", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("no agent answers"));
}

#[test]
fn an_enrolled_folder_is_never_enrolled_over() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, "mine").unwrap();
    let token = format!("rollcall1.k7.{}.{}", "0".repeat(32), "0".repeat(64));
    let output = agent(&[
        "enroll",
        "--coordinator",
        "127.0.0.1:9",
        "--token",
        &token,
        "--dir",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("exists"), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");
    assert!(!Path::new(dir.path()).join("node.key").exists());
}
