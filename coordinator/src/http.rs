//! The operators' door: HTTPS with bearer tokens, JSON in and out.
//!
//! Errors are always `{"error": "..."}`: what, why and what to do. Who may do what
//! is the core's decision; only uploads, which no command carries, are checked here.
//!
//! | route | module |
//! | --- | --- |
//! | `/api/v1/status`, `/healthz`, `/metrics` | [`fleet`] |
//! | `/api/v1/agents...`, `/api/v1/tokens...` | [`fleet`], [`tokens`] |
//! | `/api/v1/models...`, `/api/v1/versions`, `/api/v1/blobs/{digest}` | [`models`], [`versions`] |
//! | `/api/v1/rollouts...` | [`rollouts`] |
//! | `/api/v1/models/{model}/rollback`, `.../rehearsal`, `/api/v1/rollouts/{id}/rollback` | [`rollbacks`] |
//! | `/api/v1/models/{model}/feedback`, `.../kpis` | [`outcomes`] |
//! | `/api/v1/audit...` | [`audit`] |

mod audit;
pub mod error;
mod extract;
mod fleet;
mod models;
pub mod outcomes;
pub mod rollbacks;
pub mod rollouts;
pub mod tokens;
pub mod versions;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post, put};
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::{Actor, Command};
use rollcall_shared::digest::Digest;
use rollcall_shared::signing::SigningKey;

use crate::artifacts::ArtifactStore;
use crate::driver::CoreHandle;
use crate::journal::Journal;
use crate::metrics::Metrics;
use error::ApiError;

/// A JSON body. The largest is the list of a version's files with its metadata. Larger: 413.
const JSON_BYTES_MAX: usize = 1 << 20;

/// The longest that a request waits for something to happen; the client asks again.
pub const LONG_POLL_MAX: Duration = Duration::from_secs(25);

/// What the handlers share.
pub struct Api {
    /// The core.
    pub core: CoreHandle,
    /// The journal, for the audit log.
    pub journal: Arc<dyn Journal>,
    /// The blobs.
    pub artifacts: ArtifactStore,
    /// Signs manifests.
    pub registry_key: SigningKey,
    /// Fingerprint of the CA: part of enrolment tokens.
    pub pin: Digest,
    /// For Prometheus.
    pub metrics: Metrics,
}

/// How handlers get the [`Api`].
pub type Shared = Arc<Api>;

impl Api {
    /// Has a command carried out.
    ///
    /// # Errors
    /// When the core refuses it or is gone.
    pub async fn command(&self, actor: Actor, command: Command) -> Result<Done, ApiError> {
        Ok(self.core.command(actor, command).await??)
    }
}

/// Every route.
pub fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/status", get(fleet::status))
        .route("/agents", get(fleet::agents))
        .route("/agents/{node}", get(fleet::agent))
        .route("/agents/{node}/{action}", post(fleet::act))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{id}", delete(tokens::revoke))
        .route("/models", get(models::list))
        .route("/models/{model}", get(models::show))
        .route(
            "/models/{model}/rollback",
            get(rollbacks::show).post(rollbacks::start),
        )
        .route(
            "/models/{model}/rehearsal",
            get(rollbacks::show_rehearsal).post(rollbacks::rehearse),
        )
        .route("/models/{model}/feedback", post(outcomes::feedback))
        .route("/models/{model}/kpis", post(outcomes::record_kpi))
        .route("/models/{model}/versions/{version}", get(versions::show))
        .route(
            "/models/{model}/versions/{version}/{action}",
            post(versions::act),
        )
        .route("/versions", get(versions::list).post(versions::register))
        .route("/rollouts", get(rollouts::list).post(rollouts::start))
        .route("/rollouts/{id}", get(rollouts::show))
        .route("/rollouts/{id}/watch", get(rollouts::watch))
        .route("/rollouts/{id}/rollback", get(rollbacks::show_rollout))
        .route("/rollouts/{id}/{action}", post(rollouts::act))
        .route("/audit/head", get(audit::head))
        .route("/audit/records", get(audit::records))
        .route(
            "/blobs/{digest}",
            put(versions::upload).head(versions::uploaded),
        );
    Router::new()
        .nest("/api/v1", v1)
        .route("/healthz", get(fleet::healthz))
        .route("/metrics", get(fleet::metrics))
        .fallback(async || ApiError::NotFound("there is no such page".to_owned()))
        .method_not_allowed_fallback(async || {
            ApiError::Invalid("this method does not fit the page".to_owned())
        })
        .with_state(Arc::new(api))
}
