//! Which versions there are, in memory.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_agent_core::cache_policy::CachedVersion;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::ManifestFile;
use rollcall_shared::time::Timestamp;

use super::CacheEntry;
use super::blobs::Blobs;
use super::error::CacheError;
use super::index::IndexRecord;

/// One version.
pub(super) struct Entry {
    pub(super) model: ModelName,
    pub(super) version: VersionRef,
    pub(super) files: Vec<ManifestFile>,
    pub(super) last_used: Timestamp,
    pub(super) verified_at: Option<Timestamp>,
}

/// All versions, and which must stay.
#[derive(Default)]
pub(super) struct Contents {
    /// By the digest of the signed manifest.
    pub(super) versions: BTreeMap<Digest, Entry>,
    /// `None`: nobody has said yet, so everything stays.
    pub(super) pins: Option<BTreeSet<(ModelName, VersionRef)>>,
}

impl Contents {
    pub(super) fn is_pinned(&self, entry: &Entry) -> bool {
        self.pins
            .as_ref()
            .is_none_or(|pins| pins.contains(&(entry.model.clone(), entry.version)))
    }

    pub(super) fn record(&self, entry: &Entry) -> IndexRecord {
        IndexRecord {
            model: entry.model.clone(),
            version: entry.version,
            files: entry.files.clone(),
            bytes: entry.files.iter().map(|file| file.size).sum(),
            last_used: entry.last_used,
            verified_at: entry.verified_at,
            pinned: self.is_pinned(entry),
        }
    }

    pub(super) fn digests(&self) -> BTreeSet<Digest> {
        self.versions
            .values()
            .flat_map(|entry| entry.files.iter().map(|file| file.digest))
            .collect()
    }

    pub(super) fn known(&self, version: VersionRef) -> Result<&Entry, CacheError> {
        self.versions
            .get(&version.digest)
            .filter(|entry| entry.version == version)
            .ok_or(CacheError::Unknown {
                version: version.version,
                digest: version.digest,
            })
    }

    /// What the policy decides on. A blob that several versions have counts once, for the
    /// one of them that leaves last, so that evicting a version frees what it counts.
    pub(super) fn policy_view(&self, blobs: &Blobs) -> Vec<CachedVersion> {
        let mut entries: Vec<&Entry> = self.versions.values().collect();
        entries.sort_by_key(|entry| {
            let leaves = (
                self.is_pinned(entry),
                entry.last_used,
                &entry.model,
                entry.version,
            );
            std::cmp::Reverse(leaves)
        });
        let mut counted = BTreeSet::new();
        let mut own_bytes = |entry: &Entry| -> u64 {
            let fresh = entry
                .files
                .iter()
                .filter(|file| counted.insert(file.digest));
            fresh.filter_map(|file| blobs.size(&file.digest)).sum()
        };
        entries
            .into_iter()
            .map(|entry| CachedVersion {
                model: entry.model.clone(),
                version: entry.version,
                bytes: own_bytes(entry),
                last_used: entry.last_used,
                pinned: self.is_pinned(entry),
            })
            .collect()
    }

    /// Every version, by model and version.
    pub(super) fn list(&self, blobs: &Blobs) -> Vec<CacheEntry> {
        let mut list: Vec<CacheEntry> = self
            .versions
            .values()
            .map(|entry| CacheEntry {
                model: entry.model.clone(),
                version: entry.version,
                bytes: entry.files.iter().map(|file| file.size).sum(),
                bytes_missing: entry
                    .files
                    .iter()
                    .filter(|file| blobs.size(&file.digest) != Some(file.size))
                    .map(|file| file.size)
                    .sum(),
                last_used: entry.last_used,
                verified_at: entry.verified_at,
                pinned: self.is_pinned(entry),
            })
            .collect();
        list.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        list
    }
}
