//! `rollcall rollback`: one command, decided at once; then it waits for the nodes.

use std::time::Duration;

use clap::Args;
use rollcall_coordinator_core::view::{RollbackNodeState, RollbackView};
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::{Timestamp, display_duration, parse_duration};
use rollcall_shared::version::Version;
use rollcall_transport::clock::Clock;

use super::CliError;
use super::client::Client;
use super::explain;
use super::output::{Output, count_bar, fields, joined, ms, or_dash, table};
use crate::http::rollbacks::RollbackBody;

/// How long one request waits, so that progress is seen.
const POLL: Duration = Duration::from_secs(1);

/// Take a model's candidate (or its newest stable version) back from every node, now.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The model.
    model: ModelName,
    /// Why; goes into the audit log.
    #[arg(long)]
    reason: String,
    /// Only if this is the version that would go; needed to take back a stable version when
    /// something was withdrawn just before.
    #[arg(long)]
    version: Option<Version>,
    /// How long to wait until every node has answered or is fenced. The rollback itself
    /// is decided before, and does not depend on it.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
}

impl Rollback {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let body = RollbackBody {
            reason: self.reason,
            version: self.version,
        };
        let path = format!("/models/{}/rollback", self.model);
        let decided: RollbackView = client.post(&path, &body).await?;
        let view = wait(client, decided, self.wait).await?;
        output.show(&view, text)?;
        if view.settled {
            return Ok(());
        }
        let nodes = view.nodes.iter().filter(|node| {
            matches!(
                node.state,
                RollbackNodeState::Waiting | RollbackNodeState::Silent
            )
        });
        Err(CliError::Waiting(format!(
            "the rollback is decided, but after {} these nodes are silent: {}. Watch `rollcall \
             status`, and look at the nodes",
            display_duration(self.wait),
            joined(nodes.map(|node| &node.node))
        )))
    }
}

/// The rollback when it is settled, or as it is when the wait is over. A coordinator that
/// goes away meanwhile does not undo what was decided.
async fn wait(
    client: &Client,
    mut view: RollbackView,
    limit: Duration,
) -> Result<RollbackView, CliError> {
    let clock = Clock::start(Timestamp::ZERO);
    let end = clock.now() + limit;
    let bar = count_bar(view.receipts.expected);
    bar.set_message("nodes that answered");
    while !view.settled && clock.now() < end {
        bar.set_length(view.receipts.expected);
        bar.set_position(view.receipts.received + view.receipts.fenced.len() as u64);
        let step = end.since(clock.now()).min(POLL).as_millis();
        let path = format!("/rollouts/{}/rollback?wait_ms={step}", view.rollout);
        match client.get(&path).await {
            Ok(newer) => view = newer,
            Err(CliError::Unreachable { .. }) => tokio::time::sleep(POLL).await,
            Err(error) => return Err(error),
        }
    }
    bar.finish_and_clear();
    Ok(view)
}

/// A rollback for people.
pub(super) fn text(view: &RollbackView) -> String {
    let serving = view.serving.map_or_else(
        || "nothing: it has no stable version".to_owned(),
        |version| version.to_string(),
    );
    let receipts = &view.receipts;
    let mut text = fields([
        (
            "Withdrawn",
            format!(
                "{}@{} ({}, generation {})",
                view.model, view.withdrawn, view.rollout, view.generation
            ),
        ),
        ("Serving", serving),
        ("Cause", explain::cause(&view.cause)),
        ("Decided", view.decided_at.to_string()),
        (
            "Receipts",
            format!("{} of {} nodes", receipts.received, receipts.expected),
        ),
        ("Propagation", propagation(view)),
        ("Last node", or_dash(view.last_node.as_ref())),
        (
            "Fenced",
            joined(
                receipts
                    .fenced
                    .iter()
                    .map(|f| format!("{} at {}", f.node, f.at)),
            ),
        ),
        ("Silent", joined(&receipts.silent)),
    ]);
    let left: Vec<_> = view
        .nodes
        .iter()
        .filter(|node| node.state != RollbackNodeState::Receipt)
        .collect();
    if !left.is_empty() {
        text += "\n";
        text += &table(
            ["node", "state", "until"],
            left.iter().map(|node| {
                [
                    node.node.to_string(),
                    state(node.state).to_owned(),
                    or_dash(node.until),
                ]
            }),
        );
    }
    text
}

fn propagation(view: &RollbackView) -> String {
    let times = &view.propagation_ms;
    format!(
        "p50 {}, p99 {}, max {}",
        ms(times.p50),
        ms(times.p99),
        ms(times.max)
    )
}

const fn state(state: RollbackNodeState) -> &'static str {
    match state {
        RollbackNodeState::Receipt => "serves what it should",
        RollbackNodeState::Fenced => "fenced: its lease is over",
        RollbackNodeState::Waiting => "silent; its lease ends at",
        RollbackNodeState::Silent => "silent, and no lease stops it",
    }
}
