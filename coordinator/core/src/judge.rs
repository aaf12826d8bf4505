//! The judge: is it proven that the candidate breaks a rule?
//!
//! Whoever looks at a threshold every second, or repeats a test until it fires, takes good
//! versions back: of two equal versions the worse one changes all the time. Here every rule of a
//! [`Policy`] is a hypothesis with an e-process against it ([`anystart`]), whose error is
//! bounded *however often one looks*. All of them together fail a good candidate with
//! probability [`Policy::alpha`] at most, and a bad one as soon as the evidence is there, be it
//! after ten requests.
//!
//! A rule passes when its estimate keeps to it and rests on `min_requests`, and holds the gate
//! otherwise: missing data is neither a pass nor a failure. A shadow's latency holds the gate and
//! never fails a candidate: it runs at low priority.
//!
//! One bad node is not a bad candidate. When any one group of nodes is left out ([`history`]),
//! the rest must still prove it at 5 %. If next to no evidence is left, the verdict blames the
//! node that differs most, and the rollout goes on without it. In between it waits.
//!
//! | room | what |
//! | --- | --- |
//! | [`rules`] | what a policy asks for, and each rule's part of alpha |
//! | [`watch`] | counts, node by node, and the tests over them |
//! | [`battery`], [`history`] | one test for each rule; what was seen, group by group |
//! | [`rare`], [`exact`], [`latency`], [`limit`], [`agreement`] | the tests |
//! | [`outcomes`] | labels, KPIs, drift, bias; [`drift`], [`calibration`], [`labels`], [`kpi`], [`bias`] |
//!
//! Pure: a verdict is a function of policy and evidence, and is recomputed from its record.

pub mod agreement;
pub mod anystart;
pub mod battery;
pub mod bias;
pub mod calibration;
#[cfg(test)]
mod draws;
pub mod drift;
pub mod exact;
pub mod history;
pub mod kpi;
pub mod labels;
pub mod latency;
pub mod limit;
#[cfg(test)]
mod oracles;
pub mod outcomes;
pub mod rare;
pub mod rules;
pub mod watch;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_shared::ids::NodeId;
use rollcall_shared::plan::Policy;
use rollcall_shared::report::Counts;
use rollcall_shared::verdict::{Finding, Metric, Outcome, Test, Verdict};
use serde::{Deserialize, Serialize};

use self::rules::{Kind, Rule};
use self::watch::{Line, Watch};

/// How certain agreement, and errors that must be proven, are to pass. A wrong pass leads to the next stage, where the
/// candidate is judged again; a wrong failure ends the rollout.
const PASS_ALPHA: f64 = 0.05;

/// What is left of the evidence without the group of nodes that says most must still prove the
/// rule broken, with this probability of being wrong: it bounds how often one bad node *and*
/// chance on the others take a good candidate back. Not `alpha`: that would ask a fleet of two
/// nodes for twice the evidence, and it is only asked once `alpha` is met with all nodes.
const CORROBORATION_ALPHA: f64 = 0.05;

/// An e-value below this is next to no evidence; when no more is left without a group, one of
/// its nodes alone is to blame. In between it takes more requests to tell: even where all nodes
/// are as bad as each other, chance gives one group many of the first few failures.
const NEXT_TO_NOTHING: f64 = 2.0;

/// Independent tries, and how many of them were hits: failures, answers above an edge,
/// agreements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    /// Tries.
    pub n: u64,
    /// Hits among them; never more than the tries.
    pub hits: u64,
}

/// What a candidate is judged on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence<'a> {
    /// How loading it went.
    pub loads: Loads,
    /// Nodes that had it, and those of them whose circuit breaker took it out of service.
    pub breakers: Breakers,
    /// What was seen of it in this stage; `None` before the first stage.
    pub watch: Option<Cow<'a, Watch>>,
}

/// Nodes that tried to load the candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loads {
    /// Nodes that may try it.
    pub nodes: u64,
    /// Of these, nodes that gave up on it.
    pub failed: u64,
}

/// Circuit breakers: failures one after another, told at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breakers {
    /// Nodes that may try the candidate.
    pub nodes: u64,
    /// Of these, nodes whose breaker opened in this stage.
    pub opened: BTreeSet<NodeId>,
}

