//! The coordinator's core: registry, rollouts, cohorts, judge, approvals, receipts.
//!
//! Pure: no I/O, clock, randomness or threads. A shell feeds [`Input`]s to
//! [`Coordinator::handle`] and executes the [`Effect`]s in order; [`Coordinator::next_wakeup`]
//! says when time itself is an input.
//!
//! | module | holds |
//! | --- | --- |
//! | [`input`], [`effect`] | everything that can happen; everything to do |
//! | [`record`], [`state`] | the journal's records; the durable state, which is their fold |
//! | [`coordinator`] | routes inputs to machines, puts effects in their order |
//! | `fleet` | nodes: connections, hello, heartbeats, receipts, quarantine |
//! | `assign`, [`cohort`] | what a node should do; who is in a node cohort |
//! | `rollout`, `approvals`, [`judge`] | the trip of a candidate, its gates, its verdicts |
//! | `feedback` | labels and outcomes on their way to the agents |
//! | `rollback`, `rehearsal` | withdrawals and who has answered them; what one would come to |
//! | `registry`, `tokens`, `roles` | versions; who may speak; who may do what |
//! | [`view`] | what the API shows |
//!
//! Deliberately absent: anything that decides outside `handle`, and any state that is neither
//! a fold of records nor said again by agents when they reconnect.

mod approvals;
mod assign;
pub mod cohort;
pub mod coordinator;
pub mod effect;
mod feedback;
mod fleet;
pub mod input;
pub mod judge;
pub mod record;
mod registry;
mod rehearsal;
mod roles;
mod rollback;
mod rollout;
pub mod state;
mod tokens;
pub mod view;

pub use coordinator::{Coordinator, CoreConfig};
pub use effect::{DisconnectCause, Done, Effect, Refusal, Urgent};
pub use input::{Actor, Command, Input, Role, Ticket, TokenKind};
pub use record::{Cause, Event, Propagation, Record};
pub use state::{ChainError, State};
