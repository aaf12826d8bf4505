//! Brings a version onto this node's disk: the signed manifest by its digest, then
//! every file that is missing.
//!
//! Nothing that arrives is believed: the manifest must have the digest that the
//! assignment names and the registry's signature, each file the digest that the
//! manifest names. A download that breaks off goes on where it was; one that turns
//! out wrong is thrown away and fetched once more. Which coordinator sends the bytes
//! does not matter.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rollcall_agent_core::input::PrepareFailure;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{MANIFEST_BYTES_MAX, TEXT_BYTES_MAX};
use rollcall_shared::manifest::{FilePath, Manifest, ManifestError, ManifestFile, SignedManifest};
use rollcall_shared::time::Timestamp;
use tokio::sync::mpsc;

use crate::cache::{BlobError, Cache, CacheError, PartialBlob};
use crate::link::{Artifact, LinkError, LinkHandle, chain};
use crate::progress::{self, Entry};

/// Chunks of a file between the network and the disk: 1 MiB at most.
const CHUNKS_MAX: usize = 4;

/// Why a version is not whole on this disk.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The manifest did not come.
    #[error("cannot fetch the manifest {}", digest.short())]
    ManifestLink {
        /// Its digest.
        digest: Digest,
        /// Why not.
        source: LinkError,
    },
    /// What came is another manifest.
    #[error("the coordinator sent other bytes than the manifest {}", digest.short())]
    ManifestDigest {
        /// What was asked for.
        digest: Digest,
    },
    /// It is no manifest, or too large.
    #[error("the manifest {} is unusable", digest.short())]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// Why.
        source: ManifestError,
    },
    /// The cache refuses it.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file did not come.
    #[error("cannot fetch {file}")]
    FileLink {
        /// Which.
        file: FilePath,
        /// Why not.
        source: LinkError,
    },
    /// A file broke off; what came is kept.
    #[error("{file} broke off after {got} of {size} bytes; it goes on there")]
    BrokeOff {
        /// Which.
        file: FilePath,
        /// Bytes that are here.
        got: u64,
        /// Bytes of the whole.
        size: u64,
    },
    /// The coordinator's copy has another size.
    #[error("the coordinator's {file} has {got} bytes, the manifest says {size}")]
    OtherSize {
        /// Which.
        file: FilePath,
        /// Bytes that the coordinator has.
        got: u64,
        /// Bytes that the manifest names.
        size: u64,
    },
    /// The disk refuses a file, or what came is not it.
    #[error("{file} cannot be stored")]
    Blob {
        /// Which.
        file: FilePath,
        /// Why not.
        source: BlobError,
    },
    /// A thread of ours died.
    #[error("fetching broke off, which is a bug of the agent")]
    Broken,
}

impl FetchError {
    /// Whether the same may succeed later. Network and disk recover; a manifest that the
    /// registry did not sign stays so.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Manifest { .. } => false,
            Self::Cache(error) => error.is_retryable(),
            Self::ManifestLink { .. }
            | Self::ManifestDigest { .. }
            | Self::FileLink { .. }
            | Self::BrokeOff { .. }
            | Self::OtherSize { .. }
            | Self::Blob { .. }
            | Self::Broken => true,
        }
    }

    /// Whether the bytes that came were wrong, so that others may be right.
    const fn is_damage(&self) -> bool {
        match self {
            Self::ManifestDigest { .. }
            | Self::Blob {
                source: BlobError::WrongDigest { .. } | BlobError::WrongSize { .. },
                ..
            } => true,
            Self::Blob {
                source:
                    BlobError::File(_)
                    | BlobError::NoSpace { .. }
                    | BlobError::Missing { .. }
                    | BlobError::Busy { .. },
                ..
            }
            | Self::ManifestLink { .. }
            | Self::Manifest { .. }
            | Self::Cache(_)
            | Self::FileLink { .. }
            | Self::BrokeOff { .. }
            | Self::OtherSize { .. }
            | Self::Broken => false,
        }
    }
}

impl From<FetchError> for PrepareFailure {
    fn from(error: FetchError) -> Self {
        let mut reason = chain(&error);
        reason.truncate(reason.floor_char_boundary(TEXT_BYTES_MAX));
        Self {
            reason,
            retryable: error.is_retryable(),
        }
    }
}

/// Fetches over a link into a cache.
#[derive(Clone)]
pub struct Fetcher {
    link: LinkHandle,
    cache: Arc<Cache>,
}

impl Fetcher {
    /// From `link` into `cache`.
    #[must_use]
    pub const fn new(link: LinkHandle, cache: Arc<Cache>) -> Self {
        Self { link, cache }
    }

