//! A body that is read to its end even where nobody wants it.
//!
//! Who is refused while still sending would find the connection broken, and not read why. So
//! what is left of a body goes nowhere for a while, beside the answer, which waits for nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderMap, Request, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::runtime::Handle;

/// How long a client may go on sending what nobody reads; then the connection is closed.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// A body, and what is left of it.
#[derive(Debug)]
pub(super) struct Lingering {
    rest: Option<Incoming>,
    /// A client that asks before it sends is told not to by the answer alone.
    asks_first: bool,
}

impl Lingering {
    pub(super) fn wrap(request: Request<Incoming>) -> Request<Self> {
        let asks_first = asks_first(request.headers());
        request.map(|body| Self {
            rest: Some(body),
            asks_first,
        })
    }
}

fn asks_first(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(rest).poll_frame(context));
        // It sends, so it no longer asks.
        self.asks_first = false;
        if !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.rest
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.is_end_stream() || self.asks_first {
            return;
        }
        let (Some(mut rest), Ok(runtime)) = (self.rest.take(), Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            let discarding = async { while let Some(Ok(_)) = rest.frame().await {} };
            // Whoever is not done by then is cut off.
            let _ = tokio::time::timeout(LINGER_MAX, discarding).await;
        });
    }
}
