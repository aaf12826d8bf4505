//! `rollcall rollout explain`: why a rollout is where it is. Each verdict is recomputed
//! from the numbers in its findings and the limits in its plan, so that a reader need
//! not take the coordinator's word for it.

use rollcall_coordinator_core::input::Actor;
use rollcall_coordinator_core::judge;
use rollcall_coordinator_core::record::Cause;
use rollcall_coordinator_core::view::{RolloutView, Step};
use rollcall_shared::verdict::Verdict;
use serde_json::json;

use super::output::{Output, or_dash, table};
use super::rollout::{step_text, waiting_text};
use super::{CliError, receipts};

pub(super) fn run(rollout: &RolloutView, output: &Output) -> Result<(), CliError> {
    let policy = &rollout.plan.policy;
    let differs: Vec<u64> = rollout
        .history
        .iter()
        .filter(|entry| {
            verdict_of(&entry.step).is_some_and(|verdict| !judge::follows(policy, verdict))
        })
        .map(|entry| entry.seq)
        .collect();
    let json = json!({
        "rollout": rollout.id,
        "state": rollout.state,
        "history": rollout.history,
        "verdict": rollout.verdict,
        "waiting_on": rollout.waiting_on,
        "rollback": rollout.rollback,
        "recomputed": differs.is_empty(),
    });
    output.show(&json, |_| text(rollout))?;
    if differs.is_empty() {
        Ok(())
    } else {
        Err(CliError::Failed(format!(
            "the verdicts of records {differs:?} do not follow from their numbers: `rollcall audit verify`"
        )))
    }
}

const fn verdict_of(step: &Step) -> Option<&Verdict> {
    match step {
        Step::StageEntered { verdict, .. } => verdict.as_ref(),
        Step::Withdrawn {
            cause: Cause::Judge { verdict, .. },
            ..
        }
        | Step::Promoted { verdict }
        | Step::Finished { verdict } => Some(verdict),
        Step::Withdrawn { .. }
        | Step::Started
        | Step::Paused
        | Step::Resumed
        | Step::Approved { .. }
        | Step::Settled => None,
    }
}

fn text(rollout: &RolloutView) -> String {
    let mut text = String::new();
    for entry in &rollout.history {
        let by = actor(&entry.actor);
        text += &format!(
            "{}  record {}  {} {}\n",
            entry.at,
            entry.seq,
            by,
            step_text(&entry.step)
        );
        if let Some(verdict) = verdict_of(&entry.step) {
            let again = if judge::follows(&rollout.plan.policy, verdict) {
                "recomputed: the same"
            } else {
                "RECOMPUTED: DIFFERS"
            };
            text += &format!(
                "{}verdict {:?} ({again})\n\n",
                findings(verdict),
                verdict.outcome
            );
        }
    }
    if let Some(verdict) = rollout.verdict.as_ref().filter(|_| rollout.state.is_live()) {
        text += &format!(
            "\nNow: verdict {:?}\n{}",
            verdict.outcome,
            findings(verdict)
        );
    }
    if let Some(rollback) = &rollout.rollback {
        text += &format!("\n{}", receipts::summary(rollback));
    }
    for waiting in &rollout.waiting_on {
        text += &format!("waiting on {}\n", waiting_text(waiting));
    }
    text
}

/// The findings of a verdict, a row each.
pub(super) fn findings(verdict: &Verdict) -> String {
    let number = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.4}")));
    table(
        [
            "rule",
            "candidate",
            "stable",
            "threshold",
            "requests",
            "outcome",
        ],
        verdict.findings.iter().map(|finding| {
            [
                finding.rule.clone(),
                number(finding.candidate),
                number(finding.stable),
                format!("{:.4}", finding.threshold),
                format!("{}/{}", finding.candidate_samples, finding.stable_samples),
                format!("{:?}", finding.outcome),
            ]
        }),
    )
}

/// Who did something, in a word.
pub(super) fn actor(actor: &Actor) -> String {
    match actor {
        Actor::System => "coordinator".to_owned(),
        Actor::Operator { name, .. } => name.clone(),
        Actor::Agent { node } => node.to_string(),
    }
}

/// Why something was withdrawn, in words.
pub(super) fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Operator { actor, reason } => format!("{actor}: {reason}"),
        Cause::Judge { stage, verdict } => {
            let rules: Vec<_> = verdict
                .decisive()
                .map(|finding| finding.rule.clone())
                .collect();
            format!("the judge, in stage {stage}: {}", rules.join("; "))
        }
        Cause::Rejected { actor, note } => {
            format!(
                "rejected by {actor}{}",
                note.as_ref().map(|n| format!(": {n}")).unwrap_or_default()
            )
        }
        Cause::Adopted { node } => format!("{node} knew that it was withdrawn"),
    }
}

#[cfg(test)]
mod tests {
    use rollcall_coordinator_core::judge::{Baseline, Evidence, Loads, Recent, follows, judge};
    use rollcall_shared::plan::Preset;
    use rollcall_shared::report::Counts;
    use rollcall_shared::verdict::Outcome;

    use super::*;

    fn counts(requests: u64, errors: u64, micros: u64) -> Counts {
        let mut counts = Counts {
            requests,
            errors,
            failed_keys: errors,
            compared: requests,
            agreed: requests - errors,
            ..Counts::default()
        };
        for _ in errors..requests {
            counts
                .latency
                .record(std::time::Duration::from_micros(micros));
        }
        counts
    }

    #[test]
    fn every_verdict_of_the_judge_recomputes_and_a_changed_one_does_not() {
        let mut policy = Preset::Balanced.policy();
        policy.error_multiplier_max = Some(2.0);
        policy.latency_p99_max_ms = Some(50.0);
        let stable = counts(2_000, 10, 10_000);
        for (requests, errors, micros) in [
            (10, 0, 9_000),
            (2_000, 0, 9_000),
            (2_000, 15, 10_400),
            (2_000, 19, 14_000),
            (2_000, 400, 60_000),
        ] {
            let candidate = counts(requests, errors, micros);
            let verdict = judge(
                &policy,
                &Evidence {
                    candidate: Some(&candidate),
                    recent: Recent {
                        candidate: &candidate,
                        stable: &stable,
                    },
                    shadow: true,
                    baseline: Baseline::Concurrent(&stable),
                    loads: Loads {
                        nodes: 3,
                        failed: 0,
                    },
                },
            );
            assert!(follows(&policy, &verdict), "{verdict:?}");
            for i in 0..verdict.findings.len() {
                let mut changed = verdict.clone();
                changed.findings[i].outcome = match changed.findings[i].outcome {
                    Outcome::Pass | Outcome::Insufficient => Outcome::Fail,
                    Outcome::Fail => Outcome::Pass,
                };
                assert!(!follows(&policy, &Verdict::of(changed.findings)));
            }
        }
    }
}
