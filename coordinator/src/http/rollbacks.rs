//! Rollbacks: decided at once, then watched until every node has answered or is fenced.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::view::RollbackView;
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::limits::TEXT_BYTES_MAX;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, Caller, Params, named};
use super::{Api, LONG_POLL_MAX, Shared};

/// What `POST /api/v1/models/{model}/rollback` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackBody {
    /// Why; goes into the audit log and to everyone who asks.
    pub reason: String,
    /// Only if this is the version that would go. A stable version must be named when the last
    /// thing that happened to the model was a withdrawal.
    #[serde(default)]
    pub version: Option<Version>,
}

#[derive(Deserialize)]
pub(super) struct Wait {
    /// Milliseconds to wait for the rollback to settle.
    #[serde(default)]
    wait_ms: u64,
}

/// Between two looks at a rollback that is waited for: a look at ten thousand receipts
/// costs the core milliseconds, and each receipt is a change.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which rollback.
#[derive(Clone)]
enum Which {
    LatestOf(ModelName),
    Of(RolloutId),
}

pub(super) async fn start(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(model): Path<String>,
    Body(RollbackBody { reason, version }): Body<RollbackBody>,
) -> Result<Json<RollbackView>, ApiError> {
    let model = named(&model)?;
    let reason = reason.trim().to_owned();
    if reason.is_empty() || reason.len() > TEXT_BYTES_MAX {
        return Err(ApiError::Invalid(format!(
            "say why: the reason has 1 to {TEXT_BYTES_MAX} bytes"
        )));
    }
    match api
        .command(
            actor,
            Command::Rollback {
                model,
                version,
                reason,
            },
        )
        .await?
    {
        Done::Withdrawn { rollout, .. } => view(&api, Which::Of(rollout)).await.map(Json),
        other => Err(ApiError::Internal(format!(
            "a rollback was answered with {other:?}"
        ))),
    }
}

pub(super) async fn show(
    State(api): State<Shared>,
    _: Caller,
    Path(model): Path<String>,
    Params(wait): Params<Wait>,
) -> Result<Json<RollbackView>, ApiError> {
    settled(&api, Which::LatestOf(named(&model)?), wait).await
}

pub(super) async fn show_rollout(
    State(api): State<Shared>,
    _: Caller,
    Path(rollout): Path<String>,
    Params(wait): Params<Wait>,
) -> Result<Json<RollbackView>, ApiError> {
    settled(&api, Which::Of(named(&rollout)?), wait).await
}

/// The rollback when it is settled, or as it is when the wait is over.
async fn settled(api: &Api, which: Which, wait: Wait) -> Result<Json<RollbackView>, ApiError> {
    let wait = Duration::from_millis(wait.wait_ms).min(LONG_POLL_MAX);
    let mut changes = api.core.changes();
    let until_settled = async {
        loop {
            changes.mark_unchanged();
            let view = view(api, which.clone()).await?;
            if view.settled || changes.changed().await.is_err() {
                return Ok(view);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(wait, until_settled).await {
        Ok(settled) => settled.map(Json),
        Err(_) => view(api, which).await.map(Json),
    }
}

async fn view(api: &Api, which: Which) -> Result<RollbackView, ApiError> {
    let found = api.core.ask(move |core, now| match &which {
        Which::LatestOf(model) => core.rollback_of_model(model, now),
        Which::Of(rollout) => core.rollback(*rollout, now),
    });
    found.await?.ok_or_else(|| {
        ApiError::NotFound("there was no such rollback; `rollcall rollout list`".to_owned())
    })
}
