//! A coordinator from its making to its restart, through the HTTP API.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests")]

mod fixture;

use std::time::Duration;

use bytes::Bytes;
use fixture::{Fleet, models, push, register, token, upload};
use reqwest::{Method, StatusCode};
use rollcall_coordinator::http::tokens::NewTokenKind;
use rollcall_coordinator::http::versions::UploadedFile;
use rollcall_coordinator::journal::ChainVerifier;
use rollcall_coordinator_core::view::{FleetStatus, ModelView, TokenView, VersionView};
use rollcall_shared::digest::Digest;
use rollcall_shared::manifest::FilePath;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_version_survives_a_restart_and_the_log_is_one_chain() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let pushed = push(&client, "digits", "digits/1.0.0", "1.0.0")
        .await
        .unwrap();
    assert_eq!(pushed.signature.inputs[0].shape, [-1, 64]);
    running.stop().await;

    let running = fleet.start();
    let client = fleet.client(&running);
    let versions: Vec<VersionView> = client.get("/versions").await.unwrap();
    assert_eq!(versions, [pushed]);
    let models: Vec<ModelView> = client.get("/models").await.unwrap();
    assert_eq!(models.len(), 1);
    assert_eq!(models[0].stable, None, "registered is not promoted");

    let head: Value = client.get("/audit/head").await.unwrap();
    let request = client.request(Method::GET, "/audit/records?from=1");
    let text = client.send(request).await.unwrap().text().await.unwrap();
    let mut chain = ChainVerifier::from_start();
    for line in text.lines() {
        chain.check(line).unwrap();
    }
    assert_eq!(json!(chain.head().hash), head["hash"]);
    assert_eq!(json!(chain.head().seq), head["seq"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_never_changed() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    push(&client, "digits", "digits/1.0.0", "1.0.0")
        .await
        .unwrap();
    let again = push(&client, "digits", "digits/2.0.0", "1.0.0")
        .await
        .unwrap_err();
    assert!(again.contains("1.0.0"), "{again}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_model_is_refused_with_its_reason() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    for (file, says) in [
        ("truncated", "cut off"),
        ("not-onnx", "not ONNX"),
        ("empty", "is empty"),
    ] {
        let bytes = std::fs::read(models().join(format!("malformed/{file}.onnx"))).unwrap();
        let digest = upload(&client, bytes).await;
        let files = vec![UploadedFile {
            path: FilePath::new("model.onnx").unwrap(),
            digest,
        }];
        let refused = register(&client, "digits", "1.0.0", files)
            .await
            .unwrap_err();
        assert!(refused.contains(says), "{refused:?} does not say {says:?}");
    }
    let absent = UploadedFile {
        path: FilePath::new("model.onnx").unwrap(),
        digest: Digest::of(b"never uploaded"),
    };
    let refused = register(&client, "digits", "1.0.0", vec![absent])
        .await
        .unwrap_err();
    assert!(refused.contains("not uploaded"), "{refused}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_over_their_bounds_are_refused_unread() {
    let fleet = Fleet::new();
    let running = fleet.start_with(|config| config.blob_bytes_max = 1_000);
    let client = fleet.client(&running);
    let blob = vec![7u8; 2_000];
    let path = format!("/blobs/{}", Digest::of(&blob));
    let too_large =
        |request: reqwest::RequestBuilder, body: Vec<u8>| request.body(Bytes::from(body)).send();
    let answer = too_large(client.upload(Method::PUT, &path), blob)
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.text().await.unwrap().contains("\"error\""));
    for page in ["/rollouts", "/versions"] {
        let answer = too_large(client.request(Method::POST, page), vec![b' '; 2 << 20])
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE, "{page}");
    }
    let other = Digest::of(b"other bytes");
    let request = client
        .upload(Method::PUT, &format!("/blobs/{other}"))
        .body("these bytes");
    let wrong = request.send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_good_tokens_get_in_and_roles_bound_what_they_do() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let admin = fleet.client(&running);
    let status = |client: rollcall_coordinator::cli::client::Client| async move {
        client
            .get::<FleetStatus>("/status")
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let unknown = format!("rollcallop1.nobody.{}", "0".repeat(40));
    for bad in ["", "nonsense", &unknown] {
        let refused = status(fleet.client_with(&running, bad)).await.unwrap_err();
        assert!(refused.contains("token"), "{refused}");
    }
    let short = token(&admin, NewTokenKind::Operator, &["viewer"], Some("2s")).await;
    status(fleet.client_with(&running, &short.token))
        .await
        .unwrap();
    let expired = async {
        while status(fleet.client_with(&running, &short.token))
            .await
            .is_ok()
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), expired)
        .await
        .expect("the token never expired");

    let viewer = token(&admin, NewTokenKind::Operator, &["viewer"], None).await;
    let client = fleet.client_with(&running, &viewer.token);
    status(client.clone()).await.unwrap();
    let request = client
        .upload(Method::PUT, &format!("/blobs/{}", Digest::of(b"x")))
        .body("x");
    assert_eq!(
        request.send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    let rollback = json!({ "reason": "because" });
    let request = client
        .request(Method::POST, "/models/digits/rollback")
        .json(&rollback);
    assert_eq!(
        request.send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );

    let request = admin.request(Method::DELETE, &format!("/tokens/{}", viewer.id));
    admin.send(request).await.unwrap();
    assert!(status(client).await.is_err(), "it was revoked");
    let tokens: Vec<TokenView> = admin.get("/tokens").await.unwrap();
    assert_eq!(tokens.len(), 3);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_answered_with_what_is_wrong() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let ask =
        |method, path: &str, body: &str| client.request(method, path).body(body.to_owned()).send();
    for (method, path, body, status, says) in [
        (
            Method::POST,
            "/rollouts",
            "model = 3",
            StatusCode::BAD_REQUEST,
            "plan",
        ),
        (
            Method::POST,
            "/versions",
            "{",
            StatusCode::BAD_REQUEST,
            "cannot be read",
        ),
        (
            Method::GET,
            "/models/UPPER",
            "",
            StatusCode::BAD_REQUEST,
            "model name",
        ),
        (
            Method::GET,
            "/models/absent",
            "",
            StatusCode::NOT_FOUND,
            "absent",
        ),
        (
            Method::GET,
            "/rollouts/r-9",
            "",
            StatusCode::NOT_FOUND,
            "r-9",
        ),
        (
            Method::GET,
            "/rollouts/nine",
            "",
            StatusCode::BAD_REQUEST,
            "rollout id",
        ),
        (
            Method::POST,
            "/agents/n/explode",
            "",
            StatusCode::NOT_FOUND,
            "quarantine",
        ),
        (
            Method::GET,
            "/nonsense",
            "",
            StatusCode::NOT_FOUND,
            "no such page",
        ),
        (
            Method::POST,
            "/models/digits/rollback",
            r#"{"reason":" "}"#,
            StatusCode::BAD_REQUEST,
            "why",
        ),
        (
            Method::POST,
            "/models/absent/rollback",
            r#"{"reason":"r"}"#,
            StatusCode::NOT_FOUND,
            "absent",
        ),
    ] {
        let answer = ask(method, path, body).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let error: Value = answer.json().await.unwrap();
        assert!(
            error["error"].as_str().unwrap().contains(says),
            "{path}: {error}"
        );
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_need_no_token() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client_with(&running, "");
    let page = |path: &str| {
        // The client's paths begin at the API; these pages lie beside it.
        let request = client.request(Method::GET, &format!("/../../{path}"));
        async move { request.send().await.unwrap() }
    };
    let health: Value = page("healthz").await.json().await.unwrap();
    assert_eq!(health["status"], "ok");
    let metrics = page("metrics").await.text().await.unwrap();
    for name in [
        "rollcall_agents_connected 0",
        "rollcall_journal_seq 2",
        "rollcall_rollouts{state=\"running\"} 0",
    ] {
        assert!(metrics.contains(name), "{name:?} is not in {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_not_served() {
    let fleet = Fleet::new();
    fleet.start().stop().await;
    let journal = rusqlite::Connection::open(fleet.path().join("journal.db")).unwrap();
    journal
        .execute_batch(
            "DROP TRIGGER records_are_never_changed;
             UPDATE records SET body = replace(body, 'admin', 'mallory') WHERE seq = 1;",
        )
        .unwrap();
    drop(journal);
    let error = fleet.start().wait().await.unwrap_err().to_string();
    assert!(error.contains("damaged at record 1"), "{error}");
}
