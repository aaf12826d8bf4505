//! Everything that can happen to an agent.

use rollcall_shared::assignment::{Assignment, Snapshot, VersionRef, Withdrawal};
use rollcall_shared::ids::ModelName;
use rollcall_shared::report::AgentEvent;
use rollcall_shared::wire::{HeartbeatAnswer, Rehearsal, Welcome};

/// Everything that can happen to an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The link has a connection: say hello.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// The coordinator answered our hello.
    Welcome(Welcome),
    /// New work for one model.
    Assign(Assignment),
    /// A candidate is taken back, for good: [`Agent::fence`] and the rest of it in one go.
    ///
    /// [`Agent::fence`]: crate::agent::Agent::fence
    Withdraw(Withdrawal),
    /// What would a withdrawal come to? Answered, and nothing is changed.
    Rehearse(Rehearsal),
    /// What we missed.
    Sync(Snapshot),
    /// Renews leases.
    HeartbeatAnswer(HeartbeatAnswer),
    /// An [`crate::effect::Effect::Prepare`] came to its end.
    Prepared {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionRef,
        /// How it went.
        result: Result<(), PrepareFailure>,
    },
    /// The serving path saw something that the coordinator should know at once.
    Event(AgentEvent),
    /// The time that `next_wakeup` asked for has come.
    TimePassed,
}

/// Why a version cannot be served here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrepareFailure {
    /// What went wrong and what to do.
    pub reason: String,
    /// Whether trying again may help (network, disk), or the version itself is at
    /// fault (damaged manifest, refused by the engine, a smoke case failed).
    pub retryable: bool,
}
