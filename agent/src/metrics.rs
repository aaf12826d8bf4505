//! What Prometheus reads at `/metrics`, in OpenMetrics text.
//!
//! Nothing is counted twice: every figure is read where it already is (recorder,
//! routes, status board, queues) when someone asks, so requests pay nothing for it.

mod gpus;
mod preparations;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use rollcall_shared::histogram::{BINS, Histogram, edge};
use rollcall_shared::report::{Resources, Role};
use rollcall_shared::time::Timestamp;

use crate::progress::PreparingLine;
use crate::recorder::feedback::Joined;
use crate::recorder::{Recorder, Total, TotalKey};
use crate::resources::Sample;
use crate::serve::App;

/// Every so many edges become a bucket: a factor of 2.07 apart, 26 buckets.
const EDGES_PER_BUCKET: usize = 8;

/// Renders metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: Arc<Recorder>,
}

/// One reading of everything.
#[derive(Debug)]
struct Reading {
    now: Timestamp,
    totals: Vec<(TotalKey, Total)>,
    candidates: Vec<CandidateReading>,
    preparing: Vec<PreparingLine>,
    connected: bool,
    sample: Arc<Sample>,
    waiting: [usize; 3],
    engine_faults: u64,
    feedback: Joined,
    /// Answers forgotten before any feedback came.
    forgotten: u64,
}

#[derive(Debug)]
struct CandidateReading {
    labels: [(&'static str, String); 2],
    lease_left: Duration,
    breaker_open: bool,
}

impl Metrics {
    /// Of what this recorder counts.
    #[must_use]
    pub const fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder }
    }

    /// All metrics as text.
    #[must_use]
    pub fn render(&self, app: &App) -> String {
        let mut registry = Registry::with_prefix("rollcall_agent");
        registry.register_collector(Box::new(self.read(app)));
        let mut text = String::new();
        // A String takes everything; the encoder has no other reason to fail.
        if text::encode(&mut text, &registry).is_err() {
            tracing::error!("the metrics could not be written");
        }
        text
    }

    fn read(&self, app: &App) -> Reading {
        let now = app.inference.now();
        let routes = app.inference.routes().all();
        let candidates = routes.iter().filter_map(|(model, entry)| {
            let route = entry.route.candidate.as_ref()?;
            let version = route.version.version.to_string();
            Some(CandidateReading {
                labels: [("model", model.to_string()), ("version", version)],
                lease_left: route.lease_until.since(now),
                breaker_open: entry
                    .candidate
                    .as_ref()
                    .is_some_and(|c| !c.breaker.is_closed()),
            })
        });
        let (feedback, forgotten) = self.recorder.feedback();
        Reading {
            now,
            feedback,
            forgotten,
            totals: self.recorder.totals().into_iter().collect(),
            candidates: candidates.collect(),
            preparing: app.status.progress().read(),
            connected: app.status.view().connected,
            sample: app.status.sample(),
            waiting: app.inference.waiting(),
            engine_faults: self.recorder.engine_faults(),
        }
    }
}

type Labels = [(&'static str, String); 3];

fn labels((model, version, role): &TotalKey) -> Labels {
    let role = match role {
        Role::Stable => "stable",
        Role::Candidate => "candidate",
        Role::Shadow => "shadow",
    };
    let version = version.version.to_string();
    [
        ("model", model.to_string()),
        ("version", version),
        ("role", role.to_owned()),
    ]
}

/// A counter of each series: its name, its help, and where it is.
type CounterOf = (&'static str, &'static str, fn(&Total) -> u64);

const COUNTERS: [CounterOf; 8] = [
    (
        "requests",
        "Requests that the version was asked to answer",
        |t| t.counts.requests,
    ),
    ("errors", "Requests that the engine failed", |t| {
        t.counts.errors
    }),
    ("timeouts", "Requests that ran past the deadline", |t| {
        t.counts.timeouts
    }),
    (
        "fallbacks",
        "Failed requests that stable answered instead",
        |t| t.counts.fallbacks,
    ),
    (
        "failed_keys",
        "Failures but for those of a sticky key that failed seconds before",
        |t| t.counts.failed_keys,
    ),
    (
        "shadow_compared",
        "Shadow answers compared with stable's",
        |t| t.counts.compared,
    ),
    (
        "shadow_agreed",
        "Shadow answers that agreed with stable's",
        |t| t.counts.agreed,
    ),
    (
        "shadow_shed",
        "Copies dropped because the shadow queue was full",
        |t| t.counts.shed,
    ),
];

/// A gauge of the node: its name, its help, and where it is.
type GaugeOf = (&'static str, &'static str, fn(&Resources) -> f64);

const GAUGES: [GaugeOf; 8] = [
    ("host_cpu_percent", "CPU of the host, all cores", |r| {
        f64::from(r.cpu_percent)
    }),
    ("host_memory_used_bytes", "Memory in use on the host", |r| {
        precise(r.memory_used)
    }),
    ("host_memory_total_bytes", "Memory of the host", |r| {
        precise(r.memory_total)
    }),
    ("process_memory_bytes", "Resident set of the agent", |r| {
        precise(r.process_memory)
    }),
    (
        "process_cpu_percent",
        "CPU of the agent; 100 is a core",
        |r| f64::from(r.process_cpu_percent),
    ),
    ("disk_free_bytes", "Free on the cache's disk", |r| {
        precise(r.disk_free)
    }),
    ("disk_total_bytes", "Size of the cache's disk", |r| {
        precise(r.disk_total)
    }),
    ("cache_bytes", "Blobs in the cache", |r| {
        precise(r.cache_bytes)
    }),
];

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (key, total) in &self.totals {
                let counter = value(total);
                metric
                    .encode_family(&labels(key))?
                    .encode_counter::<NoLabelSet, _, u64>(&counter, None)?;
            }
        }
        self.encode_latencies(&mut encoder)?;
        self.encode_candidates(&mut encoder)?;
        preparations::encode(&self.preparing, self.now, &mut encoder)?;
        self.encode_feedback(&mut encoder)?;
        self.encode_node(&mut encoder)
    }
}

