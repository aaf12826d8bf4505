//! What the node says of itself: health, metadata, status and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollcall_agent::config::Serving;
use rollcall_agent::serve::status::CacheStatus;
use rollcall_agent_core::route::CandidateUsage::Canary;
use rollcall_shared::assignment::Share;
use serde_json::json;
use tokio::task::JoinSet;

use crate::engines::ReleasedAtTheEnd;
use crate::support::{Bench, eventually, percent, rows};

#[tokio::test]
async fn health_metadata_index_and_status_speak_the_protocol() {
    let bench = Bench::start(Serving::default()).await;
    assert_eq!(bench.get("/v2/health/live").await.status, 200);
    assert_eq!(bench.get("/v2/health/ready").await.status, 503);
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 404);
    bench.route(1, None, None);
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 503);
    assert_eq!(bench.get("/v2/models/digits/ready").await.status, 503);
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(2, Some(stable), Some((candidate, Canary(percent(10.0)))));
    assert_eq!(bench.get("/v2/health/ready").await.status, 200);
    assert_eq!(bench.get("/v2/models/digits/ready").await.status, 200);
    assert_eq!(
        bench
            .get("/v2/models/digits/versions/2.0.0/ready")
            .await
            .status,
        200
    );
    assert_eq!(bench.get("/v2").await.json["name"], "rollcall-agent");
    let metadata = bench.get("/v2/models/digits").await.json;
    assert_eq!(metadata["versions"], json!(["1.0.0", "2.0.0"]));
    assert_eq!(
        metadata["inputs"],
        json!([{"name": "input", "datatype": "FP32", "shape": [-1, 64]}])
    );
    let index = bench.post("/v2/repository/index", "", "").await.json;
    let row = json!({"name": "digits", "version": "1.0.0", "state": "READY", "reason": ""});
    assert_eq!(index[0], row);
    let status = bench.get("/rollcall/v1/status").await.json;
    assert_eq!(status["node"], "node-1");
    assert_eq!(status["connected"], false);
    assert_eq!(status["models"], json!([]));
    assert_eq!(status["cache"], json!({"bytes": 0, "versions": []}));
}

#[tokio::test]
async fn status_pages_that_wait_for_the_disk_hold_up_no_client() {
    let disk = ReleasedAtTheEnd(Arc::default());
    let waiting = Arc::new(AtomicUsize::new(0));
    let bench = Bench::with_cache(Serving::default(), {
        let (disk, waiting) = (Arc::clone(&disk.0), Arc::clone(&waiting));
        move || {
            waiting.fetch_add(1, Ordering::SeqCst);
            disk.wait();
            CacheStatus::default()
        }
    })
    .await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let mut pages = JoinSet::new();
    for _ in 0..8 {
        let page = bench
            .client
            .get(format!("{}/rollcall/v1/status", bench.url));
        pages.spawn(async move { page.send().await.unwrap().status() });
    }
    // Two threads have all connections.
    let both = || waiting.load(Ordering::SeqCst) == 2;
    eventually("two pages wait for the disk", both).await;
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 200);
    drop(disk);
    while let Some(status) = pages.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(waiting.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn metrics_are_open_metrics_text_with_what_happened() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    bench.infer("k", &rows()[0]).await;
    let response = bench
        .client
        .get(format!("{}/metrics", bench.url))
        .send()
        .await
        .unwrap();
    let text = response.text().await.unwrap();
    for line in [
        "rollcall_agent_requests_total{model=\"digits\",version=\"2.0.0\",role=\"candidate\"} 1",
        "rollcall_agent_latency_seconds_count{model=\"digits\",version=\"2.0.0\",role=\"candidate\"} 1",
        "rollcall_agent_breaker_open{model=\"digits\",version=\"2.0.0\"} 0",
        "rollcall_agent_connected 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
