//! From a version in the cache to a model that is warm and known to answer rightly.
//!
//! In this order, and none is skipped: the manifest's signature and that it is the one
//! that was assigned; the digest of every file; the load; a few runs to warm up; the
//! version's smoke cases, on this very engine. The last matters as much as the first:
//! engines exist that load a network and silently compute something else.
//!
//! No network: fetching what is missing is the link's work. Blocking.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rollcall_agent_core::input::PrepareFailure;
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::{EngineKind, MODEL_FILE, Manifest, SMOKE_FILE, VALIDATION_FILE};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use crate::batch::Batcher;
use crate::cache::{BlobError, Cache, CacheError};
use crate::engine::cost::Cost;
use crate::engine::{Engine, EngineError, InferError, LoadFiles, LoadedModel};
use crate::progress::Phase;
use crate::resources::host::memory_available;
use room::Room;

mod room;
mod smoke;

pub use smoke::{SmokeCase, SmokeError, SmokeFile};

/// Runs of each input before a version counts as warm: the first allocates, the second
/// faults pages in, the third is like all that follow.
const WARM_UP_RUNS: usize = 3;

/// A version that can serve.
pub struct PreparedModel {
    /// What it is.
    pub manifest: Manifest,
    /// Answers.
    pub loaded: Arc<dyn LoadedModel>,
    /// What that costs.
    pub cost: Arc<Cost>,
    /// How assignments name it. Its digest is what the agent reports to serve.
    pub version: VersionRef,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it was seen to answer many rows as it answers one.
    pub takes_batches: bool,
    /// Runs requests together, where that was asked for and the model takes batches.
    pub batcher: Option<Arc<Batcher>>,
}

/// Why a version cannot serve here.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The cache does not have all of it, or it is damaged.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The digest that was assigned is that of another manifest.
    #[error(
        "the coordinator assigned {model}@{version}, but the manifest with that digest is of {found}; check the registry"
    )]
    OtherVersion {
        /// What was assigned.
        model: ModelName,
        /// What was assigned.
        version: Version,
        /// What it is.
        found: String,
    },
    /// The engine cannot load it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It does not answer as its makers recorded.
    #[error(transparent)]
    Smoke(#[from] SmokeError),
}

impl PrepareError {
    /// Whether the same version may be prepared with success later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Cache(error) => error.is_retryable(),
            Self::Engine(
                EngineError::Io { .. }
                | EngineError::Unavailable { .. }
                | EngineError::NoRoom { .. },
            )
            | Self::Smoke(
                SmokeError::Io { .. }
                | SmokeError::Failed {
                    source: InferError::Unavailable(_),
                    ..
                },
            ) => true,
            Self::OtherVersion { .. } | Self::Engine(_) | Self::Smoke(_) => false,
        }
    }
}

impl From<PrepareError> for PrepareFailure {
    fn from(error: PrepareError) -> Self {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // A transparent error is its own source's text.
            if !reason.ends_with(&cause_text) {
                reason.push_str(": ");
                reason.push_str(&cause_text);
            }
            source = cause.source();
        }
        Self {
            reason: crate::engine::panics::cut(reason),
            retryable: error.is_retryable(),
        }
    }
}

/// Prepares the version of `model` that an assignment names. All its files must be in
/// the cache. Tells each phase as it begins.
///
/// # Errors
/// The first thing that keeps it from serving.
pub fn prepare(
    cache: &Cache,
    engine: &dyn Engine,
    model: &ModelName,
    version: VersionRef,
    now: Timestamp,
    enter: impl Fn(Phase),
) -> Result<PreparedModel, PrepareError> {
    let manifest = cache.manifest(version)?;
    if (&manifest.model, manifest.version) != (model, version.version) {
        return Err(PrepareError::OtherVersion {
            model: model.clone(),
            version: version.version,
            found: format!("{}@{}", manifest.model, manifest.version),
        });
    }
    enter(Phase::Verifying);
    cache.verify(version, now)?;
    let (files, smoke) = locate(cache, &manifest)?;
    enter(Phase::Loading);
    let loaded = match manifest.engine {
        EngineKind::Onnx => engine.load(&files, &manifest.signature)?,
    };
    enter(Phase::WarmingUp);
    let smoke = smoke.map(|path| SmokeFile::read(&path)).transpose()?;
    if smoke.is_none() {
        let number = version.version;
        tracing::warn!("{model}@{number} has no {SMOKE_FILE}: its answers are not checked");
    }
    let cases = smoke.map(|smoke| smoke.cases).unwrap_or_default();
    let batch = smoke::stack(&cases, &manifest.signature);
    warm_up(loaded.as_ref(), &manifest, &cases, batch.as_ref());
    // From here on: the first runs of an engine cost what no later one does.
    let (loaded, cost) = Cost::of(loaded);
    if cases.is_empty() {
        // So that it is known before the first request; a failure was told by the warm-up.
        let _ = loaded.infer(&zeros(&manifest, 1));
    }
    for case in &cases {
        case.check(loaded.as_ref(), &manifest.signature)?;
    }
    let takes_batches = match &batch {
        Some(batch) => check_batch(loaded.as_ref(), &manifest, batch)?,
        None => false,
    };
    cache.touch(version, now);
    let bytes = manifest.bytes();
    Ok(PreparedModel {
        manifest,
        loaded,
        cost,
        version,
        bytes,
        batcher: None,
        takes_batches,
    })
}

