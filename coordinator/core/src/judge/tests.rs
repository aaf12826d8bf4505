use rollcall_shared::plan::Preset;

use super::*;
use crate::coordinator::fixtures::{counts, good};

fn policy() -> Policy {
    Policy {
        min_requests: 100,
        error_multiplier_max: Some(2.0),
        latency_p99_max_ms: Some(100.0),
        ..Preset::Balanced.policy()
    }
}

fn canary<'a>(candidate: &'a Counts, stable: &'a Counts) -> Evidence<'a> {
    Evidence {
        candidate: Some(candidate),
        recent: Recent { candidate, stable },
        shadow: false,
        baseline: Baseline::Concurrent(stable),
        loads: Loads {
            nodes: 3,
            failed: 0,
        },
    }
}

fn failures(verdict: &Verdict) -> Vec<&str> {
    assert_eq!(verdict.outcome, Outcome::Fail);
    verdict.decisive().map(|f| f.rule.as_str()).collect()
}

#[test]
fn a_candidate_like_stable_passes_every_rule_by_name() {
    let verdict = judge(&policy(), &canary(&good(200), &good(2_000)));
    assert_eq!(verdict.outcome, Outcome::Pass);
    let rules: Vec<_> = verdict.findings.iter().map(|f| f.rule.as_str()).collect();
    assert_eq!(
        rules,
        [
            "fewer than 2 nodes fail to load it",
            "at most 1 % of requests fail",
            "p99 ms at most 100",
            "p95 at most 1.5 x stable (differences under 1 ms do not count)",
            "error rate at most 2 x stable (counted above 0.1 %)",
        ]
    );
}

#[test]
fn missing_data_never_passes_nor_fails() {
    let verdict = judge(&policy(), &canary(&counts(99, 99, 5), &good(2_000)));
    assert_eq!(verdict.outcome, Outcome::Insufficient);
    let verdict = judge(&policy(), &canary(&good(200), &good(99)));
    assert_eq!(verdict.outcome, Outcome::Insufficient);
    let verdict = judge(&policy(), &canary(&Counts::default(), &Counts::default()));
    assert_eq!(verdict.outcome, Outcome::Insufficient);
}

#[test]
fn an_absolute_limit_breaks_without_a_stable_to_compare_with() {
    let candidate = counts(200, 3, 5);
    let verdict = judge(&policy(), &canary(&candidate, &Counts::default()));
    assert_eq!(failures(&verdict), ["at most 1 % of requests fail"]);
}

#[test]
fn errors_are_compared_only_above_a_tenth_of_the_limit() {
    let stable = counts(100_000, 10, 5);
    let verdict = judge(&policy(), &canary(&counts(10_000, 10, 5), &stable));
    assert_eq!(verdict.outcome, Outcome::Pass);
    let verdict = judge(&policy(), &canary(&counts(10_000, 11, 5), &stable));
    assert_eq!(
        failures(&verdict),
        ["error rate at most 2 x stable (counted above 0.1 %)"]
    );
}

#[test]
fn a_multiple_of_microseconds_is_noise() {
    let micros = |latency_us| {
        let mut counts = Counts {
            requests: 200,
            ..Counts::default()
        };
        for _ in 0..200 {
            counts.latency.record(Duration::from_micros(latency_us));
        }
        counts
    };
    let verdict = judge(&policy(), &canary(&micros(900), &micros(50)));
    assert_eq!(verdict.outcome, Outcome::Pass);
    let verdict = judge(&policy(), &canary(&micros(1_500), &micros(50)));
    assert_eq!(verdict.outcome, Outcome::Fail);
}

#[test]
fn agreement_is_judged_in_shadow_only() {
    let candidate = Counts {
        agreed: 100,
        ..good(200)
    };
    let stable = good(200);
    let mut evidence = canary(&candidate, &stable);
    assert_eq!(judge(&policy(), &evidence).outcome, Outcome::Pass);
    evidence.shadow = true;
    assert_eq!(
        failures(&judge(&policy(), &evidence)),
        ["at least 95 % of shadowed answers agree"]
    );
}

#[test]
fn a_first_version_is_not_compared() {
    let candidate = good(200);
    let evidence = Evidence {
        baseline: Baseline::Nothing,
        ..canary(&candidate, &candidate)
    };
    let verdict = judge(&policy(), &evidence);
    assert_eq!(verdict.outcome, Outcome::Pass);
    assert!(verdict.findings.iter().all(|f| !f.rule.contains("stable")));
}

#[test]
fn a_late_breach_is_not_diluted_by_the_good_hours_before_it() {
    let (hours, stable) = (counts(100_000, 60, 5), good(100_000));
    let (late, stable_now) = (counts(200, 60, 5), good(200));
    let mut evidence = canary(&hours, &stable);
    assert_eq!(judge(&policy(), &evidence).outcome, Outcome::Pass);
    evidence.recent = Recent {
        candidate: &late,
        stable: &stable_now,
    };
    assert_eq!(
        failures(&judge(&policy(), &evidence)),
        [
            "at most 1 % of requests fail (recent)",
            "error rate at most 2 x stable (counted above 0.1 %) (recent)"
        ]
    );
}

#[test]
fn a_late_slowness_of_both_versions_is_not_the_candidates() {
    let (hours, late) = (good(100_000), counts(200, 0, 50));
    let mut evidence = canary(&hours, &hours);
    evidence.recent = Recent {
        candidate: &late,
        stable: &late,
    };
    assert_eq!(judge(&policy(), &evidence).outcome, Outcome::Pass);
    let fast = good(200);
    evidence.recent.stable = &fast;
    assert_eq!(
        failures(&judge(&policy(), &evidence)),
        ["p95 at most 1.5 x stable (differences under 1 ms do not count) (recent)"]
    );
}

#[test]
fn too_little_that_is_recent_neither_fails_nor_holds() {
    let (hours, late) = (good(1_000), counts(99, 99, 5));
    let mut evidence = canary(&hours, &hours);
    evidence.recent = Recent {
        candidate: &late,
        stable: &late,
    };
    let verdict = judge(&policy(), &evidence);
    assert_eq!(verdict.outcome, Outcome::Pass);
    assert!(verdict.findings.iter().all(|f| !f.rule.contains("recent")));
}

#[test]
fn what_was_recorded_of_stable_stands_in_where_the_candidate_answers_everything() {
    let recorded = judge(&policy(), &canary(&good(200), &good(200)));
    let slow = counts(200, 0, 50);
    let evidence = Evidence {
        baseline: Baseline::Remembered(recorded.findings),
        ..canary(&slow, &slow)
    };
    let verdict = judge(&policy(), &evidence);
    assert_eq!(
        failures(&verdict),
        ["p95 at most 1.5 x stable (differences under 1 ms do not count)"]
    );
}

#[test]
fn one_bad_node_is_not_a_bad_candidate_unless_it_is_the_only_one() {
    let policy = rollcall_shared::plan::Preset::Balanced.policy();
    let outcome = |nodes, failed| loads(&policy, Loads { nodes, failed }).outcome;
    assert_eq!(outcome(3, 1), Outcome::Pass);
    assert_eq!(outcome(3, 2), Outcome::Fail);
    assert_eq!(outcome(1, 1), Outcome::Fail);
    assert_eq!(outcome(0, 0), Outcome::Pass);
}
