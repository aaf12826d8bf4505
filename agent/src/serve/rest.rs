//! Health, metadata and the repository, as the Open Inference Protocol has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rollcall_agent_core::route::CandidateUsage;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::TensorSpec;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use super::App;
use super::answer::HttpError;
use super::path::Named;
use super::predict::parsed;
use crate::prepare::PreparedModel;
use crate::routes::RouteEntry;

/// What runs our models, in the protocol's terms.
const PLATFORM: &str = "onnx";

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
        name: "rollcall-agent",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "model_repository(index)"],
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
    let routes = app.inference.routes().all();
    if routes
        .values()
        .any(|entry| !answering(&app, entry).is_empty())
    {
        Ok(Json(Ready { ready: true }).into_response())
    } else {
        Err(not_ready("no model is ready on this node".to_owned()))
    }
}

fn not_ready(message: String) -> HttpError {
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

fn not_found(message: String) -> HttpError {
    HttpError::new(StatusCode::NOT_FOUND, message)
}

/// The versions that answer clients now, stable first.
fn answering<'a>(app: &App, entry: &'a RouteEntry) -> Vec<&'a PreparedModel> {
    let now = app.inference.now();
    let in_use = entry.route.candidate.as_ref().is_some_and(|candidate| {
        let answers = match candidate.usage {
            CandidateUsage::Canary(_) => true,
            CandidateUsage::Shadow(_) => false,
        };
        answers && now < candidate.lease_until
    });
    let stable = entry.stable.iter().map(|arm| &*arm.prepared);
    let candidate = entry
        .candidate
        .iter()
        .filter(|_| in_use)
        .map(|c| &*c.arm.prepared);
    stable.chain(candidate).collect()
}

fn entry(app: &App, model: &str) -> Result<Arc<RouteEntry>, HttpError> {
    let model: ModelName = model
        .parse()
        .map_err(|error| not_found(format!("{error}")))?;
    app.inference
        .routes()
        .get(&model)
        .ok_or_else(|| not_found(format!("this node has no model {model}")))
}

#[derive(Serialize)]
struct ModelMetadata<'a> {
    name: &'a str,
    versions: Vec<Version>,
    platform: &'static str,
    inputs: &'a [TensorSpec],
    outputs: &'a [TensorSpec],
}

fn metadata(versions: Vec<Version>, prepared: &PreparedModel) -> Response {
    Json(ModelMetadata {
        name: prepared.manifest.model.as_str(),
        versions,
        platform: PLATFORM,
        inputs: &prepared.manifest.signature.inputs,
        outputs: &prepared.manifest.signature.outputs,
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
    let entry = entry(&app, &model)?;
    let answering = answering(&app, &entry);
    let first = answering
        .first()
        .ok_or_else(|| not_ready(format!("{model} is not ready")))?;
    Ok(metadata(
        answering
            .iter()
            .map(|prepared| prepared.version.version)
            .collect(),
        first,
    ))
}

/// `GET /v2/models/{model}/versions/{version}`
///
/// # Errors
/// 404 when it does not answer here.
pub async fn version(
    State(app): State<Arc<App>>,
    Named((model, version)): Named<(String, String)>,
) -> Result<Response, HttpError> {
    let entry = entry(&app, &model)?;
    let prepared = find(&app, &entry, &model, &version)?;
    Ok(metadata(vec![prepared.version.version], prepared))
}

fn find<'a>(
    app: &App,
    entry: &'a RouteEntry,
    model: &str,
    version: &str,
) -> Result<&'a PreparedModel, HttpError> {
    let asked: Version = version
        .parse()
        .map_err(|error| not_found(format!("{error}")))?;
    answering(app, entry)
        .into_iter()
        .find(|prepared| prepared.version.version == asked)
        .ok_or_else(|| {
            not_found(format!(
                "version {asked} of {model} does not answer on this node"
            ))
        })
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
    let entry = entry(&app, &model)?;
    if answering(&app, &entry).is_empty() {
        return Err(not_ready(format!("{model} is not ready on this node")));
    }
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
    let entry = entry(&app, &model)?;
    find(&app, &entry, &model, &version)?;
    Ok(Json(ModelReady {
        name: &model,
        ready: true,
    })
    .into_response())
}

#[derive(Serialize)]
struct IndexRow {
    name: ModelName,
    version: String,
    state: &'static str,
    reason: String,
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
    let routes = app.inference.routes().all();
    let mut rows = Vec::new();
    for (model, entry) in routes.iter() {
        let answering = answering(&app, entry);
        let row = |version: String, state, reason: &str| IndexRow {
            name: model.clone(),
            version,
            state,
            reason: reason.to_owned(),
        };
        if answering.is_empty() {
            rows.push(row(String::new(), "UNAVAILABLE", "no version is ready"));
        }
        rows.extend(
            answering
                .iter()
                .map(|prepared| row(prepared.version.version.to_string(), "READY", "")),
        );
        let shadow = entry
            .candidate
            .as_ref()
            .map(|candidate| &candidate.arm.prepared);
        let hidden = shadow.filter(|s| !answering.iter().any(|a| a.version == s.version));
        rows.extend(hidden.map(|prepared| {
            row(
                prepared.version.version.to_string(),
                "UNAVAILABLE",
                "loaded, answers no clients",
            )
        }));
    }
    if wanted.ready {
        rows.retain(|row| row.state == "READY");
    }
    Ok(Json(rows))
}

/// `POST /v2/repository/models/{model}/load` and `/unload`
pub async fn load_refused(Named(model): Named<String>) -> HttpError {
    HttpError::new(
        StatusCode::FORBIDDEN,
        format!(
            "versions of {model} come and go by rollouts only: ask the coordinator \
             (rollcall rollout start, rollcall rollback)"
        ),
    )
}

/// `GET /metrics`
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = app.metrics.render(&app);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Anything else.
pub async fn no_such_path() -> HttpError {
    not_found("no such path: the Open Inference Protocol is under /v2".to_owned())
}

/// A path of ours, asked in another way.
pub async fn no_such_method() -> HttpError {
    HttpError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take this method",
    )
}
