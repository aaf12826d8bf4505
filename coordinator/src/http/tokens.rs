//! Tokens: secrets are made here, shown once, and only their hashes go further.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use rollcall_coordinator_core::input::{Command, Role, TokenKind};
use rollcall_coordinator_core::view::TokenView;
use rollcall_shared::limits::NAME_BYTES_MAX;
use rollcall_shared::time::{Timestamp, parse_duration};
use rollcall_transport::token::{EnrolmentToken, OperatorToken};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::error::ApiError;
use super::extract::{Body, Caller};
use crate::credentials::new_credential;

/// How long an enrolment token lasts unless told otherwise.
const ENROLMENT_TTL: &str = "1h";

/// What `POST /api/v1/tokens` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// `agent` or `operator`.
    pub kind: NewTokenKind,
    /// Operators: what it may do; viewer, operator, promoter, admin, or a role that plans name
    /// in `approvals`.
    #[serde(default)]
    pub roles: BTreeSet<String>,
    /// For people: who has it.
    #[serde(default)]
    pub name: Option<String>,
    /// How long it lasts, e.g. `1h`. Agents: 1h; operators: for ever.
    #[serde(default)]
    pub ttl: Option<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewTokenKind {
    /// Lets one node enrol, once.
    Agent,
    /// Lets a person or a script use the API.
    Operator,
}

/// A fresh token. The text is shown here and never again.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreatedToken {
    /// Its public id.
    pub id: String,
    /// The token, whole: secret.
    pub token: String,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A role as people write it.
#[must_use]
pub fn role(text: &str) -> Role {
    match text {
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        "promoter" => Role::Promoter,
        "admin" => Role::Admin,
        approver => Role::Approver(approver.to_owned()),
    }
}

pub(super) async fn list(
    State(api): State<Shared>,
    _: Caller,
) -> Result<Json<Vec<TokenView>>, ApiError> {
    Ok(Json(api.core.ask(|core, _| core.tokens()).await?))
}

pub(super) async fn create(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Body(new): Body<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let invalid = |why: String| ApiError::Invalid(why);
    let kind = match new.kind {
        NewTokenKind::Agent if !new.roles.is_empty() => {
            return Err(invalid("an agent's token has no roles".to_owned()));
        }
        NewTokenKind::Agent => TokenKind::Agent,
        NewTokenKind::Operator => TokenKind::Operator {
            roles: new.roles.iter().map(|text| role(text)).collect(),
        },
    };
    if new
        .roles
        .iter()
        .any(|role| role.is_empty() || role.len() > NAME_BYTES_MAX)
    {
        return Err(invalid(format!("a role has 1 to {NAME_BYTES_MAX} bytes")));
    }
    let default_ttl = (new.kind == NewTokenKind::Agent).then_some(ENROLMENT_TTL);
    let ttl = new
        .ttl
        .as_deref()
        .or(default_ttl)
        .map(parse_duration)
        .transpose()
        .map_err(|error| invalid(error.to_string()))?;
    let expires_at = ttl.map(|ttl| api.core.clock().now() + ttl);
    let credential = new_credential().map_err(|error| ApiError::Internal(error.to_string()))?;
    let id = credential.id().to_owned();
    let command = Command::CreateToken {
        id: id.clone(),
        secret_hash: credential.secret_hash(),
        kind,
        name: new.name.unwrap_or_else(|| id.clone()),
        expires_at,
    };
    api.command(actor, command).await?;
    let token = match new.kind {
        NewTokenKind::Agent => EnrolmentToken {
            credential,
            pin: api.pin,
        }
        .to_string(),
        NewTokenKind::Operator => OperatorToken { credential }.to_string(),
    };
    Ok((
        StatusCode::CREATED,
        Json(CreatedToken {
            id,
            token,
            expires_at,
        }),
    ))
}

pub(super) async fn revoke(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.command(actor, Command::RevokeToken { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
