//! What the cache knows beside the files themselves: when each version was last used
//! and last verified.
//!
//! It lies in sled, and nothing in it is needed: signed manifests and blobs are on the
//! disk as files, and the index is made from them again whenever it is damaged, absent
//! or behind. That matters because sled, given damaged files, panics in `open` or, worse,
//! forgets what it had acknowledged. So it is read once, at start; the cache then works
//! from memory and only writes to it. A write that fails costs the index until the agent's
//! state is to be kept again, and nothing else.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::codec;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::ManifestFile;
use rollcall_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::files::{remove, set_aside};
use crate::engine::panics::catch;

/// sled's page cache. The whole index is a few hundred KiB; its default is 1 GiB.
const PAGE_CACHE_BYTES: u64 = 4 << 20;

/// How often sled writes out what it holds, in milliseconds. It may lose as much in a
/// power cut, which costs a time of last use.
const FLUSH_EVERY_MS: u64 = 1_000;

/// How often and how long sled's own lock is waited for: 2 s. sled writes on threads of
/// its own and waits for what they write, not for them: the last of them lets go of the
/// file after `drop` has returned. On a busy machine that took up to 5 ms.
const LOCK_TRIES: u32 = 400;
/// See [`LOCK_TRIES`].
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Changed when [`IndexRecord`] changes; records of another form are left where they are.
const VERSIONS_TREE: &str = "versions-1";
const STATE_KEY: &str = "state";

/// One version in the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IndexRecord {
    pub(super) model: ModelName,
    pub(super) version: VersionRef,
    pub(super) files: Vec<ManifestFile>,
    pub(super) bytes: u64,
    pub(super) last_used: Timestamp,
    pub(super) verified_at: Option<Timestamp>,
    pub(super) pinned: bool,
}

/// Why there can be no index, and no cache either: it is open, though the folder's lock
/// is ours. Somebody removed the lock's file below a living agent.
#[derive(Debug, thiserror::Error)]
#[error("another process has the index open")]
pub(super) struct Held;

/// What opening sled came to.
enum Opening {
    Good(sled::Db, Vec<IndexRecord>),
    Damaged(String),
    /// Not the index's fault: the disk is full, or may not be written.
    Impossible(String),
    Held,
}

/// The index. All of it can be lost.
#[derive(Debug)]
pub(super) struct Index {
    dir: PathBuf,
    /// `None`: without an index, until the state is to be kept again.
    db: Mutex<Option<sled::Db>>,
    /// Let go of after `db`, by whoever uses the index last. The system does it when the
    /// process ends, however it ends.
    _folder_lock: File,
    /// Last, so that the folder is free when it says so.
    closed: DropGuard,
}

impl Index {
    /// Opens the index below `dir`, whose lock is `folder_lock`, and reads all of it. A
    /// damaged one is set aside and an empty one put in its place.
    pub(super) fn open(dir: &Path, folder_lock: File) -> Result<(Self, Vec<IndexRecord>), Held> {
        let (db, records) = match open_or_replace(dir) {
            Opening::Good(db, records) => (Some(db), records),
            Opening::Damaged(why) | Opening::Impossible(why) => {
                tracing::warn!("the agent runs without a cache index: {why}");
                (None, Vec::new())
            }
            Opening::Held => return Err(Held),
        };
        let index = Self {
            dir: dir.to_owned(),
            db: Mutex::new(db),
            _folder_lock: folder_lock,
            closed: CancellationToken::new().drop_guard(),
        };
        Ok((index, records))
    }

    /// Cancelled when the last owner is gone and the folder's lock with it.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.token().clone()
    }

    /// Writes one version.
    pub(super) fn put(&self, record: &IndexRecord) {
        let Ok(bytes) = codec::encode(record) else {
            return;
        };
        self.change("write to", |db| {
            let key = record.version.digest.as_bytes();
            db.open_tree(VERSIONS_TREE)?
                .insert(key, bytes.as_ref())
                .map(drop)
        });
    }

    /// Removes one version.
    pub(super) fn remove(&self, digest: &Digest) {
        self.change("write to", |db| {
            db.open_tree(VERSIONS_TREE)?
                .remove(digest.as_bytes())
                .map(drop)
        });
    }

    /// Keeps a second copy of the agent's state. An index that was lost to a failed write (a
    /// full disk) is opened again for it: the state's own file was written just before, so
    /// the disk works, and an old copy is worse than none on the day that file is damaged.
    pub(super) fn put_state(&self, bytes: &[u8]) {
        let put = || {
            self.change("write to", |db| {
                db.insert(STATE_KEY, bytes)?;
                db.flush().map(drop)
            })
        };
        if put().is_none() && self.open_again() {
            put();
        }
    }

    fn open_again(&self) -> bool {
        let mut db = self.lock();
        if let Opening::Good(opened, _) = open_or_replace(&self.dir) {
            *db = Some(opened);
        }
        db.is_some()
    }

    /// What a failed write leaves behind.
    #[cfg(test)]
    pub(super) fn lose(&self) {
        close(self.lock().take());
    }

    /// The second copy of the agent's state.
    pub(super) fn state(&self) -> Option<Vec<u8>> {
        self.change("read", |db| db.get(STATE_KEY))
            .flatten()
            .map(|bytes| bytes.to_vec())
    }

    fn change<T>(&self, what: &str, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Option<T> {
        let mut db = self.lock();
        let open = db.as_ref()?;
        let why = match catch(|| work(open)) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic,
        };
        tracing::warn!("cannot {what} the cache index; the agent goes on without it: {why}");
        close(db.take());
        None
    }

    fn lock(&self) -> MutexGuard<'_, Option<sled::Db>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let db = self.lock().take();
        close(db);
    }
}

