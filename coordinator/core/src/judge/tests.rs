use rollcall_shared::plan::Preset;
use rollcall_shared::report::{ClassCounts, Moments, Segment};

use super::rules::{Baseline, rules};
use super::watch::Arm;
use super::*;
use crate::coordinator::fixtures::{counts, good, node};

fn policy() -> Policy {
    Policy {
        min_requests: 100,
        error_multiplier_max: Some(2.0),
        latency_p99_max_ms: Some(100.0),
        ..Preset::Balanced.policy()
    }
}

/// A canary, watched on `nodes` nodes.
struct Stage {
    policy: Policy,
    watch: Watch,
}

impl Stage {
    fn of(policy: Policy, baseline: &Baseline<'_>, shadow: bool) -> Self {
        let rules = rules(&policy, baseline, shadow);
        let watch = Watch::new(&policy, rules, shadow);
        Self { policy, watch }
    }

    fn canary() -> Self {
        Self::of(policy(), &Baseline::Concurrent, false)
    }

    fn interval(&mut self, seen: impl Fn(u64) -> (Counts, Counts), nodes: u64) -> &mut Self {
        for n in 1..=nodes {
            let (candidate, stable) = seen(n);
            self.watch.see(&node(n), Arm::Candidate, &candidate, &[]);
            self.watch.see(&node(n), Arm::Stable, &stable, &[]);
        }
        self.watch.close();
        self
    }

    /// Some intervals in which every node sees the same.
    fn see(&mut self, candidate: &Counts, stable: &Counts) -> &mut Self {
        for _ in 0..4 {
            self.interval(|_| (candidate.clone(), stable.clone()), 3);
        }
        self
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            loads: Loads {
                nodes: 3,
                failed: 0,
            },
            breakers: Breakers::default(),
            watch: Some(Cow::Borrowed(&self.watch)),
        }
    }

    fn verdict(&self) -> Verdict {
        let verdict = judge(&self.policy, &self.evidence());
        let recorded = serde_json::to_string(&self.evidence().abridged()).unwrap();
        let evidence: Evidence<'static> = serde_json::from_str(&recorded).unwrap();
        assert!(follows(&self.policy, &evidence, &verdict), "{verdict:#?}");
        verdict
    }

    fn outcome(&self) -> Outcome {
        self.verdict().outcome
    }

    fn failures(&self) -> Vec<String> {
        let verdict = self.verdict();
        assert_eq!(verdict.outcome, Outcome::Fail, "{verdict:#?}");
        verdict.decisive().map(|f| f.rule.clone()).collect()
    }
}

#[test]
fn a_candidate_like_stable_passes_every_rule_by_name() {
    let mut stage = Stage::canary();
    let verdict = stage.see(&good(20), &good(200)).verdict();
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict:#?}");
    let rules: Vec<_> = verdict.findings.iter().map(|f| f.rule.as_str()).collect();
    assert_eq!(
        rules,
        [
            "fewer than 2 nodes fail to load it",
            "at most 1 % of requests fail",
            "p99 ms at most 100",
            "latency at most 1.5 x stable at every quantile (differences under 1 ms do not count)",
            "error rate at most 2 x stable",
        ]
    );
}

#[test]
fn missing_data_never_passes() {
    assert_eq!(Stage::canary().outcome(), Outcome::Insufficient);
    let outcome =
        |candidate: &Counts, stable: &Counts| Stage::canary().see(candidate, stable).outcome();
    assert_eq!(outcome(&good(8), &good(80)), Outcome::Insufficient);
    assert_eq!(outcome(&good(20), &good(8)), Outcome::Insufficient);
    assert_eq!(
        outcome(&good(20), &Counts::default()),
        Outcome::Insufficient
    );
}

#[test]
fn what_is_proven_needs_no_minimum() {
    let mut stage = Stage::canary();
    stage.see(&counts(4, 4, 5), &good(40));
    let failures = stage.failures();
    assert!(
        failures.contains(&"error rate at most 2 x stable".to_owned()),
        "{failures:?}"
    );
}

#[test]
fn an_estimate_beyond_its_limit_that_may_be_chance_holds() {
    let mut stage = Stage::canary();
    // 2 of 120 fail: 1.7 %.
    stage.interval(|n| (counts(40, u64::from(n < 3), 5), good(400)), 3);
    assert_eq!(stage.outcome(), Outcome::Insufficient);
}

