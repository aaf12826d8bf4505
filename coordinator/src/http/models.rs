//! Models.

use axum::Json;
use axum::extract::{Path, State};
use rollcall_coordinator_core::view::ModelView;
use rollcall_shared::ids::ModelName;

use super::Shared;
use super::error::ApiError;
use super::extract::{Caller, named};

pub(super) async fn list(
    State(api): State<Shared>,
    _: Caller,
) -> Result<Json<Vec<ModelView>>, ApiError> {
    Ok(Json(api.core.ask(|core, _| core.models()).await?))
}

pub(super) async fn show(
    State(api): State<Shared>,
    _: Caller,
    Path(model): Path<String>,
) -> Result<Json<ModelView>, ApiError> {
    let model: ModelName = named(&model)?;
    let missing = ApiError::NotFound(format!("there is no model {model}; `rollcall model list`"));
    api.core
        .ask(move |core, _| core.model(&model))
        .await?
        .map(Json)
        .ok_or(missing)
}
