//! What is counted of requests, and what labels and outcomes come to, over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_agent::config::Serving;
use rollcall_agent_core::route::CandidateUsage::{Canary, Shadow};
use rollcall_shared::assignment::Share;
use rollcall_shared::limits::FEEDBACK_ITEMS_MAX;
use rollcall_shared::manifest::{DriftFeature, Metadata};
use rollcall_shared::report::{Role, Series};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::engines::Counting;
use crate::support::{Bench, body, eventually, rows};

const INFER: &str = "/v2/models/digits/infer";
const FEEDBACK: &str = "/rollcall/v1/feedback";

async fn bench() -> Bench {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    bench
}

/// One request by name, in a segment.
fn request(id: &str, segment: Option<&str>, row: &[f64]) -> String {
    let mut request = body(row);
    request["id"] = json!(id);
    if let Some(segment) = segment {
        request["parameters"] = json!({ "segment": segment });
    }
    request.to_string()
}

async fn feedback(bench: &Bench, items: Value) -> Value {
    let answer = bench.post(FEEDBACK, "", items.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    answer.json
}

fn series(bench: &Bench, role: Role) -> Series {
    let window = bench.recorder.take_window();
    let mut found = window.series.into_iter().filter(|s| s.role == role);
    found.next().unwrap()
}

#[tokio::test]
async fn requests_are_counted_in_the_segment_that_the_body_or_the_header_names() {
    let bench = bench().await;
    let row = &rows()[0];
    for segment in [Some("eu"), Some("us"), None] {
        let answer = bench.post(INFER, "", request("a", segment, row)).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
    }
    for segment in [Some("us"), None] {
        let sent = bench.client.post(format!("{}{INFER}", bench.url));
        let sent = sent.header("Rollcall-Segment", "eu");
        let sent = sent.body(request("a", segment, row)).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
    let series = series(&bench, Role::Stable);
    let counted: Vec<_> = series
        .segments
        .iter()
        .map(|s| (s.name.as_str(), s.counts.requests, s.counts.latency.count()))
        .collect();
    assert_eq!(counted, [("eu", 2, 2), ("us", 2, 2)]);
    assert_eq!(series.counts.requests, 5);
    assert_eq!(series.counts.quality.scores.iter().sum::<u64>(), 5);
}

#[tokio::test]
async fn a_segment_that_is_no_name_is_a_400_that_says_what_to_do() {
    let bench = bench().await;
    let row = &rows()[0];
    for bad in ["", "a\nb", &"x".repeat(49)] {
        let answer = bench.post(INFER, "", request("a", Some(bad), row)).await;
        let error = answer.json["error"].as_str().unwrap();
        assert!(
            answer.status == 400 && error.contains("1 to 48 bytes"),
            "{error}"
        );
    }
    let mut number = body(row);
    number["parameters"] = json!({ "segment": 7 });
    let answer = bench.post(INFER, "", number.to_string()).await;
    assert_eq!(answer.status, 400);
    let sent = bench.client.post(format!("{}{INFER}", bench.url));
    let sent = sent.header("Rollcall-Segment", "x".repeat(49));
    let sent = sent.body(request("a", None, row)).send().await.unwrap();
    assert_eq!(sent.status(), 400);
    // Other parameters are for other servers.
    let mut others = body(row);
    others["parameters"] = json!({ "sequence_id": 7 });
    assert_eq!(bench.post(INFER, "", others.to_string()).await.status, 200);
    others["parameters"] = Value::Null;
    assert_eq!(bench.post(INFER, "", others.to_string()).await.status, 200);
}

#[tokio::test]
async fn a_label_is_counted_for_who_answered_and_for_the_shadow() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, shadow) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((shadow, Shadow(Share::ALL))));
    let mut items = Vec::new();
    for (index, row) in rows().iter().take(40).enumerate() {
        let id = format!("order-{index}");
        let answer = bench.post(INFER, "", request(&id, Some("eu"), row)).await;
        items.push(json!({ "id": id, "label": answer.label(), "kpis": { "spend": 2 } }));
    }
    items.push(json!({ "id": "nobody", "label": "3" }));
    eventually("every copy has run", || {
        bench.counts(Role::Shadow).compared == 40
    })
    .await;
    let joined = feedback(&bench, json!(items)).await;
    assert_eq!(
        joined,
        json!({ "joined": 40, "unknown": 1, "duplicate": 0, "refused": 0 })
    );
    let again = feedback(&bench, items[0].clone()).await;
    assert_eq!(again["duplicate"], 2);

    let window = bench.recorder.take_window();
    let [stable, shadow] = &window.series[..] else {
        panic!("{} series", window.series.len());
    };
    assert_eq!((stable.role, shadow.role), (Role::Stable, Role::Shadow));
    let sums = |series: &Series| {
        let classes = &series.segments[0].counts.quality.labelled;
        let sum = |of: fn(&rollcall_shared::report::ClassCounts) -> u64| {
            classes.values().map(of).sum::<u64>()
        };
        (sum(|c| c.predicted), sum(|c| c.actual), sum(|c| c.correct))
    };
    // The labels are stable's own answers, so that it is right, and the shadow where it agreed.
    assert_eq!(sums(stable), (40, 40, 40));
    assert_eq!(sums(shadow), (40, 40, shadow.counts.agreed));
    let spend = stable.counts.quality.kpis["spend"];
    assert_eq!((spend.count, spend.sum), (40, 80.0));
    assert!(shadow.counts.quality.kpis.is_empty());
    let sure = &stable.counts.quality.calibration;
    assert_eq!(sure.iter().map(|bin| bin.count).sum::<u64>(), 40);

    let metrics = bench.client.get(format!("{}/metrics", bench.url));
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    for line in [
        "rollcall_agent_feedback_total{result=\"joined\"} 40",
        "rollcall_agent_feedback_total{result=\"unknown\"} 1",
        "rollcall_agent_feedback_total{result=\"duplicate\"} 2",
        "rollcall_agent_answers_forgotten_total 0",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn a_fallbacks_label_is_stables_and_a_key_that_fails_again_is_one_failed_key() {
    let bench = Bench::start(Serving::default()).await;
    // 5.0.0 fails for some inputs.
    let (stable, candidate) = (bench.load("2.0.0"), bench.load("5.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    let mut failing = None;
    for row in rows() {
        if bench.infer("somebody", &row).await.arm() == "fallback" {
            failing = Some(row);
            break;
        }
    }
    let row = failing.unwrap();
    let before = bench.counts(Role::Candidate);
    assert_eq!((before.errors, before.failed_keys), (1, 1));
    let again = bench
        .post(INFER, "somebody", request("again", None, &row))
        .await;
    assert_eq!(again.arm(), "fallback");
    let other = bench.post(INFER, "", request("other", None, &row)).await;
    assert_eq!(other.arm(), "fallback");
    let counts = bench.counts(Role::Candidate);
    assert_eq!((counts.errors, counts.failed_keys), (3, 2));

    let labels = json!([{ "id": "again", "label": again.label() }]);
    assert_eq!(feedback(&bench, labels).await["joined"], 1);
    assert_eq!(bench.counts(Role::Stable).quality.labelled.len(), 1);
    assert!(bench.counts(Role::Candidate).quality.labelled.is_empty());
}

#[tokio::test]
async fn feedback_that_makes_no_sense_is_a_400_that_says_what_to_do() {
    let bench = bench().await;
    let item = json!({ "id": "a", "label": 1 });
    let many = vec![item.clone(); FEEDBACK_ITEMS_MAX + 1];
    for (bad, says) in [
        (json!({ "id": "a" }).to_string(), "give it a"),
        (
            json!([item, { "id": "a", "label": 0.5 }]).to_string(),
            "whole number",
        ),
        ("[".to_owned(), "no feedback"),
        (String::new(), "REQUEST_ID"),
        ("7".to_owned(), "REQUEST_ID"),
        (json!(many).to_string(), "at most 2000"),
    ] {
        let answer = bench.post(FEEDBACK, "", bad.clone()).await;
        let error = answer.json["error"].as_str().unwrap();
        assert!(
            answer.status == 400 && error.contains(says),
            "{bad:.80}: {error}"
        );
    }
    let huge = bench.post(FEEDBACK, "", vec![b' '; (4 << 20) + 1]).await;
    assert_eq!(huge.status, 413);
    assert_eq!(bench.get(FEEDBACK).await.status, 405);
    assert_eq!(feedback(&bench, json!([])).await["joined"], 0);
}

#[tokio::test]
async fn inputs_are_counted_in_the_bins_that_the_manifest_gives() {
    let bench = Bench::start(Serving::default()).await;
    let feature = |column| DriftFeature {
        input: "input".to_owned(),
        column,
        edges: vec![1.0, 8.0],
        counts: vec![5, 3, 2],
    };
    let drift = BTreeMap::from([
        ("corner".to_owned(), feature(0)),
        ("middle".to_owned(), feature(28)),
    ]);
    let metadata = Metadata {
        drift,
        ..Metadata::default()
    };
    bench.route(1, Some(bench.load_as("1.0.0", metadata)), None);
    let some = &rows()[..20];
    let batch = json!({"inputs": [{
        "name": "input", "datatype": "FP32", "shape": [19, 64], "data": some[1..].concat()
    }]});
    assert_eq!(bench.infer("", &some[0]).await.status, 200);
    assert_eq!(bench.post(INFER, "", batch.to_string()).await.status, 200);
    let by_hand = |column: usize| {
        let mut bins = vec![0_u64; 3];
        for row in some {
            bins[usize::from(row[column] >= 1.0) + usize::from(row[column] >= 8.0)] += 1;
        }
        bins
    };
    let features = series(&bench, Role::Stable).counts.quality.features;
    assert_eq!(features["corner"], by_hand(0));
    assert_eq!(features["middle"], by_hand(28));
    let told_apart = features["middle"].iter().filter(|count| **count > 0);
    assert!(told_apart.count() > 1, "{features:?}");
}

#[tokio::test]
async fn a_request_whose_client_leaves_is_counted_all_the_same() {
    let bench = Bench::start(Serving::default()).await;
    let model = Arc::new(Counting::default());
    bench.route(
        1,
        Some(bench.install("1.0.0", b"counting", model.clone())),
        None,
    );
    let mut stream = bench.connect().await;
    let body = body(&rows()[0]).to_string();
    let head = format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    eventually("it runs", || model.runs.lock().unwrap().len() == 1).await;
    // Our end, and then the agent's: nobody waits for the answer any more.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 512]).await.unwrap(), 0);
    model.gate.release();
    eventually("it is counted", || bench.counts(Role::Stable).requests == 1).await;
}
