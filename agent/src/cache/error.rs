//! What can go wrong with the cache, in words that say what to do.

use std::path::PathBuf;

use rollcall_agent_core::cache_policy::NoRoom;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::{ManifestError, ManifestFile};
use rollcall_shared::version::Version;

use super::blobs::BlobError;
use super::files::FileError;

/// Why the cache did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// A blob.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Another agent lives in this folder.
    #[error("another rollcall-agent uses {dir}: stop it, or give this one a folder of its own")]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A manifest is not one of this fleet's, or is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest's file is not what its name says.
    #[error("the manifest {path} is damaged; it must be fetched again")]
    DamagedManifest {
        /// Which file.
        path: PathBuf,
    },
    /// Versions that must stay take the room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The cache does not have this version.
    #[error("version {version} (manifest {}) is not in the cache", digest.short())]
    Unknown {
        /// Its number.
        version: Version,
        /// Its manifest.
        digest: Digest,
    },
    /// Files of a version are missing or were damaged. The damaged ones were removed.
    #[error(
        "{model}@{version}: {}; they must be fetched again",
        files.iter().map(|(file, why)| format!("{} ({why})", file.path)).collect::<Vec<_>>().join(", ")
    )]
    Damaged {
        /// The model.
        model: ModelName,
        /// The version.
        version: Version,
        /// The files, and what is wrong with each.
        files: Vec<(ManifestFile, BlobError)>,
    },
}

impl CacheError {
    /// Whether the same may succeed later, without another manifest.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Manifest(_) => false,
            Self::File(_)
            | Self::Blob(_)
            | Self::InUse { .. }
            | Self::DamagedManifest { .. }
            | Self::NoRoom(_)
            | Self::Unknown { .. }
            | Self::Damaged { .. } => true,
        }
    }
}