#[test]
fn a_limit_breaks_without_a_stable_to_compare_with() {
    let mut stage = Stage::of(policy(), &Baseline::Nothing, false);
    stage.see(&counts(50, 10, 5), &Counts::default());
    assert_eq!(stage.failures(), ["at most 1 % of requests fail"]);
    let verdict = stage.verdict();
    assert!(verdict.findings.iter().all(|f| !f.rule.contains("stable")));
}

#[test]
fn errors_are_compared_only_above_a_tenth_of_the_limit() {
    let mut stage = Stage::canary();
    stage.see(&counts(100_000, 90, 5), &counts(1_000_000, 90, 5));
    assert_eq!(stage.outcome(), Outcome::Pass);
    let mut stage = Stage::canary();
    stage.see(&counts(100_000, 150, 5), &counts(1_000_000, 150, 5));
    assert_eq!(stage.failures(), ["error rate at most 2 x stable"]);
}

#[test]
fn a_client_that_tries_again_and_again_has_failed_once() {
    let retried = Counts {
        failed_keys: 0,
        ..counts(50, 2, 5)
    };
    let mut stage = Stage::canary();
    assert_eq!(
        stage.see(&retried, &good(450)).outcome(),
        Outcome::Insufficient
    );
}

#[test]
fn a_multiple_of_microseconds_is_noise() {
    let micros = |n, latency_us| {
        let mut counts = Counts {
            requests: n,
            ..Counts::default()
        };
        for _ in 0..n {
            counts.latency.record(Duration::from_micros(latency_us));
        }
        counts
    };
    let slower = |latency_us| {
        let mut stage = Stage::canary();
        stage
            .see(&micros(50, latency_us), &micros(450, 50))
            .outcome()
    };
    assert_eq!(slower(900), Outcome::Pass);
    assert_eq!(slower(1_500), Outcome::Fail);
}

#[test]
fn errors_pass_on_proof_alone_if_the_plan_asks_for_it() {
    let policy = || Policy {
        prove_errors: true,
        ..policy()
    };
    let outcome = |candidate: &Counts, stable: &Counts| {
        let mut stage = Stage::of(policy(), &Baseline::Concurrent, false);
        stage.see(candidate, stable).outcome()
    };
    assert_eq!(outcome(&good(50), &good(450)), Outcome::Insufficient);
    let (candidate, stable) = (counts(5_000, 10, 5), counts(5_000, 15, 5));
    assert_eq!(outcome(&candidate, &stable), Outcome::Pass);
}

#[test]
fn agreement_is_judged_in_shadow_only_and_passes_when_it_is_certain() {
    let pairs = |compared, agreed| Counts {
        compared,
        agreed,
        ..good(compared)
    };
    let outcome = |shadow, seen: &Counts| {
        let mut stage = Stage::of(policy(), &Baseline::Concurrent, shadow);
        stage.see(seen, &good(100)).outcome()
    };
    assert_eq!(outcome(false, &pairs(100, 50)), Outcome::Pass);
    assert_eq!(outcome(true, &pairs(100, 50)), Outcome::Fail);
    assert_eq!(outcome(true, &pairs(100, 96)), Outcome::Insufficient);
    assert_eq!(outcome(true, &pairs(100, 99)), Outcome::Pass);
}

#[test]
fn a_late_breach_is_found_however_good_the_hours_before_were() {
    let mut stage = Stage::canary();
    for _ in 0..1_000 {
        stage.see(&good(10), &good(100));
    }
    assert_eq!(stage.outcome(), Outcome::Pass);
    stage.see(&counts(10, 5, 5), &good(100));
    stage.see(&counts(10, 5, 5), &good(100));
    assert!(
        stage
            .failures()
            .contains(&"error rate at most 2 x stable".to_owned())
    );
}

#[test]
fn a_slowness_of_both_versions_is_not_the_candidates() {
    let mut stage = Stage::canary();
    stage.see(&good(50), &good(450));
    for _ in 0..10 {
        stage.see(&counts(50, 0, 40), &counts(450, 0, 40));
        assert_eq!(stage.outcome(), Outcome::Pass);
    }
    for _ in 0..3 {
        stage.see(&counts(50, 0, 80), &counts(450, 0, 40));
    }
    let slow = "latency at most 1.5 x stable at every quantile";
    assert!(stage.failures().iter().any(|rule| rule.starts_with(slow)));
}

#[test]
fn what_was_recorded_of_stable_stands_in_where_the_candidate_answers_everything() {
    let recorded = Stage::canary().see(&good(50), &good(50)).verdict();
    let baseline = Baseline::Remembered(&recorded.findings);
    let mut stage = Stage::of(policy(), &baseline, false);
    stage.see(&good(100), &Counts::default());
    assert_eq!(stage.outcome(), Outcome::Pass);
    stage.see(&counts(100, 0, 50), &Counts::default());
    assert_eq!(
        stage.failures(),
        ["p95 ms at most 1.5 x what stable's was before"]
    );
}

