//! `rollcall rollout explain`: why a rollout is where it is. Each decision stands in the journal
//! behind what it was decided on; the verdict is computed from that again, here, by the judge's
//! own code, so that a reader need not take the coordinator's word for it.

use reqwest::Method;
use rollcall_coordinator_core::input::Actor;
use rollcall_coordinator_core::judge::{self, Breakers, Evidence, Loads};
use rollcall_coordinator_core::record::{Cause, Event, Record};
use rollcall_coordinator_core::view::{HistoryEntry, RolloutView, Step};
use rollcall_shared::plan::Policy;
use rollcall_shared::verdict::{Finding, Metric, Outcome, Verdict};
use serde_json::json;

use super::client::Client;
use super::output::{Output, or_dash, table};
use super::rollout::{step_text, waiting_text};
use super::{CliError, receipts};

/// A verdict of the past, computed again.
struct Recomputed {
    /// The record that it decided.
    seq: u64,
    evidence: Evidence<'static>,
    again: Verdict,
    follows: bool,
}

pub(super) async fn run(
    client: &Client,
    rollout: &RolloutView,
    output: &Output,
    recompute: bool,
) -> Result<(), CliError> {
    let mut recomputed = Vec::new();
    for entry in &rollout.history {
        if let Some(verdict) = verdict_of(&entry.step) {
            let evidence = evidence(client, rollout, entry.seq, verdict).await?;
            let policy = &rollout.plan.policy;
            recomputed.push(Recomputed {
                seq: entry.seq,
                again: judge::judge(policy, &evidence),
                follows: judge::follows(policy, &evidence, verdict),
                evidence,
            });
        }
    }
    let differs: Vec<u64> = recomputed
        .iter()
        .filter(|again| !again.follows)
        .map(|again| again.seq)
        .collect();
    let inputs = recomputed.iter().map(|again| {
        json!({ "record": again.seq, "evidence": again.evidence, "recomputed": again.again })
    });
    let json = json!({
        "rollout": rollout.id,
        "state": rollout.state,
        "policy": rollout.plan.policy,
        "history": rollout.history,
        "verdict": rollout.verdict,
        "waiting_on": rollout.waiting_on,
        "rollback": rollout.rollback,
        "inputs": inputs.collect::<Vec<_>>(),
        "recomputed": differs.is_empty(),
    });
    output.show(&json, |_| text(rollout, &recomputed, recompute))?;
    if differs.is_empty() {
        Ok(())
    } else {
        Err(CliError::Failed(format!(
            "the verdicts of records {differs:?} do not follow from what they were decided on: \
             `rollcall audit verify`"
        )))
    }
}

/// What a decision rests on: the record before it. While only loading is judged there is none,
/// as the verdict says it all.
async fn evidence(
    client: &Client,
    rollout: &RolloutView,
    seq: u64,
    verdict: &Verdict,
) -> Result<Evidence<'static>, CliError> {
    let before = seq.saturating_sub(1);
    let path = format!("/audit/records?from={before}&limit=1");
    let response = client.send(client.request(Method::GET, &path)).await?;
    let line = response.text().await.map_err(CliError::failed)?;
    let record: Option<Record> = serde_json::from_str(&line).ok();
    Ok(match record.map(|record| record.event) {
        Some(Event::Judged {
            rollout: of,
            evidence,
        }) if of == rollout.id => *evidence,
        _ => loading(verdict),
    })
}

fn loading(verdict: &Verdict) -> Evidence<'static> {
    let finding = verdict
        .findings
        .iter()
        .find(|finding| finding.metric == Metric::LoadFailures);
    let nodes = finding.map_or(0, |finding| finding.candidate_samples);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of nodes"
    )]
    let failed = finding.and_then(|f| f.candidate).unwrap_or_default() as u64;
    Evidence {
        loads: Loads { nodes, failed },
        breakers: Breakers::default(),
        watch: None,
    }
}

