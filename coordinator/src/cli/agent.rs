//! `rollcall agent`: the serving nodes.

use clap::Subcommand;
use reqwest::Method;
use rollcall_coordinator_core::view::NodeView;
use rollcall_shared::ids::NodeId;
use rollcall_shared::report::{ReadyState, Role};

use super::CliError;
use super::client::Client;
use super::output::{Output, bytes, fields, joined, or_dash, table};

/// Serving nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Agent {
    /// List them.
    List,
    /// One node: what it serves and has ready.
    Show {
        /// Its name.
        node: NodeId,
    },
    /// Give a node no candidates.
    Quarantine {
        /// Its name.
        node: NodeId,
    },
    /// End a quarantine.
    Release {
        /// Its name.
        node: NodeId,
    },
    /// Never let a node in again; cuts its connection.
    Revoke {
        /// Its name.
        node: NodeId,
    },
}

impl Agent {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let nodes: Vec<NodeView> = client.get("/agents").await?;
                output.show(&nodes, |nodes| list_table(nodes))
            }
            Self::Show { node } => {
                let node: NodeView = client.get(&format!("/agents/{node}")).await?;
                output.show(&node, text)
            }
            Self::Quarantine { node } => act(client, output, &node, "quarantine").await,
            Self::Release { node } => act(client, output, &node, "release").await,
            Self::Revoke { node } => act(client, output, &node, "revoke").await,
        }
    }
}

async fn act(
    client: &Client,
    output: &Output,
    node: &NodeId,
    action: &str,
) -> Result<(), CliError> {
    let path = format!("/agents/{node}/{action}");
    let view: NodeView = client.json(client.request(Method::POST, &path)).await?;
    output.show(&view, |view| format!("{} is {}.", view.node, state(view)))
}

fn state(node: &NodeView) -> String {
    let flags = [
        (node.connected, "connected"),
        (!node.connected && !node.revoked, "away"),
        (node.quarantined, "quarantined"),
        (node.revoked, "revoked"),
        (node.unauthorised, "UNAPPROVED VERSION"),
    ];
    joined(
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name),
    )
}

fn list_table(nodes: &[NodeView]) -> String {
    table(
        [
            "node",
            "state",
            "serving",
            "labels",
            "last seen",
            "software",
        ],
        nodes.iter().map(|node| {
            [
                node.node.to_string(),
                state(node),
                joined(node.models.iter().flat_map(serving)),
                joined(
                    node.labels
                        .iter()
                        .map(|(name, value)| format!("{name}={value}")),
                ),
                or_dash(node.last_seen),
                or_dash(node.software.as_ref()),
            ]
        }),
    )
}

fn serving(model: &rollcall_coordinator_core::view::NodeModelView) -> Vec<String> {
    let role = |role| match role {
        Role::Stable => "",
        Role::Candidate => " (candidate)",
        Role::Shadow => " (shadow)",
    };
    model
        .serving
        .iter()
        .map(|serving| {
            format!(
                "{}@{}{}",
                model.model,
                serving.version.version,
                role(serving.role)
            )
        })
        .collect()
}

fn text(node: &NodeView) -> String {
    let resources = node.resources.as_ref().map(|resources| {
        format!(
            "cpu {:.0} %, memory {} of {}, disk free {}, {} GPUs",
            resources.cpu_percent,
            bytes(resources.memory_used),
            bytes(resources.memory_total),
            bytes(resources.disk_free),
            resources.gpus.len()
        )
    });
    let head = fields([
        ("Node", node.node.to_string()),
        ("State", state(node)),
        ("Software", or_dash(node.software.as_ref())),
        (
            "Labels",
            joined(
                node.labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            ),
        ),
        ("Enrolled", node.enrolled_at.to_string()),
        ("Last seen", or_dash(node.last_seen)),
        ("Machine", or_dash(resources)),
    ]);
    let models = table(
        [
            "model",
            "generation",
            "serving",
            "ready",
            "lease until",
            "unapproved",
        ],
        node.models.iter().map(|model| {
            [
                model.model.to_string(),
                or_dash(model.generation),
                joined(serving(model)),
                joined(model.readiness.iter().map(|readiness| {
                    format!("{} {}", readiness.version.version, ready(&readiness.state))
                })),
                or_dash(model.lease_until),
                joined(model.unauthorised.iter().map(|version| version.version)),
            ]
        }),
    );
    format!("{head}\n{models}")
}

fn ready(state: &ReadyState) -> String {
    match state {
        ReadyState::Fetching => "fetching".to_owned(),
        ReadyState::Ready => "ready".to_owned(),
        ReadyState::Failed { reason, retrying } => {
            format!(
                "failed: {reason}{}",
                if *retrying { " (trying again)" } else { "" }
            )
        }
    }
}
