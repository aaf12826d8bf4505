//! What came of a run, for people and scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::checker::{check, excused};
use super::history::{History, NodeHistory, NodeReport, Report};

/// A decision of the judge is seen this much later at most.
const VIEW_AFTER_MS: f64 = 3_000.0;

/// The table at the end. Also the JSON of `-o json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What the schedule was drawn from.
    pub seed: u64,
    /// How often each fault fired, and what else was counted.
    pub counts: BTreeMap<&'static str, u64>,
    /// Withdrawals that were decided.
    pub rollbacks: usize,
    /// Requests answered.
    pub answered: usize,
    /// Requests without an answer while their node was killed or stopped.
    pub failed_excused: usize,
    /// Requests without an answer otherwise.
    pub failed: usize,
    /// The slowest answer of a node that nobody had touched.
    pub worst_latency_ms: f64,
    /// The longest time between two answers of such a node.
    pub worst_gap_ms: f64,
    /// Where that was (an index), and how many seconds after the beginning.
    pub worst_gap_at: Option<(usize, f64)>,
    /// From the decision to a receipt, over all receipts of settled rollbacks, nodes that
    /// were cut off included. Median.
    pub receipt_ms_p50: Option<f64>,
    /// The same, 99th percentile.
    pub receipt_ms_p99: Option<f64>,
    /// Nodes that were reported as fenced instead.
    pub fenced: usize,
    /// Broken promises.
    pub violations: Vec<String>,
}

impl Summary {
    /// Counts and checks.
    #[must_use]
    pub fn of(seed: u64, history: &History, counts: BTreeMap<&'static str, u64>) -> Self {
        let mut summary = Self {
            seed,
            counts,
            rollbacks: history.withdrawals.len(),
            answered: 0,
            failed_excused: 0,
            failed: 0,
            worst_latency_ms: 0.0,
            worst_gap_ms: 0.0,
            worst_gap_at: None,
            receipt_ms_p50: None,
            receipt_ms_p99: None,
            fenced: 0,
            violations: check(history).iter().map(ToString::to_string).collect(),
        };
        for (index, node) in history.nodes.iter().enumerate() {
            summary.count_answers(index, node);
        }
        summary.count_receipts(history);
        summary
    }

    fn count_answers(&mut self, index: usize, node: &NodeHistory) {
        let mut last = None;
        for answer in &node.answers {
            let touched = excused(node, answer.sent, answer.got);
            match (&answer.version, touched) {
                (Some(_), _) => self.answered += 1,
                (None, true) => self.failed_excused += 1,
                (None, false) => self.failed += 1,
            }
            if answer.version.is_none() {
                continue;
            }
            if !touched {
                let latency = answer.got.saturating_sub(answer.sent);
                self.worst_latency_ms = self.worst_latency_ms.max(millis(latency));
            }
            if let Some(before) = last.replace(answer.got)
                && !excused(node, before, answer.got)
            {
                let gap = millis(answer.got.saturating_sub(before));
                if gap > self.worst_gap_ms {
                    self.worst_gap_ms = gap;
                    self.worst_gap_at = Some((index, before.as_secs_f64()));
                }
            }
        }
    }

    fn count_receipts(&mut self, history: &History) {
        // The last word on each rollback.
        let settled: BTreeMap<&str, &Report> = history
            .reports
            .iter()
            .filter(|report| report.settled)
            .map(|report| (report.version.as_str(), report))
            .collect();
        let mut after: Vec<f64> = Vec::new();
        for report in settled.values() {
            // A decision and a receipt on two clocks of the coordinator say nothing: no
            // receipt took longer than it took us to see it.
            let asked = history.withdrawals.get(&report.version);
            let asked = asked.map_or(Duration::ZERO, |withdrawal| {
                withdrawal.asked.unwrap_or(withdrawal.known)
            });
            let seen_after = millis(report.got.saturating_sub(asked)) + VIEW_AFTER_MS;
            let timely = report.after_ms.iter().filter(|after| **after <= seen_after);
            after.extend(timely);
            let words = report.nodes.values();
            self.fenced += words.filter(|word| **word == NodeReport::Fenced).count();
        }
        after.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (after.len() * percent).div_ceil(100).max(1);
            after.get(rank - 1).copied()
        };
        (self.receipt_ms_p50, self.receipt_ms_p99) = (rank(50), rank(99));
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in &self.counts {
            writeln!(f, "{count:>8}  {what}")?;
        }
        let requests = self.answered + self.failed_excused + self.failed;
        writeln!(
            f,
            "requests: {requests}, answered {}, failed {} ({} more while their node was killed or stopped)",
            self.answered, self.failed, self.failed_excused
        )?;
        write!(
            f,
            "stable, on nodes left alone: slowest answer {:.0} ms, longest gap {:.0} ms",
            self.worst_latency_ms, self.worst_gap_ms
        )?;
        match self.worst_gap_at {
            Some((node, at)) => writeln!(f, " (node-{}, at {at:.1} s)", node + 1)?,
            None => writeln!(f)?,
        }
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
        writeln!(
            f,
            "rollbacks: {}, receipts after p50 {}, p99 {}, {} nodes fenced by lease",
            self.rollbacks,
            ms(self.receipt_ms_p50),
            ms(self.receipt_ms_p99),
            self.fenced
        )?;
        for violation in &self.violations {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        writeln!(
            f,
            "seed {}: {} violations",
            self.seed,
            self.violations.len()
        )
    }
}
