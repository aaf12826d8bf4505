//! Everything that an agent wants done.
//!
//! A driver executes them in the order that a [`Backlog`](crate::backlog::Backlog) gives,
//! and does not begin one before the one before it is complete; only
//! [`Effect::Prepare`] is begun and left to go on by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rollcall_shared::assignment::{Assignment, VersionRef, Withdrawal};
use rollcall_shared::ids::ModelName;
use rollcall_shared::wire::FromAgent;

use crate::route::Route;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put this route in place of the model's route: one pointer swap. Requests that
    /// begin after it use it.
    Swap(Route),
    /// Make this durable (fsync) in place of what was there.
    Persist(DurableState),
    /// Send to the coordinator; without a connection: drop it (`Hello` repeats what matters).
    Send(FromAgent),
    /// Fetch, verify, load and warm a version, run its smoke cases, and say how it
    /// went with [`crate::input::Input::Prepared`]. At most one at a time for a version.
    Prepare {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionRef,
    },
    /// Free the engine's memory of a version once no request uses it. Its blobs stay
    /// in the cache until room is needed. Ends a `Prepare` that is under way, which
    /// then reports nothing.
    Unload {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionRef,
    },
    /// These versions, and no others, must not be evicted from the cache.
    Pin(BTreeSet<(ModelName, VersionRef)>),
}

/// What an agent must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurableState {
    /// The last assignment of each model, with its generation.
    pub assignments: BTreeMap<ModelName, Assignment>,
    /// Every withdrawal ever heard of. Only grows; shared until it does, since the state is
    /// cloned whenever anything in it is made durable.
    pub withdrawals: Arc<BTreeSet<Withdrawal>>,
}
