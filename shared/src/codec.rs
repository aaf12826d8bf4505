//! Messages to bytes and back: the only module that names bincode.
//!
//! A frame is a `u32` length, big endian, and so many bytes of bincode 2
//! (standard configuration: little endian, variable-length integers). Lengths
//! above the bound are refused before anything is allocated.

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::FRAME_BYTES_MAX;

/// Bytes of the length in front of a frame.
pub const HEADER_BYTES: usize = 4;

/// Room for most messages, so that few of them move while they are written.
const USUAL_BYTES: usize = 256;

/// What is wrong with bytes or with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A frame announces, or a message needs, more than the bound.
    #[error("a frame of {bytes} bytes is over the bound of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// The body is not a message of the expected kind.
    #[error("the frame cannot be read: {0}")]
    Malformed(String),
    /// The body goes on after the message's end.
    #[error("{bytes} bytes follow the message in its frame")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<FRAME_BYTES_MAX>()
}

/// A message without a frame, for a datagram or a file.
///
/// # Errors
/// When it is over the bound.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, CodecError> {
    encode_behind(0, message).map(Bytes::from)
}

/// A message behind so many bytes of zero.
fn encode_behind<T: Serialize>(header: usize, message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    bytes.resize(header, 0);
    bincode::serde::encode_into_std_write(message, &mut bytes, config())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match bytes.len() - header {
        body if body > FRAME_BYTES_MAX => Err(CodecError::TooLarge { bytes: body }),
        _ => Ok(bytes),
    }
}

/// Reads exactly one message.
///
/// # Errors
/// When the bytes are not one message of type `T`, no more and no less.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    if body.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: body.len() });
    }
    let (message, read) = bincode::serde::decode_from_slice(body, config())
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match body.len() - read {
        0 => Ok(message),
        bytes => Err(CodecError::TrailingBytes { bytes }),
    }
}

/// A message in its frame, for a stream.
///
/// # Errors
/// When it is over the bound.
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Bytes, CodecError> {
    let mut frame = encode_behind(HEADER_BYTES, message)?;
    let bytes = frame.len() - HEADER_BYTES;
    let length = u32::try_from(bytes).map_err(|_| CodecError::TooLarge { bytes })?;
    frame[..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame.into())
}

/// The length that a frame's header announces.
///
/// # Errors
/// When it is over the bound.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, CodecError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > FRAME_BYTES_MAX {
        Err(CodecError::TooLarge { bytes })
    } else {
        Ok(bytes)
    }
}

/// Takes the first whole frame's message off the front of `buffer`; `None`: incomplete.
///
/// # Errors
/// When the frame is over the bound or not a message of type `T`. The stream
/// cannot be read on after that.
pub fn take_frame<T: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<T>, CodecError> {
    let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = body_length(*header)?;
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    decode(&buffer.split_to(length)).map(Some)
}

#[cfg(test)]
#[path = "codec/tests.rs"]
mod tests;
