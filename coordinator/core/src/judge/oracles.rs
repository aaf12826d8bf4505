//! The judge's mathematics against figures of an independent implementation:
//! `oracles/make.py` says how they came about.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::histogram::{Histogram, edge};
use rollcall_shared::report::{CalibrationBin, ClassCounts, Moments};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::calibration::Calibration;
use super::drift::Drift;
use super::exact::TwoByTwo;
use super::kpi::Terms;
use super::labels::Rightness;
use super::latency::LatencyTest;
use super::rare::RareEvents;
use super::{Trials, agreement};

fn cases<T: DeserializeOwned>(json: &str) -> Vec<T> {
    let cases: Vec<T> = serde_json::from_str(json).unwrap();
    assert!(cases.len() > 1);
    cases
}

#[track_caller]
fn same(ours: f64, theirs: f64) {
    let off = (ours - theirs).abs();
    assert!(
        off <= 1e-9 * theirs.abs().max(1e-3),
        "{ours} is not {theirs}"
    );
}

/// Tries and hits of each interval.
type Intervals = Vec<(u64, u64)>;

fn pairs(candidate: &Intervals, stable: &Intervals) -> impl Iterator<Item = (Trials, Trials)> {
    let trials = |&(n, hits): &(u64, u64)| Trials { n, hits };
    candidate.iter().map(trials).zip(stable.iter().map(trials))
}

#[derive(Deserialize)]
struct Rare {
    margin: f64,
    candidate: Intervals,
    stable: Intervals,
    log_e_worse: f64,
    log_e_not_worse: f64,
}

#[test]
fn rare_events() {
    for case in cases::<Rare>(include_str!("../../oracles/rare.json")) {
        let mut test = RareEvents::new(case.margin);
        for (candidate, stable) in pairs(&case.candidate, &case.stable) {
            test.see(candidate, stable);
        }
        same(test.log_e_worse(), case.log_e_worse);
        same(test.log_e_not_worse(), case.log_e_not_worse);
    }
}

#[derive(Deserialize)]
struct Exact {
    candidate: Intervals,
    stable: Intervals,
    log_e: f64,
}

#[test]
fn two_shares() {
    for case in cases::<Exact>(include_str!("../../oracles/exact.json")) {
        let mut test = TwoByTwo::default();
        for (candidate, stable) in pairs(&case.candidate, &case.stable) {
            test.see(candidate, stable);
        }
        same(test.log_e(), case.log_e);
    }
}

#[derive(Deserialize)]
struct Latency {
    margin: f64,
    floor_ns: u64,
    candidate_ns: Vec<Vec<u64>>,
    stable_ns: Vec<Vec<u64>>,
    log_e: f64,
    loudest_edge: usize,
    loudest_log_e: f64,
}

fn histogram(nanos: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    for nanos in nanos {
        histogram.record(Duration::from_nanos(*nanos));
    }
    histogram
}

#[test]
fn latencies() {
    for case in cases::<Latency>(include_str!("../../oracles/latency.json")) {
        let mut test = LatencyTest::new(case.margin, Duration::from_nanos(case.floor_ns));
        for (candidate, stable) in case.candidate_ns.iter().zip(&case.stable_ns) {
            test.see(&histogram(candidate), &histogram(stable));
        }
        same(test.log_e(), case.log_e);
        let (loudest, evidence) = test.loudest().unwrap();
        assert_eq!(loudest, edge(case.loudest_edge));
        same(evidence, case.loudest_log_e);
    }
}

#[derive(Deserialize)]
struct Agreement {
    agreed: u64,
    compared: u64,
    alpha: f64,
    lower: f64,
    upper: f64,
}

#[test]
fn shares_of_agreement() {
    for case in cases::<Agreement>(include_str!("../../oracles/agreement.json")) {
        let (lower, upper) = agreement::interval(case.agreed, case.compared, case.alpha);
        same(lower, case.lower);
        same(upper, case.upper);
    }
}

#[derive(Deserialize)]
struct Drifted {
    candidate: Vec<u64>,
    stable: Vec<u64>,
    alpha: f64,
    psi: f64,
    null: f64,
}

#[test]
fn drifts() {
    for case in cases::<Drifted>(include_str!("../../oracles/drift.json")) {
        let drift = Drift::between_bins(&case.candidate, &case.stable, case.alpha).unwrap();
        same(drift.psi, case.psi);
        same(drift.null, case.null);
    }
}

#[derive(Deserialize)]
struct Labels {
    classes: BTreeMap<String, ClassCounts>,
    bins: Vec<CalibrationBin>,
    accuracy: f64,
    precision: f64,
    recall: f64,
    f1: f64,
    plain: f64,
    debiased_square: f64,
}

#[test]
fn labels_and_calibration() {
    for case in cases::<Labels>(include_str!("../../oracles/labels.json")) {
        let rightness = Rightness::of(&case.classes).unwrap();
        same(rightness.accuracy(), case.accuracy);
        same(rightness.precision, case.precision);
        same(rightness.recall, case.recall);
        same(rightness.f1, case.f1);
        let calibration = Calibration::of(&case.bins).unwrap();
        same(calibration.plain, case.plain);
        same(calibration.debiased_square.unwrap(), case.debiased_square);
    }
}

#[derive(Deserialize)]
struct Kpi {
    alpha: f64,
    sharpest_at: u64,
    candidate: Moments,
    stable: Moments,
    difference: (f64, f64),
    relative_change: (f64, f64),
}

#[test]
fn outcomes() {
    for case in cases::<Kpi>(include_str!("../../oracles/kpi.json")) {
        let terms = Terms {
            alpha: case.alpha,
            least: 100,
            sharpest_at: case.sharpest_at,
        };
        let difference = terms.difference(&case.candidate, &case.stable).unwrap();
        same(difference.low, case.difference.0);
        same(difference.high, case.difference.1);
        let change = terms
            .relative_change(&case.candidate, &case.stable)
            .unwrap();
        same(change.low, case.relative_change.0);
        same(change.high, case.relative_change.1);
    }
}
