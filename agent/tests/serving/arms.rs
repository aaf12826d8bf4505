//! Who answers: stable, a canary or neither, and what a shadow must never do.

use std::sync::Arc;
use std::time::Duration;

use rollcall_agent::config::Serving;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::CandidateUsage::{Canary, Shadow};
use rollcall_shared::assignment::Share;
use rollcall_shared::report::{AgentEvent, Role};
use serde_json::json;

use crate::engines::{Down, Hanging};
use crate::support::{Bench, body, digits, eventually, percent, rows};

#[tokio::test]
async fn a_good_request_gets_stables_answer_with_its_version() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let row = &rows()[0];
    let mut request = body(row);
    request["id"] = json!("order-7");
    request["outputs"] = json!([{"name": "label"}]);
    let answer = bench
        .post("/v2/models/digits/infer", "", request.to_string())
        .await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    assert_eq!(answer.json["model_name"], "digits");
    assert_eq!(answer.json["model_version"], "1.0.0");
    assert_eq!(answer.json["id"], "order-7");
    assert_eq!(answer.json["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(answer.header("x-rollcall-version"), "1.0.0");
    assert_eq!(answer.header("x-request-id"), "order-7");
    assert_eq!(
        (answer.arm(), answer.header("content-type")),
        ("stable", "application/json")
    );
    let all = bench.infer("", row).await;
    assert_eq!(all.json["outputs"].as_array().unwrap().len(), 2);
    assert!(!all.json["id"].as_str().unwrap().is_empty());
    assert_eq!(bench.counts(Role::Stable).requests, 2);
    assert_eq!(bench.counts(Role::Stable).latency.count(), 2);
}

#[tokio::test]
async fn a_canary_gets_its_share_and_a_key_always_meets_the_same_version() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(percent(30.0)))));
    let row = &rows()[0];
    let mut on_candidate = Vec::new();
    for key in 0..200 {
        let answer = bench.infer(&format!("user-{key}"), row).await;
        assert_eq!(answer.status, 200);
        let version = answer.header("x-rollcall-version").to_owned();
        assert_eq!(version == "2.0.0", answer.arm() == "candidate");
        on_candidate.push(answer.arm() == "candidate");
    }
    let share = on_candidate.iter().filter(|on| **on).count();
    assert!((35..=85).contains(&share), "{share} of 200 at 30 %");
    bench.route(2, Some(stable), Some((candidate, Canary(percent(60.0)))));
    for (key, was_on) in on_candidate.iter().enumerate() {
        let again = bench.infer(&format!("user-{key}"), row).await;
        assert!(
            !was_on || again.arm() == "candidate",
            "a growing share took a key away"
        );
    }
    // The request's own id is the key where no header names one.
    let mut request = body(row);
    request["id"] = json!("user-1");
    let by_id = bench
        .post("/v2/models/digits/infer", "", request.to_string())
        .await;
    let by_header = bench.infer("user-1", row).await;
    assert_eq!(by_id.arm(), by_header.arm());
}

