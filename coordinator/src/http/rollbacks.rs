//! Rollbacks: decided at once, then watched until every node has answered or is fenced. And
//! rehearsals: the same without a decision.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use rollcall_coordinator_core::coordinator::Coordinator;
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::view::{RehearsalView, RollbackView};
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
    /// Leave the nodes out: for a fleet of 10,000 they are a megabyte.
    #[serde(default)]
    brief: bool,
}

/// Between two looks at what is waited for: each of ten thousand receipts is a change, and
/// while they come in the core has better things to do than to be asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl RollbackBody {
    fn checked(self) -> Result<(Option<Version>, String), ApiError> {
        let reason = self.reason.trim().to_owned();
        if reason.is_empty() || reason.len() > TEXT_BYTES_MAX {
            return Err(ApiError::Invalid(format!(
                "say why: the reason has 1 to {TEXT_BYTES_MAX} bytes"
            )));
        }
        Ok((self.version, reason))
    }
}

pub(super) async fn start(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(model): Path<String>,
    Body(body): Body<RollbackBody>,
) -> Result<Json<RollbackView>, ApiError> {
    let model = named(&model)?;
    let (version, reason) = body.checked()?;
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
        // While the nodes swap, the machine has better things to do than to list them.
        Done::Withdrawn { rollout, .. } => view(&api, rollout, true).await.map(Json),
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
    let model = named(&model)?;
    let latest = api.core.ask(move |core, _| core.latest_rollback(&model));
    let rollout = latest.await?.ok_or_else(no_rollback)?;
    settled(&api, rollout, wait).await
}

pub(super) async fn show_rollout(
    State(api): State<Shared>,
    _: Caller,
    Path(rollout): Path<String>,
    Params(wait): Params<Wait>,
) -> Result<Json<RollbackView>, ApiError> {
    settled(&api, named(&rollout)?, wait).await
}

/// The rollback when it is settled, or as it is when the wait is over.
async fn settled(
    api: &Api,
    rollout: RolloutId,
    wait: Wait,
) -> Result<Json<RollbackView>, ApiError> {
    until_over(api, wait.wait_ms, move |core| {
        core.rollback_is_settled(rollout)
    })
    .await?;
    view(api, rollout, wait.brief).await.map(Json)
}

async fn view(api: &Api, rollout: RolloutId, brief: bool) -> Result<RollbackView, ApiError> {
    let found = api.core.ask(move |core, now| {
        if brief {
            core.rollback_brief(rollout, now)
        } else {
            core.rollback(rollout, now)
        }
    });
    found.await?.ok_or_else(no_rollback)
}

fn no_rollback() -> ApiError {
    ApiError::NotFound("there was no such rollback; `rollcall rollout list`".to_owned())
}

pub(super) async fn rehearse(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(model): Path<String>,
    Body(body): Body<RollbackBody>,
) -> Result<Json<RehearsalView>, ApiError> {
    let model = named(&model)?;
    let (version, reason) = body.checked()?;
    let command = Command::Rehearse {
        model,
        version,
        reason,
    };
    match api.command(actor, command).await? {
        Done::Rehearsing { model, .. } => rehearsal_view(&api, model, true).await,
        other => Err(ApiError::Internal(format!(
            "a rehearsal was answered with {other:?}"
        ))),
    }
}

/// The last rehearsal when it is over, or as it is when the wait is over.
pub(super) async fn show_rehearsal(
    State(api): State<Shared>,
    _: Caller,
    Path(model): Path<String>,
    Params(wait): Params<Wait>,
) -> Result<Json<RehearsalView>, ApiError> {
    let model: ModelName = named(&model)?;
    let asked = model.clone();
    until_over(&api, wait.wait_ms, move |core| {
        core.rehearsal_is_over(&asked)
    })
    .await?;
    rehearsal_view(&api, model, wait.brief).await
}

async fn rehearsal_view(
    api: &Api,
    model: ModelName,
    brief: bool,
) -> Result<Json<RehearsalView>, ApiError> {
    let missing = format!(
        "there was no rehearsal of {model} since the coordinator started: `rollcall rollback \
         {model} --rehearse --reason WHY`"
    );
    let found = api.core.ask(move |core, _| core.rehearsal(&model)).await?;
    let mut view = found.ok_or(ApiError::NotFound(missing))?;
    if brief {
        let spread = &mut view.as_if;
        spread.nodes.clear();
        spread.nodes_unlisted = spread.receipts.received;
    }
    Ok(Json(view))
}

/// Waits until something is over, if it ever was, or the time is.
async fn until_over(
    api: &Api,
    wait_ms: u64,
    is_over: impl Fn(&Coordinator) -> Option<bool> + Clone + Send + 'static,
) -> Result<(), ApiError> {
    let wait = Duration::from_millis(wait_ms).min(LONG_POLL_MAX);
    let mut changes = api.core.changes();
    let until_over = async {
        loop {
            changes.mark_unchanged();
            let is_over = is_over.clone();
            let over = api.core.ask(move |core, _| is_over(core)).await?;
            if over.unwrap_or(true) || changes.changed().await.is_err() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // When the wait is over the caller shows how far it is.
    tokio::time::timeout(wait, until_over)
        .await
        .unwrap_or(Ok(()))
}