const fn verdict_of(step: &Step) -> Option<&Verdict> {
    match step {
        Step::StageEntered { verdict, .. } => verdict.as_ref(),
        Step::Withdrawn {
            cause: Cause::Judge { verdict, .. },
            ..
        }
        | Step::Barred { verdict, .. }
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

fn text(rollout: &RolloutView, recomputed: &[Recomputed], recompute: bool) -> String {
    let policy = &rollout.plan.policy;
    let mut text = format!(
        "alpha {}: the probability that a good candidate is taken back in a stage, however often \
         one looks\n\n",
        policy.alpha
    );
    for entry in &rollout.history {
        text += &step(entry);
        let Some(verdict) = verdict_of(&entry.step) else {
            continue;
        };
        text += &findings(policy, verdict);
        let again = recomputed.iter().find(|again| again.seq == entry.seq);
        let Some(again) = again else {
            continue;
        };
        let word = if again.follows {
            "recomputed: the same"
        } else {
            "RECOMPUTED: DIFFERS"
        };
        text += &format!("verdict {:?} ({word})\n", verdict.outcome);
        if recompute || !again.follows {
            text += &format!(
                "computed again from record {}: verdict {:?}\n{}",
                again.seq - 1,
                again.again.outcome,
                findings(policy, &again.again)
            );
        }
        text.push('\n');
    }
    if let Some(verdict) = rollout.verdict.as_ref().filter(|_| rollout.state.is_live()) {
        text += &format!(
            "\nNow: verdict {:?}\n{}",
            verdict.outcome,
            findings(policy, verdict)
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

fn step(entry: &HistoryEntry) -> String {
    let (at, seq, by) = (entry.at, entry.seq, actor(&entry.actor));
    format!("{at}  record {seq}  {by} {}\n", step_text(&entry.step))
}

/// The findings of a verdict, a row each, and what would change it.
pub(super) fn findings(policy: &Policy, verdict: &Verdict) -> String {
    let number = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.4}")));
    let rows = table(
        [
            "rule",
            "candidate",
            "stable",
            "threshold",
            "requests",
            "e-value",
            "outcome",
        ],
        verdict.findings.iter().map(|finding| {
            [
                rule(finding),
                number(finding.candidate),
                number(finding.stable),
                format!("{:.4}", finding.threshold),
                format!("{}/{}", finding.candidate_samples, finding.stable_samples),
                evidence_text(finding),
                format!("{:?}", finding.outcome),
            ]
        }),
    );
    let changes = verdict.decisive().filter_map(|f| change(policy, f));
    let blamed = verdict.blamed.as_ref().map(|node| {
        format!("  {node} alone is to blame: without its group of nodes the evidence is not there")
    });
    let lines: String = changes.chain(blamed).map(|line| line + "\n").collect();
    format!("{rows}{lines}")
}

/// A rule, and the segment that it is about.
pub(super) fn rule(finding: &Finding) -> String {
    let segment = finding.segment.as_ref();
    let segment = segment.map(|name| format!(", in segment {name:?}"));
    format!("{}{}", finding.rule, segment.unwrap_or_default())
}

/// E.g. `2.1e5 of 2.5e3`: seen, and from where on the rule is broken.
fn evidence_text(finding: &Finding) -> String {
    or_dash(finding.test.as_ref().map(|test| {
        let all = format!("{} of {}", power(test.log_e), power(test.log_e_needed));
        match test.log_e_without_worst {
            Some(left) => format!("{all}; {} without the loudest nodes", power(left)),
            None => all,
        }
    }))
}

/// `e^log`, however large.
fn power(log: f64) -> String {
    let tens = log / std::f64::consts::LN_10;
    let exponent = tens.floor();
    format!("{:.1}e{exponent:.0}", 10_f64.powf(tens - exponent))
}

/// What would change a finding.
fn change(policy: &Policy, finding: &Finding) -> Option<String> {
    let test = finding.test.as_ref();
    let what = match (finding.outcome, test) {
        (Outcome::Fail, Some(test)) => format!(
            "would not be broken with alpha under {}",
            power(policy.alpha.ln() + test.log_e_needed - test.log_e)
        ),
        (Outcome::Insufficient, _) if finding.candidate_samples < policy.min_requests => format!(
            "wants {} more of the candidate",
            policy.min_requests - finding.candidate_samples
        ),
        (Outcome::Insufficient, Some(test)) => format!(
            "is open: an estimate within the threshold passes, an e-value of {} breaks",
            power(test.log_e_needed)
        ),
        (Outcome::Pass | Outcome::Fail | Outcome::Insufficient, _) => return None,
    };
    Some(format!("  {:?} {what}", rule(finding)))
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
            let rules: Vec<_> = verdict.decisive().map(rule).collect();
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
    use rollcall_shared::plan::Preset;
    use rollcall_shared::verdict::Test;

    use super::*;

    fn finding(outcome: Outcome, log_e: f64) -> Finding {
        Finding {
            metric: Metric::ErrorRate,
            outcome,
            candidate: Some(0.1),
            stable: Some(0.01),
            threshold: 0.015,
            candidate_samples: 2_000,
            stable_samples: 9_000,
            rule: "error rate at most 1.5 x stable".to_owned(),
            segment: Some("eu".to_owned()),
            test: Some(Test {
                log_e,
                log_e_needed: 2_500_f64.ln(),
                log_e_without_worst: Some(log_e / 2.0),
            }),
        }
    }

    #[test]
    fn a_failure_says_how_certain_it_is_and_what_would_change_it() {
        let policy = Preset::Balanced.policy();
        let broken = finding(Outcome::Fail, 25e6_f64.ln());
        let told = findings(&policy, &Verdict::of(vec![broken]));
        assert!(
            told.contains("2.5e7 of 2.5e3; 5.0e3 without the loudest nodes"),
            "{told}"
        );
        assert!(told.contains("in segment \"eu\""), "{told}");
        assert!(
            told.contains("would not be broken with alpha under 1.0e-7"),
            "{told}"
        );
    }

    #[test]
    fn what_is_open_says_what_it_waits_for() {
        let policy = Preset::Balanced.policy();
        let open = finding(Outcome::Insufficient, 3.0);
        let told = findings(&policy, &Verdict::of(vec![open.clone()]));
        assert!(told.contains("an e-value of 2.5e3 breaks"), "{told}");
        let few = Finding {
            candidate_samples: 400,
            ..open
        };
        let told = findings(&policy, &Verdict::of(vec![few]));
        assert!(told.contains("wants 600 more"), "{told}");
    }

    #[test]
    fn a_verdict_on_loading_alone_recomputes_from_itself() {
        let policy = Preset::Balanced.policy();
        for (nodes, failed) in [(0, 0), (3, 1), (3, 2), (1, 1)] {
            let evidence = Evidence {
                loads: Loads { nodes, failed },
                breakers: Breakers::default(),
                watch: None,
            };
            let verdict = judge::judge(&policy, &evidence);
            assert!(judge::follows(&policy, &loading(&verdict), &verdict));
            let mut changed = verdict;
            changed.findings[0].outcome = Outcome::Insufficient;
            assert!(!judge::follows(
                &policy,
                &evidence,
                &Verdict::of(changed.findings)
            ));
        }
    }
}
