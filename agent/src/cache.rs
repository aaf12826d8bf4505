//! The agent's disk: versions, their files, and what it must not forget.
//!
//! ```text
//! blobs/{digest}            a file of a version, by its content
//! partial/{digest}          the beginning of one that is coming
//! manifests/{digest}.json   a signed manifest: these say which versions there are
//! index/                    sled: last use, last verification (can be lost, see `index`)
//! state.bin                 assignments and withdrawals (must not be lost, see `state`)
//! lock                      held while an agent lives
//! ```
//!
//! The order in which a version comes is: [`Cache::add_version`] (from then on its blobs
//! are not swept away), [`Cache::missing`], [`Cache::make_room`], [`Cache::begin_blob`] for
//! each, [`Cache::verify`]. The order in which it goes is: manifest first, then the blobs
//! that no other version has. So a crash in between leaves a version to complete, or blobs
//! to sweep.
//!
//! Everything here blocks: drivers call it on threads of their own. Nothing here knows
//! the network or decides what to keep; that is `rollcall_agent_core::cache_policy`.

mod blobs;
mod contents;
mod error;
mod files;
mod index;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_agent_core::cache_policy::plan_eviction;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::{Manifest, ManifestFile, SignedManifest};
use rollcall_shared::signing::PublicKey;
use rollcall_shared::time::Timestamp;
use tokio_util::sync::CancellationToken;

pub use blobs::{BlobError, PartialBlob};
pub use error::CacheError;
pub use files::FileError;
pub use state::{StateError, StateStore};

use blobs::Blobs;
use contents::{Contents, Entry};
use files::{UNFINISHED, remove, sync_folder, write_durably};
use index::{Index, IndexRecord};

/// One version in the cache, for people and reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: VersionRef,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes of those that are still to come.
    pub bytes_missing: u64,
    /// When it was last used.
    pub last_used: Timestamp,
    /// When all its files were last hashed and found right.
    pub verified_at: Option<Timestamp>,
    /// Whether it must stay.
    pub pinned: bool,
}

/// The agent's disk.
pub struct Cache {
    quota_bytes: u64,
    registry_key: PublicKey,
    dir: PathBuf,
    manifests: PathBuf,
    blobs: Blobs,
    index: Arc<Index>,
    contents: Mutex<Contents>,
}

impl Cache {
    /// Opens the cache in `dir`, making it where it is not. Versions may take up to
    /// `quota_bytes`; manifests count that `registry_key` signed.
    ///
    /// # Errors
    /// When the folder cannot be used, or another agent uses it. Damage is repaired, or
    /// set aside and told to the log.
    pub fn open(dir: &Path, quota_bytes: u64, registry_key: PublicKey) -> Result<Self, CacheError> {
        let manifests = dir.join("manifests");
        std::fs::create_dir_all(&manifests).map_err(FileError::to("create", &manifests))?;
        let in_use = || CacheError::InUse {
            dir: dir.to_owned(),
        };
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(FileError::to("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(source)) => {
                return Err(FileError::to("lock", &lock_path)(source).into());
            }
        }
        let blobs = Blobs::open(dir)?;
        let (index, records) = Index::open(dir, lock).map_err(|_| in_use())?;
        let cache = Self {
            quota_bytes,
            registry_key,
            dir: dir.to_owned(),
            manifests,
            blobs,
            index: Arc::new(index),
            contents: Mutex::default(),
        };
        cache.read_manifests(records)?;
        cache.gc()?;
        Ok(cache)
    }

    /// Where assignments and withdrawals lie.
    #[must_use]
    pub fn state_store(&self) -> StateStore {
        StateStore::new(&self.dir, Arc::clone(&self.index))
    }

