//! Health, metadata and the repository, as the Open Inference Protocol has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::TensorSpec;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use super::App;
use super::answer::HttpError;
use super::catalog::{self, Answering, CatalogRefusal, IndexRow};
use super::path::Named;
use super::predict::parsed;

/// What the index is asked is short. Larger: 413.
const INDEX_BODY_BYTES_MAX: usize = 4 << 10;

#[derive(Serialize)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 2],
}

/// `GET /v2`
pub async fn server() -> impl IntoResponse {
    Json(ServerMetadata {
        name: catalog::SERVER,
        version: catalog::SERVER_VERSION,
        extensions: ["binary_tensor_data", catalog::INDEX_EXTENSION],
    })
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

/// `GET /v2/health/live`: the process answers, so it lives.
pub async fn live() -> impl IntoResponse {
    Json(Live { live: true })
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// `GET /v2/health/ready`: at least one model can answer.
///
/// # Errors
/// 503 when none can.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Response, HttpError> {
    if catalog::is_ready(&app.inference) {
        Ok(Json(Ready { ready: true }).into_response())
    } else {
        Err(HttpError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no model is ready on this node",
        ))
    }
}

impl From<CatalogRefusal> for HttpError {
    fn from(refusal: CatalogRefusal) -> Self {
        let status = match &refusal {
            CatalogRefusal::NoModelName(_)
            | CatalogRefusal::NoVersion(_)
            | CatalogRefusal::UnknownModel { .. }
            | CatalogRefusal::UnknownVersion { .. } => StatusCode::NOT_FOUND,
            CatalogRefusal::NotReady { .. } => StatusCode::SERVICE_UNAVAILABLE,
            CatalogRefusal::ByRolloutOnly { .. } => StatusCode::FORBIDDEN,
        };
        Self::new(status, refusal.to_string())
    }
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: &'a [Version],
    platform: &'a str,
    inputs: &'a [TensorSpec],
    outputs: &'a [TensorSpec],
}

fn metadata(answering: &Answering) -> Response {
    Json(ModelMetadata {
        name: answering.model.as_str(),
        versions: &answering.versions,
        platform: &answering.platform,
        inputs: &answering.signature.inputs,
        outputs: &answering.signature.outputs,
    })
    .into_response()
}

/// `GET /v2/models/{model}`
///
/// # Errors
/// 404 when it is unknown, 503 when nothing answers for it.
pub async fn model(
    State(app): State<Arc<App>>,
    Named(model): Named<String>,
) -> Result<Response, HttpError> {
    Ok(metadata(&catalog::model(&app.inference, &model, None)?))
}

/// `GET /v2/models/{model}/versions/{version}`
///
/// # Errors
/// 404 when it does not answer here.
pub async fn version(
    State(app): State<Arc<App>>,
    Named((model, version)): Named<(String, String)>,
) -> Result<Response, HttpError> {
    let answering = catalog::model(&app.inference, &model, Some(&version))?;
    Ok(metadata(&answering))
}

#[derive(Serialize)]
struct ModelReady<'a> {
    name: &'a str,
    ready: bool,
}

/// `GET /v2/models/{model}/ready`
///
/// # Errors
/// 404 when it is unknown, 503 when nothing answers for it.
pub async fn model_ready(
    State(app): State<Arc<App>>,
    Named(model): Named<String>,
) -> Result<Response, HttpError> {
    catalog::model(&app.inference, &model, None)?;
    Ok(Json(ModelReady {
        name: &model,
        ready: true,
    })
    .into_response())
}

/// `GET /v2/models/{model}/versions/{version}/ready`
///
/// # Errors
/// 404 when it does not answer here.
pub async fn version_ready(
    State(app): State<Arc<App>>,
    Named((model, version)): Named<(String, String)>,
) -> Result<Response, HttpError> {
    catalog::model(&app.inference, &model, Some(&version))?;
    Ok(Json(ModelReady {
        name: &model,
        ready: true,
    })
    .into_response())
}

#[derive(Serialize)]
struct IndexLine {
    name: ModelName,
    version: String,
    state: &'static str,
    reason: &'static str,
}

impl From<IndexRow> for IndexLine {
    fn from(row: IndexRow) -> Self {
        Self {
            version: row.version_text(),
            state: row.state(),
            reason: row.unavailable.unwrap_or_default(),
            name: row.model,
        }
    }
}

/// What a client wants of the index.
#[derive(Default, Deserialize)]
#[serde(default)]
struct IndexRequest {
    /// Only what answers.
    ready: bool,
}

/// `POST /v2/repository/index`; the body may be empty.
///
/// # Errors
/// When the body is not empty and no JSON.
pub async fn index(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<impl IntoResponse, HttpError> {
    let (parts, body) = request.into_parts();
    let read = |bytes: &[u8]| match bytes {
        [] => Ok(IndexRequest::default()),
        bytes => serde_json::from_slice(bytes).map_err(|error| {
            HttpError::new(
                StatusCode::BAD_REQUEST,
                format!("the body is neither empty nor {{\"ready\": true}}: {error}"),
            )
        }),
    };
    let (wanted, _room) = parsed(&app, &parts.headers, body, INDEX_BODY_BYTES_MAX, read).await?;
    let rows = catalog::index(&app.inference, wanted.ready).into_iter();
    Ok(Json(rows.map(IndexLine::from).collect::<Vec<_>>()))
}

/// `POST /v2/repository/models/{model}/load` and `/unload`
pub async fn load_refused(Named(model): Named<String>) -> HttpError {
    CatalogRefusal::ByRolloutOnly { model }.into()
}

/// Anything else.
pub async fn no_such_path() -> HttpError {
    HttpError::new(
        StatusCode::NOT_FOUND,
        "no such path: the Open Inference Protocol is under /v2",
    )
}

/// A path of ours, asked in another way.
pub async fn no_such_method() -> HttpError {
    HttpError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take this method",
    )
}
