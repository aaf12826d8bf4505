//! On which threads versions run, together with whom, and who cannot keep them.

use std::sync::Arc;
use std::time::Duration;

use rollcall_agent::config::Serving;
use rollcall_agent::engine::LoadedModel;
use rollcall_agent_core::route::CandidateUsage::Canary;
use rollcall_shared::assignment::Share;
use tokio::task::JoinSet;

use crate::engines::{Computing, Counting, Hanging};
use crate::support::{Bench, eventually, rows};

#[tokio::test]
async fn requests_that_wait_for_a_version_run_together() {
    let settings = Serving {
        stable_threads: 1,
        ..Serving::default()
    };
    let bench = Bench::start(settings).await;
    let model = Arc::new(Counting::default());
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
