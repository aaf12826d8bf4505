//! Everything that a coordinator wants done.
//!
//! A driver executes the effects of one `handle` in order, and does not begin one
//! before the one before it is complete. That is how "durable before anyone hears
//! of it" is kept; a withdrawal stands before its `Append` on purpose (the safe
//! direction goes first).

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::{ConnectionId, Generation, NodeId, RolloutId};
use rollcall_shared::wire::ToAgent;

use crate::input::Ticket;
use crate::record::Record;
use crate::view::PlanPreview;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make these records durable, as one. If that fails the process must stop:
    /// memory is ahead of the disk.
    Append(Vec<Record>),
    /// Push one withdrawal to every connected agent, encoded once, as a datagram and
    /// on the control stream. Each agent has one slot where the latest withdrawal of
    /// a model wins; it can be late but never dropped.
    Broadcast(Withdrawal),
    /// Send to one agent. If its queue is full, disconnect it: it resyncs on return.
    Send {
        /// To whom.
        node: NodeId,
        /// On which connection; gone by now: drop the message.
        connection: ConnectionId,
        /// What.
        message: ToAgent,
    },
    /// Close a connection.
    Disconnect {
        /// Whose.
        node: NodeId,
        /// Which.
        connection: ConnectionId,
        /// Why.
        cause: DisconnectCause,
    },
    /// Answer a command.
    Reply {
        /// Which.
        ticket: Ticket,
        /// How.
        result: Result<Done, Refusal>,
    },
}

/// Why the coordinator closes a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectCause {
    /// The node connected again.
    Superseded,
    /// The node was revoked.
    Revoked,
    /// Its `Hello` was refused.
    Refused(String),
}

/// A command that was carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    /// Nothing more to say.
    Done,
    /// A rollout began.
    Started(RolloutId),
    /// What the plan would do.
    Preview(PlanPreview),
    /// A withdrawal is broadcast and durable; receipts are coming in.
    Withdrawn {
        /// Which rollout ended.
        rollout: RolloutId,
        /// The generation to wait for.
        generation: Generation,
    },
    /// A node is in the fleet; its certificate may be signed.
    Enrolled {
        /// Its name.
        node: NodeId,
    },
}

/// A command that was not carried out; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done in this state, or the name is taken.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The actor may not.
    #[error("{0}")]
    Forbidden(String),
}
