//! What the status page shows. Read-only; nothing decides by it.

use rollcall_shared::assignment::{Assignment, CandidateMode, VersionRef};
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::report::Serving;
use rollcall_shared::time::Timestamp;
use serde::Serialize;

use super::{Agent, Link};
use crate::preparation::Preparation;
use crate::reconcile;

/// How one model stands on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelStatus {
    /// The model.
    pub model: ModelName,
    /// The generation that was assigned.
    pub generation: Generation,
    /// The generation that the route carries out.
    pub generation_served: Generation,
    /// What was assigned to serve by right.
    pub stable: Option<VersionRef>,
    /// What was assigned to be tried.
    pub candidate: Option<VersionRef>,
    /// The rollout of the candidate.
    pub rollout: Option<RolloutId>,
    /// `stable` (no candidate), `prepare`, `shadow` or `canary`.
    pub mode: &'static str,
    /// What is left of the candidate's lease; `None` when none is running.
    pub lease_left_ms: Option<u64>,
    /// What really answers.
    pub serving: Vec<Serving>,
    /// Why it is not yet as assigned; empty: it is.
    pub waiting: Vec<WaitingFor>,
}

/// Why a model does not yet stand as assigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "on")]
pub enum WaitingFor {
    /// It is being fetched, verified and loaded.
    Preparation {
        /// Which version.
        version: VersionRef,
    },
    /// Its preparation failed and will be tried again.
    Retry {
        /// Which version.
        version: VersionRef,
        /// What went wrong.
        reason: String,
        /// How long until then.
        retry_in_ms: u64,
    },
    /// Its preparation failed for good; a new assignment or a new version is needed.
    Repair {
        /// Which version.
        version: VersionRef,
        /// What went wrong.
        reason: String,
    },
    /// The coordinator has not renewed the candidate's lease.
    Lease {
        /// Which version.
        version: VersionRef,
    },
}

impl Agent {
    /// How each model stands, by name.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Vec<ModelStatus> {
        self.models
            .keys()
            .filter_map(|model| self.held(model))
            .map(|assignment| self.model_status(assignment, now))
            .collect()
    }

    /// Whether a coordinator has welcomed this agent on the present connection.
    #[must_use]
    pub const fn is_welcomed(&self) -> bool {
        match self.link {
            Link::Offline | Link::Greeting { .. } => false,
            Link::Welcomed { .. } => true,
        }
    }

    fn model_status(&self, assignment: &Assignment, now: Timestamp) -> ModelStatus {
        let model = self.models.get(&assignment.model);
        let route = model.and_then(|m| m.route.as_ref());
        let lease = model.and_then(|m| m.lease.as_ref());
        let lease_until = lease.and_then(|lease| lease.running_until(now));
        let mut waiting: Vec<_> = reconcile::versions_of(assignment)
            .filter_map(|version| self.waiting_for(&assignment.model, version, now))
            .collect();
        if let Some(candidate) = assignment.candidate.filter(|_| lease_until.is_none()) {
            waiting.push(WaitingFor::Lease {
                version: candidate.version,
            });
        }
        ModelStatus {
            model: assignment.model.clone(),
            generation: assignment.generation,
            generation_served: route.map(|r| r.generation).unwrap_or_default(),
            stable: assignment.stable,
            candidate: assignment.candidate.map(|c| c.version),
            rollout: assignment.candidate.map(|c| c.rollout),
            mode: match assignment.candidate.map(|c| c.mode) {
                None => "stable",
                Some(CandidateMode::Prepare) => "prepare",
                Some(CandidateMode::Shadow(_)) => "shadow",
                Some(CandidateMode::Canary(_)) => "canary",
            },
            lease_left_ms: lease_until.map(|until| milliseconds_until(until, now)),
            serving: route.map_or_else(Vec::new, |r| reconcile::receipt(r).serving),
            waiting,
        }
    }

    fn waiting_for(
        &self,
        model: &ModelName,
        version: VersionRef,
        now: Timestamp,
    ) -> Option<WaitingFor> {
        match self.preparation(model, version) {
            Some(Preparation::Ready) => None,
            None | Some(Preparation::Fetching { .. }) => Some(WaitingFor::Preparation { version }),
            Some(Preparation::Waiting {
                reason, retry_at, ..
            }) => Some(WaitingFor::Retry {
                version,
                reason: reason.clone(),
                retry_in_ms: milliseconds_until(*retry_at, now),
            }),
            Some(Preparation::Failed { reason, .. }) => Some(WaitingFor::Repair {
                version,
                reason: reason.clone(),
            }),
        }
    }
}

fn milliseconds_until(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(then.since(now).as_millis()).unwrap_or(u64::MAX)
}
