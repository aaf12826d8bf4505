//! Files by content: `blobs/{digest}` is whole and was right when it was put there;
//! `partial/{digest}` is the beginning of one that is still coming.
//!
//! A partial file outlives the process: who begins the same blob again goes on where it
//! ends. What is there is hashed again first, and the whole is checked at the end, so a
//! beginning that a power cut spoiled costs a download and nothing else.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_shared::digest::Digest;

use super::files::{FileError, remove, sync_folder};

/// Bytes hashed at a time: large enough for BLAKE3's vector code, small beside a model.
const CHUNK_BYTES: usize = 256 << 10;

/// Why a blob cannot be stored or used.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no room on the disk. What had come was removed.
    #[error(
        "no space for {path}: {needed} more bytes are needed, {free} are free; free some or lower the cache's quota"
    )]
    NoSpace {
        /// Where it was to go.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes free on that file system, after the removal.
        free: u64,
    },
    /// The content is not what the digest names. It was removed.
    #[error("{path} is damaged: its digest is {got}, it should be {expected}")]
    WrongDigest {
        /// Which file.
        path: PathBuf,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The content is longer or shorter than the manifest says. It was removed.
    #[error("{path} is damaged: it has {got} bytes, it should have {expected} (digest {digest})")]
    WrongSize {
        /// Which file.
        path: PathBuf,
        /// What was asked for.
        digest: Digest,
        /// Bytes that the manifest names.
        expected: u64,
        /// Bytes that came, at least.
        got: u64,
    },
    /// There is no such blob.
    #[error("{path} is missing")]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// Someone else is fetching the same blob; wait for that.
    #[error("blob {digest} is already being fetched")]
    Busy {
        /// Which.
        digest: Digest,
    },
}

type BusySet = Arc<Mutex<BTreeSet<Digest>>>;

/// The folders `blobs` and `partial`.
#[derive(Debug)]
pub(super) struct Blobs {
    whole: PathBuf,
    partial: PathBuf,
    /// Digests that have a [`PartialBlob`]: two writers would mix their bytes.
    busy: BusySet,
}

impl Blobs {
    pub(super) fn open(dir: &Path) -> Result<Self, FileError> {
        let (whole, partial) = (dir.join("blobs"), dir.join("partial"));
        for folder in [&whole, &partial] {
            std::fs::create_dir_all(folder).map_err(FileError::to("create", folder))?;
        }
        Ok(Self {
            whole,
            partial,
            busy: BusySet::default(),
        })
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.whole.join(digest.to_string())
    }

    /// Bytes of the blob; `None`: it is not there.
    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = std::fs::metadata(self.path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Hashes a blob, and removes it when it is not what it should be.
    pub(super) fn verify(&self, digest: &Digest, size: u64) -> Result<(), BlobError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Missing { path });
            }
            opened => opened.map_err(FileError::to("read", &path))?,
        };
        let mut hasher = blake3::Hasher::new();
        // A sector that cannot be read is damage too: the blob must be fetched anew.
        let damage = match hash_into(&mut hasher, &mut file) {
            Ok(got) if got != size => Some(BlobError::WrongSize {
                path: path.clone(),
                digest: *digest,
                expected: size,
                got,
            }),
            Ok(_) => wrong_digest(&path, digest, &hasher),
            Err(error) => Some(FileError::to("read", &path)(error).into()),
        };
        match damage {
            None => Ok(()),
            Some(damage) => {
                remove(&path)?;
                Err(damage)
            }
        }
    }

    /// Begins a blob, or goes on with one that was begun before.
    pub(super) fn begin(&self, digest: Digest, size: u64) -> Result<PartialBlob, BlobError> {
        let claim = Claim::take(&self.busy, digest)?;
        let path = self.partial.join(digest.to_string());
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(FileError::to("open", &path))?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = hash_into(&mut hasher, &mut file).map_err(FileError::to("read", &path))?;
        if offset > size {
            file.set_len(0).map_err(FileError::to("cut", &path))?;
            hasher.reset();
            offset = 0;
        }
        let blob = PartialBlob {
            file: Some(file),
            path,
            whole: self.path(&digest),
            digest,
            size,
            offset,
            hasher,
            _claim: claim,
        };
        blob.check_space()?;
        Ok(blob)
    }

    /// Removes every blob and partial blob that is neither wanted nor being fetched.
    /// Gives the bytes that were freed.
    pub(super) fn sweep(&self, wanted: &BTreeSet<Digest>) -> Result<u64, FileError> {
        let busy = lock(&self.busy);
        let mut freed = 0;
        for folder in [&self.whole, &self.partial] {
            for entry in std::fs::read_dir(folder).map_err(FileError::to("list", folder))? {
                let entry = entry.map_err(FileError::to("list", folder))?;
                let name = entry.file_name();
                let Some(digest) = name.to_str().and_then(|name| name.parse::<Digest>().ok())
                else {
                    continue;
                };
                if !wanted.contains(&digest) && !busy.contains(&digest) {
                    let bytes = entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
                    remove(&entry.path())?;
                    freed += bytes;
                }
            }
        }
        Ok(freed)
    }
}

