//! What a finding's own numbers say. The judge decides by this, and whoever reads a record
//! can decide again by it: nothing but the finding and the policy goes in.

use rollcall_shared::plan::Policy;
use rollcall_shared::verdict::{Finding, Metric, Outcome, Verdict};

use super::LATENCY_NOISE_MS;

/// Whether a verdict follows from the numbers in its findings, under `policy`.
#[must_use]
pub fn follows(policy: &Policy, verdict: &Verdict) -> bool {
    let again = verdict
        .findings
        .iter()
        .map(|finding| outcome(policy, finding));
    again.eq(verdict.findings.iter().map(|finding| finding.outcome))
        && Verdict::of(verdict.findings.clone()).outcome == verdict.outcome
}

/// What the rules say of a finding's numbers.
#[must_use]
pub fn outcome(policy: &Policy, finding: &Finding) -> Outcome {
    let Some(value) = finding.candidate else {
        return Outcome::Insufficient;
    };
    if finding.metric != Metric::LoadFailures && !is_enough(policy, finding) {
        return Outcome::Insufficient;
    }
    let over = value > finding.threshold;
    let broken = match (finding.metric, finding.stable) {
        (Metric::LoadFailures, _) => value >= finding.threshold,
        (Metric::Agreement, _) => value < finding.threshold,
        (Metric::LatencyP95, Some(stable)) => over && value - stable >= LATENCY_NOISE_MS,
        (Metric::ErrorRate, Some(_)) => over && value > error_floor(policy),
        (Metric::ErrorRate | Metric::LatencyP95, None)
        | (Metric::LatencyP50 | Metric::LatencyP99, _) => over,
    };
    if broken { Outcome::Fail } else { Outcome::Pass }
}

/// Enough of the candidate; and enough of stable, unless the limit is the policy's own.
fn is_enough(policy: &Policy, finding: &Finding) -> bool {
    let limit = match finding.metric {
        Metric::ErrorRate => policy.error_rate_max,
        Metric::LatencyP50 => policy.latency_p50_max_ms,
        Metric::LatencyP95 => policy.latency_p95_max_ms,
        Metric::LatencyP99 => policy.latency_p99_max_ms,
        Metric::Agreement => policy.agreement_min,
        Metric::LoadFailures => None,
    };
    let absolute = finding.stable.is_none() && limit == Some(finding.threshold);
    finding.candidate_samples >= policy.min_requests
        && (absolute || finding.stable_samples >= policy.min_requests)
}

/// Below this error rate a multiple of stable's does not count.
pub(super) fn error_floor(policy: &Policy) -> f64 {
    policy.error_rate_max.map_or(0.0, |max| max / 10.0)
}

/// The finding with its outcome.
pub(super) fn decided(policy: &Policy, finding: Finding) -> Finding {
    let outcome = outcome(policy, &finding);
    Finding { outcome, ..finding }
}
