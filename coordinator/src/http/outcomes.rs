//! What came of answers: labels and outcomes by request, and outcomes by version.

use axum::Json;
use axum::extract::{Path, State};
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::{Command, KpiRecord};
use rollcall_shared::feedback::FeedbackItem;
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::error::ApiError;
use super::extract::{Body, Caller, named};

/// What `POST /api/v1/models/{model}/feedback` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedbackBody {
    /// At most [`rollcall_shared::limits::FEEDBACK_ITEMS_MAX`].
    pub items: Vec<FeedbackItem>,
}

/// To whom they went. Which of them knows an id, its metrics and reports tell.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackSent {
    /// Items sent.
    pub items: usize,
    /// Connected nodes that host the model and were sent them.
    pub nodes: usize,
    /// Others that are too old to read them.
    pub too_old: usize,
    /// The first hundred of these.
    pub too_old_nodes: Vec<NodeId>,
}

/// What `POST /api/v1/models/{model}/kpis` takes, and gives back when it was recorded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KpiBody {
    /// Of which version: the candidate of the live rollout, or stable.
    pub version: Version,
    /// Which outcome, as the plan's policy names it.
    pub name: String,
    /// What it was.
    pub value: f64,
    /// How many times it was seen.
    #[serde(default = "once")]
    pub count: u64,
}

const fn once() -> u64 {
    1
}

pub(super) async fn feedback(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(model): Path<String>,
    Body(FeedbackBody { items }): Body<FeedbackBody>,
) -> Result<Json<FeedbackSent>, ApiError> {
    let model: ModelName = named(&model)?;
    let sent = items.len();
    match api
        .command(actor, Command::PushFeedback { model, items })
        .await?
    {
        Done::FeedbackSent {
            nodes,
            too_old,
            too_old_nodes,
        } => Ok(Json(FeedbackSent {
            items: sent,
            nodes,
            too_old,
            too_old_nodes,
        })),
        other => Err(ApiError::Internal(format!(
            "feedback was answered with {other:?}"
        ))),
    }
}

pub(super) async fn record_kpi(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(model): Path<String>,
    Body(body): Body<KpiBody>,
) -> Result<Json<KpiBody>, ApiError> {
    let model: ModelName = named(&model)?;
    let record = KpiRecord {
        version: body.version,
        name: body.name.clone(),
        value: body.value,
        count: body.count,
    };
    api.command(actor, Command::RecordKpi { model, record })
        .await?;
    Ok(Json(body))
}
