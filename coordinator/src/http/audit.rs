//! The audit log is the journal: records go out byte for byte as they are stored, one
//! a line, so that whoever reads them can check the chain without trusting us.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

use super::Shared;
use super::error::ApiError;
use super::extract::{Caller, Params};

/// Records in one answer; more: ask again from the next.
const RECORDS_MAX: usize = 1_000;

#[derive(Deserialize)]
pub(super) struct Range {
    #[serde(default = "first")]
    from: u64,
    #[serde(default = "most")]
    limit: usize,
}

const fn first() -> u64 {
    1
}

const fn most() -> usize {
    RECORDS_MAX
}

pub(super) async fn head(State(api): State<Shared>, _: Caller) -> Result<Json<Value>, ApiError> {
    let journal = Arc::clone(&api.journal);
    let head = blocking(move || journal.head().map_err(ApiError::from)).await?;
    Ok(Json(json!({ "seq": head.seq, "hash": head.hash })))
}

pub(super) async fn records(
    State(api): State<Shared>,
    _: Caller,
    Params(Range { from, limit }): Params<Range>,
) -> Result<impl IntoResponse, ApiError> {
    let journal = Arc::clone(&api.journal);
    let limit = limit.min(RECORDS_MAX);
    let records = blocking(move || journal.records(from, limit).map_err(ApiError::from)).await?;
    let lines: String = records
        .into_iter()
        .map(|record| record.body + "\n")
        .collect();
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
}
