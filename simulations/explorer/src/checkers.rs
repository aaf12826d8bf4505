//! What must always hold, a file a promise. Checkers know the whole truth and only
//! watch: they are told what happened and hold it against the promises (ARCHITECTURE.md).

pub mod acknowledged_is_kept;
pub mod cohort_is_sticky;
pub mod generations_only_grow;
pub mod only_approved_serves;
pub mod receipts_are_true;
pub mod reconnects_are_spread;
pub mod rehearsals_change_nothing;
pub mod rollback_is_bounded;
mod shadow_never_answers;
pub mod stable_answers;
pub mod trials_are_curbed;
mod versions;
pub mod withdrawn_stays_withdrawn;

pub use versions::{VersionMap, VersionSet};

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::route::{Pick, Route};
use rollcall_coordinator_core::record::Record;
use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::RolloutId;
use rollcall_shared::report::Role;
use rollcall_shared::time::Timestamp;
use serde::Serialize;

/// Stands for "after everything healed, the fleet comes together" where a promise's
/// number is asked for.
pub const LIVENESS: u8 = 0;

/// Stands for "a core found itself in a state that must never be, and stopped".
pub const ASSERTION: u8 = 255;

/// Stands for "a rehearsal changes nothing".
pub const REHEARSAL: u8 = 254;

/// In words, e.g. `promise 3`.
#[must_use]
pub fn promise_name(promise: u8) -> String {
    match promise {
        LIVENESS => "liveness".to_owned(),
        ASSERTION => "assertion".to_owned(),
        REHEARSAL => "rehearsal".to_owned(),
        number => format!("promise {number}"),
    }
}

/// Promise 3 in figures: how long after a withdrawal a node may go on under a lease. Said
/// here once more, so that it does not follow the cores if they change their mind.
fn lease_bound(lease: Duration) -> Duration {
    lease + lease / 100
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// Its number in ARCHITECTURE.md, or [`LIVENESS`], [`ASSERTION`] or [`REHEARSAL`].
    pub promise: u8,
    /// What happened.
    pub what: String,
    /// When, in true time.
    pub at: Timestamp,
    /// Where; `None`: at the coordinator.
    pub node: Option<String>,
}

/// Where checkers report.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// What was broken so far.
    pub violations: Vec<Violation>,
    /// True time, kept by the world.
    pub now: Timestamp,
}

impl Verdicts {
    /// Notes a violation; `node` is an index.
    pub fn broken(&mut self, promise: u8, node: Option<usize>, what: String) {
        let node = node.map(|node| format!("node-{node}"));
        self.violations.push(Violation {
            promise,
            what,
            at: self.now,
            node,
        });
    }
}

/// A version that answers, or would get a copy.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// The version.
    pub version: VersionRef,
    /// As what.
    pub role: Role,
    /// On trial in this rollout.
    pub rollout: Option<RolloutId>,
}

/// What a client would get from a node.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Of which node (an index).
    pub node: usize,
    /// The route in place.
    pub route: &'a Route,
    /// What it says.
    pub pick: Pick,
    /// Which client, by its number.
    pub client: u64,
    /// When, on the node's clock.
    pub at: Timestamp,
}

/// All versions that one pick uses; fallbacks are not used before they are needed, but must be servable too.
pub fn uses(route: &Route, pick: Pick) -> impl Iterator<Item = Use> + use<> {
    let rollout = route.candidate.as_ref().map(|candidate| candidate.rollout);
    let stable = |version| Use {
        version,
        role: Role::Stable,
        rollout: None,
    };
    let (first, second) = match pick {
        Pick::Nobody => (None, None),
        Pick::Stable(version) => (Some(stable(version)), None),
        Pick::StableAndShadow {
            stable: answers,
            shadow,
        } => (
            Some(stable(answers)),
            Some(Use {
                version: shadow,
                role: Role::Shadow,
                rollout,
            }),
        ),
        Pick::Candidate {
            candidate,
            fallback,
        } => (
            Some(Use {
                version: candidate,
                role: Role::Candidate,
                rollout,
            }),
            fallback.map(stable),
        ),
    };
    first.into_iter().chain(second)
}

