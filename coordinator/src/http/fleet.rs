//! The fleet at a glance, its nodes, and what machines ask: health and metrics.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::view::{FleetStatus, NodeView};
use rollcall_shared::ids::NodeId;
use serde_json::{Value, json};

use super::Shared;
use super::error::ApiError;
use super::extract::{Caller, named};

pub(super) async fn status(
    State(api): State<Shared>,
    _: Caller,
) -> Result<Json<FleetStatus>, ApiError> {
    Ok(Json(
        api.core.ask(|core, now| core.fleet_status(now)).await?,
    ))
}

pub(super) async fn agents(
    State(api): State<Shared>,
    _: Caller,
) -> Result<Json<Vec<NodeView>>, ApiError> {
    Ok(Json(api.core.ask(|core, _| core.nodes()).await?))
}

pub(super) async fn agent(
    State(api): State<Shared>,
    _: Caller,
    Path(node): Path<String>,
) -> Result<Json<NodeView>, ApiError> {
    view(&api, named(&node)?).await
}

async fn view(api: &Shared, node: NodeId) -> Result<Json<NodeView>, ApiError> {
    let missing = ApiError::NotFound(format!("there is no node {node}; `rollcall agent list`"));
    api.core
        .ask(move |core, _| core.node(&node))
        .await?
        .map(Json)
        .ok_or(missing)
}

pub(super) async fn act(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path((node, action)): Path<(String, String)>,
) -> Result<Json<NodeView>, ApiError> {
    let node: NodeId = named(&node)?;
    let command = match action.as_str() {
        "quarantine" => Command::Quarantine { node: node.clone() },
        "release" => Command::Release { node: node.clone() },
        "revoke" => Command::RevokeNode { node: node.clone() },
        _ => {
            return Err(ApiError::NotFound(format!(
                "{action:?} is none of quarantine, release, revoke"
            )));
        }
    };
    api.command(actor, command).await?;
    view(&api, node).await
}

/// Healthy: the core answers.
pub(super) async fn healthz(State(api): State<Shared>) -> Result<Json<Value>, ApiError> {
    let seq = api.core.ask(|core, _| core.state().seq()).await?;
    Ok(Json(json!({ "status": "ok", "seq": seq })))
}

pub(super) async fn metrics(State(api): State<Shared>) -> Result<impl IntoResponse, ApiError> {
    let (status, rollouts, rollbacks) = api
        .core
        .ask(|core, now| {
            let rollbacks = core.rollback_figures();
            (core.fleet_status(now), core.rollouts(now), rollbacks)
        })
        .await?;
    let text = api.metrics.render(&status, &rollouts, rollbacks);
    Ok((
        [(
            CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    ))
}
