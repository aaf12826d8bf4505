//! What an API request can fail with, and how that looks.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rollcall_coordinator_core::effect::Refusal;
use serde_json::json;

use crate::artifacts::ArtifactError;
use crate::driver::Gone;
use crate::journal::JournalError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 401.
    #[error(
        "the token is missing, wrong, expired or revoked: `rollcall login` with one that \
         `rollcall token create` shows"
    )]
    Unauthorized,
    /// 403.
    #[error("{0}")]
    Forbidden(String),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 413.
    #[error("{0}")]
    TooLarge(String),
    /// 500.
    #[error("{0}")]
    Internal(String),
    /// 503.
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl ApiError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal(why) = &self {
            tracing::error!(why, "a request failed");
        }
        (self.status(), Json(json!({ "error": self.to_string() }))).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(why) => Self::NotFound(why),
            Refusal::Conflict(why) => Self::Conflict(why),
            Refusal::Invalid(why) => Self::Invalid(why),
            Refusal::Forbidden(why) => Self::Forbidden(why),
        }
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        let why = error.to_string();
        match error {
            ArtifactError::TooLarge { .. } => Self::TooLarge(why),
            ArtifactError::WrongDigest { .. } | ArtifactError::Interrupted(_) => Self::Invalid(why),
            ArtifactError::Io { .. } => Self::Internal(why),
        }
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        Self::Internal(error.to_string())
    }
}
