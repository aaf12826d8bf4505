//! One call's message in: gRPC's five bytes before it, over HTTP/2.
//!
//! A message says its length before it comes, so one that is too large is refused
//! unread, and one for which there is no room too. Written here because the libraries
//! read a message whole before anyone is asked: memory would have no bound. A packed one is
//! unpacked up to the same bound, and takes room as it grows.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rollcall_shared::limits::INFER_BODY_BYTES_MAX;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::serve::App;
use crate::serve::compression::{self, Coding, InflateError};
use crate::serve::room::{ARRIVAL_MAX, NoRoom, RESERVE_BYTES_MAX, Room};

/// Before a message: whether it is packed, and its length in four bytes.
pub(super) const HEAD_BYTES: usize = 5;
/// How messages are packed that say that they are.
pub(super) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// A message, and the room that it takes in memory until it is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    pub(super) room: Room,
    /// How it was packed.
    pub(super) coding: Coding,
}

/// Whether a call's messages are what we read.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    matches!(value, Some(b"application/grpc" | b"application/grpc+proto"))
}

/// Reads the one message of a call, and unpacks it.
pub(super) async fn receive(
    app: &App,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Received, Status> {
    let gathering = tokio::time::timeout(ARRIVAL_MAX, gather(app, headers, body));
    let received = gathering.await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(
            "the message took longer than 30 s to arrive",
        ))
    })?;
    if received.coding == Coding::Identity {
        return Ok(received);
    }
    if received.bytes.len() <= received.coding.inline_request_bytes_max() {
        return received.unpacked();
    }
    let unpacking = tokio::task::spawn_blocking(move || received.unpacked());
    let broke_off = |_| Err(Status::internal("unpacking the message broke off"));
    unpacking.await.unwrap_or_else(broke_off)
}

impl Received {
    fn unpacked(mut self) -> Result<Self, Status> {
        let packed = self.bytes.len();
        let grow = |so_far| self.room.grow_to(packed + so_far);
        let inflated = compression::inflate(self.coding, &self.bytes, INFER_BODY_BYTES_MAX, grow)?;
        Ok(Self {
            bytes: inflated.into(),
            ..self
        })
    }
}

async fn gather(app: &App, headers: &HeaderMap, mut body: Incoming) -> Result<Received, Status> {
    let mut gathered = Gathered::Nothing;
    let mut announced: Option<(usize, Room, Coding)> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::cancelled("the message did not arrive whole"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        gathered = gathered.and(data, announced.as_ref().map_or(0, |(whole, ..)| *whole));
        let here = gathered.as_slice();
        if announced.is_none()
            && let Some(([packed, length @ ..], _)) = here.split_first_chunk::<HEAD_BYTES>()
        {
            let coding = coding(headers, *packed)?;
            let whole = HEAD_BYTES + checked(*length)?;
            announced = Some((whole, Room::take(&app.bodies, whole)?, coding));
        }
        let most = announced.as_ref().map_or(HEAD_BYTES, |(whole, ..)| *whole);
        if here.len() > most {
            return Err(Status::invalid_argument("a call takes one message"));
        }
    }
    let bytes = gathered.into_bytes();
    match announced {
        Some((whole, room, coding)) if bytes.len() == whole => Ok(Received {
            bytes: bytes.slice(HEAD_BYTES..),
            room,
            coding,
        }),
        Some((whole, ..)) => Err(Status::invalid_argument(format!(
            "the message has {} bytes of the {} that it announced",
            bytes.len() - HEAD_BYTES,
            whole - HEAD_BYTES
        ))),
        None => Err(Status::invalid_argument("the call came without a message")),
    }
}

/// How a message is packed, by the call's headers and the message's first byte.
fn coding(headers: &HeaderMap, packed: u8) -> Result<Coding, Status> {
    if packed == 0 {
        return Ok(Coding::Identity);
    }
    let named = headers.get(ENCODING).map(HeaderValue::as_bytes);
    match Coding::named(named.unwrap_or_default()) {
        Some(Coding::Identity) => Err(Status::internal(
            "the message says that it is compressed and grpc-encoding does not say how: \
             name gzip or deflate there",
        )),
        Some(coding) => Ok(coding),
        None => {
            let mut refusal = Status::unimplemented(
                "messages in this grpc-encoding are not taken here: send gzip, deflate or identity",
            );
            let taken = MetadataValue::from_static("identity,deflate,gzip");
            refusal.metadata_mut().insert(ACCEPT_ENCODING, taken);
            Err(refusal)
        }
    }
}

/// The length that a message's head announces, if it may come.
fn checked(length: [u8; 4]) -> Result<usize, Status> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > INFER_BODY_BYTES_MAX {
        return Err(Status::resource_exhausted(format!(
            "a message has at most {INFER_BODY_BYTES_MAX} bytes, this one has {length}; split it"
        )));
    }
    Ok(length)
}

impl From<InflateError> for Status {
    fn from(error: InflateError) -> Self {
        let message = error.to_string();
        match error {
            InflateError::TooLarge { .. } => Self::resource_exhausted(message),
            InflateError::Damaged { .. } => Self::invalid_argument(message),
            InflateError::NoRoom(none) => none.into(),
        }
    }
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