#[test]
fn one_bad_node_is_blamed_and_two_are_a_bad_candidate() {
    let bad = |upto| move |n| (counts(20, if n <= upto { 10 } else { 0 }, 5), good(180));
    let mut one = Stage::canary();
    one.interval(bad(1), 4).interval(bad(1), 4);
    let verdict = one.verdict();
    assert_eq!(verdict.outcome, Outcome::Insufficient, "{verdict:#?}");
    assert_eq!(verdict.blamed, Some(node(1)));
    let mut two = Stage::canary();
    two.interval(bad(2), 4).interval(bad(2), 4);
    assert_eq!((two.outcome(), two.verdict().blamed), (Outcome::Fail, None));
    let mut only = Stage::canary();
    only.interval(bad(1), 1).interval(bad(1), 1);
    assert_eq!(only.outcome(), Outcome::Fail);
}

#[test]
fn a_slow_node_is_blamed_among_many() {
    let slow = |n| (counts(20, 0, if n == 7 { 90 } else { 5 }), good(180));
    let mut stage = Stage::canary();
    for _ in 0..8 {
        stage.interval(slow, 9);
    }
    assert_eq!(stage.verdict().blamed, Some(node(7)));
}

/// Intervals until the candidate fails; nobody must be blamed before.
fn fails_after(seen: impl Fn(u64, u64) -> (Counts, Counts)) -> u64 {
    let mut stage = Stage::canary();
    for at in 0..2_000 {
        stage.interval(|n| seen(at, n), 4);
        let verdict = judge(&stage.policy, &stage.evidence());
        assert_eq!(verdict.blamed, None, "after {at}: {verdict:#?}");
        if verdict.outcome == Outcome::Fail {
            return at;
        }
    }
    panic!("it never fails");
}

#[test]
fn a_bad_candidate_is_not_blamed_on_the_node_where_it_happened_to_fail_first() {
    let order = [1, 1, 2, 1];
    let failing = |at: u64| order.get(at as usize).copied().unwrap_or(1 + at % 4);
    let errors = |at, n| u64::from(failing(at) == n);
    fails_after(|at, n| (counts(5, errors(at, n), 5), good(45)));
}

#[test]
fn evidence_that_took_long_to_come_is_still_there_without_one_group() {
    let slow = |at: u64, n: u64| (4 * at + n).is_multiple_of(397);
    let ms = |at, n| if slow(at, n) { 90 } else { 5 };
    let intervals = fails_after(|at, n| (counts(1, 0, ms(at, n)), good(9)));
    assert!(
        intervals > 300,
        "{intervals}: too soon for much to be put together"
    );
}

#[test]
fn a_segment_that_breaks_fails_the_candidate_though_the_rest_hides_it() {
    let mut stage = Stage::canary();
    let segment = |name: &str, counts: Counts| Segment {
        name: name.to_owned(),
        counts,
    };
    for _ in 0..6 {
        for n in 1..=2 {
            let candidate = [segment("eu", counts(20, 5, 5)), segment("us", good(2_000))];
            let stable = [
                segment("eu", good(180)),
                segment("us", counts(18_000, 300, 5)),
            ];
            let (x, y) = (counts(2_020, 5, 5), counts(18_180, 300, 5));
            stage.watch.see(&node(n), Arm::Candidate, &x, &candidate);
            stage.watch.see(&node(n), Arm::Stable, &y, &stable);
        }
        stage.watch.close();
    }
    let verdict = stage.verdict();
    let decisive: Vec<_> = verdict.decisive().map(|f| f.segment.as_deref()).collect();
    assert_eq!(
        (verdict.outcome, decisive),
        (Outcome::Fail, vec![Some("eu")])
    );
}

#[test]
fn segments_beyond_the_bound_are_one() {
    let mut stage = Stage::canary();
    for n in 0..200 {
        let segment = Segment {
            name: format!("s{n}"),
            counts: good(1),
        };
        stage
            .watch
            .see(&node(1), Arm::Candidate, &good(1), &[segment]);
    }
    stage.watch.close();
    assert_eq!(stage.watch.segments.len(), 65);
    let other = &stage.watch.segments["other"].seen.candidate;
    assert_eq!(other.requests, 136);
}

