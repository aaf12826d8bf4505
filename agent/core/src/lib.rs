//! What a serving node decides by itself: which version answers which request, when a
//! candidate must go, and what is fetched, kept and thrown away.
//!
//! Pure: no clock, no randomness, no I/O, no threads. `rollcall-agent` owns the sockets,
//! the disk, the engines and the clock, hands [`input::Input`]s in, and executes the
//! [`effect::Effect`]s that come out, in the order of a [`backlog::Backlog`]. The simulator drives this same crate.
//!
//! | module | holds |
//! | --- | --- |
//! | [`input`], [`effect`] | the two ends of the state machine |
//! | [`backlog`] | effects that wait, and who may overtake them |
//! | [`agent`] | the state machine: assignments, withdrawals, heartbeats |
//! | `reconcile` | what an assignment comes to, given what is ready, leased and withdrawn |
//! | `lease`, `preparation` | how long a candidate may be used; how far a version is |
//! | [`route`] | who answers one request |
//! | [`answer`], [`compare`], [`breaker`] | what the serving path asks about one answer |
//! | [`cache_policy`] | what leaves the disk when room is needed |
//! | [`tensor`], [`oip`] | tensors; the Open Inference Protocol's bytes for them |

pub mod agent;
pub mod answer;
pub mod backlog;
pub mod breaker;
pub mod cache_policy;
pub mod compare;
pub mod effect;
pub mod input;
mod lease;
pub mod oip;
mod preparation;
mod reconcile;
pub mod route;
pub mod tensor;
