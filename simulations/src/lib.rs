//! Whole fleets: simulated ones that drive the shipping cores under virtual time,
//! and real ones, processes and sockets on this machine.
//!
//! | module | holds |
//! | --- | --- |
//! | `rollcall_explorer` | the deterministic world, a crate of its own that rebuilds in seconds |
//! | [`multicall`], [`cluster`], [`relay`], [`traffic`] | real processes, links that can be cut, and clients |
//! | [`chaos`] | kill -9, pauses, cut links and spoilt disks on real processes |
//! | [`demo`] | the whole story on one machine |
//! | [`fleet`] | how fast a rollback spreads over real QUIC |
//! | [`hostile`] | the same with bad neighbours |
//! | [`isolation`] | what a candidate that misbehaves in its engine costs stable's clients |
//! | [`judge`] | false alarms and requests to detection of the judge, beside the tests of others |
//! | [`storm`] | how fast a fleet is back after its coordinator was killed |
//! | [`mutants`] | faults planted in the source that ships, and who notices |

pub use rollcall_explorer::{
    arguments, checkers, clock, disk, explore, faults, network, schedule, seed, shrink, trace,
    workload, world,
};

pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod fleet;
pub mod hostile;
pub mod isolation;
pub mod judge;
pub mod multicall;
pub mod mutants;
pub mod relay;
pub mod storm;
pub mod traffic;