impl Evidence<'_> {
    /// What a record keeps of it: enough for the same verdict.
    #[must_use]
    pub fn abridged(&self) -> Evidence<'static> {
        Evidence {
            loads: self.loads,
            breakers: self.breakers.clone(),
            watch: self.watch.as_ref().map(|w| Cow::Owned(w.abridged())),
        }
    }
}

/// Holds the evidence to the policy.
#[must_use]
pub fn judge(policy: &Policy, evidence: &Evidence<'_>) -> Verdict {
    let mut findings = vec![loads(evidence.loads)];
    let mut blamed = None;
    if let Some(watch) = evidence.watch.as_deref() {
        findings.extend(breakers(&evidence.breakers));
        for (index, rule) in watch.rules.iter().enumerate() {
            let bench = Bench {
                policy,
                watch,
                line: &watch.all,
                segment: None,
            };
            let (finding, blames) = bench.hold(index, rule);
            findings.push(finding);
            blamed = blamed.or(blames);
            let Some(bench) = Bench::of_loudest_segment(policy, watch, index, rule) else {
                continue;
            };
            let (finding, blames) = bench.hold(index, rule);
            // A segment can break a rule, and never holds the gate.
            if finding.outcome == Outcome::Fail || blames.is_some() {
                findings.push(finding);
                blamed = blamed.or(blames);
            }
        }
        findings.extend(outcomes::findings(policy, watch));
    }
    Verdict {
        blamed,
        ..Verdict::of(findings)
    }
}

/// Whether a verdict follows from the evidence in its record. Numbers may differ in the last
/// digits that a record keeps.
#[must_use]
pub fn follows(policy: &Policy, evidence: &Evidence<'_>, verdict: &Verdict) -> bool {
    let again = judge(policy, evidence);
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
    let alike = |a: &Finding, b: &Finding| {
        let evidence = |f: &Finding| f.test.as_ref().map_or(0.0, |test| test.log_e);
        (a.metric, a.outcome, &a.rule, &a.segment) == (b.metric, b.outcome, &b.rule, &b.segment)
            && near(evidence(a), evidence(b))
    };
    again.outcome == verdict.outcome
        && again.findings.len() == verdict.findings.len()
        && again
            .findings
            .iter()
            .zip(&verdict.findings)
            .all(|(a, b)| alike(a, b))
}

/// One bad node is not a bad candidate; two are, and so is the only one.
fn loads(loads: Loads) -> Finding {
    let rule = "nodes fail to load it";
    of_nodes(Metric::LoadFailures, loads.failed, loads.nodes, rule)
}

/// Only told where one opened: there is nothing to wait for.
fn breakers(breakers: &Breakers) -> Option<Finding> {
    let opened = breakers.opened.len() as u64;
    let rule = "nodes take it out of service after failures one after another";
    (opened > 0).then(|| of_nodes(Metric::Breakers, opened, breakers.nodes, rule))
}

fn of_nodes(metric: Metric, failed: u64, nodes: u64, rule: &str) -> Finding {
    let limit = if nodes == 1 { 1 } else { 2 };
    Finding {
        metric,
        outcome: if failed >= limit {
            Outcome::Fail
        } else {
            Outcome::Pass
        },
        candidate: Some(count(failed)),
        stable: None,
        threshold: count(limit),
        candidate_samples: nodes,
        stable_samples: 0,
        rule: format!("fewer than {limit} {rule}"),
        segment: None,
        test: None,
    }
}

/// Where a rule is held against all requests, or those of one segment.
struct Bench<'a> {
    policy: &'a Policy,
    watch: &'a Watch,
    line: &'a Line,
    segment: Option<&'a str>,
}

/// A value and the requests that it rests on.
#[derive(Clone, Copy)]
struct Measured {
    value: Option<f64>,
    samples: u64,
}

impl<'a> Bench<'a> {
    /// The segment with the most evidence against a multiple; the worst decides.
    fn of_loudest_segment(
        policy: &'a Policy,
        watch: &'a Watch,
        index: usize,
        rule: &Rule,
    ) -> Option<Self> {
        if rule.kind != Kind::Multiple {
            return None;
        }
        let loudness = |line: &Line| line.battery.log_e(index);
        let loudest = watch
            .segments
            .iter()
            .max_by(|a, b| loudness(a.1).total_cmp(&loudness(b.1)))?;
        Some(Self {
            policy,
            watch,
            line: loudest.1,
            segment: Some(loudest.0),
        })
    }

