//! The agent's gRPC port: the Open Inference Protocol as `inference.GRPCInferenceService`.
//!
//! A thin shell over what REST uses: the same [`Inference`](super::infer::Inference)
//! answers, the same [`catalog`](super::catalog) tells what is here, and messages take of
//! the same room as REST's bodies. No access control either.
//!
//! Every connection has bounds of its own: so many calls at a time, a preface within ten
//! seconds, and pings that a peer which is gone does not answer.

mod infer;
mod message;
mod methods;
mod reply;
mod request;
pub mod wire;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connections::{Bounded, Connection};
use super::{App, DRAIN_MAX};

/// Calls at one time on a connection. Clients keep more to themselves until one is done.
const STREAMS_MAX: u32 = 128;
/// Bytes of all metadata of a call. More: the call is refused.
const METADATA_BYTES_MAX: u32 = 16 << 10;
/// Bytes of one message that may be on their way before we say that we read them.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for all calls of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// A connection is pinged this often, so that one whose client is gone frees its place.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long the answer to a ping may take.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);
/// What a client of HTTP/2 sends before all else, in bytes.
const PREFACE_BYTES: usize = 24;
/// How long it may take.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown`, and then what is under way for ten seconds at most.
pub async fn serve(app: Arc<App>, listener: Bounded, shutdown: CancellationToken) {
    let mut listener = listener.expecting(PREFACE_BYTES, PREFACE_TIMEOUT);
    let connections = TaskTracker::new();
    loop {
        let (connection, _) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        connections.spawn(converse(Arc::clone(&app), connection, shutdown.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection, to its end.
async fn converse(app: Arc<App>, connection: Connection, shutdown: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(methods::answer(&app, request).await) }
    });
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(METADATA_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_TIMEOUT)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(connection), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a gRPC connection broke off");
    }
}