impl Reading {
    fn encode_latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "latency_seconds",
            "Time in queue and engine of requests that succeeded",
            None,
            MetricType::Histogram,
        )?;
        for (key, total) in &self.totals {
            let histogram = &total.counts.latency;
            metric
                .encode_family(&labels(key))?
                .encode_histogram::<NoLabelSet>(
                    total.latency_sum.as_secs_f64(),
                    histogram.count(),
                    &buckets(histogram),
                    None,
                )?;
        }
        Ok(())
    }

    fn encode_candidates(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "What is left of the candidate's lease";
        let mut metric =
            encoder.encode_descriptor("lease_left_seconds", help, None, MetricType::Gauge)?;
        for candidate in &self.candidates {
            let left = candidate.lease_left.as_secs_f64();
            metric
                .encode_family(&candidate.labels)?
                .encode_gauge(&left)?;
        }
        let help = "Whether the candidate is out of service here because it failed in a row";
        let mut metric =
            encoder.encode_descriptor("breaker_open", help, None, MetricType::Gauge)?;
        for candidate in &self.candidates {
            let open = i64::from(candidate.breaker_open);
            metric
                .encode_family(&candidate.labels)?
                .encode_gauge(&open)?;
        }
        Ok(())
    }

    fn encode_feedback(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Labels and outcomes that came for answers, by what became of them";
        let mut metric = encoder.encode_descriptor("feedback", help, None, MetricType::Counter)?;
        let Joined {
            joined,
            unknown,
            duplicate,
            refused,
            ..
        } = self.feedback;
        for (result, count) in [
            ("joined", joined),
            ("unknown", unknown),
            ("duplicate", duplicate),
            ("refused", refused),
        ] {
            metric
                .encode_family(&[("result", result)])?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let help = "Answers whose place was taken before any feedback came for them";
        encoder
            .encode_descriptor("answers_forgotten", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&self.forgotten, None)
    }

    fn encode_node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let connected = i64::from(self.connected);
        let help = "Whether a coordinator is in sight";
        encoder
            .encode_descriptor("connected", help, None, MetricType::Gauge)?
            .encode_gauge(&connected)?;
        for (name, help, value) in GAUGES {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value(&self.sample.resources))?;
        }
        let help = "Requests that failed because this node's engine was out of order";
        encoder
            .encode_descriptor("engine_faults", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&self.engine_faults, None)?;
        let help = "Requests that wait for a thread";
        let mut metric = encoder.encode_descriptor("queue", help, None, MetricType::Gauge)?;
        for (role, waiting) in ["stable", "candidate", "shadow"].iter().zip(self.waiting) {
            let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
            metric
                .encode_family(&[("role", *role)])?
                .encode_gauge(&waiting)?;
        }
        gpus::encode(&self.sample.gpus, encoder)
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes, shown to people")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

/// Upper bounds in seconds with their own counts; the last one is infinite.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let bounds = (0..BINS)
        .step_by(EDGES_PER_BUCKET)
        .map(|bin| edge(bin).as_secs_f64());
    let mut buckets: Vec<_> = bounds
        .chain([f64::INFINITY])
        .map(|bound| (bound, 0))
        .collect();
    for (bin, count) in histogram.bins() {
        // The last bin has no upper edge.
        let bucket = if bin + 1 == BINS {
            buckets.len() - 1
        } else {
            bin.div_ceil(EDGES_PER_BUCKET)
        };
        buckets[bucket].1 += count;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_under_its_buckets_bound() {
        for micros in [1, 3, 50, 1_000, 77_777, 2_000_000, 100_000_000] {
            let mut histogram = Histogram::default();
            let latency = Duration::from_micros(micros);
            histogram.record(latency);
            let buckets = buckets(&histogram);
            let at = buckets.iter().position(|(_, count)| *count == 1).unwrap();
            assert!(latency.as_secs_f64() <= buckets[at].0 * 1.000_001);
            assert!(at == 0 || latency.as_secs_f64() > buckets[at - 1].0 * 0.999_999);
            assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 1);
        }
    }
}
