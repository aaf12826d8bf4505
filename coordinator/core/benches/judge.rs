//! What one second of a fleet's reports costs the judge: every node's counts taken in, the
//! interval closed, and a verdict.
//!
//! Ten thousand agents report once a second. All of it runs on the coordinator's one thread,
//! beside everything else: the target is 200 ms of CPU for each second of reports.

#![expect(
    clippy::unwrap_used,
    reason = "a name that is refused ends the benchmark"
)]

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rollcall_coordinator_core::judge::rules::{Baseline, rules};
use rollcall_coordinator_core::judge::watch::{Arm, Watch};
use rollcall_coordinator_core::judge::{Breakers, Evidence, Loads, judge};
use rollcall_shared::ids::NodeId;
use rollcall_shared::plan::{Policy, Preset};
use rollcall_shared::report::{Counts, Segment};
use rollcall_shared::verdict::Verdict;

const AGENTS: u64 = 10_000;
/// Seconds before the first that is measured: by then everything that is bounded is full.
const WARM_UP: u32 = 80;

/// What one node says of both versions.
struct Report {
    node: NodeId,
    arms: [(Arm, Counts, Vec<Segment>); 2],
}

fn reports(segments: usize) -> Vec<Report> {
    let mut draws = ChaCha8Rng::seed_from_u64(1);
    (0..AGENTS)
        .map(|node| Report {
            node: NodeId::new(format!("node-{node}")).unwrap(),
            arms: [(Arm::Candidate, 5), (Arm::Stable, 45)].map(|(arm, requests)| {
                let (counts, segments) = observed(&mut draws, requests, segments);
                (arm, counts, segments)
            }),
        })
        .collect()
}

/// About so many requests: 1 % fail, latencies lie in some twenty bins around 20 ms.
fn observed(draws: &mut ChaCha8Rng, requests: u64, segments: usize) -> (Counts, Vec<Segment>) {
    let mut all = Counts::default();
    let mut by_segment = vec![Counts::default(); segments];
    for _ in 0..requests {
        let mut one = Counts {
            requests: 1,
            ..Counts::default()
        };
        if draws.random_bool(0.01) {
            (one.errors, one.failed_keys) = (1, 1);
        } else {
            let bin = 98 + (0..4).map(|_| draws.random_range(0..6)).sum::<usize>();
            one.latency.add(bin, 1);
        }
        all.merge(&one);
        if segments > 0 {
            by_segment[draws.random_range(0..segments)].merge(&one);
        }
    }
    let segments = by_segment.into_iter().enumerate();
    let segments = segments.map(|(nth, counts)| Segment {
        name: format!("segment-{nth}"),
        counts,
    });
    (all, segments.filter(|s| s.counts.requests > 0).collect())
}

fn second(watch: &mut Watch, policy: &Policy, reports: &[Report]) -> Verdict {
    for Report { node, arms } in reports {
        for (arm, counts, segments) in arms {
            watch.see(node, *arm, counts, segments);
        }
    }
    watch.close();
    let evidence = Evidence {
        loads: Loads {
            nodes: AGENTS,
            failed: 0,
        },
        breakers: Breakers::default(),
        watch: Some(Cow::Borrowed(watch)),
    };
    judge(policy, &evidence)
}

fn bench(criterion: &mut Criterion) {
    let policy = Policy {
        error_multiplier_max: Some(2.0),
        latency_p99_max_ms: Some(500.0),
        ..Preset::Balanced.policy()
    };
    let mut group = criterion.benchmark_group("judge");
    group.sample_size(20);
    for segments in [0, 8] {
        let reports = reports(segments);
        let rules = rules(&policy, &Baseline::Concurrent, false);
        let mut watch = Watch::new(&policy, rules, false);
        for _ in 0..WARM_UP {
            second(&mut watch, &policy, &reports);
        }
        let name = format!("a second of 10,000 agents, {segments} segments");
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(second(&mut watch, &policy, &reports)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