    /// The finding, and the node that alone is to blame.
    fn hold(&self, index: usize, rule: &Rule) -> (Finding, Option<NodeId>) {
        let policy = self.policy;
        let seen = measure(rule.metric, &self.line.seen.candidate);
        let stable = match rule.kind {
            Kind::Limit => None,
            Kind::Multiple => Some(measure(rule.metric, &self.line.seen.stable)),
            Kind::Remembered { stable, samples } => Some(Measured {
                value: Some(stable),
                samples,
            }),
        };
        let threshold = rule.threshold(policy, stable.and_then(|s| s.value));
        // A shadow runs at low priority: what it takes says as much of the host as of the version.
        let is_fair = !self.watch.shadow || !is_latency(rule.metric);
        let (test, worst) = self.test(index, rule, is_fair);
        let proven = is_fair && test.log_e >= test.log_e_needed;
        let left_below = |e: f64| {
            let left = test.log_e_without_worst;
            left.is_some_and(|left| left < e.ln())
        };
        let alone = left_below(1.0 / CORROBORATION_ALPHA);
        let blamed = worst
            .filter(|_| proven && left_below(NEXT_TO_NOTHING))
            .and_then(|group| self.watch.culprit(self.line, index, group));
        let keeps = seen.value.is_some_and(|value| match rule.metric {
            Metric::Agreement => self.agreement_is_certain(rule.most),
            Metric::ErrorRate if policy.prove_errors => {
                let kept = self.line.battery.log_e_kept(index);
                value <= threshold && kept.is_none_or(|log_e| log_e >= -PASS_ALPHA.ln())
            }
            _ => value <= threshold,
        });
        let enough = seen.samples >= policy.min_requests
            && (rule.kind != Kind::Multiple
                || stable.is_some_and(|s| s.samples >= policy.min_requests));
        let outcome = if proven && !alone {
            Outcome::Fail
        } else if keeps && enough && !proven {
            Outcome::Pass
        } else {
            Outcome::Insufficient
        };
        let finding = Finding {
            metric: rule.metric,
            outcome,
            candidate: seen.value,
            stable: stable.and_then(|s| s.value),
            threshold,
            candidate_samples: seen.samples,
            stable_samples: stable.map_or(0, |s| s.samples),
            rule: rule.to_string(),
            segment: self.segment.map(str::to_owned),
            test: Some(test),
        };
        (finding, blamed)
    }

    /// The evidence, and the group of nodes that says most if there is enough of it and a verdict
    /// may rest on it.
    fn test(&self, index: usize, rule: &Rule, is_fair: bool) -> (Test, Option<usize>) {
        let part = rule.part(&self.watch.rules, self.segment.is_some());
        let log_e = self.line.battery.log_e(index);
        let log_e_needed = -(self.policy.alpha * part).ln();
        let worst = (is_fair && log_e >= log_e_needed)
            .then(|| {
                self.line
                    .without_worst(self.policy, &self.watch.rules, index)
            })
            .flatten();
        let test = Test {
            log_e,
            log_e_needed,
            log_e_without_worst: worst.map(|(left, _)| left),
        };
        (test, worst.map(|(_, group)| group))
    }

    fn agreement_is_certain(&self, least: f64) -> bool {
        let seen = &self.line.seen.candidate;
        agreement::interval(seen.agreed, seen.compared, PASS_ALPHA).0 >= least
    }
}

const fn is_latency(metric: Metric) -> bool {
    matches!(
        metric,
        Metric::LatencyP50 | Metric::LatencyP95 | Metric::LatencyP99
    )
}

fn measure(metric: Metric, counts: &Counts) -> Measured {
    let quantile = |q| Measured {
        value: counts.latency.quantile(q).map(millis),
        samples: counts.latency.count(),
    };
    match metric {
        Metric::ErrorRate => Measured {
            value: share(counts.failures(), counts.requests),
            samples: counts.requests,
        },
        Metric::Agreement => Measured {
            value: share(counts.agreed, counts.compared),
            samples: counts.compared,
        },
        Metric::LatencyP50 => quantile(0.5),
        Metric::LatencyP99 => quantile(0.99),
        _ => quantile(0.95),
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| count(part) / count(whole))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
const fn count(n: u64) -> f64 {
    n as f64
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests;
