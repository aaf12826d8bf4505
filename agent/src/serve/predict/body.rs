//! A request's body: bounded in size, in time and in what all of them take together.
//!
//! A body that is too large is refused by its declared length, before a byte of it is
//! read. One that does not tell its length, or comes compressed, takes room as it grows:
//! what it will come to is not believed, it is counted.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::compression::{self, Coding};
use crate::serve::App;
use crate::serve::answer::HttpError;
use crate::serve::room::{ARRIVAL_MAX, INLINE_BYTES_MAX, RESERVE_BYTES_MAX, Room};

/// Larger compressed ones are read by a blocking thread too: a byte may become a thousand.
const INLINE_COMPRESSED_BYTES_MAX: usize = 2 << 10;

pub(super) fn too_large(bytes_max: usize) -> HttpError {
    HttpError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a request has at most {bytes_max} bytes, inflated; split it"),
    )
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
    let coding = Coding::of_request(headers)?;
    let (bytes, mut room) = read(app, headers, body, bytes_max).await?;
    let inline_max = match coding {
        Coding::Identity => INLINE_BYTES_MAX,
        Coding::Gzip | Coding::Deflate => INLINE_COMPRESSED_BYTES_MAX,
    };
    let inline = bytes.len() <= inline_max;
    let work = move || {
        if coding == Coding::Identity {
            return Ok((parse(&bytes)?, room));
        }
        let compressed = bytes.len();
        let inflated = compression::inflate(coding, &bytes, bytes_max, |so_far| {
            Ok(room.grow_to(compressed + so_far)?)
        })?;
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
        return Err(too_large(bytes_max));
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
            return Err(too_large(bytes_max));
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
