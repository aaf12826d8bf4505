//! What the rounds come to, as JSON and as lines for people.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::Options;
use super::versus::Versus;

/// One rollback.
pub(super) struct Round {
    /// From the decision (or the heal) to the swap, one for each agent, in order.
    swapped: Vec<Duration>,
    /// Of the coordinator, from the command to the last receipt.
    cpu: Duration,
    receipts_p50_ms: f64,
    receipts_p99_ms: f64,
    receipts_max_ms: f64,
}

impl Round {
    pub(super) fn new(
        mut swapped: Vec<Duration>,
        cpu: Duration,
        rollback: &Value,
        outage: Duration,
    ) -> Result<Self> {
        let expected = rollback["receipts"]["expected"].as_u64();
        let received = rollback["receipts"]["received"].as_u64();
        ensure!(
            expected == received,
            "not every agent sent its receipt: {}",
            rollback["receipts"]
        );
        swapped.sort_unstable();
        let receipts = |name: &str| {
            let ms = rollback["propagation_ms"][name].as_f64();
            ms.map(|ms| ms - millis(outage))
                .with_context(|| format!("no propagation_ms.{name}"))
        };
        Ok(Self {
            swapped,
            cpu,
            receipts_p50_ms: receipts("p50")?,
            receipts_p99_ms: receipts("p99")?,
            receipts_max_ms: receipts("max")?,
        })
    }
}

/// Milliseconds from the decision: quantiles over all agents and rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The last of all.
    pub max: f64,
}

/// What was measured; the JSON of `rollcall-sim fleet -o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// How many agents.
    pub agents: u32,
    /// How many rollbacks.
    pub rounds: u32,
    /// Packets lost each way, in percent.
    pub loss_pct: f64,
    /// How long every packet took, one way.
    pub delay_ms: u64,
    /// How long the network was cut; times count from its heal.
    pub outage_ms: u64,
    /// From the decision to the route swapped in an agent.
    pub propagation_ms: Spread,
    /// From the decision to the receipt in hand: medians over the rounds.
    pub receipt_ms: Spread,
    /// Median over the rounds of the last agent's swap.
    pub last_agent_ms_median: f64,
    /// CPU of the coordinator for a broadcast and all its receipts.
    pub server_cpu_ms_per_broadcast: f64,
    /// Connections set up a second, certificates and snapshots included.
    pub handshakes_per_s: f64,
    /// Growth of the coordinator's resident memory by connecting.
    pub server_bytes_per_agent: u64,
    /// The same fan-out through brokers, where asked for.
    pub versus: Versus,
    /// The last agent of Rollcall to the last receiver of the fastest broker, medians
    /// of rounds; below 1, Rollcall is the faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_fastest_broker: Option<f64>,
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which a share `q` of `sorted` lies (nearest rank).
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

impl Spread {
    /// The quantiles of all `times`.
    pub(super) fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut all: Vec<_> = times.map(millis).collect();
        all.sort_by(f64::total_cmp);
        Self {
            p50: quantile(&all, 0.5),
            p99: quantile(&all, 0.99),
            max: quantile(&all, 1.0),
        }
    }
}

impl Figures {
    /// Adds what the brokers took for the same.
    pub fn compare(&mut self, versus: Versus) {
        let fastest = versus.values().map(|broker| broker.last_ms_median);
        self.ratio_to_fastest_broker = fastest
            .min_by(f64::total_cmp)
            .map(|fastest| self.last_agent_ms_median / fastest);
        self.versus = versus;
    }

