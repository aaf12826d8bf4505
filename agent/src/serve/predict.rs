//! `POST .../infer` in JSON: bytes to tensors, and an answer to bytes.
//!
//! A body that is too large is refused by its declared length, before a byte of it
//! is read, and bodies together have a bound too. No Content-Type is asked for,
//! because stock clients send none.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::feedback::{TAG, is_tag};
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{INFER_BODY_BYTES_MAX, TEXT_BYTES_MAX};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::answer::HttpError;
use super::infer::{InferAnswer, InferRequest};
use crate::engine::json::{JsonTensor, TensorJson, TensorParameters};

/// Requests with the same value meet the same version.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("x-rollcall-key");
/// Requests with the same value are counted together, beside all; `parameters.segment` of
/// the body goes before it.
pub const SEGMENT_HEADER: HeaderName = HeaderName::from_static("rollcall-segment");
/// Which version answered.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-rollcall-version");
/// As what: `stable`, `candidate` or `fallback`.
pub const ARM_HEADER: HeaderName = HeaderName::from_static("x-rollcall-arm");
/// The request's name: the client's, or ours.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// A client that sends buffers after the JSON says so with this.
const BINARY_HEADER: HeaderName = HeaderName::from_static("inference-header-content-length");

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger bodies are read by a blocking thread: two threads do all the I/O.
pub(super) const INLINE_PARSE_BYTES_MAX: usize = 128 << 10;

/// Memory is reserved for a declared length up to here; the rest as it arrives.
const RESERVE_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct InferBody {
    #[serde(default)]
    id: Option<String>,
    inputs: Vec<JsonTensor>,
    #[serde(default)]
    outputs: Vec<WantedOutput>,
    #[serde(default)]
    parameters: Option<RequestParameters>,
}

/// Those that we read; others are let pass.
#[derive(Default, Deserialize)]
struct RequestParameters {
    #[serde(default)]
    segment: Option<String>,
}

#[derive(Deserialize)]
struct WantedOutput {
    name: String,
}

#[derive(Serialize)]
struct AnswerBody<'a> {
    model_name: &'a str,
    model_version: Version,
    id: &'a str,
    outputs: Vec<TensorJson<'a>>,
}

/// `POST /v2/models/{model}/infer`
///
/// # Errors
/// As [`super::answer`] maps them.
pub async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, HttpError> {
    predict(&app, &model, None, request).await
}

/// `POST /v2/models/{model}/versions/{version}/infer`
///
/// # Errors
/// As [`super::answer`] maps them.
pub async fn infer_version(
    State(app): State<Arc<App>>,
    Path((model, version)): Path<(String, String)>,
    request: Request,
) -> Result<Response, HttpError> {
    predict(&app, &model, Some(&version), request).await
}

async fn predict(
    app: &App,
    model: &str,
    version: Option<&str>,
    request: Request,
) -> Result<Response, HttpError> {
    let not_found = |message: String| HttpError::new(StatusCode::NOT_FOUND, message);
    let model: ModelName = model.parse().map_err(|e| not_found(format!("{e}")))?;
    let version: Option<Version> = version
        .map(str::parse)
        .transpose()
        .map_err(|e| not_found(format!("{e}")))?;
    let (parts, body) = request.into_parts();
    check_headers(&parts.headers)?;
    let (bytes, _room) = read_body(app, &parts.headers, body, INFER_BODY_BYTES_MAX).await?;
    let Parsed {
        id,
        segment,
        inputs,
        outputs,
    } = parse(bytes).await?;
    let segment = match segment {
        Some(segment) => Some(segment),
        None => segment_of(&parts.headers)?,
    };
    let id = id
        .or_else(|| header_text(&parts.headers, &REQUEST_ID_HEADER))
        .unwrap_or_else(|| app.ids.make());
    let sticky_key = header_text(&parts.headers, &KEY_HEADER);
    let wanted = outputs.clone();
    let request = InferRequest {
        model: model.clone(),
        version,
        id: id.clone(),
        sticky_key,
        segment,
        inputs,
        outputs,
    };
    let answer = app.inference.infer(request).await?;
    respond(&model, &id, &wanted, &answer)
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    let text = String::from_utf8_lossy(value).into_owned();
    (!text.is_empty() && text.len() <= TEXT_BYTES_MAX).then_some(text)
}

fn segment_of(headers: &HeaderMap) -> Result<Option<String>, HttpError> {
    let Some(value) = headers.get(SEGMENT_HEADER) else {
        return Ok(None);
    };
    let segment = std::str::from_utf8(value.as_bytes()).map_err(|_| {
        HttpError::new(
            StatusCode::BAD_REQUEST,
            format!("the header {SEGMENT_HEADER} is not UTF-8: a segment is a {TAG}"),
        )
    })?;
    check_segment(segment)?;
    Ok(Some(segment.to_owned()))
}

fn check_segment(segment: &str) -> Result<(), HttpError> {
    if is_tag(segment) {
        return Ok(());
    }
    let shown: String = segment.chars().take(60).collect();
    Err(HttpError::new(
        StatusCode::BAD_REQUEST,
        format!(
            "{shown:?} is no segment: give a {TAG}, e.g. a country, and let the keys of \
             customers be sticky keys"
        ),
    ))
}

