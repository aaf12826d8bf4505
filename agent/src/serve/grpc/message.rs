//! One call's message in and its answer out: gRPC's five bytes before a message and
//! its status after it, over HTTP/2.
//!
//! A message says its length before it comes, so one that is too large is refused
//! unread, and one for which there is no room too. Written here because the libraries
//! read a message whole before anyone is asked: memory would have no bound.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use prost::Message;
use rollcall_shared::limits::INFER_BODY_BYTES_MAX;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::serve::App;
use crate::serve::room::{ARRIVAL_MAX, NoRoom, RESERVE_BYTES_MAX, Room};

/// Before a message: whether it is compressed, and its length in four bytes.
const HEAD_BYTES: usize = 5;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// A message, and the room that it takes in memory until it is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    pub(super) room: Room,
}

/// Reads the one message of a call.
pub(super) async fn receive(app: &App, body: Incoming) -> Result<Received, Status> {
    tokio::time::timeout(ARRIVAL_MAX, gather(app, body))
        .await
        .unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(
                "the message took longer than 30 s to arrive",
            ))
        })
}

async fn gather(app: &App, mut body: Incoming) -> Result<Received, Status> {
    let mut gathered = Gathered::Nothing;
    let mut announced: Option<(usize, Room)> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::cancelled("the message did not arrive whole"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        gathered = gathered.and(data, announced.as_ref().map_or(0, |(whole, _)| *whole));
        let here = gathered.as_slice();
        if announced.is_none()
            && let Some((head, _)) = here.split_first_chunk::<HEAD_BYTES>()
        {
            let whole = HEAD_BYTES + length(*head)?;
            announced = Some((whole, Room::take(&app.bodies, whole)?));
        }
        let most = announced.as_ref().map_or(HEAD_BYTES, |(whole, _)| *whole);
        if here.len() > most {
            return Err(Status::invalid_argument("a call takes one message"));
        }
    }
    let bytes = gathered.into_bytes();
    match announced {
        Some((whole, room)) if bytes.len() == whole => Ok(Received {
            bytes: bytes.slice(HEAD_BYTES..),
            room,
        }),
        Some((whole, _)) => Err(Status::invalid_argument(format!(
            "the message has {} bytes of the {} that it announced",
            bytes.len() - HEAD_BYTES,
            whole - HEAD_BYTES
        ))),
        None => Err(Status::invalid_argument("the call came without a message")),
    }
}

/// What a message's head says about its length.
fn length([compressed, length @ ..]: [u8; HEAD_BYTES]) -> Result<usize, Status> {
    if compressed != 0 {
        let mut refusal =
            Status::unimplemented("compressed messages are not taken here: send them as they are");
        let taken = MetadataValue::from_static("identity");
        refusal.metadata_mut().insert(ACCEPT_ENCODING, taken);
        return Err(refusal);
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > INFER_BODY_BYTES_MAX {
        return Err(Status::resource_exhausted(format!(
            "a message has at most {INFER_BODY_BYTES_MAX} bytes, this one has {length}; split it"
        )));
    }
    Ok(length)
}

impl From<NoRoom> for Status {
    fn from(none: NoRoom) -> Self {
        Self::unavailable(none.to_string())
    }
}

/// Frames that came. Most messages come in one, which is then not copied.
enum Gathered {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Gathered {
    /// With one more frame, of a message that says to have `whole` bytes.
    fn and(self, data: Bytes, whole: usize) -> Self {
        if data.is_empty() {
            return self;
        }
        let mut bytes = match self {
            Self::Nothing => return Self::One(data),
            Self::One(first) => {
                let reserved = whole.min(RESERVE_BYTES_MAX).max(first.len() + data.len());
                let mut bytes = BytesMut::with_capacity(reserved);
                bytes.extend_from_slice(&first);
                bytes
            }
            Self::Many(bytes) => bytes,
        };
        bytes.extend_from_slice(&data);
        Self::Many(bytes)
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes,
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

/// The body of an answer: a message and then its status, or nothing where the status is
/// in the head.
#[derive(Debug, Default)]
pub(super) struct Reply {
    message: Option<Bytes>,
    status: Option<HeaderMap>,
}

/// An answer to who does not speak gRPC.
pub(super) fn not_grpc() -> Response<Reply> {
    let mut response = Response::new(Reply::default());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Whether a call's messages are what we read.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    matches!(value, Some(b"application/grpc" | b"application/grpc+proto"))
}

/// An answer with a message.
pub(super) fn reply(message: &impl Message) -> Result<Response<Reply>, Status> {
    let length = message.encoded_len();
    let announced = u32::try_from(length).map_err(|_| {
        Status::internal("the answer has more bytes than a message can: ask for fewer rows")
    })?;
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    // Only fails where room is missing.
    message
        .encode(&mut bytes)
        .map_err(|error| Status::internal(format!("no message for the answer: {error}")))?;
    let status = HeaderMap::from_iter([(STATUS, HeaderValue::from(Code::Ok as i32))]);
    let mut response = Response::new(Reply {
        message: Some(bytes.freeze()),
        status: Some(status),
    });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    Ok(response)
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let message = self.message.take().map(Frame::data);
        let frame = message.or_else(|| self.status.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.status.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.message.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
