//! Promises of the serving path, over HTTP, with routes set by hand.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rollcall_agent::config::Serving;
use rollcall_agent::engine::{InferError, LoadedModel};
use rollcall_agent::serve::status::CacheStatus;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::CandidateUsage::{Canary, Shadow};
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::assignment::Share;
use rollcall_shared::report::{AgentEvent, Role};
use serde_json::json;
use support::{Bench, body, eventually, percent, rows};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// An engine that answers nobody.
#[derive(Default)]
struct Hanging {
    released: Mutex<bool>,
    changed: Condvar,
}

impl Hanging {
    fn release(&self) {
        *self.released.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut released = self.released.lock().unwrap();
        while !*released {
            released = self.changed.wait(released).unwrap();
        }
    }
}

/// However a test ends, nothing hangs after it.
struct ReleasedAtTheEnd(Arc<Hanging>);

impl Drop for ReleasedAtTheEnd {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl LoadedModel for Hanging {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.wait();
        Err(InferError::Failed("released".to_owned()))
    }
}

/// An engine that is out of order.
struct Down;

impl LoadedModel for Down {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        Err(InferError::Unavailable("the server is gone".to_owned()))
    }

    fn platform(&self) -> &str {
        "down"
    }
}

/// An engine that counts the rows of each run, and takes the first one only when it is let.
struct Counting {
    gate: Hanging,
    runs: Mutex<Vec<usize>>,
}

impl LoadedModel for Counting {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = inputs[0].rows();
        self.runs.lock().unwrap().push(rows);
        if self.runs.lock().unwrap().len() == 1 {
            let _ = self.gate.infer(inputs);
        }
        let output = |name: &str, shape: &[usize], data| Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        };
        Ok(vec![
            output("label", &[rows], TensorData::Int64(vec![7; rows])),
            output(
                "probabilities",
                &[rows, 10],
                TensorData::Fp32(vec![0.1; 10 * rows]),
            ),
        ])
    }
}

#[tokio::test]
async fn requests_that_wait_for_a_version_run_together() {
    let settings = Serving {
        stable_threads: 1,
        ..Serving::default()
    };
    let bench = Bench::start(settings).await;
    let model = Arc::new(Counting {
        gate: Hanging::default(),
        runs: Mutex::default(),
    });
    let stable = bench.install_batched("1.0.0", model.clone());
    bench.route(1, Some(stable), None);
    let row = &rows()[0];
    let waiting = || bench.app.inference.waiting()[0];
    let running = || model.runs.lock().unwrap().len() == 1;
    let behind = async {
        // Asked before that, one of them might run with the first.
        eventually("the first one runs", running).await;
        tokio::join!(bench.infer("b", row), bench.infer("c", row))
    };
    let release = async {
        eventually("two wait behind it", || waiting() == 2).await;
        model.gate.release();
    };
    let (first, (second, third), ()) = tokio::join!(bench.infer("a", row), behind, release);
    for answer in [first, second, third] {
        assert_eq!((answer.status, answer.label()), (200, 7), "{}", answer.json);
    }
    assert_eq!(*model.runs.lock().unwrap(), [1, 2]);
}

/// An engine that computes for so long, and says which thread it ran on.
struct Computing {
    lasting: Duration,
    ran_on: Mutex<Vec<String>>,
}

impl Computing {
    fn new(lasting: Duration) -> Arc<Self> {
        Arc::new(Self {
            lasting,
            ran_on: Mutex::default(),
        })
    }
}

impl LoadedModel for Computing {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let began = thread_cpu();
        while thread_cpu() - began < self.lasting {}
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().to_owned();
        self.ran_on.lock().unwrap().push(name);
        Ok(vec![
            Tensor {
                name: "label".to_owned(),
                shape: vec![1],
                data: TensorData::Int64(vec![7]),
            },
            Tensor {
                name: "probabilities".to_owned(),
                shape: vec![1, 10],
                data: TensorData::Fp32(vec![0.1; 10]),
            },
        ])
    }
}

fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.try_into().unwrap()
}

#[tokio::test]
async fn a_candidate_that_costs_out_of_proportion_leaves_the_cores_to_stable() {
    let bench = Bench::start(Serving::default()).await;
    let stable = Computing::new(Duration::from_micros(10));
    let candidate = Computing::new(Duration::from_millis(5));
    let first = bench.install("1.0.0", b"stable", stable.clone());
    let second = bench.install("2.0.0", b"candidate", candidate.clone());
    let all = Canary(Share::ALL);
    for (generation, candidate) in [(1, None), (2, Some((second, all)))] {
        bench.route(generation, Some(first), candidate);
        for _ in 0..3 {
            assert_eq!(bench.infer("k", &rows()[0]).await.status, 200);
        }
    }
    let on = |model: &Computing, name: &str| {
        let ran_on = model.ran_on.lock().unwrap();
        ran_on
            .iter()
            .map(|on| on.starts_with(name))
            .collect::<Vec<_>>()
    };
    assert_eq!(on(&stable, "stable-"), [true; 3]);
    assert_eq!(on(&candidate, "candidate-"), [true, false, false]);
    assert_eq!(on(&candidate, "costly-"), [false, true, true]);
}

