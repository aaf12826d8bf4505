//! `GET /metrics` and `GET /rollcall/v1/status`: what is written for those who look after
//! the node, aside from its clients.
//!
//! A page is put together on a blocking thread of the runtime that the agent's own work is
//! done on, and not where clients' connections are. For 20 models with three versions each
//! the metrics take a millisecond, and so does the status, which asks the cache: that may
//! wait for the disk, too, and then all connections of a thread would. Nor is it done on the
//! blocking threads of those who serve: large bodies are read there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::App;
use super::answer::HttpError;

/// Pages put together at one time; whoever asks for more waits. Few, so that a flood of them
/// leaves blocking threads to those who keep the state and fetch.
const PAGES_MAX: usize = 2;

/// Where pages are put together.
#[derive(Debug)]
pub struct Pages {
    runtime: Handle,
    turns: Arc<Semaphore>,
}

impl Pages {
    /// On the blocking threads of this runtime.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            turns: Arc::new(Semaphore::new(PAGES_MAX)),
        }
    }

    async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HttpError> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
        let writing = self.runtime.spawn_blocking(move || {
            // Who asked may leave: the turn is over when the work is.
            let _turn = turn;
            write()
        });
        writing.await.map_err(|error| {
            tracing::error!(%error, "a page broke off, which is a bug of the agent");
            let message = "the page broke off, which is a bug of the agent; its log says more";
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
        })
    }
}

/// `GET /metrics`
///
/// # Errors
/// 500 for a bug of ours.
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, HttpError> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let asked = Arc::clone(&app);
    let text = app
        .pages
        .write(move || asked.metrics.render(&asked))
        .await?;
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

/// `GET /rollcall/v1/status`
///
/// # Errors
/// 500 for a bug of ours.
pub async fn status(State(app): State<Arc<App>>) -> Result<Response, HttpError> {
    let asked = Arc::clone(&app);
    // As text, too.
    let write = move || axum::Json(asked.status.read(asked.inference.now())).into_response();
    app.pages.write(write).await
}
