//! A whole agent and a scripted coordinator, over real QUIC, disk and engine.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a test that unwraps nothing has failed; one story stays in one piece"
)]

#[path = "support/coordinator.rs"]
mod coordinator;
mod support;

use std::path::Path;
use std::time::Duration;

use coordinator::{Coordinator, Heard};
use rollcall_agent::Listeners;
use rollcall_agent::config::Config;
use rollcall_agent_core::breaker::FAILURES_TO_OPEN;
use rollcall_shared::assignment::{
    Assignment, CandidateAssignment, CandidateMode, Share, VersionRef, Withdrawal,
};
use rollcall_shared::feedback::Feedback;
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::report::{AgentEvent, Counts, ReadyState, Receipt, Role};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::{FromAgent, ToAgent};
use serde_json::Value;
use support::{body, bundle, digits, manifest, rows};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Node {
    url: String,
    client: reqwest::Client,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), rollcall_agent::RunError>>,
}

impl Node {
    async fn start(dir: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::read(&dir.join("agent.toml")).unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", http.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let listeners = Listeners { http, grpc: None };
        let task = tokio::spawn(rollcall_agent::run(
            config,
            listeners,
            udp,
            shutdown.clone(),
        ));
        Self {
            url,
            client: reqwest::Client::new(),
            shutdown,
            task,
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Status, version and arm of an answer.
    async fn infer(&self) -> (u16, String, String) {
        let url = format!("{}/v2/models/digits/infer", self.url);
        let request = self.client.post(url).body(body(&rows()[0]).to_string());
        let response = request.send().await.unwrap();
        let header = |name: &str| {
            let value = response.headers().get(name);
            value.map_or(String::new(), |v| v.to_str().unwrap().to_owned())
        };
        (
            response.status().as_u16(),
            header("x-rollcall-version"),
            header("x-rollcall-arm"),
        )
    }

    async fn until(&self, version: &str, arm: &str) {
        for _ in 0..500 {
            let (status, got_version, got_arm) = self.infer().await;
            if status == 200 && got_version == version && got_arm == arm {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "never {version} as {arm}; the last was {:?}",
            self.infer().await
        );
    }

    /// The line of the version that is being prepared, once the page shows it like this.
    async fn until_preparing(&self, like: impl Fn(&Value) -> bool) -> Value {
        self.until_status(|status| like(&status["preparing"][0]))
            .await["preparing"][0]
            .clone()
    }

    async fn until_status(&self, like: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..1_000 {
            let status = self.status().await;
            if like(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never so; the last was {}", self.status().await);
    }

    async fn metrics(&self) -> String {
        let asked = self.client.get(format!("{}/metrics", self.url));
        asked.send().await.unwrap().text().await.unwrap()
    }

    async fn status(&self) -> Value {
        let response = self
            .client
            .get(format!("{}/rollcall/v1/status", self.url))
            .send()
            .await;
        serde_json::from_slice(&response.unwrap().bytes().await.unwrap()).unwrap()
    }
}

fn assignment(
    generation: u64,
    stable: Option<VersionRef>,
    candidate: Option<(VersionRef, CandidateMode)>,
) -> Assignment {
    Assignment {
        model: digits(),
        generation: Generation(generation),
        stable,
        previous: None,
        candidate: candidate.map(|(version, mode)| CandidateAssignment {
            rollout: RolloutId(1),
            version,
            mode,
            lease_ms: 2_000,
        }),
    }
}

async fn receipt(heard: &mut Heard, generation: u64) -> Receipt {
    heard
        .next(|message| match message {
            FromAgent::Receipt(receipt) if receipt.generation == Generation(generation) => {
                Some(receipt)
            }
            _ => None,
        })
        .await
}

const CANARY_ALL: CandidateMode = CandidateMode::Canary(Share::ALL);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_fetches_serves_reports_and_takes_a_candidate_back_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let (stable, candidate) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    let node = Node::start(dir.path()).await;
    assert_eq!(
        node.infer().await.0,
        404,
        "the port answers before anything is known"
    );

    coordinator.assign(assignment(1, Some(stable), None)).await;
    node.until("1.0.0", "stable").await;
    assert_eq!(receipt(&mut heard, 1).await.serving[0].version, stable);

    coordinator
        .assign(assignment(2, Some(stable), Some((candidate, CANARY_ALL))))
        .await;
    node.until("2.0.0", "candidate").await;
    heard
        .next(|message| match message {
            FromAgent::Receipt(receipt) => receipt
                .serving
                .into_iter()
                .find(|serving| serving.role == Role::Candidate && serving.version == candidate),
            _ => None,
        })
        .await;
    let report = loop {
        let report = heard.reports.recv().await.unwrap();
        if report
            .series
            .iter()
            .any(|series| series.role == Role::Candidate)
        {
            break report;
        }
    };
    assert!(report.resources.memory_total > 0 && report.duration_ms >= 50);
    let status = node.status().await;
    assert_eq!(status["connected"], true);
    let model = &status["models"][0];
    assert_eq!(
        (
            &model["stable"],
            &model["candidate"],
            &model["mode"],
            &model["generation"]
        ),
        (
            &"1.0.0".into(),
            &"2.0.0".into(),
            &"canary".into(),
            &2.into()
        )
    );
    assert!(model["lease_left_ms"].as_u64().unwrap() <= 2_000);
    assert_eq!(status["cache"]["versions"].as_array().unwrap().len(), 2);
    assert!(status["cache"]["bytes"].as_u64().unwrap() > 50_000);

    let old = assignment(2, Some(stable), Some((candidate, CANARY_ALL)));
    let withdrawal = Withdrawal {
        model: digits(),
        rollout: RolloutId(1),
        withdrawn: candidate,
        generation: Generation(3),
        serving: Some(stable),
    };
    coordinator.withdraw(withdrawal).await;
    assert_eq!(receipt(&mut heard, 3).await.serving.len(), 1);
    assert_eq!(
        node.infer().await,
        (200, "1.0.0".to_owned(), "stable".to_owned())
    );

    // Restarted without a coordinator: stable from disk. With one that lost its memory:
    // the withdrawal is handed back, and the old assignment changes nothing.
    coordinator.disconnect();
    node.stop().await;
    coordinator.assign(old).await;
    let node = Node::start(dir.path()).await;
    node.until("1.0.0", "stable").await;
    let hello = heard
        .next(|message| match message {
            FromAgent::Hello(hello) => Some(hello).filter(|h| !h.withdrawals.is_empty()),
            _ => None,
        })
        .await;
    assert_eq!(hello.withdrawals[0].withdrawn, candidate);
    // Its next heartbeat says that the welcome, with the old assignment, has been taken in.
    heard
        .next(|message| matches!(message, FromAgent::Heartbeat(_)).then_some(()))
        .await;
    assert_eq!(
        node.infer().await,
        (200, "1.0.0".to_owned(), "stable".to_owned())
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_a_client_come_in_the_report_of_the_version_and_segment_that_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let (stable, candidate) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    coordinator
        .assign(assignment(1, Some(stable), Some((candidate, CANARY_ALL))))
        .await;
    let node = Node::start(dir.path()).await;
    node.until("2.0.0", "candidate").await;
    let infer = format!("{}/v2/models/digits/infer", node.url);
    for id in ["order-1", "order-2"] {
        let mut request = body(&rows()[0]);
        request["id"] = id.into();
        request["parameters"] = serde_json::json!({ "segment": "eu" });
        let answer = node.client.post(&infer).body(request.to_string());
        assert_eq!(answer.send().await.unwrap().status(), 200);
    }
    let labels = serde_json::json!([
        { "id": "order-1", "label": 3, "kpis": { "spend": 12.5 } },
        { "id": "order-3", "label": 3 },
    ]);
    let url = format!("{}/rollcall/v1/feedback", node.url);
    let joined = node.client.post(url).body(labels.to_string());
    let joined = joined.send().await.unwrap().bytes().await.unwrap();
    let joined: Value = serde_json::from_slice(&joined).unwrap();
    assert_eq!(
        (&joined["joined"], &joined["unknown"]),
        (&1.into(), &1.into())
    );
    // The other label comes by the coordinator, which sends it to every node: about another
    // model, another request, or this one.
    for (model, id) in [
        ("wine", "order-2"),
        ("digits", "order-9"),
        ("digits", "order-2"),
    ] {
        let label = serde_json::json!({ "id": id, "label": "no digit" });
        let items = vec![serde_json::from_value(label).unwrap()];
        let model = ModelName::new(model).unwrap();
        coordinator
            .send(ToAgent::Feedback(Feedback { model, items }))
            .await;
    }
    let labelled = async {
        let mut sum = Counts::default();
        // Windows may part the two.
        while sum.quality.labelled.values().map(|c| c.actual).sum::<u64>() < 2 {
            let report = heard.reports.recv().await.unwrap();
            for series in report.series {
                let is_labelled = !series.counts.quality.labelled.is_empty();
                assert!(!is_labelled || series.version == candidate);
                let eu = series.segments.iter().find(|s| s.name == "eu");
                eu.iter().for_each(|segment| sum.merge(&segment.counts));
            }
        }
        sum
    };
    let quality = tokio::time::timeout(Duration::from_secs(20), labelled)
        .await
        .expect("labels in a report in time")
        .quality;
    assert_eq!(quality.labelled["no digit"].actual, 1);
    assert_eq!(quality.labelled["3"].actual, 1);
    assert_eq!(
        quality.labelled.values().map(|c| c.predicted).sum::<u64>(),
        2
    );
    assert_eq!(quality.kpis["spend"].count, 1);
    let metrics = node.metrics().await;
    let unknown = "rollcall_agent_feedback_total{result=\"unknown\"} 3";
    assert!(metrics.contains(unknown), "{metrics}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_the_protocol_before_gets_reports_that_it_can_read() {
    for protocol in [2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let (coordinator, mut heard) = Coordinator::start();
        coordinator.speak(protocol);
        coordinator.enrol(dir.path(), "node-1");
        let stable = coordinator.publish("1.0.0");
        coordinator.assign(assignment(1, Some(stable), None)).await;
        let node = Node::start(dir.path()).await;
        node.until("1.0.0", "stable").await;
        let counted = async {
            loop {
                let report = heard.reports.recv().await.unwrap();
                if let Some(series) = report.series.first() {
                    return series.counts.requests;
                }
            }
        };
        let requests = tokio::time::timeout(Duration::from_secs(20), counted).await;
        assert!(requests.expect("a report of the request in time") > 0);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stable_serves_from_disk_with_no_coordinator_in_sight() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let stable = coordinator.publish("1.0.0");
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    receipt(&mut heard, 1).await;
    node.stop().await;
    coordinator.die();
    let node = Node::start(dir.path()).await;
    node.until("1.0.0", "stable").await;
    assert_eq!(node.status().await["connected"], false);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_whose_lease_runs_out_is_fenced_and_the_coordinator_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let (stable, candidate) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    coordinator
        .assign(assignment(1, Some(stable), Some((candidate, CANARY_ALL))))
        .await;
    let node = Node::start(dir.path()).await;
    node.until("2.0.0", "candidate").await;
    coordinator.stop_answering_heartbeats();
    node.until("1.0.0", "stable").await;
    heard
        .next(|message| match message {
            FromAgent::Event(AgentEvent::LeaseExpired { .. }) => Some(()),
            _ => None,
        })
        .await;
    node.stop().await;
}

/// With windows of an hour, so that no report can have said it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_that_opens_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.report_every(Duration::from_secs(3_600));
    coordinator.enrol(dir.path(), "node-1");
    let (stable, candidate) = (coordinator.publish("2.0.0"), coordinator.publish("5.0.0"));
    coordinator
        .assign(assignment(1, Some(stable), Some((candidate, CANARY_ALL))))
        .await;
    let node = Node::start(dir.path()).await;
    // 5.0.0 cannot answer some rows.
    let url = format!("{}/v2/models/digits/infer", node.url);
    let broken = async {
        let mut rows = rows().into_iter().cycle();
        let mut row = rows.next().unwrap();
        loop {
            let request = node.client.post(&url).body(body(&row).to_string());
            let answer = request.send().await.unwrap();
            let arm = answer.headers().get("x-rollcall-arm");
            // Candidate or none yet: another row. Fallback: this one again, until it opens.
            if arm.is_none_or(|arm| arm != "fallback") {
                row = rows.next().unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let told = heard.next(|message| match message {
        FromAgent::Event(AgentEvent::BreakerOpened {
            rollout, failures, ..
        }) => Some((rollout, failures)),
        _ => None,
    });
    let told = tokio::select! {
        told = told => told,
        never = broken => never,
    };
    assert_eq!(told, (RolloutId(1), FAILURES_TO_OPEN));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_the_configuration_batches_waits_for_a_second_request() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let path = dir.path().join("agent.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    // So long that one request alone is never answered.
    text.push_str("[serving]\ncandidate_timeout = \"2h\"\nstable_timeout = \"3h\"\n");
    text.push_str("[batching.digits]\nmax_rows = 2\nmax_delay = \"1h\"\n");
    std::fs::write(&path, text).unwrap();
    let stable = coordinator.publish("1.0.0");
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    receipt(&mut heard, 1).await;
    let mut first = Box::pin(node.infer());
    let alone = tokio::time::timeout(Duration::from_millis(200), first.as_mut()).await;
    assert!(alone.is_err(), "it was answered alone: {alone:?}");
    let (first, second) = tokio::join!(first, node.infer());
    assert_eq!((first.0, second.0), (200, 200));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, _heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let stable = coordinator.publish("1.0.0");
    let size = manifest(
        "1.0.0",
        &std::fs::read(bundle("1.0.0").join("model.onnx")).unwrap(),
    )
    .bytes();
    coordinator.cut_next_artifact();
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    node.until("1.0.0", "stable").await;
    let blob = coordinator.model_blob("1.0.0");
    let offsets: Vec<_> = coordinator
        .asked()
        .into_iter()
        .filter(|(d, _)| *d == blob)
        .map(|(_, o)| o)
        .collect();
    assert_eq!(offsets, [0, size / 2]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_is_held_up_shows_how_far_it_is_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, _heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let stable = coordinator.publish("1.0.0");
    let bytes = |file: &str| std::fs::metadata(bundle("1.0.0").join(file)).unwrap().len();
    let half = bytes("model.onnx") / 2;
    let total = bytes("model.onnx") + bytes("smoke.json");
    let first = coordinator.hold_next_artifact();
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    let line = node
        .until_preparing(|line| line["bytes"]["here"] == half)
        .await;
    assert_eq!(line["bytes"]["total"], total);
    assert_eq!(
        (&line["model"], &line["version"], &line["phase"]),
        (&"digits".into(), &"1.0.0".into(), &"fetching".into())
    );
    assert_eq!(line["digest"], stable.digest.to_string());
    let moment = |name: &str| line[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(moment("since") <= moment("phase_since"));
    let metrics = node.metrics().await;
    let labels = "model=\"digits\",version=\"1.0.0\"";
    for wanted in [
        format!("rollcall_agent_preparation_bytes{{{labels},of=\"here\"}} {half}.0\n"),
        format!("rollcall_agent_preparation_bytes{{{labels},of=\"total\"}} {total}.0\n"),
        format!("rollcall_agent_preparation_phase_seconds{{{labels},phase=\"fetching\"}} "),
        format!("rollcall_agent_preparation_seconds{{{labels}}} "),
    ] {
        assert!(metrics.contains(&wanted), "no {wanted} in {metrics}");
    }
    node.stop().await;

    // The coordinator sends nothing now: what is here was here before the restart.
    let second = coordinator.hold_next_artifact();
    let node = Node::start(dir.path()).await;
    let resumed = |line: &Value| line["bytes"]["here"] == half && line["phase"] == "fetching";
    node.until_preparing(resumed).await;
    first.cancel();
    second.cancel();
    node.until("1.0.0", "stable").await;
    assert_eq!(node.status().await["preparing"], Value::Array(Vec::new()));
    assert!(!node.metrics().await.contains("preparation_bytes{"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preparation_that_is_broken_off_leaves_no_line_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, _heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let (stable, candidate) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    node.until("1.0.0", "stable").await;
    let _never = coordinator.hold_next_artifact();
    coordinator
        .assign(assignment(2, Some(stable), Some((candidate, CANARY_ALL))))
        .await;
    let line = node
        .until_preparing(|line| line["bytes"]["here"].as_u64() > Some(0))
        .await;
    assert_eq!(line["version"], "2.0.0");
    let withdrawal = Withdrawal {
        model: digits(),
        rollout: RolloutId(1),
        withdrawn: candidate,
        generation: Generation(3),
        serving: Some(stable),
    };
    coordinator.withdraw(withdrawal).await;
    node.until_status(|status| status["preparing"] == Value::Array(Vec::new()))
        .await;
    assert!(!node.metrics().await.contains("preparation_seconds{"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_file_is_thrown_away_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, _heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let stable = coordinator.publish("1.0.0");
    coordinator.spoil_next_artifact();
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    node.until("1.0.0", "stable").await;
    let blob = coordinator.model_blob("1.0.0");
    let times = coordinator
        .asked()
        .iter()
        .filter(|(d, o)| (*d, *o) == (blob, 0))
        .count();
    assert_eq!(times, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_the_coordinator_cannot_send_is_reported_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    coordinator.enrol(dir.path(), "node-1");
    let mut stable = coordinator.publish("1.0.0");
    stable.digest = rollcall_shared::digest::Digest::of(b"nobody has this");
    coordinator.assign(assignment(1, Some(stable), None)).await;
    let node = Node::start(dir.path()).await;
    let (reason, retrying) = heard
        .next(|message| match message {
            FromAgent::Readiness(readiness) => match readiness.state {
                ReadyState::Failed { reason, retrying } => Some((reason, retrying)),
                ReadyState::Fetching | ReadyState::Ready => None,
            },
            _ => None,
        })
        .await;
    assert!(reason.contains("manifest") && retrying, "{reason}");
    // The status page follows the message, and shows the next attempt in turn.
    let none = Value::Array(Vec::new());
    node.until_status(|status| {
        status["models"][0]["waiting"][0]["on"] == "retry" && status["preparing"] == none
    })
    .await;
    node.stop().await;
}