/// sled flushes when it is dropped, and may panic over it.
fn close(db: Option<sled::Db>) {
    if let Err(panic) = catch(|| drop(db)) {
        tracing::warn!("the cache index did not close: {panic}");
    }
}

fn put_aside(folder: &Path, why: &str) {
    match set_aside(folder) {
        Ok(aside) => tracing::warn!(
            "the cache index is damaged ({why}); it lies in {} now, and is made again from the files of the cache",
            aside.display()
        ),
        Err(error) => tracing::warn!(
            "the cache index is damaged ({why}); {error}: {}",
            error.kind()
        ),
    }
}

/// Opens the index below `dir`; a damaged one is set aside and an empty one put in its place.
fn open_or_replace(dir: &Path) -> Opening {
    let folder = dir.join("index");
    let marker = dir.join("index.opening");
    // Damage may end the process instead of unwinding (a huge allocation), or hang it
    // until a watchdog ends it. The mark left behind says so to the next start.
    if marker.exists() && folder.exists() {
        put_aside(&folder, "the process ended while it opened it");
    }
    if let Err(error) = std::fs::write(&marker, b"") {
        tracing::warn!("cannot write {}: {error}", marker.display());
    }
    let mut opening = open_when_free(&folder);
    if let Opening::Damaged(why) = &opening {
        put_aside(&folder, why);
        opening = match open_when_free(&folder) {
            // Where it could not be set aside, sled may not have let go of it.
            Opening::Held => Opening::Impossible("it is still open".to_owned()),
            opened @ (Opening::Good(..) | Opening::Damaged(_) | Opening::Impossible(_)) => opened,
        };
    }
    if let Err(error) = remove(&marker) {
        tracing::warn!("{error}: {}", error.kind());
    }
    opening
}

#[expect(
    clippy::disallowed_methods,
    reason = "opening blocks; sled tells no end to wait for"
)]
fn open_when_free(folder: &Path) -> Opening {
    for _ in 0..LOCK_TRIES {
        let opening = open_and_read(folder);
        if !matches!(opening, Opening::Held) {
            return opening;
        }
        std::thread::sleep(LOCK_AGAIN_AFTER);
    }
    Opening::Held
}

fn open_and_read(folder: &Path) -> Opening {
    let open = || -> Result<(sled::Db, Vec<IndexRecord>), sled::Error> {
        let db = sled::Config::new()
            .path(folder)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(PAGE_CACHE_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .open()?;
        let mut records = Vec::new();
        for entry in &db.open_tree(VERSIONS_TREE)? {
            let (key, value) = entry?;
            let record = codec::decode::<IndexRecord>(&value);
            match record
                .ok()
                .filter(|record| record.version.digest.as_bytes()[..] == key[..])
            {
                Some(record) => records.push(record),
                None => {
                    tracing::warn!("a record of the cache index cannot be read; it is made again")
                }
            }
        }
        // Damage there must show now, while the folder can still be set aside.
        db.get(STATE_KEY)?;
        Ok((db, records))
    };
    match catch(open) {
        Ok(Ok((db, records))) => Opening::Good(db, records),
        Ok(Err(error)) => judge(error),
        Err(panic) => Opening::Damaged(panic),
    }
}

fn judge(error: sled::Error) -> Opening {
    use io::ErrorKind::{
        PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WouldBlock,
    };
    match &error {
        sled::Error::Io(io) if io.kind() == WouldBlock => Opening::Held,
        sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => Opening::Held,
        sled::Error::Io(io)
            if matches!(
                io.kind(),
                PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
            ) =>
        {
            Opening::Impossible(error.to_string())
        }
        sled::Error::Io(_)
        | sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_) => Opening::Damaged(error.to_string()),
    }
}
