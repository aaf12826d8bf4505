//! The blob folder: files by their BLAKE3 digest, `blobs/ab/abcdef...`.
//!
//! A blob is visible only when it is whole and durable: a temporary file is hashed
//! while it is written, synced, renamed to its digest, and then its folder is synced.
//! Whoever puts a blob names the digest first, so that a broken upload can never
//! take a good blob's place. Nothing is ever deleted here but leftovers of a crash.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, pin_mut};
use rollcall_shared::digest::Digest;
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

/// Why a blob was not kept or given.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The disk failed.
    #[error("the artifact store {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The sender's stream broke.
    #[error("the upload broke off: {0}; send it again")]
    Interrupted(String),
    /// More bytes than allowed.
    #[error("the file is over the bound of {bytes_max} bytes that this coordinator accepts")]
    TooLarge {
        /// The bound.
        bytes_max: u64,
    },
    /// Not the bytes that were announced.
    #[error("the bytes that arrived have digest {found}, not {expected}; send the file again")]
    WrongDigest {
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
}

/// The blobs of one coordinator.
#[derive(Clone, Debug)]
pub struct ArtifactStore {
    folder: PathBuf,
    bytes_max: u64,
}

impl ArtifactStore {
    /// Opens the store in `folder`; leftovers of broken uploads are removed. A blob has
    /// at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self, ArtifactError> {
        let prepare = || -> io::Result<()> {
            let incoming = folder.join("incoming");
            std::fs::create_dir_all(&incoming)?;
            for leftover in std::fs::read_dir(&incoming)? {
                std::fs::remove_file(leftover?.path())?;
            }
            std::fs::File::open(folder)?.sync_all()
        };
        prepare().map_err(|source| ArtifactError::Io {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            bytes_max,
        })
    }

    /// Where a blob lies, whether it is there or not.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// The size of a blob in bytes; `None` when it is not there.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.path(digest)).await.ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Opens a blob for reading, with its size; `None` when it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub async fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, ArtifactError> {
        let path = self.path(digest);
        let open = async {
            let file = File::open(&path).await?;
            let size = file.metadata().await?.len();
            Ok((file, size))
        };
        match open.await {
            Ok(found) => Ok(Some(found)),
            Err(error) if io::ErrorKind::NotFound == io::Error::kind(&error) => Ok(None),
            Err(source) => Err(ArtifactError::Io { path, source }),
        }
    }

    /// A whole blob in memory; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read, or is larger than `bytes_max`.
    pub async fn read(
        &self,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, ArtifactError> {
        match self.size(digest).await {
            None => Ok(None),
            Some(size) if size > bytes_max => Err(ArtifactError::TooLarge { bytes_max }),
            Some(_) => {
                let path = self.path(digest);
                let bytes = fs::read(&path).await;
                bytes
                    .map(|bytes| Some(bytes.into()))
                    .map_err(|source| ArtifactError::Io { path, source })
            }
        }
    }

    /// Keeps the bytes of `stream` as the blob `digest`; they are durable when this
    /// returns. A blob that is there already is not read again. Gives the size.
    ///
    /// # Errors
    /// When the bytes are too many, not those announced, or cannot be kept.
    pub async fn put<E: std::fmt::Display>(
        &self,
        digest: Digest,
        stream: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, ArtifactError> {
        if let Some(size) = self.size(&digest).await {
            return Ok(size);
        }
        let incoming = self.folder.join("incoming");
        let io_error = |source| ArtifactError::Io {
            path: incoming.clone(),
            source,
        };
        let (file, temporary) = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&incoming)
            .map_err(io_error)?
            .into_parts();
        let size = self
            .receive(digest, stream, File::from_std(file), &incoming)
            .await?;
        self.publish(digest, temporary).await.map_err(io_error)?;
        Ok(size)
    }

    async fn receive<E: std::fmt::Display>(
        &self,
        digest: Digest,
        stream: impl Stream<Item = Result<Bytes, E>>,
        mut file: File,
        incoming: &Path,
    ) -> Result<u64, ArtifactError> {
        let io_error = |source| ArtifactError::Io {
            path: incoming.to_owned(),
            source,
        };
        pin_mut!(stream);
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0u64);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ArtifactError::Interrupted(error.to_string()))?;
            size += chunk.len() as u64;
            if size > self.bytes_max {
                return Err(ArtifactError::TooLarge {
                    bytes_max: self.bytes_max,
                });
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(io_error)?;
        }
        let found = Digest::from_bytes(*hasher.finalize().as_bytes());
        if found != digest {
            return Err(ArtifactError::WrongDigest {
                expected: digest,
                found,
            });
        }
        file.flush().await.map_err(io_error)?;
        file.sync_all().await.map_err(io_error)?;
        Ok(size)
    }

    async fn publish(&self, digest: Digest, temporary: tempfile::TempPath) -> io::Result<()> {
        let target = self.path(&digest);
        let folder = target.parent().unwrap_or(&self.folder).to_owned();
        fs::create_dir_all(&folder).await?;
        temporary.persist(&target).map_err(|error| error.error)?;
        File::open(&folder).await?.sync_all().await?;
        File::open(&self.folder).await?.sync_all().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn chunks(parts: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, io::Error>> {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| Ok(Bytes::from_static(part)))
            .collect();
        stream::iter(parts)
    }

    fn leftovers(folder: &Path) -> usize {
        std::fs::read_dir(folder.join("incoming")).unwrap().count()
    }

    #[tokio::test]
    async fn a_blob_is_found_by_its_digest_after_it_was_put() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path(), 100).unwrap();
        let digest = Digest::of(b"abcdef");
        assert_eq!(store.size(&digest).await, None);
        assert_eq!(
            store.put(digest, chunks(&[b"abc", b"def"])).await.unwrap(),
            6
        );
        assert_eq!(
            store.read(&digest, 100).await.unwrap().unwrap(),
            b"abcdef"[..]
        );
        assert_eq!(
            store.put(digest, chunks(&[])).await.unwrap(),
            6,
            "twice is once"
        );
        assert_eq!(leftovers(folder.path()), 0);
    }

    #[tokio::test]
    async fn wrong_bytes_too_many_bytes_and_a_broken_stream_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path(), 4).unwrap();
        let digest = Digest::of(b"abcd");
        let wrong = store.put(digest, chunks(&[b"abcx"])).await.unwrap_err();
        assert!(matches!(wrong, ArtifactError::WrongDigest { .. }));
        let large = store
            .put(digest, chunks(&[b"abcd", b"e"]))
            .await
            .unwrap_err();
        assert!(matches!(large, ArtifactError::TooLarge { bytes_max: 4 }));
        let broken = stream::iter([Ok(Bytes::from_static(b"ab")), Err(io::Error::other("cut"))]);
        let broken = store.put(digest, broken).await.unwrap_err();
        assert!(matches!(broken, ArtifactError::Interrupted(_)));
        assert_eq!(store.size(&digest).await, None);
        assert_eq!(leftovers(folder.path()), 0);
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_are_removed_at_start() {
        let folder = tempfile::tempdir().unwrap();
        ArtifactStore::open(folder.path(), 4).unwrap();
        std::fs::write(folder.path().join("incoming/blob-x"), b"half").unwrap();
        ArtifactStore::open(folder.path(), 4).unwrap();
        assert_eq!(leftovers(folder.path()), 0);
    }
}
