//! The route table that requests read: one atomic pointer, replaced whole.
//!
//! An entry is a core [`Route`] with what a request needs at hand: the loaded
//! models, the series that count for them, and the candidate's breaker. So a
//! request loads one pointer and looks nothing else up, and whoever began with
//! an entry finishes with it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use rollcall_agent_core::breaker::{Breaker, Transition};
use rollcall_agent_core::route::{CandidateUsage, Route};
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::report::Role;
use rollcall_shared::time::Timestamp;

use crate::driver::RouteTable;
use crate::models::Models;
use crate::prepare::PreparedModel;
use crate::recorder::{Features, Recorder, SeriesKey, SeriesRecorder};

/// A version that may run requests in one role.
#[derive(Clone)]
pub struct Arm {
    /// The version.
    pub prepared: Arc<PreparedModel>,
    /// Counts for it.
    pub series: Arc<SeriesRecorder>,
}

impl fmt::Debug for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Arm({}@{})",
            self.prepared.manifest.model, self.prepared.version.version
        )
    }
}

/// The candidate of a route.
#[derive(Clone, Debug)]
pub struct CandidateArm {
    /// Runs it.
    pub arm: Arm,
    /// The rollout.
    pub rollout: RolloutId,
    /// Takes it out of service when it fails again and again; lives as long as the rollout.
    pub breaker: Arc<CandidateBreaker>,
}

/// A breaker that many requests share.
#[derive(Debug, Default)]
pub struct CandidateBreaker(Mutex<Breaker>);

impl CandidateBreaker {
    /// See [`Breaker::allows`].
    pub fn allows(&self, now: Timestamp) -> bool {
        self.lock().allows(now)
    }

    /// See [`Breaker::record`].
    pub fn record(&self, success: bool, now: Timestamp) -> Option<Transition> {
        self.lock().record(success, now)
    }

    /// See [`Breaker::is_closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed()
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How requests for one model are answered, with everything they need.
#[derive(Clone, Debug)]
pub struct RouteEntry {
    /// Decides.
    pub route: Route,
    /// Answers by right.
    pub stable: Option<Arm>,
    /// On trial.
    pub candidate: Option<CandidateArm>,
}

type Table = BTreeMap<ModelName, Arc<RouteEntry>>;

/// All routes of the process.
#[derive(Debug)]
pub struct Routes {
    table: ArcSwap<Table>,
    models: Arc<Models>,
    recorder: Arc<Recorder>,
}

impl Routes {
    /// An empty table.
    #[must_use]
    pub fn new(models: Arc<Models>, recorder: Arc<Recorder>) -> Self {
        Self {
            table: ArcSwap::default(),
            models,
            recorder,
        }
    }

    /// What counts for all routes.
    #[must_use]
    pub const fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The entry of a model.
    #[must_use]
    pub fn get(&self, model: &ModelName) -> Option<Arc<RouteEntry>> {
        self.table.load().get(model).cloned()
    }

    /// All entries at this moment.
    #[must_use]
    pub fn all(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Whether `version` is the model's candidate, with a lease that runs.
    #[must_use]
    pub fn has_candidate(&self, model: &ModelName, version: VersionRef, now: Timestamp) -> bool {
        self.table.load().get(model).is_some_and(|entry| {
            let candidate = entry.route.candidate.as_ref();
            candidate.is_some_and(|c| c.version == version && now < c.lease_until)
        })
    }

    fn arm(&self, route: &Route, version: VersionRef, role: Role) -> Option<Arm> {
        let Some(prepared) = self.models.get(&route.model, version) else {
            tracing::error!(model = %route.model, version = %version.version,
                "a version is routed but not loaded, which is a bug of the agent");
            return None;
        };
        let key = SeriesKey {
            model: route.model.clone(),
            version,
            role,
            generation: route.generation,
        };
        let features = Features::of(&prepared.manifest);
        let series = self.recorder.series(key, features);
        Some(Arm { prepared, series })
    }

    fn entry(&self, route: Route, before: Option<&RouteEntry>) -> RouteEntry {
        let stable = route
            .stable
            .and_then(|version| self.arm(&route, version, Role::Stable));
        let candidate = route.candidate.as_ref().and_then(|candidate| {
            let role = match candidate.usage {
                CandidateUsage::Shadow(_) => Role::Shadow,
                CandidateUsage::Canary(_) => Role::Candidate,
            };
            let arm = self.arm(&route, candidate.version, role)?;
            let breaker = before
                .and_then(|entry| entry.candidate.as_ref())
                .filter(|held| held.rollout == candidate.rollout)
                .map_or_else(Arc::default, |held| Arc::clone(&held.breaker));
            Some(CandidateArm {
                arm,
                rollout: candidate.rollout,
                breaker,
            })
        });
        RouteEntry {
            route,
            stable,
            candidate,
        }
    }
}

impl RouteTable for Routes {
    /// # Panics
    /// When the generation goes back: promise 7.
    fn swap(&self, route: Route) {
        let held = self.get(&route.model);
        assert!(
            held.as_ref()
                .is_none_or(|held| held.route.generation <= route.generation),
            "a route's generation went back"
        );
        let model = route.model.clone();
        let entry = Arc::new(self.entry(route, held.as_deref()));
        // Only the driver swaps, so this runs once.
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            table.insert(model.clone(), Arc::clone(&entry));
            table
        });
    }
}
