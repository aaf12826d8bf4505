//! From an assignment's word to a model in memory: fetch, then prepare, then install.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_agent_core::input::PrepareFailure;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_transport::clock::Clock;
use tokio::sync::Semaphore;

use crate::batch::Batcher;
use crate::cache::{Cache, CacheError};
use crate::config::{Batching, Config};
use crate::driver::Preparer;
use crate::engine::engines::Engines;
use crate::execute::{Executor, ExecutorBounds, Priority};
use crate::fetch::Fetcher;
use crate::models::Models;
use crate::prepare::{PrepareError, PreparedModel, check_room, prepare};
use crate::progress::{Entry, PREPARATIONS_MAX, Phase, Progress};

/// Versions fetched at a time: enough to fill a link, few enough that each gets on.
const FETCHES_MAX: usize = 4;
/// Versions loaded at a time, on threads that yield to those that answer clients: a load takes
/// twice the model's size in memory and a core.
const LOADS: ExecutorBounds = ExecutorBounds {
    name: "load",
    threads: 2,
    queue: PREPARATIONS_MAX,
    priority: Priority::Low,
};

/// [`Preparer`] with a real disk and real engines.
pub struct VersionPreparer {
    fetcher: Fetcher,
    cache: Arc<Cache>,
    engines: Engines,
    models: Arc<Models>,
    progress: Arc<Progress>,
    batching: BTreeMap<ModelName, Batching>,
    clock: Clock,
    fetches: Semaphore,
    loads: Executor,
}

impl VersionPreparer {
    /// Fetches with `fetcher` into `cache`, loads with `engines` into `models`, and writes
    /// into `progress` how far it is.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn start(
        fetcher: Fetcher,
        cache: &Arc<Cache>,
        engines: Engines,
        models: Arc<Models>,
        progress: Arc<Progress>,
        config: &Config,
        clock: Clock,
    ) -> std::io::Result<Self> {
        Ok(Self {
            fetcher,
            cache: Arc::clone(cache),
            engines,
            models,
            progress,
            batching: config.batching.clone(),
            clock,
            fetches: Semaphore::new(FETCHES_MAX),
            loads: Executor::start(LOADS)?,
        })
    }

    async fn fetch(
        &self,
        model: &ModelName,
        version: VersionRef,
        entry: &Arc<Entry>,
    ) -> Result<(), PrepareFailure> {
        entry.enter(Phase::Queued);
        let _permit = self.fetches.acquire().await;
        entry.enter(Phase::Fetching);
        let now = self.clock.now();
        Ok(self.fetcher.fetch(model, version, now, entry).await?)
    }

    async fn load(
        &self,
        model: &ModelName,
        version: VersionRef,
        entry: &Arc<Entry>,
    ) -> Result<Result<PreparedModel, PrepareError>, PrepareFailure> {
        let (cache, engine) = (Arc::clone(&self.cache), self.engines.of(model));
        let loaded = self.models.loaded();
        let is_beside = loaded
            .iter()
            .any(|(of, other)| of == model && *other != version);
        let reserve = is_beside.then(|| self.engines.memory_reserve());
        let (model, now) = (model.clone(), self.clock.now());
        entry.enter(Phase::Queued);
        let entry = Arc::clone(entry);
        let load = move || {
            if let Some(reserve) = reserve {
                check_room(&cache, engine.as_ref(), version, reserve)?;
            }
            let enter = |phase| entry.enter(phase);
            prepare(&cache, engine.as_ref(), &model, version, now, enter)
        };
        self.loads.run(load).await.map_err(|error| PrepareFailure {
            reason: format!("the version was not loaded: {error}"),
            retryable: true,
        })
    }
}

impl VersionPreparer {
    fn batcher(&self, model: &ModelName, prepared: &PreparedModel) -> Option<Arc<Batcher>> {
        let bounds = *self.batching.get(model)?;
        if !prepared.takes_batches {
            let version = prepared.version.version;
            tracing::warn!(
                %model, %version,
                "runs requests one by one: batching is configured, but it was not seen to take batches"
            );
            return None;
        }
        Some(Arc::new(Batcher::new(Arc::clone(&prepared.loaded), bounds)))
    }
}

impl Preparer for VersionPreparer {
    type Prepared = PreparedModel;

    async fn prepare(
        &self,
        model: ModelName,
        version: VersionRef,
    ) -> Result<PreparedModel, PrepareFailure> {
        // Dropped with this future, whether it comes to its end or not.
        let underway = self.progress.begin(model.clone(), version);
        let entry = underway.entry();
        self.fetch(&model, version, entry).await?;
        let mut prepared = match self.load(&model, version, entry).await? {
            // What rotted on this disk was removed; the coordinator has it whole.
            Err(PrepareError::Cache(error @ CacheError::Damaged { .. })) => {
                tracing::warn!(%error, "fetching again");
                self.fetch(&model, version, entry).await?;
                self.load(&model, version, entry).await??
            }
            loaded => loaded?,
        };
        prepared.batcher = self.batcher(&model, &prepared);
        tracing::info!(%model, version = %version.version, bytes = prepared.bytes, "ready");
        Ok(prepared)
    }

    fn install(&self, model: &ModelName, _version: VersionRef, prepared: PreparedModel) {
        self.models.insert(model.clone(), prepared);
    }

    fn unload(&self, model: &ModelName, version: VersionRef) {
        self.models.remove(model, version);
        let (cache, now) = (Arc::clone(&self.cache), self.clock.now());
        // It was in use until now: what leaves the disk first is decided by that.
        tokio::task::spawn_blocking(move || cache.touch(version, now));
    }

    async fn pin(&self, versions: &BTreeSet<(ModelName, VersionRef)>) {
        let (cache, versions) = (Arc::clone(&self.cache), versions.clone());
        let pinning = tokio::task::spawn_blocking(move || cache.set_pins(versions));
        if let Err(error) = pinning.await {
            tracing::error!(%error, "pinning broke off, which is a bug of the agent");
        }
    }
}
