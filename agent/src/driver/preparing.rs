//! Preparations that are under way.
//!
//! A finished one is installed only while it is still wanted: what was cancelled
//! reports nothing and leaves nothing behind, whatever its task did last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_agent_core::input::{Input, PrepareFailure};
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use tokio::task::{AbortHandle, Id, JoinSet};

use super::Preparer;

type Key = (ModelName, VersionRef);

/// How a preparation came to its end.
pub(super) struct Ended<T> {
    id: Id,
    result: Result<T, PrepareFailure>,
}

/// Tasks, and who waits for them.
pub(super) struct Preparing<P: Preparer> {
    preparer: Arc<P>,
    tasks: JoinSet<Result<P::Prepared, PrepareFailure>>,
    wanted: BTreeMap<Key, AbortHandle>,
}

impl<P: Preparer> Preparing<P> {
    pub(super) fn new(preparer: Arc<P>) -> Self {
        Self {
            preparer,
            tasks: JoinSet::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Begins one. A second one for the same version replaces the first.
    pub(super) fn begin(&mut self, model: ModelName, version: VersionRef) {
        self.cancel(&(model.clone(), version));
        let preparer = Arc::clone(&self.preparer);
        let key = (model.clone(), version);
        let task = self
            .tasks
            .spawn(async move { preparer.prepare(model, version).await });
        self.wanted.insert(key, task);
    }

    /// Cancels it if it is under way, and frees what is loaded.
    pub(super) fn unload(&mut self, model: ModelName, version: VersionRef) {
        self.preparer.unload(&model, version);
        self.cancel(&(model, version));
    }

    /// See [`Preparer::pin`].
    pub(super) async fn pin(&self, versions: &BTreeSet<Key>) {
        self.preparer.pin(versions).await;
    }

    fn cancel(&mut self, key: &Key) {
        if let Some(task) = self.wanted.remove(key) {
            task.abort();
        }
    }

    /// The next one that comes to its end, wanted or not; waits for ever when none is
    /// under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Ended<P::Prepared> {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, result))) => Ended { id, result },
            Some(Err(error)) => Ended {
                id: error.id(),
                result: Err(broken(&error)),
            },
            None => std::future::pending().await,
        }
    }

    /// Installs what is still wanted, and says so.
    pub(super) fn finish(&mut self, ended: Ended<P::Prepared>) -> Option<Input> {
        let (model, version) = self.take(ended.id)?;
        let result = ended
            .result
            .map(|prepared| self.preparer.install(&model, version, prepared));
        Some(Input::Prepared {
            model,
            version,
            result,
        })
    }

    fn take(&mut self, id: Id) -> Option<Key> {
        let key = self
            .wanted
            .iter()
            .find(|(_, task)| task.id() == id)?
            .0
            .clone();
        self.wanted.remove(&key);
        Some(key)
    }
}

fn broken(error: &tokio::task::JoinError) -> PrepareFailure {
    PrepareFailure {
        reason: format!("preparing broke off, which is a bug of the agent: {error}"),
        retryable: true,
    }
}
