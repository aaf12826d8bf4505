//! Rules about what answers were like and what came of them: drift of scores, labels, KPIs, bias.
//!
//! Two of them can fail a candidate, as their error is bounded however often one looks: accuracy
//! (a confidence sequence, [`super::agreement`]) and KPIs (an asymptotic one, [`super::kpi`]).
//! The others are estimates. A breach of those holds the gate, for people to look at, and never
//! withdraws.
//!
//! A rule that the policy sets and for which nothing came in holds the gate too.

use rollcall_shared::plan::Policy;
use rollcall_shared::report::{Counts, Moments, Quality};
use rollcall_shared::verdict::{Finding, Metric, Outcome};

use super::agreement::interval;
use super::bias::Gap;
use super::calibration::Calibration;
use super::drift::Drift;
use super::kpi::Terms;
use super::labels::Rightness;
use super::rules::{OF_OUTCOMES, percent};
use super::watch::Watch;
use super::{Trials, count};

/// Outcomes of both versions at which a KPI's interval is as narrow as it can be.
const KPI_SHARPEST_AT: u64 = 10_000;

/// What is held to the policy.
pub(super) fn findings(policy: &Policy, watch: &Watch) -> Vec<Finding> {
    let (candidate, stable) = (&watch.all.seen.candidate, &watch.all.seen.stable);
    let mut findings = Vec::new();
    findings.extend(drift(policy, candidate, stable));
    for (name, training) in &watch.trained_on {
        findings.extend(feature_drift(policy, name, candidate, training));
    }
    findings.extend(labels(policy, &candidate.quality, &stable.quality));
    findings.extend(calibration(policy, &candidate.quality, &stable.quality));
    findings.extend(bias(policy, watch));
    for (name, drop) in &policy.kpi_drop_max {
        findings.push(kpi(policy, name, *drop, candidate, stable));
    }
    findings
}

fn finding(metric: Metric, threshold: f64, samples: (u64, u64), rule: String) -> Finding {
    Finding {
        metric,
        outcome: Outcome::Insufficient,
        candidate: None,
        stable: None,
        threshold,
        candidate_samples: samples.0,
        stable_samples: samples.1,
        rule,
        segment: None,
        test: None,
    }
}

fn drift(policy: &Policy, candidate: &Counts, stable: &Counts) -> Option<Finding> {
    let most = policy.drift_max?;
    let (ours, theirs) = (&candidate.quality, &stable.quality);
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    let samples = (sum(&ours.scores), sum(&theirs.scores));
    let rule = format!("scores drift from stable's by at most {most} (PSI), beyond chance");
    let mut told = finding(Metric::Drift, most, samples, rule);
    let seen = if samples.0 > 0 {
        Drift::between_bins(&ours.scores, &theirs.scores, policy.alpha)
    } else {
        Drift::between_names(&ours.named, &theirs.named, policy.alpha)
    };
    if let Some(seen) = seen {
        told.candidate = Some(seen.psi);
        told.threshold = most.max(seen.null);
        if !seen.exceeds(most) && candidate.requests >= policy.min_requests {
            told.outcome = Outcome::Pass;
        }
    }
    Some(told)
}

/// Of the inputs, from what the version was trained on. Both versions get the same inputs: this
/// says whether the candidate was trained for what comes in now.
fn feature_drift(
    policy: &Policy,
    name: &str,
    candidate: &Counts,
    training: &[u64],
) -> Option<Finding> {
    let most = policy.drift_max?;
    let seen = candidate.quality.features.get(name).map(Vec::as_slice);
    let seen = seen.unwrap_or_default();
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    let rule =
        format!("inputs of {name} drift from training by at most {most} (PSI), beyond chance");
    let samples = (sum(seen), sum(training));
    let mut told = finding(Metric::Drift, most, samples, rule);
    if let Some(drift) = Drift::between_bins(seen, training, policy.alpha) {
        told.candidate = Some(drift.psi);
        told.threshold = most.max(drift.null);
        if !drift.exceeds(most) && samples.0 >= policy.min_requests {
            told.outcome = Outcome::Pass;
        }
    }
    Some(told)
}

