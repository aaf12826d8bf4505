//! Files for agents: one request a stream, answered with the bytes from its offset on.
//!
//! Any agent may have any blob: manifests and models are no secrets within a fleet.
//! Streams have the lowest priority, and only so many files are on their way at once.

use std::io::SeekFrom;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{RecvStream, SendStream, VarInt};
use rollcall_shared::wire::{ArtifactAnswer, ArtifactRequest};
use rollcall_transport::channel::{ChannelError, FrameReader, FrameWriter, priority};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::Context;
use crate::artifacts::ArtifactError;

/// Bytes read from the disk at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// A request is a digest and an offset.
const REQUEST_BYTES_MAX: usize = 64;

/// From the stream's beginning to the whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent that takes no chunk for so long gives its turn to another.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a file was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The stream failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] ArtifactError),
    /// The blob's file failed.
    #[error("the blob cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The agent did not ask or take in time.
    #[error("the agent did not go on for {0:?}")]
    Stalled(Duration),
    /// The coordinator shuts down.
    #[error("shutting down")]
    Closing,
}

/// Serves one stream.
///
/// # Errors
/// When the file was not sent to its end; the agent asks again from where it stands.
pub async fn serve(
    send: SendStream,
    receive: RecvStream,
    context: &Context,
) -> Result<(), SendError> {
    let mut writer = FrameWriter::new(send, priority::ARTIFACT);
    let mut reader = FrameReader::bounded(receive, REQUEST_BYTES_MAX);
    let request = tokio::time::timeout(REQUEST_TIMEOUT, reader.next::<ArtifactRequest>())
        .await
        .map_err(|_| SendError::Stalled(REQUEST_TIMEOUT))??;
    let Some(ArtifactRequest { digest, offset }) = request else {
        return Ok(());
    };
    let _permit = context
        .artifact_streams
        .acquire()
        .await
        .map_err(|_| SendError::Closing)?;
    let found = context.artifacts.open_blob(&digest).await?;
    let Some((mut file, size)) = found.filter(|(_, size)| offset <= *size) else {
        writer.send(&ArtifactAnswer::Missing).await?;
        writer.finish();
        return Ok(());
    };
    writer.send(&ArtifactAnswer::Found { size }).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut left = size - offset;
    while left > 0 {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = file.read_buf(&mut chunk).await?;
        if read == 0 {
            return Err(SendError::Read(std::io::ErrorKind::UnexpectedEof.into()));
        }
        left = left.saturating_sub(read as u64);
        let writing = tokio::time::timeout(CHUNK_TIMEOUT, writer.write(chunk.freeze()));
        match writing.await {
            Ok(written) => written?,
            Err(_) => {
                // Otherwise what is buffered for it stays as long as the connection.
                let _ = writer.into_inner().reset(VarInt::from_u32(0));
                return Err(SendError::Stalled(CHUNK_TIMEOUT));
            }
        }
    }
    writer.finish();
    Ok(())
}
