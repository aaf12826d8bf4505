//! One call's answer out: a message with gRPC's five bytes before it, and its status after it.
//!
//! Who packs a message gets the answer packed in the same way. That a client would take it
//! so says nothing: all of them say that they would.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use prost::Message;
use tonic::{Code, Status};

use super::message::{ENCODING, HEAD_BYTES};
use crate::serve::compression::{self, Coding};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

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

/// An answer with a message, as it is.
pub(super) fn reply(message: &impl Message) -> Result<Response<Reply>, Status> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + length);
    put_head(&mut bytes, Coding::Identity, length)?;
    encode(message, &mut bytes)?;
    Ok(with_message(bytes.freeze()))
}

/// An answer with a message, packed where that saves anything.
pub(super) fn reply_packed(
    message: &impl Message,
    coding: Coding,
) -> Result<Response<Reply>, Status> {
    let length = message.encoded_len();
    let coding = coding.for_answer_of(length);
    let Some(encoding) = coding.header() else {
        return reply(message);
    };
    let mut plain = Vec::with_capacity(length);
    encode(message, &mut plain)?;
    let packed = compression::pack(coding, plain).map_err(|error| unsaid(&error))?;
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + packed.len());
    put_head(&mut bytes, coding, packed.len())?;
    bytes.extend_from_slice(&packed);
    let mut response = with_message(bytes.freeze());
    response.headers_mut().insert(ENCODING, encoding);
    Ok(response)
}

fn put_head(bytes: &mut BytesMut, coding: Coding, length: usize) -> Result<(), Status> {
    let announced = u32::try_from(length).map_err(|_| {
        Status::internal("the answer has more bytes than a message can: ask for fewer rows")
    })?;
    bytes.put_u8(u8::from(coding != Coding::Identity));
    bytes.put_u32(announced);
    Ok(())
}

fn encode(message: &impl Message, bytes: &mut impl BufMut) -> Result<(), Status> {
    // Only fails where room is missing.
    message.encode(bytes).map_err(|error| unsaid(&error))
}

fn unsaid(error: &dyn std::error::Error) -> Status {
    Status::internal(format!("no message for the answer: {error}"))
}

fn with_message(bytes: Bytes) -> Response<Reply> {
    let status = HeaderMap::from_iter([(STATUS, HeaderValue::from(Code::Ok as i32))]);
    let mut response = Response::new(Reply {
        message: Some(bytes),
        status: Some(status),
    });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
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
