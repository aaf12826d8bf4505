//! Whole fleets: simulated ones that drive the shipping cores under virtual time,
//! and real ones, processes and sockets on this machine.
//!
//! | module | holds |
//! | --- | --- |
//! | [`explore`] | many seeds, on all cores |
//! | [`world`] | one run: event loop, processes, weather, phase 2 |
//! | [`faults`], [`seed`] | what can go wrong, drawn from the seed |
//! | [`network`], [`disk`], [`clock`], [`schedule`] | what shells stand on |
//! | [`workload`] | the operator |
//! | [`checkers`] | the promises, a file each |
//! | [`trace`] | a line an event |
//! | [`multicall`], [`cluster`], [`relay`], [`traffic`] | real processes, links that can be cut, and clients |
//! | [`chaos`] | kill -9, pauses, cut links and spoilt disks on real processes |
//! | [`demo`] | the whole story on one machine |
//! | [`fleet`] | how fast a rollback spreads over real QUIC |
//! | [`hostile`] | the same with bad neighbours |
//! | [`storm`] | how fast a fleet is back after its coordinator was killed |

pub mod chaos;
pub mod checkers;
pub mod clock;
pub mod cluster;
pub mod demo;
pub mod disk;
pub mod explore;
pub mod faults;
pub mod fleet;
pub mod hostile;
pub mod multicall;
pub mod network;
pub mod relay;
pub mod schedule;
pub mod seed;
pub mod storm;
pub mod trace;
pub mod traffic;
pub mod workload;
pub mod world;
