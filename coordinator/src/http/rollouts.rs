//! Rollouts: start by plan, look, wait for changes, act.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::view::RolloutView;
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::limits::TEXT_BYTES_MAX;
use rollcall_shared::plan::Plan;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, Caller, Params, Text, named};
use super::{Api, LONG_POLL_MAX, Shared};

/// A rollout, and the change that it was seen at: pass it as `after` to wait for the next.
#[derive(Debug, Serialize, Deserialize)]
pub struct Watched {
    /// The coordinator's count of changes.
    pub change: u64,
    /// How the rollout is.
    pub rollout: RolloutView,
}

/// What `POST /api/v1/rollouts/{id}/{action}` may carry.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActionBody {
    /// `approve`: the role in whose name.
    pub gate: Option<String>,
    /// `approve`, `reject`: why.
    pub note: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct DryRun {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct OfModel {
    model: Option<ModelName>,
}

pub(super) async fn start(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Params(DryRun { dry_run }): Params<DryRun>,
    Text(text): Text,
) -> Result<Response, ApiError> {
    let plan = Plan::from_toml(&text).map_err(|error| ApiError::Invalid(error.to_string()))?;
    match api
        .command(actor, Command::StartRollout { plan, dry_run })
        .await?
    {
        Done::Started(rollout) => {
            Ok((StatusCode::CREATED, view(&api, rollout).await?).into_response())
        }
        Done::Preview(preview) => Ok(Json(preview).into_response()),
        other => Err(ApiError::Internal(format!(
            "a start was answered with {other:?}"
        ))),
    }
}

pub(super) async fn list(
    State(api): State<Shared>,
    _: Caller,
    Params(OfModel { model }): Params<OfModel>,
) -> Result<Json<Vec<RolloutView>>, ApiError> {
    let mut rollouts = api.core.ask(|core, now| core.rollouts(now)).await?;
    if let Some(model) = model {
        rollouts.retain(|rollout| rollout.model == model);
    }
    Ok(Json(rollouts))
}

pub(super) async fn show(
    State(api): State<Shared>,
    _: Caller,
    Path(rollout): Path<String>,
) -> Result<Json<RolloutView>, ApiError> {
    view(&api, named(&rollout)?).await
}

async fn view(api: &Api, rollout: RolloutId) -> Result<Json<RolloutView>, ApiError> {
    let found = api
        .core
        .ask(move |core, now| core.rollout(rollout, now))
        .await?;
    found.map(Json).ok_or_else(|| {
        ApiError::NotFound(format!(
            "there is no rollout {rollout}; `rollcall rollout list`"
        ))
    })
}

/// Answers when something changed after `after`, or at the latest when the wait is over.
pub(super) async fn watch(
    State(api): State<Shared>,
    _: Caller,
    Path(rollout): Path<String>,
    Params(After { after }): Params<After>,
) -> Result<Json<Watched>, ApiError> {
    let rollout = named(&rollout)?;
    let mut changes = api.core.changes();
    if let Some(after) = after {
        // Another count is another change: after a restart it begins anew.
        let changed = changes.wait_for(|count| *count != after);
        // Neither the wait's end nor the driver's matters here: the view below tells.
        let _ = tokio::time::timeout(LONG_POLL_MAX, changed).await;
    }
    let change = *changes.borrow_and_update();
    let Json(rollout) = view(&api, rollout).await?;
    Ok(Json(Watched { change, rollout }))
}

pub(super) async fn act(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path((rollout, action)): Path<(String, String)>,
    Body(ActionBody { gate, note }): Body<ActionBody>,
) -> Result<Json<RolloutView>, ApiError> {
    let rollout: RolloutId = named(&rollout)?;
    if note
        .as_ref()
        .is_some_and(|note| note.len() > TEXT_BYTES_MAX)
    {
        return Err(ApiError::Invalid(format!(
            "the note is longer than {TEXT_BYTES_MAX} bytes"
        )));
    }
    let command = match (action.as_str(), gate) {
        ("pause", _) => Command::Pause { rollout },
        ("resume", _) => Command::Resume { rollout },
        ("advance", _) => Command::Advance { rollout },
        ("approve", Some(gate)) => Command::Approve {
            rollout,
            gate,
            note,
        },
        ("approve", None) => {
            return Err(ApiError::Invalid(
                "approve needs the gate: a role of the plan".to_owned(),
            ));
        }
        ("reject", _) => Command::Reject { rollout, note },
        _ => {
            return Err(ApiError::NotFound(format!(
                "{action:?} is none of pause, resume, advance, approve, reject"
            )));
        }
    };
    api.command(actor, command).await?;
    view(&api, rollout).await
}