    /// Cancelled when the folder is free for the next agent: when this cache, and every
    /// [`StateStore`] of it, is dropped.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.index.closed()
    }

    /// The signed manifests say which versions there are, the index adds what it knows.
    fn read_manifests(&self, records: Vec<IndexRecord>) -> Result<(), CacheError> {
        let mut known: BTreeMap<Digest, IndexRecord> = records
            .into_iter()
            .map(|record| (record.version.digest, record))
            .collect();
        let mut contents = self.lock();
        let listing = FileError::to("list", &self.manifests);
        for entry in std::fs::read_dir(&self.manifests).map_err(listing)? {
            let path = entry
                .map_err(FileError::to("list", &self.manifests))?
                .path();
            let digest = match path.extension().and_then(|extension| extension.to_str()) {
                Some(UNFINISHED) => {
                    remove(&path)?;
                    continue;
                }
                Some("json") => path
                    .file_stem()
                    .and_then(|stem| stem.to_str()?.parse().ok()),
                Some(_) | None => None,
            };
            let Some(digest) = digest else { continue };
            match self.read_manifest(&digest) {
                Ok(manifest) => {
                    let record = known.remove(&digest);
                    let entry = Entry {
                        model: manifest.model,
                        version: VersionRef {
                            version: manifest.version,
                            digest,
                        },
                        files: manifest.files,
                        last_used: record.as_ref().map_or(Timestamp::ZERO, |r| r.last_used),
                        verified_at: record.as_ref().and_then(|r| r.verified_at),
                    };
                    if record.is_none() {
                        self.index.put(&contents.record(&entry));
                    }
                    contents.versions.insert(digest, entry);
                }
                Err(CacheError::File(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!("{}: {error}; it is removed from the cache", path.display());
                    remove(&path)?;
                }
            }
        }
        for orphan in known.into_keys() {
            self.index.remove(&orphan);
        }
        Ok(())
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.manifests.join(format!("{digest}.json"))
    }

    fn read_manifest(&self, digest: &Digest) -> Result<Manifest, CacheError> {
        let path = self.manifest_path(digest);
        let bytes = std::fs::read(&path).map_err(FileError::to("read", &path))?;
        if Digest::of(&bytes) != *digest {
            return Err(CacheError::DamagedManifest { path });
        }
        Ok(SignedManifest::decode(&bytes)?.open(&self.registry_key)?)
    }

    /// Takes a version into the cache: its signed manifest becomes durable, its files are
    /// to follow. Does nothing where it is known already, beside noting its use.
    ///
    /// # Errors
    /// When the registry did not sign the manifest, or the disk fails.
    pub fn add_version(
        &self,
        signed: &SignedManifest,
        now: Timestamp,
    ) -> Result<VersionRef, CacheError> {
        let manifest = signed.open(&self.registry_key)?;
        let version = signed.version_ref(manifest.version);
        let path = self.manifest_path(&version.digest);
        let mut contents = self.lock();
        if !contents.versions.contains_key(&version.digest) || !path.exists() {
            write_durably(&path, &signed.encode())?;
            let Manifest { model, files, .. } = manifest;
            let entry = Entry {
                model,
                version,
                files,
                last_used: now,
                verified_at: None,
            };
            contents.versions.insert(version.digest, entry);
        }
        drop(contents);
        self.touch(version, now);
        Ok(version)
    }

    /// The manifest of a version, read from the disk and checked again.
    ///
    /// # Errors
    /// When the cache does not have it, or it was damaged or not signed by the registry.
    pub fn manifest(&self, version: VersionRef) -> Result<Manifest, CacheError> {
        self.lock().known(version)?;
        self.read_manifest(&version.digest)
    }

    /// The files of a version that must be fetched, each content once.
    #[must_use]
    pub fn missing(&self, manifest: &Manifest) -> Vec<ManifestFile> {
        let mut seen = BTreeSet::new();
        let is_missing = |file: &&ManifestFile| {
            self.blobs.size(&file.digest) != Some(file.size) && seen.insert(file.digest)
        };
        manifest.files.iter().filter(is_missing).cloned().collect()
    }

    /// Begins to store a blob, or goes on where it was left.
    ///
    /// # Errors
    /// [`BlobError::Busy`] while someone else stores the same one; [`BlobError::NoSpace`]
    /// where it cannot fit on the disk.
    pub fn begin_blob(&self, digest: Digest, size: u64) -> Result<PartialBlob, BlobError> {
        self.blobs.begin(digest, size)
    }

    /// Where a blob lies; `None`: it is not there.
    #[must_use]
    pub fn path_of(&self, digest: &Digest) -> Option<PathBuf> {
        self.blobs.size(digest).map(|_| self.blobs.path(digest))
    }

    /// Hashes every file of a version.
    ///
    /// # Errors
    /// [`CacheError::Damaged`] with every file that is missing or was damaged, and so was
    /// removed: [`Self::missing`] names them from now on.
    pub fn verify(&self, version: VersionRef, now: Timestamp) -> Result<(), CacheError> {
        let (model, files) = {
            let contents = self.lock();
            let entry = contents.known(version)?;
            (entry.model.clone(), entry.files.clone())
        };
        let damage = |file: ManifestFile| {
            let why = self.blobs.verify(&file.digest, file.size).err()?;
            Some((file, why))
        };
        let damaged: Vec<_> = files.into_iter().filter_map(damage).collect();
        let verified_at = damaged.is_empty().then_some(now);
        self.change(version, |entry| entry.verified_at = verified_at);
        if damaged.is_empty() {
            return Ok(());
        }
        Err(CacheError::Damaged {
            model,
            version: version.version,
            files: damaged,
        })
    }

    /// Says which versions must stay; all others may go when room is needed. Until this
    /// was called once, everything stays.
    pub fn set_pins(&self, pins: BTreeSet<(ModelName, VersionRef)>) {
        let mut contents = self.lock();
        contents.pins = Some(pins);
        for entry in contents.versions.values() {
            self.index.put(&contents.record(entry));
        }
    }

    /// Notes that a version is in use. Not for every request: once a minute is plenty.
    pub fn touch(&self, version: VersionRef, now: Timestamp) {
        self.change(version, |entry| entry.last_used = entry.last_used.max(now));
    }

    fn change(&self, version: VersionRef, change: impl FnOnce(&mut Entry)) {
        let mut contents = self.lock();
        if let Some(entry) = contents.versions.get_mut(&version.digest) {
            change(entry);
        }
        if let Some(entry) = contents.versions.get(&version.digest) {
            self.index.put(&contents.record(entry));
        }
    }

    /// Evicts versions until `needed_bytes` more fit into the quota, and says which went.
    ///
    /// # Errors
    /// [`CacheError::NoRoom`] when versions that must stay are in the way; nothing is
    /// evicted then.
    pub fn make_room(&self, needed_bytes: u64) -> Result<Vec<(ModelName, VersionRef)>, CacheError> {
        let mut contents = self.lock();
        let entries = contents.policy_view(&self.blobs);
        let evicted = plan_eviction(&entries, self.quota_bytes, needed_bytes)?;
        for (model, version) in &evicted {
            remove(&self.manifest_path(&version.digest))?;
            self.index.remove(&version.digest);
            contents.versions.remove(&version.digest);
            tracing::info!(
                "{model}@{} leaves the cache: room is needed",
                version.version
            );
        }
        if !evicted.is_empty() {
            // Manifests must be gone for good before their blobs are.
            sync_folder(&self.manifests)?;
            self.blobs.sweep(&contents.digests())?;
        }
        Ok(evicted)
    }

    /// Removes blobs and beginnings of blobs that no version has. Gives the bytes freed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn gc(&self) -> Result<u64, CacheError> {
        let contents = self.lock();
        let freed = self.blobs.sweep(&contents.digests())?;
        if freed > 0 {
            tracing::info!("{freed} bytes that no version needs left the cache");
        }
        Ok(freed)
    }

    /// Every version, by model and version.
    #[must_use]
    pub fn list(&self) -> Vec<CacheEntry> {
        self.lock().list(&self.blobs)
    }

    /// Bytes that versions take, each blob once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let digests = self.lock().digests();
        digests
            .iter()
            .filter_map(|digest| self.blobs.size(digest))
            .sum()
    }

    /// Bytes that they may take.
    #[must_use]
    pub const fn quota_bytes(&self) -> u64 {
        self.quota_bytes
    }

    /// Entries are changed in one step each, so a panic leaves none half done.
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
