//! A whole fleet, simulated: the shipping cores under virtual time, faults drawn from a
//! seed, and checkers that know the whole truth.
//!
//! | module | holds |
//! | --- | --- |
//! | [`explore`], [`arguments`] | many seeds, on all cores |
//! | [`world`] | one run: event loop, processes, weather, phase 2 |
//! | [`shrink`] | from a broken run to a smaller one |
//! | [`faults`], [`seed`] | what can go wrong, drawn from the seed |
//! | [`network`], [`disk`], [`clock`], [`schedule`] | what shells stand on |
//! | [`workload`] | the operator |
//! | [`checkers`] | the promises, a file each |
//! | [`trace`] | a line an event |
//!
//! Deliberately absent: any runtime, socket, file or real clock. The crate knows the words
//! and the two cores, so that a change in a core is explored seconds after it was made.

pub mod arguments;
pub mod checkers;
pub mod clock;
pub mod disk;
pub mod explore;
pub mod faults;
pub mod network;
pub mod schedule;
pub mod seed;
pub mod shrink;
pub mod trace;
pub mod workload;
pub mod world;
