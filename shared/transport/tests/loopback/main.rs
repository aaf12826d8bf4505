//! The transport on real sockets of this machine: identities, admission, messages.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test crate: nobody links it, and it may panic"
)]

mod admission;
mod channels;
mod enrolment;
mod fleet;
mod handshakes;
mod restart;
