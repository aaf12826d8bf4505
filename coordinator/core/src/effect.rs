//! Everything that a coordinator wants done.
//!
//! A driver executes the effects of one `handle` in order, and does not begin one
//! before the one before it is complete. That is how "durable before anyone hears
//! of it" is kept; a withdrawal stands before its `Append` on purpose (the safe
//! direction goes first), and so does a rehearsal, which measures a withdrawal's way
//! and changes nothing.

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::{ConnectionId, Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::wire::{PROTOCOL_MIN, PROTOCOL_REHEARSE, Rehearsal, ToAgent};

use crate::input::Ticket;
use crate::record::Record;
use crate::view::PlanPreview;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make these records durable, as one. If that fails the process must stop:
    /// memory is ahead of the disk.
    Append(Vec<Record>),
    /// Push one message to every connected agent that can read it, encoded once, as a datagram
    /// and on the control stream. Each agent has one slot where the latest withdrawal of a
    /// model wins; it can be late but never dropped. A rehearsal goes the same way in a slot
    /// of its own, behind withdrawals.
    Broadcast(Urgent),
    /// Send to one agent. If its queue is full, disconnect it: it resyncs on return.
    Send {
        /// To whom.
        node: NodeId,
        /// On which connection; gone by now: drop the message.
        connection: ConnectionId,
        /// What.
        message: ToAgent,
    },
    /// Send to some agents, encoded once, what may get lost: it is dropped for those that are
    /// gone or have much to read, and nobody is disconnected for it.
    Offer {
        /// Connections of agents that can read it.
        to: Vec<ConnectionId>,
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

/// What goes to every agent at once, ahead of everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Urgent {
    /// A version is taken away.
    Withdraw(Withdrawal),
    /// What would it come to? Pushed as a withdrawal is, because it measures that way.
    Rehearse(Rehearsal),
}

impl Urgent {
    /// The model that it is about.
    #[must_use]
    pub const fn model(&self) -> &ModelName {
        match self {
            Self::Withdraw(withdrawal) => &withdrawal.model,
            Self::Rehearse(rehearsal) => &rehearsal.as_if.model,
        }
    }

    /// The oldest protocol that has it; agents that speak an older one must not be sent it.
    #[must_use]
    pub const fn protocol_min(&self) -> u16 {
        match self {
            Self::Withdraw(_) => PROTOCOL_MIN,
            Self::Rehearse(_) => PROTOCOL_REHEARSE,
        }
    }

    /// On the wire.
    #[must_use]
    pub fn into_message(self) -> ToAgent {
        match self {
            Self::Withdraw(withdrawal) => ToAgent::Withdraw(withdrawal),
            Self::Rehearse(rehearsal) => ToAgent::Rehearse(rehearsal),
        }
    }
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
    /// The fleet is asked; answers are coming in.
    Rehearsing {
        /// Of which model.
        model: ModelName,
        /// The record that began it.
        rehearsal: u64,
    },
    /// Labels and outcomes are on their way.
    FeedbackSent {
        /// Connected nodes that host the model and are sent them.
        nodes: usize,
        /// Others that are too old to read them.
        too_old: usize,
        /// The first hundred of these.
        too_old_nodes: Vec<NodeId>,
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
