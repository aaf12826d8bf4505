//! How far the versions are that are being prepared: for people and Prometheus.
//!
//! Whoever prepares writes, the status page and the metrics read, and nothing is decided
//! by it. An entry stands as long as its [`Underway`]: however a preparation ends (done,
//! failed, or dropped half-way) its entry goes with it. What still runs for a
//! preparation that was dropped, such as a load, writes to an entry that nobody sees.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::MODELS_PER_NODE_MAX;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_transport::clock::Clock;
use serde::Serialize;

/// Stable, candidate and the one before.
const VERSIONS_OF_MODEL: usize = 3;
/// Preparations at one time: as many versions as one node can be asked to have. More: the
/// newest are prepared, but not shown.
pub const PREPARATIONS_MAX: usize = MODELS_PER_NODE_MAX * VERSIONS_OF_MODEL;

/// What is being done for a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its turn: to be fetched, or to be loaded when all of it is here.
    Queued,
    /// Its manifest and files come from the coordinator.
    Fetching,
    /// Its files are hashed.
    Verifying,
    /// The engine loads it.
    Loading,
    /// It runs, and its smoke cases are checked.
    WarmingUp,
}

impl Phase {
    /// As it is written everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Fetching => "fetching",
            Self::Verifying => "verifying",
            Self::Loading => "loading",
            Self::WarmingUp => "warming_up",
        }
    }
}

/// Bytes of a version's files, each content once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// On this disk; of a file that was begun before a restart, what had come.
    pub here: u64,
    /// Of all files.
    pub total: u64,
}

/// One preparation, at the moment of reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PreparingLine {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// Digest of its manifest.
    pub digest: Digest,
    /// What is being done.
    pub phase: Phase,
    /// Since when that is being done.
    pub phase_since: Timestamp,
    /// Since when the version is being prepared.
    pub since: Timestamp,
    /// How much of it is here; `None`: its manifest has not come, so nobody knows.
    pub bytes: Option<Bytes>,
}

type Key = (ModelName, VersionRef);

/// Every preparation that is under way.
#[derive(Debug)]
pub struct Progress {
    clock: Clock,
    entries: Mutex<BTreeMap<Key, Arc<Entry>>>,
}

impl Progress {
    /// Nothing is under way.
    #[must_use]
    pub const fn new(clock: Clock) -> Self {
        Self {
            clock,
            entries: Mutex::new(BTreeMap::new()),
        }
    }

    /// A preparation begins. It takes the place of an earlier one of the same version,
    /// which was cancelled or it would not begin.
    #[must_use]
    pub fn begin(self: &Arc<Self>, model: ModelName, version: VersionRef) -> Underway {
        let now = self.clock.now();
        let entry = Arc::new(Entry {
            clock: self.clock,
            since: now,
            state: Mutex::new(State {
                phase: Phase::Queued,
                phase_since: now,
                bytes: None,
            }),
        });
        let key = (model, version);
        let mut entries = lock(&self.entries);
        if entries.len() < PREPARATIONS_MAX || entries.contains_key(&key) {
            entries.insert(key.clone(), Arc::clone(&entry));
        }
        Underway {
            progress: Arc::clone(self),
            key,
            entry,
        }
    }

    /// All of them, by model and version.
    #[must_use]
    pub fn read(&self) -> Vec<PreparingLine> {
        let entries = lock(&self.entries);
        let line = |((model, version), entry): (&Key, &Arc<Entry>)| {
            let state = *lock(&entry.state);
            PreparingLine {
                model: model.clone(),
                version: version.version,
                digest: version.digest,
                phase: state.phase,
                phase_since: state.phase_since,
                since: entry.since,
                bytes: state.bytes,
            }
        };
        entries.iter().map(line).collect()
    }
}

/// A preparation that goes on until this is dropped.
#[derive(Debug)]
pub struct Underway {
    progress: Arc<Progress>,
    key: Key,
    entry: Arc<Entry>,
}

impl Underway {
    /// Where it is written down how far it is.
    #[must_use]
    pub const fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut entries = lock(&self.progress.entries);
        let shown = entries.get(&self.key);
        // A later preparation of the same version may stand in its place.
        if shown.is_some_and(|shown| Arc::ptr_eq(shown, &self.entry)) {
            entries.remove(&self.key);
        }
    }
}

/// What one preparation writes down.
#[derive(Debug)]
pub struct Entry {
    clock: Clock,
    since: Timestamp,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    phase_since: Timestamp,
    bytes: Option<Bytes>,
}

impl Entry {
    /// From now on, this is being done.
    pub fn enter(&self, phase: Phase) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        state.phase = phase;
        state.phase_since = now;
    }

    /// So much is here.
    pub fn has(&self, bytes: Bytes) {
        lock(&self.state).bytes = Some(bytes);
    }
}

/// Changes are single steps, so a panic leaves none half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Arc<Progress> {
        Arc::new(Progress::new(Clock::start(Timestamp::ZERO)))
    }

    fn begin(progress: &Arc<Progress>, model: &str, number: usize) -> Underway {
        let version = VersionRef {
            version: Version::new(1, 0, 0),
            digest: Digest::of(&number.to_be_bytes()),
        };
        progress.begin(ModelName::new(model).unwrap(), version)
    }

    #[test]
    fn an_entry_tells_its_phase_and_bytes_and_goes_with_its_preparation() {
        let progress = progress();
        let underway = begin(&progress, "digits", 1);
        let [line] = &progress.read()[..] else {
            panic!("{progress:?}")
        };
        assert_eq!((line.phase, line.bytes), (Phase::Queued, None));
        assert_eq!(line.phase_since, line.since);
        let bytes = Bytes { here: 1, total: 2 };
        underway.entry().enter(Phase::Fetching);
        underway.entry().has(bytes);
        let [line] = &progress.read()[..] else {
            panic!("{progress:?}")
        };
        assert_eq!((line.phase, line.bytes), (Phase::Fetching, Some(bytes)));
        assert!(line.phase_since >= line.since);
        // A load that nobody waits for any more goes on writing.
        let left_behind = Arc::clone(underway.entry());
        drop(underway);
        left_behind.enter(Phase::WarmingUp);
        assert_eq!(progress.read(), []);
    }

    #[test]
    fn a_cancelled_preparation_does_not_take_its_successor_along() {
        let progress = progress();
        let cancelled = begin(&progress, "digits", 1);
        let other = begin(&progress, "digits", 2);
        let again = begin(&progress, "digits", 1);
        again.entry().enter(Phase::Loading);
        drop(cancelled);
        let phases = || progress.read().iter().map(|l| l.phase).collect::<Vec<_>>();
        assert_eq!(phases().len(), 2);
        drop(other);
        assert_eq!(phases(), [Phase::Loading]);
        drop(again);
        assert_eq!(phases(), []);
    }

    #[test]
    fn no_more_are_shown_than_a_node_can_be_asked_to_have() {
        let progress = progress();
        let mut all: Vec<_> = (0..=PREPARATIONS_MAX)
            .map(|number| begin(&progress, "digits", number))
            .collect();
        assert_eq!(progress.read().len(), PREPARATIONS_MAX);
        // What stands there already can begin anew; what found no place is not missed.
        all.push(begin(&progress, "digits", 0));
        assert_eq!(progress.read().len(), PREPARATIONS_MAX);
        drop(all);
        assert_eq!(progress.read(), []);
    }

    #[test]
    fn phases_have_one_name_each() {
        for phase in [
            Phase::Queued,
            Phase::Fetching,
            Phase::Verifying,
            Phase::Loading,
            Phase::WarmingUp,
        ] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