#[test]
fn failures_of_the_crash_class_act_at_once_if_two_nodes_see_them() {
    let outcome = |nodes, failed| loads(Loads { nodes, failed }).outcome;
    assert_eq!(outcome(3, 1), Outcome::Pass);
    assert_eq!(outcome(3, 2), Outcome::Fail);
    assert_eq!(outcome(1, 1), Outcome::Fail);
    assert_eq!(outcome(0, 0), Outcome::Pass);
    let outcome = |nodes, opened: &[u64]| {
        let opened = opened.iter().map(|n| node(*n)).collect();
        breakers(&Breakers { nodes, opened }).map(|finding| finding.outcome)
    };
    assert_eq!(outcome(3, &[]), None);
    assert_eq!(outcome(3, &[1]), Some(Outcome::Pass));
    assert_eq!(outcome(3, &[1, 2]), Some(Outcome::Fail));
    assert_eq!(outcome(1, &[1]), Some(Outcome::Fail));
}

/// A stage with what came of answers.
fn with_outcomes(
    policy: Policy,
    ours: impl Fn(&mut Counts),
    theirs: impl Fn(&mut Counts),
) -> Stage {
    let mut stage = Stage::of(policy, &Baseline::Concurrent, false);
    let (mut candidate, mut stable) = (good(50), good(450));
    ours(&mut candidate);
    theirs(&mut stable);
    stage.see(&candidate, &stable);
    stage
}

#[test]
fn accuracy_fails_when_it_is_proven_and_holds_without_labels() {
    let policy = || Policy {
        accuracy_min: Some(0.9),
        f1_min: Some(0.8),
        ..policy()
    };
    let labelled = |right: u64| {
        move |counts: &mut Counts| {
            let class = |correct| ClassCounts {
                predicted: 25,
                actual: 25,
                correct,
            };
            let classes = [("cat", class(right)), ("dog", class(right))];
            let classes = classes.map(|(name, class)| (name.to_owned(), class));
            counts.quality.labelled = classes.into_iter().collect();
        }
    };
    let outcome = |right| with_outcomes(policy(), labelled(right), |_| {}).outcome();
    assert_eq!(outcome(25), Outcome::Pass);
    assert_eq!(outcome(22), Outcome::Insufficient);
    assert_eq!(outcome(10), Outcome::Fail);
    assert_eq!(
        with_outcomes(policy(), |_| {}, |_| {}).outcome(),
        Outcome::Insufficient
    );
}

#[test]
fn a_kpi_fails_when_its_drop_is_proven() {
    let policy = || Policy {
        kpi_drop_max: [("spend".to_owned(), 0.1)].into(),
        ..policy()
    };
    let spend = |mean: f64| {
        move |counts: &mut Counts| {
            let mut spend = Moments::default();
            (0..500).for_each(|n| spend.record(mean + f64::from(n % 3 - 1)));
            counts.quality.kpis.insert("spend".to_owned(), spend);
        }
    };
    let outcome = |mean| with_outcomes(policy(), spend(mean), spend(10.0)).outcome();
    assert_eq!(outcome(10.0), Outcome::Pass);
    assert_eq!(outcome(7.0), Outcome::Fail);
    assert_eq!(outcome(8.99), Outcome::Insufficient);
}

#[test]
fn inputs_that_the_candidate_was_not_trained_for_hold() {
    let policy = Policy {
        drift_max: Some(0.15),
        ..policy()
    };
    let outcome = |ages: [u64; 2]| {
        let seen = |counts: &mut Counts| {
            counts.quality.scores = vec![50, 50];
            counts.quality.features = [("age".to_owned(), ages.to_vec())].into();
        };
        let mut stage = with_outcomes(policy.clone(), seen, seen);
        stage.watch.trained_on = [("age".to_owned(), vec![5_000, 5_000])].into();
        stage.outcome()
    };
    assert_eq!(outcome([100, 100]), Outcome::Pass);
    assert_eq!(outcome([190, 10]), Outcome::Insufficient);
    assert_eq!(outcome([0, 0]), Outcome::Insufficient);
}

#[test]
fn scores_that_drift_hold_and_never_fail() {
    let policy = || Policy {
        drift_max: Some(0.15),
        ..policy()
    };
    let scores =
        |low: u64, high: u64| move |counts: &mut Counts| counts.quality.scores = vec![low, high];
    let outcome =
        |low, high| with_outcomes(policy(), scores(low, high), scores(250, 250)).outcome();
    assert_eq!(outcome(50, 50), Outcome::Pass);
    assert_eq!(outcome(95, 5), Outcome::Insufficient);
}
