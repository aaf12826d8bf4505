//! `rollcall rollout`: a candidate's trip.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use reqwest::Method;
use rollcall_coordinator_core::view::{PlanPreview, RolloutPhase, RolloutView, Step, WaitingOn};
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::time::display_duration;
use rollcall_shared::verdict::Verdict;

use super::CliError;
use super::client::Client;
use super::output::{Output, fields, joined, line, or_dash, table};
use super::{explain, receipts};
use crate::http::rollouts::{ActionBody, Watched};
use crate::metrics::phase_name;

/// How often, and how long apart, `watch` looks for a coordinator that restarts.
const RETRIES: u32 = 15;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Rollouts of versions.
#[derive(Debug, Subcommand)]
pub(super) enum Rollout {
    /// Begin a rollout by a plan.
    Start {
        /// The plan (TOML).
        plan: PathBuf,
        /// Say who would get what and when; change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List rollouts.
    List {
        /// Of one model only.
        #[arg(long)]
        model: Option<ModelName>,
    },
    /// One rollout: where it is, and what it waits for.
    Show {
        /// E.g. r-7.
        rollout: RolloutId,
    },
    /// Follow a rollout to its end. Exit code 1 when it is withdrawn.
    Watch {
        /// E.g. r-7.
        rollout: RolloutId,
    },
    /// Who answered the withdrawal of a rollout, and how fast.
    Receipts {
        /// E.g. r-7.
        rollout: RolloutId,
        /// Show every node, not only those without a receipt and the slowest.
        #[arg(long)]
        all: bool,
    },
    /// Stay in the stage; breaches still withdraw.
    Pause {
        /// E.g. r-7.
        rollout: RolloutId,
    },
    /// Go on.
    Resume {
        /// E.g. r-7.
        rollout: RolloutId,
    },
    /// Enter the next stage without waiting; never past a failure or an approval.
    Advance {
        /// E.g. r-7.
        rollout: RolloutId,
    },
    /// Approve the gate before the next stage.
    Approve {
        /// E.g. r-7.
        rollout: RolloutId,
        /// The role in whose name, as the plan has it.
        #[arg(long)]
        gate: String,
        /// Why.
        #[arg(long)]
        note: Option<String>,
    },
    /// End the rollout: withdraws the candidate.
    Reject {
        /// E.g. r-7.
        rollout: RolloutId,
        /// Why.
        #[arg(long)]
        note: Option<String>,
    },
    /// Every decision with its evidence, recomputed.
    Explain {
        /// E.g. r-7.
        rollout: RolloutId,
        /// Show the verdicts that come of the evidence here and now, too
        #[arg(long)]
        recompute: bool,
    },
}

impl Rollout {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let nothing = ActionBody::default();
        match self {
            Self::Start { plan, dry_run } => start(client, output, plan, dry_run).await,
            Self::List { model } => {
                let filter = model
                    .map(|model| format!("?model={model}"))
                    .unwrap_or_default();
                let rollouts: Vec<RolloutView> = client.get(&format!("/rollouts{filter}")).await?;
                output.show(&rollouts, |rollouts| list_table(rollouts))
            }
            Self::Show { rollout } => output.show(&fetch(client, rollout).await?, text),
            Self::Receipts { rollout, all } => {
                let view = client.get(&format!("/rollouts/{rollout}/rollback")).await?;
                output.show(&view, |view| receipts::text(view, all))
            }
            Self::Watch { rollout } => watch(client, output, rollout).await,
            Self::Pause { rollout } => act(client, output, rollout, "pause", nothing).await,
            Self::Resume { rollout } => act(client, output, rollout, "resume", nothing).await,
            Self::Advance { rollout } => act(client, output, rollout, "advance", nothing).await,
            Self::Approve {
                rollout,
                gate,
                note,
            } => {
                let body = ActionBody {
                    gate: Some(gate),
                    note,
                };
                act(client, output, rollout, "approve", body).await
            }
            Self::Reject { rollout, note } => {
                act(
                    client,
                    output,
                    rollout,
                    "reject",
                    ActionBody { gate: None, note },
                )
                .await
            }
            Self::Explain { rollout, recompute } => {
                let view = fetch(client, rollout).await?;
                explain::run(client, &view, output, recompute).await
            }
        }
    }
}

async fn fetch(client: &Client, rollout: RolloutId) -> Result<RolloutView, CliError> {
    client.get(&format!("/rollouts/{rollout}")).await
}