#[tokio::test]
async fn a_request_whose_client_leaves_is_counted_all_the_same() {
    let bench = Bench::start(Serving::default()).await;
    let model = Arc::new(Counting {
        gate: Hanging::default(),
        runs: Mutex::default(),
    });
    bench.route(
        1,
        Some(bench.install("1.0.0", b"counting", model.clone())),
        None,
    );
    let address = bench.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
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

#[tokio::test]
async fn a_run_that_hangs_does_not_keep_stables_only_thread() {
    let settings = Serving {
        stable_threads: 1,
        candidate_timeout: Duration::from_millis(10),
        stable_timeout: Duration::from_millis(20),
        ..Serving::default()
    };
    let bench = Bench::start(settings).await;
    let hanging = Arc::new(Hanging::default());
    bench.route(1, Some(bench.install("9.0.0", b"hanging", hanging)), None);
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 503);
    bench.route(2, Some(bench.load("1.0.0")), None);
    for _ in 0..500 {
        if bench.infer("k", &rows()[0]).await.status == 200 {
            return;
        }
    }
    panic!("nobody answers any more");
}

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
        let entry = bench.routes.get(&support::digits()).unwrap();
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
    let entry = bench.routes.get(&support::digits()).unwrap();
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
        .get(&support::digits())
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
    let entry = bench.routes.get(&support::digits()).unwrap();
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

#[tokio::test]
async fn bad_requests_get_4xx_with_an_error_in_json() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let good = body(&rows()[0]);
    let change = |pointer: &str, value: serde_json::Value| {
        let mut request = good.clone();
        *request.pointer_mut(pointer).unwrap() = value;
        request.to_string()
    };
    let infer = "/v2/models/digits/infer";
    let mut unknown_output = good.clone();
    unknown_output["outputs"] = json!([{"name": "colour"}]);
    let cases = [
        (infer, String::new(), 400),
        (infer, "{".to_owned(), 400),
        (infer, "[1]".to_owned(), 400),
        (infer, json!({"inputs": []}).to_string(), 400),
        (infer, change("/inputs/0/name", json!("x")), 400),
        (infer, change("/inputs/0/datatype", json!("INT64")), 400),
        (infer, change("/inputs/0/datatype", json!("FP99")), 400),
        (infer, change("/inputs/0/shape", json!([1, 63])), 400),
        (infer, change("/inputs/0/shape", json!([-1, 64])), 400),
        (infer, change("/inputs/0/data/3", json!("four")), 400),
        (infer, unknown_output.to_string(), 400),
        ("/v2/models/nobody/infer", good.to_string(), 404),
        ("/v2/models/NO..%2f/infer", good.to_string(), 404),
        (
            "/v2/models/digits/versions/9.9.9/infer",
            good.to_string(),
            404,
        ),
        (
            "/v2/models/digits/versions/latest/infer",
            good.to_string(),
            404,
        ),
        ("/v2/repository/models/digits/load", "{}".to_owned(), 403),
        ("/v3", String::new(), 404),
        ("/v2", String::new(), 405),
    ];
    for (path, request, status) in cases {
        let answer = bench.post(path, "", request.clone()).await;
        assert_eq!(answer.status, status, "{path} {request}: {}", answer.json);
        assert!(
            answer.json["error"].as_str().is_some_and(|e| !e.is_empty()),
            "{path} {request}"
        );
    }
    assert_eq!(
        bench.counts(Role::Stable).requests,
        0,
        "bad input is not the version's"
    );
}

#[tokio::test]
async fn a_declared_gigabyte_is_refused_before_it_is_read() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let address = bench.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head =
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 512];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer));
    let length = read.await.expect("an answer without a body").unwrap();
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(text.contains("\"error\""), "{text}");
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_reads_why_and_goes_on() {
    let bench = Bench::start(Serving::default()).await;
    let address = bench.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let length = (4 << 20) + 1;
    let head = format!(
        "POST /rollcall/v1/feedback HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; length]).await.unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 413"));
    let next = "GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(next.as_bytes()).await.unwrap();
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_not_to() {
    let bench = Bench::start(Serving::default()).await;
    let address = bench.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
                Content-Length: 1073741824\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // To its end: the connection is of no more use to it.
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"));
}

#[tokio::test]
async fn a_body_that_grows_over_the_bound_is_refused_while_it_arrives() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let address = bench.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head =
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mib = vec![b' '; 1 << 20];
    for _ in 0..64 {
        stream.write_all(b"100000\r\n").await.unwrap();
        stream.write_all(&mib).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"1\r\n \r\n").await.unwrap();
    let mut answer = vec![0; 512];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer));
    let length = read
        .await
        .expect("an answer before the body's end")
        .unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 413"));
    let all = bench.app.bodies.available_permits();
    assert_eq!(
        all,
        Serving::default().bodies_mib_max << 10,
        "the room is given back"
    );
}

#[tokio::test]
async fn bodies_without_room_are_told_to_come_again() {
    let bench = Bench::start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let all = bench.app.bodies.available_permits();
    let taken = bench
        .app
        .bodies
        .acquire_many(u32::try_from(all).unwrap())
        .await
        .unwrap();
    let answer = bench.infer("k", &rows()[0]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    drop(taken);
    assert_eq!(bench.infer("k", &rows()[0]).await.status, 200);
}

#[tokio::test]
async fn stable_without_room_is_503_with_retry_after() {
    let settings = Serving {
        stable_threads: 1,
        stable_queue: 1,
        ..Serving::default()
    };
    let bench = Arc::new(Bench::start(settings).await);
    let hanging = Arc::new(Hanging::default());
    let stable = bench.install(
        "9.0.0",
        b"hanging",
        Arc::clone(&hanging) as Arc<dyn LoadedModel>,
    );
    bench.route(1, Some(stable), None);
    // There is room for two, and they hang: whoever is answered before that is refused.
    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let bench = Arc::clone(&bench);
        asked.spawn(async move { bench.infer("k", &rows()[0]).await });
    }
    let first = asked.join_next().await.unwrap().unwrap();
    assert_eq!(first.status, 503);
    assert_eq!(first.header("retry-after"), "1");
    hanging.release();
    while let Some(answer) = asked.join_next().await {
        assert!(matches!(answer.unwrap().status, 500 | 503));
    }
}

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