/// Hashes what is left of `source`, and gives its length.
fn hash_into(hasher: &mut blake3::Hasher, source: &mut impl Read) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                hasher.update(&chunk[..length]);
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn wrong_digest(path: &Path, expected: &Digest, hasher: &blake3::Hasher) -> Option<BlobError> {
    let got = Digest::from_bytes(*hasher.finalize().as_bytes());
    (got != *expected).then(|| BlobError::WrongDigest {
        path: path.to_owned(),
        expected: *expected,
        got,
    })
}

fn lock(busy: &Mutex<BTreeSet<Digest>>) -> MutexGuard<'_, BTreeSet<Digest>> {
    busy.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to write one partial blob.
#[derive(Debug)]
struct Claim {
    busy: BusySet,
    digest: Digest,
}

impl Claim {
    fn take(busy: &BusySet, digest: Digest) -> Result<Self, BlobError> {
        if lock(busy).insert(digest) {
            Ok(Self {
                busy: Arc::clone(busy),
                digest,
            })
        } else {
            Err(BlobError::Busy { digest })
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.digest);
    }
}

/// A blob that is coming. Dropped before [`Self::finish`], it can be gone on with later.
#[derive(Debug)]
pub struct PartialBlob {
    /// `None` after an error: what had come was removed.
    file: Option<File>,
    path: PathBuf,
    whole: PathBuf,
    digest: Digest,
    size: u64,
    offset: u64,
    hasher: blake3::Hasher,
    _claim: Claim,
}

impl PartialBlob {
    /// The first byte that is wanted.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Which blob this is.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of the whole blob.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Takes the bytes that follow. Blocking.
    ///
    /// # Errors
    /// When the disk refuses them (typically: [`BlobError::NoSpace`]), or more come than
    /// the size says. The partial blob is removed then, and takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let got = self.offset + bytes.len() as u64;
        if got > self.size {
            return Err(self.give_up(BlobError::WrongSize {
                path: self.path.clone(),
                digest: self.digest,
                expected: self.size,
                got,
            }));
        }
        let Some(file) = &mut self.file else {
            return Err(BlobError::Missing {
                path: self.path.clone(),
            });
        };
        if let Err(error) = file.write_all(bytes) {
            return Err(self.disk_error("write", error));
        }
        self.hasher.update(bytes);
        self.offset = got;
        Ok(())
    }

    /// Checks the whole, makes it durable and puts it among the blobs. Blocking.
    ///
    /// # Errors
    /// When the content is not what the digest names, or the disk fails. The partial blob
    /// is removed.
    pub fn finish(mut self) -> Result<PathBuf, BlobError> {
        if self.offset != self.size {
            return Err(self.give_up(BlobError::WrongSize {
                path: self.path.clone(),
                digest: self.digest,
                expected: self.size,
                got: self.offset,
            }));
        }
        if let Some(damage) = wrong_digest(&self.path, &self.digest, &self.hasher) {
            return Err(self.give_up(damage));
        }
        let Some(file) = &self.file else {
            return Err(BlobError::Missing {
                path: self.path.clone(),
            });
        };
        if let Err(error) = file.sync_all() {
            return Err(self.disk_error("sync", error));
        }
        if let Err(error) = std::fs::rename(&self.path, &self.whole) {
            return Err(self.disk_error("rename", error));
        }
        sync_folder(self.whole.parent().unwrap_or(Path::new(".")))?;
        Ok(self.whole.clone())
    }

    /// Fails early where the rest cannot fit.
    fn check_space(&self) -> Result<(), BlobError> {
        let needed = self.size - self.offset;
        match free_bytes(&self.path) {
            Some(free) if free < needed => {
                remove(&self.path)?;
                let free = free_bytes(&self.whole).unwrap_or(free);
                Err(BlobError::NoSpace {
                    path: self.whole.clone(),
                    needed: self.size,
                    free,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn disk_error(&mut self, action: &'static str, error: io::Error) -> BlobError {
        let needed = self.size - self.offset;
        let is_full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let reason = FileError::to(action, &self.path)(error).into();
        let reason = self.give_up(reason);
        if is_full {
            let free = free_bytes(&self.path).unwrap_or(0);
            BlobError::NoSpace {
                path: self.whole.clone(),
                needed,
                free,
            }
        } else {
            reason
        }
    }

    fn give_up(&mut self, reason: BlobError) -> BlobError {
        self.file = None;
        if let Err(error) = remove(&self.path) {
            tracing::warn!("{error}: {}", error.kind());
        }
        reason
    }
}

/// Bytes that this process may still write to the file system of `path`'s folder.
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path.parent()?).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
#[path = "blobs/tests.rs"]
mod tests;
