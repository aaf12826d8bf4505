//! `rollcall status`: the fleet on one screen.

use rollcall_coordinator_core::view::FleetStatus;

use super::CliError;
use super::client::Client;
use super::output::{Output, table};
use super::{model, receipts, rollout};

pub(super) async fn run(client: &Client, output: &Output) -> Result<(), CliError> {
    let status: FleetStatus = client.get("/status").await?;
    output.show(&status, screen)
}

fn screen(status: &FleetStatus) -> String {
    let nodes = &status.nodes;
    let mut text = format!(
        "Nodes: {} connected of {}, {} quarantined, {} with something unapproved. Journal: {} records.\n",
        nodes.connected, nodes.enrolled, nodes.quarantined, nodes.unauthorised, status.seq
    );
    let mut part = |title: &str, body: String| text.push_str(&format!("\n{title}\n{body}"));
    if !status.alerts.is_empty() {
        part(
            "Alerts",
            table(["what"], status.alerts.iter().map(|alert| [alert.clone()])),
        );
    }
    part("Models", model::list_table(&status.models));
    if !status.rollouts.is_empty() {
        part("Rollouts", rollout::list_table(&status.rollouts));
    }
    for rollback in &status.rollbacks {
        part(
            "Rollback that waits for nodes",
            receipts::text(rollback, false),
        );
    }
    text
}