/// Whether there is memory for a version beside another one of its model, and `reserve`
/// bytes more. To be asked before [`prepare`].
///
/// # Errors
/// When the cache does not have it, or there is not.
pub fn check_room(
    cache: &Cache,
    engine: &dyn Engine,
    version: VersionRef,
    reserve: u64,
) -> Result<(), PrepareError> {
    let Some(available) = memory_available() else {
        return Ok(());
    };
    let room = Room {
        files: cache.manifest(version)?.bytes(),
        percent: engine.memory_percent(),
        available,
        reserve,
    };
    Ok(room.check()?)
}

/// The files to load, and the smoke cases.
fn locate(
    cache: &Cache,
    manifest: &Manifest,
) -> Result<(LoadFiles, Option<PathBuf>), PrepareError> {
    let (mut model, mut smoke, mut others) = (None, None, BTreeMap::new());
    for file in &manifest.files {
        let missing = || BlobError::Missing {
            path: file.path.as_str().into(),
        };
        let path = cache
            .path_of(&file.digest)
            .ok_or_else(missing)
            .map_err(CacheError::Blob)?;
        match file.path.as_str() {
            MODEL_FILE => model = Some(path),
            SMOKE_FILE => smoke = Some(path),
            VALIDATION_FILE => {}
            _ => {
                others.insert(file.path.clone(), path);
            }
        }
    }
    let no_model = || BlobError::Missing {
        path: MODEL_FILE.into(),
    };
    let model = model.ok_or_else(no_model).map_err(CacheError::Blob)?;
    let Manifest {
        model: of, version, ..
    } = manifest;
    let name = format!("{of}@{version}");
    let files = LoadFiles {
        name,
        model,
        others,
    };
    Ok((files, smoke))
}

/// Runs the model until its memory is allocated and its plans are made. What fails here
/// fails again as a smoke case; where there are none, zeros prove nothing against a model.
fn warm_up(
    loaded: &dyn LoadedModel,
    manifest: &Manifest,
    cases: &[SmokeCase],
    batch: Option<&SmokeCase>,
) {
    let single = cases
        .first()
        .map_or_else(|| zeros(manifest, 1), SmokeCase::tensors);
    let batch = batch.map_or_else(|| zeros(manifest, 2), SmokeCase::tensors);
    for inputs in [single, batch] {
        for _ in 0..WARM_UP_RUNS {
            if let Err(error) = loaded.infer(&inputs) {
                let Manifest { model, version, .. } = manifest;
                tracing::info!("a warm-up run of {model}@{version} failed: {error}");
                break;
            }
        }
    }
}

/// So many rows that any model of this signature takes.
fn zeros(manifest: &Manifest, rows: usize) -> Vec<Tensor> {
    let inputs = manifest.signature.inputs.iter();
    inputs.filter_map(|spec| smoke::zeros(spec, rows)).collect()
}

/// All smoke cases in one request: rows must not change each other. A model that takes
/// no batch at all may still serve single rows; one that answers a batch wrongly may not.
fn check_batch(
    loaded: &dyn LoadedModel,
    manifest: &Manifest,
    batch: &SmokeCase,
) -> Result<bool, PrepareError> {
    match batch.check(loaded, &manifest.signature) {
        Err(SmokeError::Failed { source, .. }) if !source.is_the_nodes() => {
            let Manifest { model, version, .. } = manifest;
            tracing::warn!("{model}@{version} answers single rows but no batch: {source}");
            Ok(false)
        }
        other => {
            other?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests;
