//! The words of Rollcall: what a model, a version, an assignment, a lease and a
//! withdrawal are, how they travel, and the mathematics both ends must agree on.
//!
//! Pure: no clock, no randomness, no I/O, no threads. Anything with a socket
//! lives in `rollcall-transport` or in a shell.
//!
//! | module | holds |
//! | --- | --- |
//! | [`ids`], [`version`], [`digest`], [`time`] | the small words everything else is made of |
//! | [`manifest`], [`plan`] | what a version is; how a rollout should go |
//! | [`assignment`], [`report`], [`verdict`] | what agents should do, what they saw, what the judge says |
//! | [`feedback`] | what came of answers: labels and outcomes |
//! | [`wire`], [`codec`] | the messages, and the one place that turns them into bytes |
//! | [`histogram`], [`hashing`], [`backoff`] | mathematics shared by both ends |
//! | [`signing`] | Ed25519 over manifests |
//! | [`limits`] | every bound, with its reason |

pub mod assignment;
pub mod backoff;
pub mod codec;
pub mod digest;
pub mod feedback;
pub mod hashing;
pub mod histogram;
pub mod ids;
pub mod limits;
pub mod manifest;
pub mod plan;
pub mod report;
pub mod signing;
pub mod time;
pub mod verdict;
pub mod version;
pub mod wire;
