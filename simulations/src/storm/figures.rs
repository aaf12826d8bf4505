//! What the storms come to, as JSON and as lines for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::tls::https_client_tls;
use rollcall_transport::verifier::Trust;
use serde::Serialize;

use super::witness::Broken;
use crate::cluster::Cluster;
use crate::fleet::figures::{median, millis, quantile};

/// The coordinator's own count of what came to its door, from its metrics.
pub(crate) struct Doors {
    http: reqwest::Client,
    url: String,
}

/// What became of handshakes, by the name that the metric gives it.
pub(crate) type Handshakes = BTreeMap<String, u64>;

impl Doors {
    /// Where to ask the cluster's coordinator.
    pub(crate) fn of(cluster: &Cluster) -> Result<Self> {
        let ca = std::fs::read_to_string(cluster.coordinator_dir().join("ca.pem"))?;
        let trust = Trust::Ca(CaCertificate::from_pem(&ca)?);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(https_client_tls(trust)?)
            .build()?;
        let url = format!("https://{}/metrics", cluster.https);
        Ok(Self { http, url })
    }

    /// Since the coordinator's start.
    pub(crate) async fn read(&self) -> Result<Handshakes> {
        let text = self.http.get(&self.url).send().await?.text().await?;
        let outcome = |line: &str| {
            let (name, count) = line
                .strip_prefix("rollcall_handshakes_total{outcome=\"")?
                .split_once("\"} ")?;
            Some((name.to_owned(), count.trim().parse().ok()?))
        };
        let handshakes: Handshakes = text.lines().filter_map(outcome).collect();
        (!handshakes.is_empty())
            .then_some(handshakes)
            .with_context(|| format!("{} says nothing of handshakes", self.url))
    }
}

/// One storm. Times count from the moment at which the new process's socket was there.
pub(super) struct Round {
    /// How long nobody listened.
    pub(super) down: Duration,
    /// One for each agent, in order.
    pub(super) welcomed: Vec<Duration>,
    pub(super) dials: u64,
    pub(super) door: Handshakes,
    pub(super) cpu: Duration,
    pub(super) peak_bytes: u64,
    pub(super) decided: Duration,
    pub(super) freed: Duration,
}

/// Milliseconds until agents were welcomed: medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Welcomed {
    /// Half of them.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// All.
    pub last: f64,
}

/// What was measured; the JSON of `rollcall-sim storm -o json`. Medians over the rounds,
/// where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// How many agents.
    pub agents: u32,
    /// How many storms.
    pub rounds: u32,
    /// From the kill until somebody listened again.
    pub down_ms: f64,
    /// From then until agents were welcomed.
    pub welcomed_ms: Welcomed,
    /// As many bare handshakes, nothing else running.
    pub floor_ms: f64,
    /// `welcomed_ms.last / floor_ms`.
    pub storm_to_floor: f64,
    /// Attempts to connect, by all agents together.
    pub dials: f64,
    /// What the coordinator's door did; sums over the rounds.
    pub handshakes: BTreeMap<String, u64>,
    /// The new process, from its start until all were back and the rollback was settled.
    pub coordinator_cpu_ms: f64,
    /// Its peak resident memory: the most of all rounds.
    pub coordinator_peak_bytes: u64,
    /// From the socket until it decided the rollback that was asked for at once.
    pub rollback_decided_ms: f64,
    /// From the socket until no node had the candidate any more.
    pub rollback_everywhere_ms: f64,
    /// Routes without the stable version: must be 0.
    pub stable_lost: u64,
    /// Routes under leases that nobody can have renewed: must be 0.
    pub leases_invented: u64,
    /// The longest that a route outlived its lease; requests in between went to stable,
    /// since every request checks the lease.
    pub fence_overdue_ms_max: f64,
}

impl Figures {
    pub(super) fn of(agents: u32, floors: &[Duration], rounds: &[Round], broken: Broken) -> Self {
        let of_rounds = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value));
        let welcomed = |q: f64| {
            of_rounds(&|round| {
                let all: Vec<_> = round.welcomed.iter().copied().map(millis).collect();
                quantile(&all, q)
            })
        };
        let mut handshakes = BTreeMap::new();
        for (name, count) in rounds.iter().flat_map(|round| &round.door) {
            *handshakes.entry(name.clone()).or_default() += count;
        }
        let floor_ms = median(floors.iter().copied().map(millis));
        let last = welcomed(1.0);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 attempts")]
        let dials = of_rounds(&|round| round.dials as f64);
        Self {
            agents,
            rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
            down_ms: of_rounds(&|round| millis(round.down)),
            welcomed_ms: Welcomed {
                p50: welcomed(0.5),
                p99: welcomed(0.99),
                last,
            },
            floor_ms,
            storm_to_floor: last / floor_ms,
            dials,
            handshakes,
            coordinator_cpu_ms: of_rounds(&|round| millis(round.cpu)),
            coordinator_peak_bytes: rounds.iter().map(|r| r.peak_bytes).max().unwrap_or(0),
            rollback_decided_ms: of_rounds(&|round| millis(round.decided)),
            rollback_everywhere_ms: of_rounds(&|round| millis(round.freed)),
            stable_lost: broken.stable_lost,
            leases_invented: broken.leases_invented,
            fence_overdue_ms_max: millis(broken.longest_overdue),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Welcomed { p50, p99, last } = &self.welcomed_ms;
        writeln!(
            f,
            "{} agents, coordinator killed {} times, {:.0} ms without one",
            self.agents, self.rounds, self.down_ms
        )?;
        writeln!(
            f,
            "welcomed again:   p50 {p50:.0} ms, p99 {p99:.0} ms, last of all {last:.0} ms (medians of rounds)"
        )?;
        writeln!(
            f,
            "bare handshakes:  {:.0} ms for as many; storm / floor = {:.2}",
            self.floor_ms, self.storm_to_floor
        )?;
        let door: Vec<_> = self
            .handshakes
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        writeln!(
            f,
            "at the door:      {:.0} dials a storm; in all {}",
            self.dials,
            door.join(", ")
        )?;
        writeln!(
            f,
            "coordinator:      {:.0} ms CPU, {:.1} MiB at its peak",
            self.coordinator_cpu_ms,
            self.coordinator_peak_bytes as f64 / f64::from(1 << 20)
        )?;
        writeln!(
            f,
            "rollback at once: decided after {:.0} ms, no candidate left after {:.0} ms",
            self.rollback_decided_ms, self.rollback_everywhere_ms
        )?;
        writeln!(
            f,
            "promises:         stable lost {} times, leases invented {}, longest overdue fence {:.1} ms",
            self.stable_lost, self.leases_invented, self.fence_overdue_ms_max
        )
    }
}
