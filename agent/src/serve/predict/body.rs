//! A request's body: bounded in size, in time and in what all of them take together.
//!
//! A body that is too large is refused by its declared length, before a byte of it is
//! read. One that does not tell its length, or comes compressed, takes room as it grows:
//! what it will come to is not believed, it is counted.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::coding;
use crate::serve::App;
use crate::serve::answer::HttpError;
use crate::serve::compression::{self, Coding, InflateError};
use crate::serve::room::{ARRIVAL_MAX, RESERVE_BYTES_MAX, Room};

impl From<InflateError> for HttpError {
    fn from(error: InflateError) -> Self {
        let status = match &error {
            InflateError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            InflateError::Damaged { .. } => StatusCode::BAD_REQUEST,
            InflateError::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// Reads a body whole, takes its compression off, and hands it to `parse`. The room that
/// it takes is the caller's until the request is done.
pub(in crate::serve) async fn parsed<T: Send + 'static>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    parse: impl FnOnce(&[u8]) -> Result<T, HttpError> + Send + 'static,
) -> Result<(T, Room), HttpError> {
    let coding = coding::of_request(headers)?;
    let (bytes, mut room) = read(app, headers, body, bytes_max).await?;
    let inline = bytes.len() <= coding.inline_request_bytes_max();
    let work = move || {
        if coding == Coding::Identity {
            return Ok((parse(&bytes)?, room));
        }
        let packed = bytes.len();
        let grow = |so_far| room.grow_to(packed + so_far);
        let inflated = compression::inflate(coding, &bytes, bytes_max, grow)?;
        drop(bytes);
        Ok((parse(&inflated)?, room))
    };
    if inline {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "reading the request broke off",
        ))
    })
}

async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<(Bytes, Room), HttpError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .map(HeaderValue::as_bytes);
    let declared = declared
        .and_then(|length| std::str::from_utf8(length).ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if declared > bytes_max {
        return Err(InflateError::TooLarge { bytes_max }.into());
    }
    let mut room = Room::take(&app.bodies, declared)?;
    let reading = collect(body, declared, bytes_max, &mut room);
    let bytes = tokio::time::timeout(ARRIVAL_MAX, reading)
        .await
        .map_err(|_| {
            HttpError::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took longer than 30 s to arrive",
            )
        })??;
    Ok((bytes, room))
}

/// A body that came in one piece is not copied.
async fn collect(
    mut body: Body,
    declared: usize,
    bytes_max: usize,
    room: &mut Room,
) -> Result<Bytes, HttpError> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| {
            HttpError::new(StatusCode::BAD_REQUEST, "the body did not arrive whole")
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let length = first.len() + all.len() + data.len();
        if length > bytes_max {
            return Err(InflateError::TooLarge { bytes_max }.into());
        }
        room.grow_to(length)?;
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if !first.is_empty() {
            all.reserve(declared.clamp(length, RESERVE_BYTES_MAX.max(length)));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}
