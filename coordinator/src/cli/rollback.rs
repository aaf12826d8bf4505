//! `rollcall rollback`: one command, decided at once; then it waits for the nodes. With
//! `--rehearse` nothing is decided, and the nodes say what it would come to.

use std::time::Duration;

use clap::Args;
use rollcall_coordinator_core::view::{RehearsalView, RollbackNodeState, RollbackView};
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::time::{Timestamp, display_duration, parse_duration};
use rollcall_shared::version::Version;
use rollcall_transport::clock::Clock;
use serde::de::DeserializeOwned;

use super::CliError;
use super::client::Client;
use super::output::{Output, count_bar};
use super::{receipts, rehearsal};
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
    /// Change nothing: ask every node what the rollback would come to now. Exit code 1 when a
    /// node is not ready for it, 4 when one is silent.
    #[arg(long)]
    rehearse: bool,
    /// How long to wait until every node has answered or is fenced. The rollback itself
    /// is decided before, and does not depend on it.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Show every node, not only those without a receipt and the slowest.
    #[arg(long)]
    all: bool,
}

impl Rollback {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let body = RollbackBody {
            reason: self.reason.clone(),
            version: self.version,
        };
        if self.rehearse {
            let path = format!("/models/{}/rehearsal", self.model);
            let began: RehearsalView = client.post(&path, &body).await?;
            return self.rehearsed(client, output, began, path).await;
        }
        let path = format!("/models/{}/rollback", self.model);
        let decided: RollbackView = client.post(&path, &body).await?;
        let path = format!("/rollouts/{}/rollback", decided.rollout);
        let view = follow(client, decided, &path, self.wait, |view| view).await?;
        output.show(&view, |view| receipts::text(view, self.all))?;
        if view.settled {
            return Ok(());
        }
        let open: Vec<&NodeId> = view
            .nodes
            .iter()
            .filter(|node| {
                matches!(
                    node.state,
                    RollbackNodeState::Waiting | RollbackNodeState::Silent
                )
            })
            .map(|node| &node.node)
            .collect();
        Err(CliError::Waiting(format!(
            "the rollback is decided, but after {} these nodes are silent: {}. Watch `rollcall \
             rollout receipts {}`, and look at the nodes",
            display_duration(self.wait),
            receipts::some_names(&open),
            view.rollout
        )))
    }

    async fn rehearsed(
        &self,
        client: &Client,
        output: &Output,
        began: RehearsalView,
        path: String,
    ) -> Result<(), CliError> {
        let number = began.number;
        let view = follow(client, began, &path, self.wait, |view| &view.as_if).await?;
        if view.number != number {
            return Err(CliError::Failed(format!(
                "another rehearsal of {} began before the end of this one was read: see records \
                 {number} and later of `rollcall audit log`",
                self.model
            )));
        }
        output.show(&view, |view| rehearsal::text(view, self.all))?;
        rehearsal::verdict(&view)
    }
}

/// The rollback (or rehearsal) when it is settled, or as it is when the wait is over. A
/// coordinator that goes away meanwhile does not undo what was decided.
async fn follow<V: DeserializeOwned>(
    client: &Client,
    mut view: V,
    path: &str,
    limit: Duration,
    spread: impl Fn(&V) -> &RollbackView,
) -> Result<V, CliError> {
    let clock = Clock::start(Timestamp::ZERO);
    let end = clock.now() + limit;
    let bar = count_bar(spread(&view).receipts.expected);
    while !spread(&view).settled && clock.now() < end {
        let receipts = &spread(&view).receipts;
        bar.set_message(format!(
            "nodes answered ({} fenced, {} silent)",
            receipts.fenced.len(),
            receipts.silent.len()
        ));
        bar.set_length(receipts.expected);
        bar.set_position(receipts.received);
        let step = end.since(clock.now()).min(POLL).as_millis();
        match client
            .get(&format!("{path}?brief=true&wait_ms={step}"))
            .await
        {
            Ok(newer) => view = newer,
            Err(CliError::Unreachable { .. }) => tokio::time::sleep(POLL).await,
            Err(error) => return Err(error),
        }
    }
    bar.finish_and_clear();
    match client.get(path).await {
        Err(CliError::Unreachable { .. }) => Ok(view),
        whole => whole,
    }
}

/// What serves instead, in words.
pub(super) fn serving(version: Option<Version>) -> String {
    version.map_or_else(
        || "nothing: it has no stable version".to_owned(),
        |version| version.to_string(),
    )
}