async fn start(
    client: &Client,
    output: &Output,
    plan: PathBuf,
    dry_run: bool,
) -> Result<(), CliError> {
    let text = std::fs::read_to_string(&plan)
        .map_err(|error| CliError::Failed(format!("{}: {error}", plan.display())))?;
    let request = client
        .request(Method::POST, &format!("/rollouts?dry_run={dry_run}"))
        .header("content-type", "application/toml")
        .body(text);
    if dry_run {
        let preview: PlanPreview = client.json(request).await?;
        return output.show(&preview, preview_text);
    }
    let rollout: RolloutView = client.json(request).await?;
    output.show(&rollout, |rollout| {
        format!(
            "Started {}: {}@{}. Follow it: rollcall rollout watch {}",
            rollout.id, rollout.model, rollout.candidate, rollout.id
        )
    })
}

async fn act(
    client: &Client,
    output: &Output,
    rollout: RolloutId,
    action: &str,
    body: ActionBody,
) -> Result<(), CliError> {
    let view: RolloutView = client
        .post(&format!("/rollouts/{rollout}/{action}"), &body)
        .await?;
    output.show(&view, one_line)
}

/// Prints a line whenever something changed, to the rollout's end.
async fn watch(client: &Client, output: &Output, rollout: RolloutId) -> Result<(), CliError> {
    let (mut after, mut shown, mut failures) = (None::<u64>, String::new(), 0);
    loop {
        let since = after
            .map(|change| format!("?after={change}"))
            .unwrap_or_default();
        let watched = client
            .get::<Watched>(&format!("/rollouts/{rollout}/watch{since}"))
            .await;
        let watched = match watched {
            Ok(watched) => watched,
            Err(CliError::Unreachable { .. }) if after.is_some() && failures < RETRIES => {
                failures += 1;
                tokio::time::sleep(RETRY_AFTER).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        (after, failures) = (Some(watched.change), 0);
        let view = watched.rollout;
        let now = one_line(&view);
        if now != shown {
            output.show(&view, |_| now.clone())?;
            shown = now;
        }
        if !view.state.is_live() {
            return match view.state {
                RolloutPhase::Withdrawn => Err(CliError::Failed(format!(
                    "{rollout} was withdrawn: `rollcall rollout explain {rollout}` says why"
                ))),
                _ => Ok(()),
            };
        }
    }
}

/// Where a rollout is, without what changes every moment.
fn one_line(view: &RolloutView) -> String {
    let waiting = joined(view.waiting_on.iter().map(waiting_kind));
    format!(
        "{} {}@{} {} {}; waiting on: {waiting}",
        view.id,
        view.model,
        view.candidate,
        phase_name(view.state),
        view.stage_name.as_deref().unwrap_or("-"),
    )
}

fn waiting_kind(waiting: &WaitingOn) -> String {
    match waiting {
        WaitingOn::Hold { .. } => "hold".to_owned(),
        WaitingOn::Samples { metric, .. } => format!("samples for {metric}"),
        WaitingOn::Evidence { metric, .. } => format!("evidence for {metric}"),
        WaitingOn::Nodes { .. }
        | WaitingOn::NoNodes
        | WaitingOn::Approval { .. }
        | WaitingOn::Paused
        | WaitingOn::CandidateFailed { .. } => waiting_text(waiting),
    }
}

/// What a rollout waits for, in words.
pub(super) fn waiting_text(waiting: &WaitingOn) -> String {
    match waiting {
        WaitingOn::Hold { left_ms } => {
            format!(
                "hold, {} left",
                display_duration(Duration::from_millis(*left_ms))
            )
        }
        WaitingOn::Nodes { not_ready } => format!("nodes not ready: {}", joined(not_ready)),
        WaitingOn::NoNodes => "a connected node that is eligible".to_owned(),
        WaitingOn::Samples {
            metric,
            role,
            have,
            need,
        } => {
            format!("{metric}: {have} of {need} requests of {role:?} seen")
        }
        WaitingOn::Evidence { metric, rule } => {
            format!("{metric}: neither proven nor within {rule:?}; more requests will tell")
        }
        WaitingOn::Approval { role } => format!("approval by {role}"),
        WaitingOn::Paused => "somebody to resume it".to_owned(),
        WaitingOn::CandidateFailed { node, reason } => {
            format!("{node} cannot load the candidate ({reason}): quarantine the node, or advance")
        }
    }
}

pub(super) fn list_table(rollouts: &[RolloutView]) -> String {
    table(
        [
            "id",
            "model",
            "candidate",
            "stable",
            "state",
            "stage",
            "waiting on",
        ],
        rollouts.iter().map(|rollout| {
            [
                rollout.id.to_string(),
                rollout.model.to_string(),
                rollout.candidate.to_string(),
                or_dash(rollout.stable),
                phase_name(rollout.state).to_owned(),
                or_dash(rollout.stage_name.as_ref()),
                joined(rollout.waiting_on.iter().map(waiting_kind)),
            ]
        }),
    )
}

fn text(rollout: &RolloutView) -> String {
    let head = fields([
        ("Rollout", rollout.id.to_string()),
        ("Model", rollout.model.to_string()),
        ("Candidate", rollout.candidate.to_string()),
        ("Stable", or_dash(rollout.stable)),
        ("State", phase_name(rollout.state).to_owned()),
        ("Stage", or_dash(rollout.stage_name.as_ref())),
        ("Since", or_dash(rollout.stage_since)),
        ("Owner", or_dash(rollout.owner.as_ref())),
        (
            "Started",
            format!(
                "{} by {}",
                rollout.started_at,
                explain::actor(&rollout.started_by)
            ),
        ),
        (
            "Cohort",
            rollout.cohort.as_ref().map(joined).unwrap_or_default(),
        ),
        (
            "Cause",
            rollout
                .cause
                .as_ref()
                .map(explain::cause)
                .unwrap_or_default(),
        ),
        (
            "Waiting on",
            joined(rollout.waiting_on.iter().map(waiting_text)),
        ),
    ]);
    let stages = table(
        ["", "stage", "hold", "approvals"],
        rollout.plan.stages.iter().enumerate().map(|(i, stage)| {
            let mark = if rollout.stage == Some(i) { ">" } else { "" };
            [
                mark.to_owned(),
                stage.name.clone(),
                display_duration(stage.hold),
                joined(&stage.approvals),
            ]
        }),
    );
    let verdict = rollout
        .verdict
        .as_ref()
        .map(|verdict| verdict_text(rollout, verdict))
        .unwrap_or_default();
    let rollback = rollout.rollback.as_ref();
    let rollback = rollback.map_or_else(String::new, |r| format!("\n{}", receipts::summary(r)));
    format!("{head}\n{stages}{verdict}{rollback}\n{}", history(rollout))
}

fn verdict_text(rollout: &RolloutView, verdict: &Verdict) -> String {
    format!(
        "\nLast verdict: {:?}\n{}",
        verdict.outcome,
        explain::findings(&rollout.plan.policy, verdict)
    )
}

fn history(rollout: &RolloutView) -> String {
    table(
        ["record", "at", "by", "step"],
        rollout.history.iter().map(|entry| {
            [
                entry.seq.to_string(),
                entry.at.to_string(),
                explain::actor(&entry.actor),
                step_text(&entry.step),
            ]
        }),
    )
}

/// A step in words.
pub(super) fn step_text(step: &Step) -> String {
    match step {
        Step::Started => "started".to_owned(),
        Step::StageEntered {
            name,
            forced: false,
            ..
        } => format!("entered {name}"),
        Step::StageEntered {
            name, forced: true, ..
        } => format!("was advanced to {name}"),
        Step::Paused => "paused".to_owned(),
        Step::Resumed => "resumed".to_owned(),
        Step::Approved { gate, note } => {
            format!(
                "approved as {gate}{}",
                note.as_ref().map(|n| format!(": {n}")).unwrap_or_default()
            )
        }
        Step::Withdrawn { generation, cause } => {
            format!(
                "withdrawn at generation {generation}: {}",
                explain::cause(cause)
            )
        }
        Step::Barred { node, .. } => format!("took the candidate from {node}, alone to blame"),
        Step::Settled => "every node answered or is fenced".to_owned(),
        Step::Promoted { .. } => "promoted to stable".to_owned(),
        Step::Finished { .. } => "finished".to_owned(),
    }
}

fn preview_text(preview: &PlanPreview) -> String {
    let stages = table(
        ["stage", "what", "nodes", "share", "hold", "approvals"],
        preview.stages.iter().map(|stage| {
            [
                stage.name.clone(),
                stage.mode.clone(),
                joined(&stage.nodes),
                format!("{} %", stage.share_percent),
                display_duration(Duration::from_millis(stage.hold_ms)),
                joined(&stage.approvals),
            ]
        }),
    );
    let warnings: String = preview
        .warnings
        .iter()
        .map(|warning| format!("Warning: {warning}\n"))
        .collect();
    line(&format!(
        "{}@{} against {}; nothing was changed.",
        preview.model,
        preview.candidate,
        or_dash(preview.stable)
    ));
    format!("{stages}{warnings}")
}
