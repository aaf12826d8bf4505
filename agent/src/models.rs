//! The versions in this process's memory, by model and version.
//!
//! A table of `Arc`s: taking a version out frees it when the last request that
//! runs on it is done, and not before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;

use crate::prepare::PreparedModel;

/// The table.
#[derive(Default)]
pub struct Models(Mutex<BTreeMap<(ModelName, VersionRef), Arc<PreparedModel>>>);

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}

impl Models {
    /// Puts a version in.
    pub fn insert(&self, model: ModelName, prepared: PreparedModel) {
        let key = (model, prepared.version);
        self.lock().insert(key, Arc::new(prepared));
    }

    /// Takes a version out.
    pub fn remove(&self, model: &ModelName, version: VersionRef) {
        // Freed after the lock is: dropping a large model takes milliseconds.
        let removed = self.lock().remove(&(model.clone(), version));
        drop(removed);
    }

    /// A version, if it is loaded.
    #[must_use]
    pub fn get(&self, model: &ModelName, version: VersionRef) -> Option<Arc<PreparedModel>> {
        self.lock().get(&(model.clone(), version)).cloned()
    }

    /// The versions that are loaded.
    #[must_use]
    pub fn loaded(&self) -> Vec<(ModelName, VersionRef)> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ModelName, VersionRef), Arc<PreparedModel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