/// All checkers of a run.
#[derive(Debug)]
pub struct Checkers {
    /// Where they report.
    pub verdicts: Verdicts,
    /// Promise 1.
    pub stable: stable_answers::StableAnswers,
    /// Promise 2.
    pub withdrawn: withdrawn_stays_withdrawn::WithdrawnStaysWithdrawn,
    /// Promise 3.
    pub bounded: rollback_is_bounded::RollbackIsBounded,
    /// Promise 1, in the request path.
    pub trials: trials_are_curbed::TrialsAreCurbed,
    /// Promise 5.
    pub approved: only_approved_serves::OnlyApprovedServes,
    /// Promise 5, for requests.
    pub cohorts: cohort_is_sticky::CohortIsSticky,
    /// Liveness, for the coordinator's door.
    pub reconnects: reconnects_are_spread::ReconnectsAreSpread,
    /// Promise 6.
    pub acknowledged: acknowledged_is_kept::AcknowledgedIsKept,
    /// Promise 7.
    pub generations: generations_only_grow::GenerationsOnlyGrow,
}

impl Checkers {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            verdicts: Verdicts::default(),
            stable: stable_answers::StableAnswers::new(nodes),
            withdrawn: withdrawn_stays_withdrawn::WithdrawnStaysWithdrawn::new(nodes),
            bounded: rollback_is_bounded::RollbackIsBounded::default(),
            trials: trials_are_curbed::TrialsAreCurbed::new(nodes),
            approved: only_approved_serves::OnlyApprovedServes::new(nodes),
            cohorts: cohort_is_sticky::CohortIsSticky::default(),
            reconnects: reconnects_are_spread::ReconnectsAreSpread::new(nodes),
            acknowledged: acknowledged_is_kept::AcknowledgedIsKept::default(),
            generations: generations_only_grow::GenerationsOnlyGrow::new(nodes),
        }
    }

    /// The request of one client would be answered like this; for all that matters here but
    /// the client, [`Self::observed`] was told.
    pub fn met(&mut self, seen: &Seen<'_>) {
        self.cohorts.picked(seen, &mut self.verdicts);
    }

    /// A request would be answered like this, whoever the client is.
    pub fn observed(&mut self, seen: &Seen<'_>, loaded: &BTreeSet<VersionRef>) {
        let verdicts = &mut self.verdicts;
        let Seen {
            node, route, pick, ..
        } = *seen;
        for used in uses(route, pick) {
            self.withdrawn.used(node, route, used, verdicts);
            self.bounded.used(node, route, used, verdicts);
            self.approved.used(node, route, used, loaded, verdicts);
        }
        let known = self.withdrawn.known_to(node);
        self.stable.picked(node, route, pick, known, verdicts);
        shadow_never_answers::picked(seen, verdicts);
    }

    /// These records are durable now.
    pub fn durable(&mut self, records: &[Record]) {
        for record in records {
            self.approved.durable(record, &mut self.verdicts);
            self.withdrawn.durable(record, &mut self.verdicts);
            self.bounded
                .durable(record, &self.approved, self.verdicts.now);
        }
    }

    /// The coordinator came back from an old backup; this is all that is left.
    pub fn backup_restored(&mut self, journal: &[Record]) {
        self.approved.backup_restored();
        self.withdrawn.backup_restored();
        self.bounded.backup_restored();
        self.generations.backup_restored();
        self.acknowledged.backup_restored(journal);
        self.durable(journal);
    }

    /// An agent's core was told of these withdrawals.
    pub fn told<'a>(&mut self, node: usize, withdrawals: impl IntoIterator<Item = &'a Withdrawal>) {
        self.withdrawn.told(node, withdrawals);
    }

    /// An agent's state is durable now.
    pub fn persisted(&mut self, node: usize, state: &DurableState) {
        self.generations.persisted(node, state, &mut self.verdicts);
        self.withdrawn.persisted(node, state, &mut self.verdicts);
    }

    /// An agent process begins with this state.
    pub fn agent_started(&mut self, node: usize, state: &DurableState) {
        self.stable.process_started(node);
        self.trials.process_started(node);
        self.withdrawn.process_started(node);
        self.generations
            .process_started(node, state, &mut self.verdicts);
    }

    /// An agent's disk is gone: it is another node with the same name.
    pub fn state_lost(&mut self, node: usize) {
        self.withdrawn.state_lost(node);
        self.generations.state_lost(node);
    }
}