    /// Makes a version whole on this disk, and writes into `entry` how much of it is there.
    /// Dropped, it can be gone on with later.
    ///
    /// # Errors
    /// The first thing that could not be had.
    pub async fn fetch(
        &self,
        model: &ModelName,
        version: VersionRef,
        now: Timestamp,
        entry: &Arc<Entry>,
    ) -> Result<(), FetchError> {
        let known = self
            .blocking(move |cache| Ok(cache.manifest(version).ok()))
            .await?;
        let manifest = match known {
            Some(manifest) => manifest,
            None => self.fetch_manifest(version, now).await?,
        };
        let missing = {
            let manifest = manifest.clone();
            self.blocking(move |cache| Ok(cache.missing(&manifest)))
                .await?
        };
        let needed: u64 = missing.iter().map(|file| file.size).sum();
        let total = content_bytes(&manifest);
        let mut count = Count {
            entry: Arc::clone(entry),
            before: total.saturating_sub(needed),
            total,
        };
        count.file_has(0);
        if missing.is_empty() {
            return Ok(());
        }
        tracing::info!(%model, version = %version.version, files = missing.len(), bytes = needed, "fetching");
        self.blocking(move |cache| Ok(cache.make_room(needed)?))
            .await?;
        for file in &missing {
            match self.fetch_file(file, &count).await {
                Err(error) if error.is_damage() => {
                    tracing::warn!(%model, error = %chain(&error), "fetching it again");
                    self.fetch_file(file, &count).await?;
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            count.before += file.size;
        }
        Ok(())
    }

    async fn fetch_manifest(
        &self,
        version: VersionRef,
        now: Timestamp,
    ) -> Result<Manifest, FetchError> {
        let digest = version.digest;
        let bytes = match self.fetch_small(digest).await {
            Err(error) if error.is_damage() => self.fetch_small(digest).await?,
            fetched => fetched?,
        };
        self.blocking(move |cache| {
            let signed = SignedManifest::decode(&bytes)
                .map_err(|source| FetchError::Manifest { digest, source })?;
            let added = cache.add_version(&signed, now)?;
            Ok(cache.manifest(added)?)
        })
        .await
    }

    async fn fetch_small(&self, digest: Digest) -> Result<Vec<u8>, FetchError> {
        let link_error = |source| FetchError::ManifestLink { digest, source };
        let mut artifact = self
            .link
            .open_artifact(digest, 0)
            .await
            .map_err(link_error)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = artifact.next().await.map_err(link_error)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MANIFEST_BYTES_MAX {
                let source = ManifestError::TooLarge { bytes: bytes.len() };
                return Err(FetchError::Manifest { digest, source });
            }
        }
        if Digest::of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(FetchError::ManifestDigest { digest })
        }
    }

    async fn fetch_file(&self, file: &ManifestFile, count: &Count) -> Result<(), FetchError> {
        let (path, digest, size) = (file.path.clone(), file.digest, file.size);
        let begun = {
            let file = path.clone();
            self.blocking(move |cache| {
                cache
                    .begin_blob(digest, size)
                    .map_err(|source| FetchError::Blob { file, source })
            })
        };
        let blob = begun.await?;
        count.file_has(blob.offset());
        let artifact = self
            .link
            .open_artifact(digest, blob.offset())
            .await
            .map_err(|source| FetchError::FileLink {
                file: path.clone(),
                source,
            })?;
        if artifact.size != size {
            return Err(FetchError::OtherSize {
                file: path,
                got: artifact.size,
                size,
            });
        }
        let blob = receive(artifact, blob, &path, count).await?;
        if blob.offset() < size {
            return Err(FetchError::BrokeOff {
                file: path,
                got: blob.offset(),
                size,
            });
        }
        tokio::task::spawn_blocking(move || blob.finish())
            .await
            .map_err(|_| FetchError::Broken)?
            .map_err(|source| FetchError::Blob { file: path, source })?;
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Cache) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let cache = Arc::clone(&self.cache);
        tokio::task::spawn_blocking(move || work(&cache))
            .await
            .map_err(|_| FetchError::Broken)?
    }
}

/// Writes what comes of a file until nothing more does.
async fn receive(
    mut artifact: Artifact,
    blob: PartialBlob,
    path: &FilePath,
    count: &Count,
) -> Result<PartialBlob, FetchError> {
    let (chunks, writer) = write(blob, count.clone());
    let mut broken = None;
    loop {
        match artifact.next().await {
            Ok(Some(chunk)) => {
                if chunks.send(chunk).await.is_err() {
                    // The writer has left: its error says why.
                    break;
                }
            }
            Ok(None) => break,
            Err(source) => {
                let file = path.clone();
                broken = Some(FetchError::FileLink { file, source });
                break;
            }
        }
    }
    drop(chunks);
    let written = writer.await.map_err(|_| FetchError::Broken)?;
    let blob = written.map_err(|source| FetchError::Blob {
        file: path.clone(),
        source,
    })?;
    broken.map_or(Ok(blob), Err)
}

type Writer = tokio::task::JoinHandle<Result<PartialBlob, BlobError>>;

/// Writes and hashes on a blocking thread, until the chunks end: a disk that stalls
/// must not hold up the threads that answer clients.
fn write(mut blob: PartialBlob, count: Count) -> (mpsc::Sender<Bytes>, Writer) {
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(chunk) = chunks.blocking_recv() {
            blob.write(&chunk)?;
            count.file_has(blob.offset());
        }
        Ok(blob)
    });
    (sender, writer)
}

/// Adds what has come of one file to the files that were here before it.
#[derive(Clone)]
struct Count {
    entry: Arc<Entry>,
    before: u64,
    total: u64,
}

impl Count {
    /// So many of the file's bytes are on the disk: fewer than before, where they were
    /// wrong and have been removed.
    fn file_has(&self, bytes: u64) {
        self.entry.has(progress::Bytes {
            here: self.before + bytes,
            total: self.total,
        });
    }
}

/// Bytes that a version's files take on the disk: each content once.
fn content_bytes(manifest: &Manifest) -> u64 {
    let files = manifest.files.iter();
    let contents: BTreeMap<Digest, u64> = files.map(|file| (file.digest, file.size)).collect();
    contents.into_values().sum()
}
