//! The agent's ports: Open Inference Protocol v2 over HTTP, with feedback, metrics and
//! status, and over [`grpc`] where it is asked for.
//!
//! It listens before any model is there and says "not ready"; it decides nothing
//! about who answers, that is [`infer`]'s and the route's. No access control: it is
//! meant for the node's own network, like the servers that it replaces.

pub mod answer;
pub mod catalog;
mod compression;
pub mod connections;
pub mod feedback;
pub mod grpc;
pub mod headers;
pub mod http;
pub mod infer;
mod linger;
pub mod pages;
pub mod path;
pub mod predict;
pub mod rest;
mod room;
pub mod status;
pub mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use infer::Inference;
use pages::Pages;
use status::StatusBoard;

/// How long requests under way may go on after a stop was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What all handlers share.
#[derive(Debug)]
pub struct App {
    /// Answers requests.
    pub inference: Arc<Inference>,
    /// What the status page shows.
    pub status: Arc<StatusBoard>,
    /// What Prometheus reads.
    pub metrics: Metrics,
    /// Where both are written.
    pub pages: Pages,
    /// Room for bodies, one permit a KiB.
    pub bodies: Arc<Semaphore>,
    /// Names requests that came without a name.
    pub ids: Ids,
}

/// Makes request ids: unique on this node, and a fresh prefix for each process.
#[derive(Debug)]
pub struct Ids {
    prefix: u64,
    next: AtomicU64,
}

impl Ids {
    /// With a prefix that no other process is likely to have.
    #[must_use]
    pub const fn new(prefix: u64) -> Self {
        Self {
            prefix,
            next: AtomicU64::new(0),
        }
    }

    /// The next id.
    pub fn make(&self) -> String {
        format!(
            "{:016x}-{}",
            self.prefix,
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v2", get(rest::server))
        .route("/v2/health/live", get(rest::live))
        .route("/v2/health/ready", get(rest::ready))
        .route("/v2/models/{model}", get(rest::model))
        .route("/v2/models/{model}/ready", get(rest::model_ready))
        .route("/v2/models/{model}/infer", post(predict::infer))
        .route("/v2/models/{model}/versions/{version}", get(rest::version))
        .route(
            "/v2/models/{model}/versions/{version}/ready",
            get(rest::version_ready),
        )
        .route(
            "/v2/models/{model}/versions/{version}/infer",
            post(predict::infer_version),
        )
        .route("/v2/repository/index", post(rest::index))
        .route(
            "/v2/repository/models/{model}/load",
            post(rest::load_refused),
        )
        .route(
            "/v2/repository/models/{model}/unload",
            post(rest::load_refused),
        )
        .route("/metrics", get(pages::metrics))
        .route("/rollcall/v1/status", get(pages::status))
        .route("/rollcall/v1/feedback", post(feedback::feedback))
        .fallback(rest::no_such_path)
        .method_not_allowed_fallback(rest::no_such_method)
        .with_state(app)
}
