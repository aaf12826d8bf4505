//! How handlers get at a request: who asks, and bodies and names that were checked.

use axum::body::{Body as RawBody, BodyDataStream};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use futures_util::StreamExt;
use rollcall_coordinator_core::input::{Actor, Role};
use rollcall_shared::limits::PLAN_BYTES_MAX;
use rollcall_transport::token::OperatorToken;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::{JSON_BYTES_MAX, Shared};

/// Bytes read of a refused body. More: the connection is closed in the sender's face.
const DRAINED_BYTES_MAX: usize = 64 << 20;

/// Who asks; the token was good when the request came.
pub(super) struct Caller(pub(super) Actor);

impl Caller {
    /// For what no command carries: uploads.
    pub(super) fn may_push(&self) -> Result<(), ApiError> {
        let Actor::Operator { roles, .. } = &self.0 else {
            return Err(ApiError::Forbidden(
                "only operators push versions".to_owned(),
            ));
        };
        if roles.contains(&Role::Promoter) || roles.contains(&Role::Admin) {
            Ok(())
        } else {
            Err(ApiError::Forbidden(
                "pushing needs the role promoter: ask for a token with it".to_owned(),
            ))
        }
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let token: OperatorToken = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|token| token.parse().ok())
            .ok_or(ApiError::Unauthorized)?;
        let (id, hash) = (
            token.credential.id().to_owned(),
            token.credential.secret_hash(),
        );
        let actor = api
            .core
            .ask(move |core, now| core.authenticate(&id, hash, now))
            .await?;
        actor.map(Self).ok_or(ApiError::Unauthorized)
    }
}

/// A JSON body that reads as a `T`.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Shared) -> Result<Self, ApiError> {
        let body = read(request.into_body(), JSON_BYTES_MAX).await?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| ApiError::Invalid(format!("the body cannot be read: {error}")))
    }
}

/// A body of UTF-8 text.
pub(super) struct Text(pub(super) String);

impl FromRequest<Shared> for Text {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Shared) -> Result<Self, ApiError> {
        let body = read(request.into_body(), PLAN_BYTES_MAX).await?;
        String::from_utf8(body)
            .map(Self)
            .map_err(|_| ApiError::Invalid("the body is not UTF-8 text".to_owned()))
    }
}

/// A whole body of at most `bytes_max` bytes.
async fn read(body: RawBody, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            ApiError::Invalid(format!("the body broke off: {error}; send it again"))
        })?;
        if bytes.len() + chunk.len() > bytes_max {
            drain(&mut stream).await;
            return Err(ApiError::TooLarge(format!(
                "the body is over the bound of {bytes_max} bytes for this page"
            )));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads on without keeping anything, up to a bound: a client that is still sending
/// when the connection closes would never see the answer.
pub(super) async fn drain(stream: &mut BodyDataStream) {
    let mut left = DRAINED_BYTES_MAX;
    while let Some(Ok(chunk)) = stream.next().await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

/// Query parameters that read as a `T`.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|rejection| ApiError::Invalid(rejection.body_text()))
    }
}

/// A name in the path.
pub(super) fn named<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<T, ApiError> {
    text.parse()
        .map_err(|error: T::Err| ApiError::Invalid(error.to_string()))
}
