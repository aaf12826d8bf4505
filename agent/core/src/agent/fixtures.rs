//! Small words for tests.

use std::time::Duration;

use rollcall_shared::assignment::{
    Assignment, CandidateAssignment, CandidateMode, Share, VersionRef, Withdrawal,
};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use super::Agent;
use crate::effect::Effect;
use crate::input::Input;

/// The lease of every candidate here, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 10;

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(seconds)
}

pub(crate) fn model() -> ModelName {
    ModelName::new("digits").unwrap()
}

pub(crate) fn version(major: u64) -> VersionRef {
    VersionRef {
        version: Version::new(major, 0, 0),
        digest: Digest::of(&major.to_be_bytes()),
    }
}

pub(crate) fn candidate(rollout: u64, major: u64, mode: CandidateMode) -> CandidateAssignment {
    CandidateAssignment {
        rollout: RolloutId(rollout),
        version: version(major),
        mode,
        lease_ms: LEASE_SECONDS * 1_000,
    }
}

pub(crate) fn canary(percent: f64) -> CandidateMode {
    CandidateMode::Canary(Share::from_percent(percent).unwrap())
}

pub(crate) fn assignment(generation: u64, stable: impl Into<Option<u64>>) -> Assignment {
    Assignment {
        model: model(),
        generation: Generation(generation),
        stable: stable.into().map(version),
        previous: None,
        candidate: None,
    }
}

pub(crate) fn withdrawal(
    generation: u64,
    rollout: u64,
    withdrawn: u64,
    serving: impl Into<Option<u64>>,
) -> Withdrawal {
    Withdrawal {
        model: model(),
        rollout: RolloutId(rollout),
        withdrawn: version(withdrawn),
        generation: Generation(generation),
        serving: serving.into().map(version),
    }
}

/// What an agent says to a rehearsal, after checking that it changed nothing.
pub(crate) fn rehearse_and_compare(
    agent: &mut Agent,
    rehearsal: Input,
    now: Timestamp,
) -> Vec<Effect> {
    agent.last_now = now;
    let (before, wakeup) = (whole(agent), agent.next_wakeup());
    let effects = agent.handle(rehearsal, now);
    assert_eq!(whole(agent), before, "a rehearsal changed something");
    assert_eq!(agent.next_wakeup(), wakeup);
    effects
}

/// Everything that an agent is, but for the number of the rehearsal that it answered last.
fn whole(agent: &mut Agent) -> String {
    let rehearsed = agent.rehearsed.take();
    let whole = format!("{agent:?}");
    agent.rehearsed = rehearsed;
    whole
}