fn labels(policy: &Policy, ours: &Quality, theirs: &Quality) -> Vec<Finding> {
    let (ours, theirs) = (
        Rightness::of(&ours.labelled),
        Rightness::of(&theirs.labelled),
    );
    let labels = |seen: Option<Rightness>| seen.map_or(0, |seen| seen.labels);
    let samples = (labels(ours), labels(theirs));
    let told = |metric, least, value: fn(&Rightness) -> f64, what: &str| {
        let rule = format!("{what} at least {} %", percent(least));
        let mut told = finding(metric, least, samples, rule);
        told.candidate = ours.as_ref().map(value);
        told.stable = theirs.as_ref().map(value);
        if samples.0 >= policy.min_labels && told.candidate >= Some(least) {
            told.outcome = Outcome::Pass;
        }
        told
    };
    let accuracy = policy.accuracy_min.map(|least| {
        let mut told = told(Metric::Accuracy, least, Rightness::accuracy, "accuracy");
        let (correct, labels) = ours.map_or((0, 0), |seen| (seen.correct, seen.labels));
        if interval(correct, labels, policy.alpha * OF_OUTCOMES / 2.0).1 < least {
            told.outcome = Outcome::Fail;
        }
        told
    });
    let f1 = policy
        .f1_min
        .map(|least| told(Metric::F1, least, |seen| seen.f1, "F1 (mean over classes)"));
    accuracy.into_iter().chain(f1).collect()
}

fn calibration(policy: &Policy, ours: &Quality, theirs: &Quality) -> Option<Finding> {
    let most = policy.calibration_error_max?;
    let error = |quality: &Quality| Calibration::of(&quality.calibration);
    let (ours, theirs) = (error(ours), error(theirs));
    let labels = |seen: Option<Calibration>| seen.map_or(0, |seen| seen.labels);
    let rule = format!("calibration error at most {most}, chance taken away");
    let samples = (labels(ours), labels(theirs));
    let mut told = finding(Metric::Calibration, most, samples, rule);
    told.candidate = ours.and_then(|seen| seen.debiased());
    told.stable = theirs.and_then(|seen| seen.debiased());
    let kept = told.candidate.is_some_and(|error| error <= most);
    if kept && samples.0 >= policy.min_labels {
        told.outcome = Outcome::Pass;
    }
    Some(told)
}

/// The gap between segments in how often the positive class is named.
fn bias(policy: &Policy, watch: &Watch) -> Option<Finding> {
    let most = policy.bias_max?;
    let positive = policy.positive_class.as_deref().unwrap_or("1");
    let named = |line: &super::watch::Line| {
        let named = &line.seen.candidate.quality.named;
        Trials {
            n: named.values().sum(),
            hits: named.get(positive).copied().unwrap_or_default(),
        }
    };
    let groups = watch.segments.iter();
    let groups = groups.map(|(name, line)| (name.as_str(), named(line)));
    let samples = watch.segments.values().map(|line| named(line).n).sum();
    let rule = format!(
        "segments differ by at most {} points in how often {positive:?} is named",
        percent(most)
    );
    let mut told = finding(Metric::Bias, most, (samples, 0), rule);
    if let Some(gap) = Gap::among(groups, policy.min_labels, policy.alpha) {
        told.candidate = Some(gap.seen());
        if gap.seen() <= most {
            told.outcome = Outcome::Pass;
        }
    }
    Some(told)
}

fn kpi(policy: &Policy, name: &str, drop: f64, candidate: &Counts, stable: &Counts) -> Finding {
    let of = |counts: &Counts| counts.quality.kpis.get(name).copied().unwrap_or_default();
    let (ours, theirs) = (of(candidate), of(stable));
    let mean = |moments: &Moments| (moments.count > 0).then(|| moments.sum / count(moments.count));
    let rule = format!("{name} at most {} % below stable's", percent(drop));
    let mut told = finding(Metric::Kpi, 0.0, (ours.count, theirs.count), rule);
    told.candidate = mean(&ours);
    told.stable = mean(&theirs);
    told.threshold = told.stable.map_or(0.0, |mean| mean - drop * mean.abs());
    let kpis = count(policy.kpi_drop_max.len() as u64);
    let terms = Terms {
        alpha: policy.alpha * OF_OUTCOMES / 2.0 / kpis,
        least: policy.min_labels,
        sharpest_at: KPI_SHARPEST_AT,
    };
    if let Some(change) = terms.relative_change(&ours, &theirs) {
        told.outcome = if change.high < -drop {
            Outcome::Fail
        } else if change.seen >= -drop {
            Outcome::Pass
        } else {
            Outcome::Insufficient
        };
    }
    told
}
