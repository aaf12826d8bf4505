//! Messages on a connection: framed streams, raw artifact bytes, datagrams.
//!
//! A message for many is encoded once: [`FrameWriter::write`] and
//! [`send_encoded_datagram`] take the shared bytes, and a frame without its
//! [`HEADER_BYTES`] is the datagram.

use std::io;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ReadError, RecvStream, SendDatagramError, SendStream, WriteError};
use rollcall_shared::codec::{self, CodecError, HEADER_BYTES};
use rollcall_shared::limits::{DATAGRAM_BYTES_MAX, FRAME_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::close::Closed;

/// What goes first when the path is narrow: higher numbers.
pub mod priority {
    /// Assignments, withdrawals, receipts.
    pub const CONTROL: i32 = 2;
    /// A window's statistics.
    pub const REPORT: i32 = 1;
    /// Files; what quinn gives a new stream.
    pub const ARTIFACT: i32 = 0;
}

/// Most bytes taken from quinn at a time.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection is over.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The bytes are not a message, or the message does not fit a frame. After a
    /// read the stream is lost: close the connection with
    /// [`CloseCode::ProtocolError`](crate::close::CloseCode::ProtocolError).
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A frame or datagram is over a bound narrower than the codec's.
    #[error("{bytes} bytes are over the bound of {bytes_max} here")]
    OverBound {
        /// How many.
        bytes: usize,
        /// How many are allowed.
        bytes_max: usize,
    },
    /// This stream failed, but the connection did not.
    #[error("stream failed: {0}")]
    Io(io::Error),
}

impl From<ReadError> for ChannelError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(lost) => Self::Closed(lost.into()),
            ReadError::Reset(_)
            | ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Io(error.into()),
        }
    }
}

impl From<WriteError> for ChannelError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(lost) => Self::Closed(lost.into()),
            WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Io(error.into())
            }
        }
    }
}

/// The sending half of a framed stream.
#[derive(Debug)]
pub struct FrameWriter {
    stream: SendStream,
}

impl FrameWriter {
    /// Takes a stream over and gives it a [`priority`].
    #[must_use]
    pub fn new(stream: SendStream, priority: i32) -> Self {
        // Fails only on a closed stream, and then the first write says so.
        let _ = stream.set_priority(priority);
        Self { stream }
    }

    /// Writes a frame that was encoded before, or an artifact's raw bytes, without
    /// copying them. Waits while the peer does not take more.
    ///
    /// Not cancel-safe: a dropped call may leave half a frame in the stream, so
    /// bound the wait only where the connection is closed afterwards.
    ///
    /// # Errors
    /// When the stream or the connection is over.
    pub async fn write(&mut self, frame: Bytes) -> Result<(), ChannelError> {
        Ok(self.stream.write_chunk(frame).await?)
    }

    /// Encodes and writes one message. Not cancel-safe, as [`Self::write`].
    ///
    /// # Errors
    /// When the message is over the bound, or the stream or the connection is over.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ChannelError> {
        let frame = codec::encode_frame(message)?;
        self.write(frame).await
    }

    /// Says that nothing follows. What was written is still delivered.
    pub fn finish(&mut self) {
        // Fails only on a stream that is over already.
        let _ = self.stream.finish();
    }

    /// The stream itself.
    #[must_use]
    pub fn into_inner(self) -> SendStream {
        self.stream
    }
}

/// The receiving half of a framed stream. Holds at most one frame and a chunk.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    frame_bytes_max: usize,
    bytes_taken: u64,
}

impl FrameReader {
    /// Takes a stream over; frames may be as large as the codec allows.
    #[must_use]
    pub fn new(stream: RecvStream) -> Self {
        Self::bounded(stream, FRAME_BYTES_MAX)
    }

    /// As [`Self::new`], for a peer or a message that needs less.
    #[must_use]
    pub fn bounded(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            frame_bytes_max,
            bytes_taken: 0,
        }
    }

    /// From here on frames may be only so large: what begins a conversation often needs
    /// more than what follows.
    pub const fn narrow(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Bytes taken from the stream so far.
    #[must_use]
    pub const fn bytes_taken(&self) -> u64 {
        self.bytes_taken
    }

    /// The next message; `None`: the peer finished after a whole frame.
    ///
    /// Cancel-safe: what has arrived stays here.
    ///
    /// # Errors
    /// When a header announces too much (nothing is allocated for it), a frame is
    /// not a `T`, the stream ends within a frame, or the connection is over.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ChannelError> {
        loop {
            self.check_header()?;
            if let Some(message) = codec::take_frame(&mut self.buffer)? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(CHUNK_BYTES_MAX, true).await? {
                Some(chunk) => {
                    self.bytes_taken += chunk.bytes.len() as u64;
                    self.buffer.extend_from_slice(&chunk.bytes);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(ChannelError::Io(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream ended within a frame",
                    )));
                }
            }
        }
    }

    fn check_header(&self) -> Result<(), ChannelError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return Ok(());
        };
        let bytes = codec::body_length(*header)?;
        if bytes > self.frame_bytes_max {
            return Err(ChannelError::OverBound {
                bytes,
                bytes_max: self.frame_bytes_max,
            });
        }
        Ok(())
    }

    /// Raw bytes after the frames read so far, at most `bytes_max` of them; `None`:
    /// the peer finished. For the artifact that follows its answer frame.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the stream or the connection is over.
    pub async fn next_bytes(&mut self, bytes_max: usize) -> Result<Option<Bytes>, ChannelError> {
        if !self.buffer.is_empty() {
            let length = self.buffer.len().min(bytes_max);
            return Ok(Some(self.buffer.split_to(length).freeze()));
        }
        let chunk = self.stream.read_chunk(bytes_max, true).await?;
        let bytes = chunk.map(|chunk| chunk.bytes);
        self.bytes_taken += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(bytes)
    }
}

/// Sends a small message that may get lost. When too many wait, the oldest goes.
///
/// # Errors
/// When the message is over [`DATAGRAM_BYTES_MAX`] (use the control stream), or
/// the connection is over.
pub fn send_datagram<T: Serialize>(
    connection: &Connection,
    message: &T,
) -> Result<(), ChannelError> {
    send_encoded_datagram(connection, codec::encode(message)?)
}

/// [`send_datagram`] for a message that was encoded before.
///
/// # Errors
/// As [`send_datagram`].
pub fn send_encoded_datagram(connection: &Connection, body: Bytes) -> Result<(), ChannelError> {
    let over_bound = ChannelError::OverBound {
        bytes: body.len(),
        bytes_max: DATAGRAM_BYTES_MAX,
    };
    if body.len() > DATAGRAM_BYTES_MAX {
        return Err(over_bound);
    }
    connection.send_datagram(body).map_err(|error| match error {
        SendDatagramError::ConnectionLost(lost) => ChannelError::Closed(lost.into()),
        SendDatagramError::TooLarge => over_bound,
        SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => {
            ChannelError::Io(io::Error::new(io::ErrorKind::Unsupported, error))
        }
    })
}

/// The next datagram. Cancel-safe.
///
/// # Errors
/// When it is not a `T`, or the connection is over.
pub async fn read_datagram<T: DeserializeOwned>(
    connection: &Connection,
) -> Result<T, ChannelError> {
    let body = connection.read_datagram().await.map_err(Closed::from)?;
    Ok(codec::decode(&body)?)
}