    pub(super) fn of(
        options: &Options,
        handshakes_per_s: f64,
        server_bytes_per_agent: u64,
        rounds: Vec<Round>,
    ) -> Self {
        let swapped = rounds
            .iter()
            .flat_map(|round| round.swapped.iter().copied());
        let last = |round: &Round| round.swapped.last().copied().map_or(f64::NAN, millis);
        let of_rounds = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        Self {
            agents: options.agents,
            rounds: options.rounds,
            loss_pct: options.loss_percent,
            delay_ms: u64::try_from(options.delay.as_millis()).unwrap_or(u64::MAX),
            outage_ms: u64::try_from(options.outage.as_millis()).unwrap_or(u64::MAX),
            propagation_ms: Spread::of(swapped),
            receipt_ms: Spread {
                p50: of_rounds(|round| round.receipts_p50_ms),
                p99: of_rounds(|round| round.receipts_p99_ms),
                max: of_rounds(|round| round.receipts_max_ms),
            },
            last_agent_ms_median: median(rounds.iter().map(last)),
            server_cpu_ms_per_broadcast: rounds.iter().map(|round| millis(round.cpu)).sum::<f64>()
                / f64::from(options.rounds.max(1)),
            handshakes_per_s,
            server_bytes_per_agent,
            versus: Versus::new(),
            ratio_to_fastest_broker: None,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { p50, p99, max } = &self.propagation_ms;
        writeln!(
            f,
            "{} agents, {} rollbacks, {} % loss, {} ms delay, {} ms outage",
            self.agents, self.rounds, self.loss_pct, self.delay_ms, self.outage_ms
        )?;
        writeln!(
            f,
            "decision to route swapped:   p50 {p50:.1} ms, p99 {p99:.1} ms, last of all {max:.1} ms"
        )?;
        writeln!(
            f,
            "last agent, median of rounds: {:.1} ms",
            self.last_agent_ms_median
        )?;
        let Spread { p50, p99, max } = &self.receipt_ms;
        writeln!(
            f,
            "decision to receipt in hand: p50 {p50:.1} ms, p99 {p99:.1} ms, last {max:.1} ms (medians of rounds)"
        )?;
        writeln!(
            f,
            "coordinator: {:.1} ms CPU a broadcast with receipts, {:.0} handshakes/s, {:.1} KiB an agent",
            self.server_cpu_ms_per_broadcast,
            self.handshakes_per_s,
            self.server_bytes_per_agent as f64 / 1_024.0
        )?;
        if self.versus.is_empty() {
            return Ok(());
        }
        write_brokers(f, &self.versus, Some(self.last_agent_ms_median))
    }
}

/// Brokers alone, with nothing beside them.
#[derive(Clone, Debug, Serialize)]
pub struct BrokersAlone {
    /// How many receivers.
    pub receivers: u32,
    /// How many messages.
    pub rounds: u32,
    /// What was measured.
    pub versus: Versus,
}

impl fmt::Display for BrokersAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} receivers, {} messages", self.receivers, self.rounds)?;
        write_brokers(f, &self.versus, None)
    }
}

/// A row each, with how long Rollcall's last agent took of the broker's last receiver.
fn write_brokers(
    f: &mut fmt::Formatter<'_>,
    versus: &Versus,
    rollcall_last_ms: Option<f64>,
) -> fmt::Result {
    writeln!(
        f,
        "128 bytes a round through brokers, one after the other, in the same run; all in plaintext, and no\n\
         publisher learns who has its message (mosquitto's receivers acknowledge to mosquitto: QoS 1):"
    )?;
    writeln!(
        f,
        "{:<18} {:>9} {:>8} {:>8} {:>8} {:>12} {:>10} {:>9}  rollcall's last",
        "broker", "last (ms)", "p50", "p99", "max", "CPU (ms)", "KiB/conn.", "conn./s"
    )?;
    for (broker, figures) in versus {
        let Spread { p50, p99, max } = &figures.propagation_ms;
        let ratio = rollcall_last_ms.map_or_else(String::new, |ms| {
            format!("{:.2} x", ms / figures.last_ms_median)
        });
        let settings = figures.settings.as_deref().unwrap_or_default();
        writeln!(
            f,
            "{:<18} {:>9.1} {p50:>8.1} {p99:>8.1} {max:>8.1} {:>12.1} {:>10.1} {:>9.0}  {ratio:<15}  {settings}",
            format!("{broker} {}", figures.version),
            figures.last_ms_median,
            figures.server_cpu_ms_per_publish,
            figures.server_bytes_per_connection as f64 / 1_024.0,
            figures.connections_per_s
        )?;
    }
    Ok(())
}

/// Resident memory of a process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most that it ever was.
pub(crate) fn peak_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .with_context(|| format!("no {field} in the status of process {pid}"))?;
    Ok(kib.parse::<u64>()? * 1_024)
}

/// CPU that all threads of a process have used, to the nanosecond.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        if let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) {
            nanos += text
                .split_whitespace()
                .next()
                .context("empty schedstat")?
                .parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}
