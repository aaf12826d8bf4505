//! What the trials come to, as JSON and as lines for people.

use std::fmt;

use serde::Serialize;

use super::Trial;
use super::ground::Totals;
use super::load::{Answers, Seen};
use crate::fleet::figures::{median, millis, quantile};

/// Stable's answers by right, for as long as one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    /// Milliseconds from when the request was due to its answer: median.
    pub(super) p50_ms: f64,
    /// 99th percentile.
    pub(super) p99_ms: f64,
    /// The agent's processor time, as a share of one core.
    pub(super) cpu_share: f64,
}

impl Spread {
    pub(super) fn of(seen: &Seen, cpu_share: f64) -> Self {
        let mut latencies: Vec<f64> = seen.latencies.iter().copied().map(millis).collect();
        latencies.sort_by(f64::total_cmp);
        Self {
            p50_ms: quantile(&latencies, 0.5),
            p99_ms: quantile(&latencies, 0.99),
            cpu_share,
        }
    }
}

/// A calm spell and a trial, one after the other.
pub(super) struct Round {
    pub(super) calm: Spread,
    pub(super) tried: Spread,
}

/// What one candidate cost. Medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What it did, and for whom; none: there was no candidate in the trials either, and
    /// the ratios are those of the measurement itself.
    pub(super) trial: Option<Trial>,
    /// Without it.
    pub(super) calm: Spread,
    /// With it.
    pub(super) tried: Spread,
    /// Of the p50s.
    pub(super) p50_ratio: f64,
    /// Of the p99s.
    pub(super) p99_ratio: f64,
    /// The quarter of the rounds with the lowest ratio of p99s has at most the first, the
    /// quarter with the highest at least the second.
    pub(super) p99_ratio_quartiles: [f64; 2],
    /// What clients saw, from the agent's first request to its last.
    pub(super) answers: Answers,
    /// What the agent counted in the same time.
    pub(super) agent: Totals,
    /// The agent's peak resident memory.
    pub(super) peak_bytes: u64,
}

impl Finding {
    pub(super) fn of(
        trial: Option<Trial>,
        rounds: &[Round],
        answers: Answers,
        agent: Totals,
        peak_bytes: u64,
    ) -> Self {
        let middle = |side: fn(&Round) -> Spread| {
            let of = |value: fn(&Spread) -> f64| median(rounds.iter().map(side).map(|s| value(&s)));
            Spread {
                p50_ms: of(|spread| spread.p50_ms),
                p99_ms: of(|spread| spread.p99_ms),
                cpu_share: of(|spread| spread.cpu_share),
            }
        };
        let (calm, tried) = (middle(|round| round.calm), middle(|round| round.tried));
        let mut ratios: Vec<f64> = rounds
            .iter()
            .map(|round| round.tried.p99_ms / round.calm.p99_ms)
            .collect();
        ratios.sort_by(f64::total_cmp);
        Self {
            trial,
            calm,
            tried,
            p50_ratio: tried.p50_ms / calm.p50_ms,
            p99_ratio: tried.p99_ms / calm.p99_ms,
            p99_ratio_quartiles: [quantile(&ratios, 0.25), quantile(&ratios, 0.75)],
            answers,
            agent,
            peak_bytes,
        }
    }
}

/// What was measured; the JSON of `rollcall-sim isolation -o json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// How many trials of each candidate, and as many calm spells.
    pub(super) rounds: u32,
    /// How long each lasted.
    pub(super) seconds: f64,
    /// Requests a second.
    pub(super) rate: u32,
    /// One for each candidate.
    pub(super) findings: Vec<Finding>,
}

impl Figures {
    /// Whether every request was answered.
    pub(super) fn all_answered(&self) -> bool {
        let unanswered = |finding: &Finding| finding.answers.unanswered;
        self.findings.iter().map(unanswered).sum::<u64>() == 0
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests/s, {} rounds of {} s each way; answers that stable gives by right, medians of rounds (ms)",
            self.rate, self.rounds, self.seconds
        )?;
        writeln!(
            f,
            "{:<12} {:<7} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>11} {:>11} {:>7} {:>9} {:>7} {:>8} {:>5} {:>9}",
            "candidate",
            "usage",
            "calm p50",
            "p99",
            "with p50",
            "p99",
            "p50 x",
            "p99 x",
            "quartiles",
            "CPU",
            "tried",
            "fell back",
            "shed",
            "breakers",
            "MiB",
            "no answer"
        )?;
        self.findings.iter().try_for_each(|finding| finding.line(f))
    }
}

impl Finding {
    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (behaviour, usage) = match self.trial {
            None => ("none".to_owned(), String::new()),
            Some(Trial { behaviour, usage }) => (format!("{behaviour:?}"), format!("{usage:?}")),
        };
        let [low, high] = self.p99_ratio_quartiles;
        writeln!(
            f,
            "{behaviour:<12} {usage:<7} {:>8.3} {:>8.3} {:>8.3} {:>8.3} {:>6.2} {:>6.2} {:>11} {:>11} {:>7} {:>9} {:>7} {:>8} {:>5.0} {:>9}",
            self.calm.p50_ms,
            self.calm.p99_ms,
            self.tried.p50_ms,
            self.tried.p99_ms,
            self.p50_ratio,
            self.p99_ratio,
            format!("{low:.2}-{high:.2}"),
            format!("{:.2} > {:.2}", self.calm.cpu_share, self.tried.cpu_share),
            self.agent.candidate_requests,
            self.answers.by_fallback,
            self.agent.shed,
            self.agent.breaker_openings,
            self.peak_bytes as f64 / f64::from(1 << 20),
            self.answers.unanswered
        )
    }
}
