//! `POST .../infer`: a request to tensors, and an answer to bytes.
//!
//! JSON, or JSON with buffers after it; packed or not. No Content-Type is asked for,
//! because stock clients send none. What the bytes mean is
//! [`oip`](rollcall_agent_core::oip)'s; who answers is [`infer`](super::infer)'s.

mod body;
mod coding;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use rollcall_agent_core::oip::answer::{self, AnswerBody, AnswerHead, Output};
use rollcall_agent_core::oip::request::{
    self, InferBody, JSON_LENGTH_HEADER, RequestError, WantedOutput,
};
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::INFER_BODY_BYTES_MAX;
use rollcall_shared::version::Version;

use super::App;
use super::answer::HttpError;
use super::compression::{self, Coding};
use super::headers::{self, SegmentError};
use super::infer::{InferAnswer, InferRequest};
use super::path::Named;
pub(super) use body::parsed;

/// How many bytes of a body are JSON, where buffers follow: of a request, and of an answer.
pub const BINARY_HEADER: HeaderName = HeaderName::from_static("inference-header-content-length");

/// `POST /v2/models/{model}/infer`
///
/// # Errors
/// As [`super::answer`] maps them.
pub async fn infer(
    State(app): State<Arc<App>>,
    Named(model): Named<String>,
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
    Named((model, version)): Named<(String, String)>,
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
    let headers = &parts.headers;
    let json_length = json_length(headers)?;
    let read = move |bytes: &[u8]| Ok(request::read(bytes, json_length)?);
    let (asked, _room) = parsed(app, headers, body, INFER_BODY_BYTES_MAX, read).await?;
    let InferBody {
        id,
        segment,
        inputs,
        outputs: wanted,
        binary_outputs,
    } = asked;
    let segment = match segment {
        Some(segment) => Some(segment),
        None => headers::segment(headers)?,
    };
    let id = id
        .or_else(|| headers::request_id(headers))
        .unwrap_or_else(|| app.ids.make());
    let request = InferRequest {
        model: model.clone(),
        version,
        id: id.clone(),
        sticky_key: headers::sticky_key(headers),
        segment,
        inputs,
        outputs: wanted.iter().map(|output| output.name.clone()).collect(),
    };
    let answer = app.inference.infer(request).await?;
    let reply = Reply {
        model,
        id,
        wanted,
        binary_outputs,
        coding: coding::of_answer(headers),
        answer,
    };
    reply.into_response().await
}

/// How many bytes of the body are JSON, where the client says so.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>, HttpError> {
    let Some(value) = headers.get(BINARY_HEADER) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        HttpError::new(
            StatusCode::BAD_REQUEST,
            format!(
                "the header {JSON_LENGTH_HEADER} is no number of bytes: give the length of the \
                 JSON, which the buffers follow"
            ),
        )
    })
}

impl From<SegmentError> for HttpError {
    fn from(error: SegmentError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<RequestError> for HttpError {
    fn from(error: RequestError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

/// An answer, and how the client wants it.
struct Reply {
    model: ModelName,
    id: String,
    wanted: Vec<WantedOutput>,
    binary_outputs: bool,
    coding: Coding,
    answer: InferAnswer,
}

/// A body that is ready to go.
struct Packed {
    bytes: Vec<u8>,
    json_length: Option<usize>,
    coding: Coding,
}

impl Reply {
    async fn into_response(self) -> Result<Response, HttpError> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.reserve(8);
        super::headers::tell(headers, &self.id, &self.answer);
        let Packed {
            bytes,
            json_length,
            coding,
        } = self.pack().await?;
        let content_type = match json_length {
            None => HeaderValue::from_static("application/json"),
            Some(length) => {
                headers.insert(BINARY_HEADER, HeaderValue::from(length));
                HeaderValue::from_static("application/octet-stream")
            }
        };
        headers.insert(header::CONTENT_TYPE, content_type);
        if let Some(value) = coding.header() {
            headers.insert(header::CONTENT_ENCODING, value);
        }
        *response.body_mut() = Body::from(bytes);
        Ok(response)
    }

    /// On a blocking thread where it is large: few threads have all the connections.
    async fn pack(self) -> Result<Packed, HttpError> {
        if answer::size_about(&self.outputs()) <= self.coding.inline_answer_bytes_max() {
            return self.packed();
        }
        let packing = tokio::task::spawn_blocking(move || self.packed());
        packing.await.unwrap_or_else(|error| Err(unsaid(&error)))
    }

    fn packed(&self) -> Result<Packed, HttpError> {
        let head = AnswerHead {
            model_name: self.model.as_str(),
            model_version: self.answer.version.version,
            id: &self.id,
        };
        let AnswerBody { bytes, json_length } =
            answer::write(head, &self.outputs()).map_err(|error| unsaid(&error))?;
        let coding = self.coding.for_answer_of(bytes.len());
        let bytes = compression::pack(coding, bytes).map_err(|error| unsaid(&error))?;
        Ok(Packed {
            bytes,
            json_length,
            coding,
        })
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let all = &self.answer.outputs;
        if self.wanted.is_empty() {
            let binary = self.binary_outputs;
            return all.iter().map(|tensor| Output { tensor, binary }).collect();
        }
        let wanted = self.wanted.iter().filter_map(|wanted| {
            let tensor = all.iter().find(|output| output.name == wanted.name)?;
            let binary = wanted.binary.unwrap_or(self.binary_outputs);
            Some(Output { tensor, binary })
        });
        wanted.collect()
    }
}

fn unsaid(error: &dyn std::error::Error) -> HttpError {
    HttpError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("the answer could not be written: {error}"),
    )
}