#[tokio::test]
async fn a_failing_candidate_costs_no_answer_and_is_charged() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, candidate) = (bench.load("2.0.0"), bench.load("5.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    let (mut fell_back, mut answered) = (0, 0);
    for row in rows() {
        let entry = bench.routes.get(&digits()).unwrap();
        if !entry.candidate.as_ref().unwrap().breaker.is_closed() {
            break;
        }
        let answer = bench.infer("k", &row).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        match answer.arm() {
            "fallback" => {
                assert_eq!(answer.header("x-rollcall-version"), "2.0.0");
                fell_back += 1;
            }
            arm => {
                assert_eq!(arm, "candidate");
                answered += 1;
            }
        }
    }
    let counts = bench.counts(Role::Candidate);
    assert!(fell_back > 0 && answered > 0);
    assert_eq!((counts.errors, counts.fallbacks), (fell_back, fell_back));
    assert_eq!(counts.requests, fell_back + answered);
    assert_eq!(counts.latency.count(), answered);
    assert_eq!(bench.counts(Role::Stable).requests, fell_back);
}

#[tokio::test]
async fn a_candidate_that_hangs_is_answered_by_stable_within_the_timeout() {
    let candidate_timeout = Duration::from_millis(50);
    let settings = Serving {
        candidate_timeout,
        candidate_threads: 1,
        candidate_queue: 1,
        ..Serving::default()
    };
    let bench = Bench::start(settings).await;
    let hanging = Arc::new(Hanging::default());
    let stable = bench.load("1.0.0");
    let candidate = bench.install("9.0.0", b"hanging", hanging);
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    for _ in 0..4 {
        let answer = bench.infer("k", &rows()[0]).await;
        assert_eq!((answer.status, answer.arm()), (200, "fallback"));
    }
    let counts = bench.counts(Role::Candidate);
    assert_eq!(
        (counts.requests, counts.timeouts, counts.fallbacks),
        (4, 4, 4)
    );
}

#[tokio::test]
async fn an_engine_out_of_order_is_no_versions_fault() {
    let bench = Bench::start(Serving::default()).await;
    let stable = bench.load("1.0.0");
    let candidate = bench.install("9.0.0", b"down", Arc::new(Down));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    for _ in 0..8 {
        let answer = bench.infer("k", &rows()[0]).await;
        assert_eq!((answer.status, answer.arm()), (200, "fallback"));
    }
    let entry = bench.routes.get(&digits()).unwrap();
    assert!(entry.candidate.as_ref().unwrap().breaker.is_closed());
    assert_eq!(bench.counts(Role::Candidate), Default::default());

    bench.route(2, Some(stable), Some((candidate, Shadow(Share::ALL))));
    assert_eq!(bench.infer("k", &rows()[0]).await.arm(), "stable");
    eventually("the copy was shed", || bench.counts(Role::Shadow).shed == 1).await;
    assert_eq!(bench.counts(Role::Shadow).errors, 0);

    bench.route(3, Some(candidate), None);
    let answer = bench.infer("k", &rows()[0]).await;
    assert_eq!(answer.status, 503, "{}", answer.json);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(bench.counts(Role::Stable).errors, 0);
    assert_eq!(bench.recorder.engine_faults(), 10);
    let metadata = bench.get("/v2/models/digits").await;
    assert_eq!(metadata.json["platform"], "down");
}

#[tokio::test]
async fn the_breaker_opens_after_failures_in_a_row_and_lets_the_candidate_back_when_closed() {
    let mut bench = Bench::start(Serving::default()).await;
    let (stable, candidate) = (bench.load("2.0.0"), bench.load("5.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    let (mut bad, mut good) = (None, None);
    for row in rows() {
        let answer = bench.infer("k", &row).await;
        match answer.arm() {
            "fallback" => bad = Some(row),
            _ => good = Some(row),
        }
        if bad.is_some() && good.is_some() {
            break;
        }
    }
    let (bad, good) = (bad.unwrap(), good.unwrap());
    while bench
        .routes
        .get(&digits())
        .unwrap()
        .candidate
        .as_ref()
        .unwrap()
        .breaker
        .is_closed()
    {
        bench.infer("k", &bad).await;
    }
    let event = bench.events.recv().await.unwrap();
    assert!(
        matches!(
            event,
            Input::Event(AgentEvent::BreakerOpened { failures: 5, .. })
        ),
        "{event:?}"
    );
    let before = bench.counts(Role::Candidate).requests;
    assert_eq!(bench.infer("k", &good).await.arm(), "fallback");
    assert_eq!(
        bench.counts(Role::Candidate).requests,
        before,
        "an open breaker asks nobody"
    );
    // A new generation of the same rollout keeps the breaker open.
    bench.route(2, Some(stable), Some((candidate, Canary(Share::ALL))));
    assert_eq!(bench.infer("k", &good).await.arm(), "fallback");
    let later = bench.clock.now() + Duration::from_secs(61);
    let entry = bench.routes.get(&digits()).unwrap();
    let breaker = &entry.candidate.as_ref().unwrap().breaker;
    assert!(breaker.allows(later));
    assert!(breaker.record(true, later).is_some());
    assert_eq!(bench.infer("k", &good).await.arm(), "candidate");
}

#[tokio::test]
async fn a_shadow_compares_and_never_answers() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, shadow) = (bench.load("2.0.0"), bench.load("3.0.0"));
    bench.route(1, Some(stable), Some((shadow, Shadow(Share::ALL))));
    for (i, row) in rows().iter().take(40).enumerate() {
        let answer = bench.infer("k", row).await;
        assert_eq!(
            (answer.arm(), answer.header("x-rollcall-version")),
            ("stable", "2.0.0")
        );
        eventually("the copy is compared", || {
            bench.counts(Role::Shadow).compared > i as u64
        })
        .await;
    }
    let counts = bench.counts(Role::Shadow);
    assert_eq!((counts.requests, counts.compared, counts.shed), (40, 40, 0));
    assert!(
        counts.agreed < 30,
        "3.0.0 permutes the classes, {} agreed",
        counts.agreed
    );
    let refused = bench
        .post(
            "/v2/models/digits/versions/3.0.0/infer",
            "",
            body(&rows()[0]).to_string(),
        )
        .await;
    assert_eq!(refused.status, 404, "a shadow answers no client");
}

#[tokio::test]
async fn a_shadow_that_hangs_for_ever_leaves_live_answers_alone_and_is_shed() {
    let settings = Serving {
        shadow_threads: 1,
        shadow_queue: 2,
        ..Serving::default()
    };
    let bench = Bench::start(settings).await;
    let hanging = Arc::new(Hanging::default());
    let stable = bench.load("1.0.0");
    let shadow = bench.install("9.0.0", b"hanging", hanging);
    bench.route(1, Some(stable), Some((shadow, Shadow(Share::ALL))));
    let row = &rows()[0];
    bench.infer("k", row).await;
    let began = bench.clock.now();
    for _ in 0..50 {
        let answer = bench.infer("k", row).await;
        assert_eq!((answer.status, answer.arm()), (200, "stable"));
    }
    assert!(
        bench.clock.now().since(began) < Duration::from_secs(5),
        "live answers waited for the shadow"
    );
    assert!(bench.counts(Role::Shadow).shed >= 47);
    assert_eq!(bench.counts(Role::Stable).latency.count(), 51);
}

#[tokio::test]
async fn after_a_swap_no_request_meets_the_candidate() {
    let bench = Bench::start(Serving::default()).await;
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    assert_eq!(bench.infer("k", &rows()[0]).await.arm(), "candidate");
    let path = "/v2/models/digits/versions/2.0.0/infer";
    assert_eq!(
        bench
            .post(path, "", body(&rows()[0]).to_string())
            .await
            .status,
        200
    );
    bench.route(2, Some(stable), None);
    assert_eq!(bench.infer("k", &rows()[0]).await.arm(), "stable");
    assert_eq!(
        bench
            .post(path, "", body(&rows()[0]).to_string())
            .await
            .status,
        404
    );
    assert_eq!(
        bench
            .get("/v2/models/digits/versions/2.0.0/ready")
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn a_candidate_without_a_stable_answers_alone_and_its_failure_is_a_500() {
    let bench = Bench::start(Serving::default()).await;
    let candidate = bench.load("5.0.0");
    bench.route(1, None, Some((candidate, Canary(Share::ALL))));
    let mut statuses = Vec::new();
    for row in rows().iter().take(60) {
        let answer = bench.infer("k", row).await;
        assert!(answer.status == 200 || answer.json["error"].is_string());
        statuses.push(answer.status);
    }
    assert!(
        statuses.contains(&200) && statuses.contains(&500),
        "{statuses:?}"
    );
}