pub(super) fn check_headers(headers: &HeaderMap) -> Result<(), HttpError> {
    if headers.contains_key(BINARY_HEADER) {
        return Err(HttpError::new(
            StatusCode::BAD_REQUEST,
            "binary tensors are not taken here: send them as JSON \
             (tritonclient: set_data_from_numpy(..., binary_data=False))",
        ));
    }
    match headers
        .get(header::CONTENT_ENCODING)
        .map(HeaderValue::as_bytes)
    {
        None | Some(b"identity" | b"") => Ok(()),
        Some(_) => Err(HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "compressed requests are not taken here: send the JSON as it is",
        )),
    }
}

fn too_large(bytes_max: usize) -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a request has at most {bytes_max} bytes; split it"),
    )
}

/// The whole body, and the room that it takes until the request is done. A body that
/// does not tell its length takes room as it grows.
pub(super) async fn read_body(
    app: &App,
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
) -> Result<(Bytes, OwnedSemaphorePermit), HttpError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let declared = declared
        .and_then(|length| length.parse::<usize>().ok())
        .unwrap_or(0);
    if declared > bytes_max {
        return Err(too_large(bytes_max));
    }
    let mut kib = declared.div_ceil(1_024).max(1);
    let mut room = take_room(app, kib)?;
    let reading = async {
        let mut bytes = BytesMut::with_capacity(declared.min(RESERVE_BYTES_MAX));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                HttpError::new(StatusCode::BAD_REQUEST, "the body did not arrive whole")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > bytes_max {
                return Err(too_large(bytes_max));
            }
            let more = length.div_ceil(1_024).saturating_sub(kib);
            if more > 0 {
                room.merge(take_room(app, more)?);
                kib += more;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    let bytes = tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .map_err(|_| {
            HttpError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took longer than 30 s to arrive",
            )
        })??;
    Ok((bytes, room))
}

fn take_room(app: &App, kib: usize) -> Result<OwnedSemaphorePermit, HttpError> {
    let permits = u32::try_from(kib).unwrap_or(u32::MAX);
    Arc::clone(&app.bodies)
        .try_acquire_many_owned(permits)
        .map_err(|_| {
            HttpError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many large requests are in memory on this node; try again or ask another node",
            )
        })
}

struct Parsed {
    id: Option<String>,
    segment: Option<String>,
    inputs: Vec<Tensor>,
    outputs: Vec<String>,
}

async fn parse(bytes: Bytes) -> Result<Parsed, HttpError> {
    if bytes.len() <= INLINE_PARSE_BYTES_MAX {
        return parse_json(&bytes);
    }
    tokio::task::spawn_blocking(move || parse_json(&bytes))
        .await
        .unwrap_or_else(|_| {
            Err(HttpError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "reading the request broke off",
            ))
        })
}

fn parse_json(bytes: &[u8]) -> Result<Parsed, HttpError> {
    let bad = |message: String| HttpError::new(StatusCode::BAD_REQUEST, message);
    let body: InferBody = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("the body is not an inference request: {error}")))?;
    if body.id.as_ref().is_some_and(|id| id.len() > TEXT_BYTES_MAX) {
        return Err(bad(format!("an id has at most {TEXT_BYTES_MAX} bytes")));
    }
    let segment = body.parameters.and_then(|parameters| parameters.segment);
    segment.as_deref().map_or(Ok(()), check_segment)?;
    let mut inputs = Vec::with_capacity(body.inputs.len());
    for tensor in body.inputs {
        let TensorParameters {
            binary_data_size, ..
        } = tensor.parameters;
        if binary_data_size.is_some() {
            return Err(bad(format!(
                "input {:?} announces binary data, which is not taken here: send \"data\"",
                tensor.name
            )));
        }
        inputs.push(
            tensor
                .into_tensor()
                .map_err(|error| bad(error.to_string()))?,
        );
    }
    let id = body.id.filter(|id| !id.is_empty());
    Ok(Parsed {
        id,
        segment,
        inputs,
        outputs: body.outputs.into_iter().map(|output| output.name).collect(),
    })
}

fn respond(
    model: &ModelName,
    id: &str,
    wanted: &[String],
    answer: &InferAnswer,
) -> Result<Response, HttpError> {
    let outputs = if wanted.is_empty() {
        answer.outputs.iter().map(TensorJson).collect()
    } else {
        let find = |name: &String| answer.outputs.iter().find(|output| output.name == *name);
        wanted.iter().filter_map(find).map(TensorJson).collect()
    };
    let version = answer.version.version;
    let body = AnswerBody {
        model_name: model.as_str(),
        model_version: version,
        id,
        outputs,
    };
    let body = serde_json::to_vec(&body).map_err(|error| {
        HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("no JSON for the answer: {error}"),
        )
    })?;
    let mut response = Body::from(body).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(ARM_HEADER, HeaderValue::from_static(answer.by.as_str()));
    // A version is digits and dots; an id with control characters is left out.
    if let Ok(value) = HeaderValue::from_str(&version.to_string()) {
        headers.insert(VERSION_HEADER, value);
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID_HEADER, value);
    }
    Ok(response)
}
