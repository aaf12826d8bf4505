//! HTTP/1.1 on bounded connections, each with a bound on its patience.
//!
//! Served by hyper itself, and not by `axum::serve`, which sets no timer: who dribbles a
//! request's head, or holds a connection without asking anything, would keep it for ever.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::connections::Bounded;
use super::linger::Lingering;
use super::{App, DRAIN_MAX, router};

/// How long the head of a request may take to arrive, from the answer before it on: so
/// long a connection may be idle, too.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until `shutdown`, and then what is under way for ten seconds at most.
pub async fn serve(app: Arc<App>, listener: Bounded, shutdown: CancellationToken) {
    serve_patiently(listener, router(app), HEAD_TIMEOUT, shutdown).await;
}

/// The same with another bound on the arrival of a head.
pub async fn serve_patiently(
    mut listener: Bounded,
    router: Router,
    head_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout);
    let service = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    loop {
        let (connection, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let service = service.clone();
        let service = service_fn(move |request| service.call(Lingering::wrap(request)));
        let serving = http.serve_connection(TokioIo::new(connection), service);
        let serving = connections.watch(serving);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::trace!(%error, "a connection ended badly");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_MAX, connections.shutdown()).await;
}
