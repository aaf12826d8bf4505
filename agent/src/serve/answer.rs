//! Refusals as clients see them: a status and `{"error": "..."}`, always JSON.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::infer::InferRefusal;
use super::room::NoRoom;

/// What a client that should come again is told to wait, in seconds.
const RETRY_AFTER_S: &str = "1";

/// A request that was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpError {
    status: StatusCode,
    message: String,
}

impl HttpError {
    /// With a message that says what and why, and what to do.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (
            self.status,
            axum::Json(Body {
                error: &self.message,
            }),
        )
            .into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let retry = HeaderValue::from_static(RETRY_AFTER_S);
            response.headers_mut().insert(header::RETRY_AFTER, retry);
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            let taken = HeaderValue::from_static("gzip, deflate");
            response
                .headers_mut()
                .insert(header::ACCEPT_ENCODING, taken);
        }
        response
    }
}

impl From<NoRoom> for HttpError {
    fn from(none: NoRoom) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, none.to_string())
    }
}

impl From<InferRefusal> for HttpError {
    fn from(refusal: InferRefusal) -> Self {
        let status = match &refusal {
            InferRefusal::UnknownModel { .. } | InferRefusal::UnknownVersion { .. } => {
                StatusCode::NOT_FOUND
            }
            InferRefusal::BadInput(_) | InferRefusal::UnknownOutput { .. } => {
                StatusCode::BAD_REQUEST
            }
            InferRefusal::NotReady { .. }
            | InferRefusal::Overloaded
            | InferRefusal::TimedOut { .. } => StatusCode::SERVICE_UNAVAILABLE,
            InferRefusal::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refusal.to_string())
    }
}
