//! What lies between the cores and the network: identities, mutual TLS, QUIC
//! endpoints, framed streams, datagrams, and the clock.
//!
//! | module | holds |
//! | --- | --- |
//! | [`clock`] | the one place that reads time |
//! | [`spiffe`], [`identity`], [`ca`] | who is who: names in certificates, certificates with their keys, the fleet's authority |
//! | [`token`] | the text of enrolment and operator tokens |
//! | [`tls`], [`verifier`] | TLS 1.3 configurations, and how a coordinator is recognised |
//! | [`endpoint`] | QUIC endpoints with every bound set by hand; dialling |
//! | [`restart`] | how agents notice a coordinator's restart at once |
//! | [`admission`] | who gets past the coordinator's door |
//! | [`channel`], [`close`] | framed streams and datagrams; why a connection ended |
//! | [`beacon`] | sealed datagrams beside QUIC, for what must arrive first |
//! | [`enroll`] | how a node gets its identity |
//!
//! Invariants, each with its test in `tests/loopback/`:
//!
//! 1. A node's name is what its certificate says, never what a message says.
//! 2. Every handshake is a full one: no resumption and no 0-RTT, because either
//!    would skip the certificate checks.
//! 3. Only a certificate that names the coordinator can play coordinator.
//! 4. A frame's length is checked before anything is allocated for it.
//!
//! Deliberately absent: retries, reconnection and what to say to whom. Those are
//! decisions, and decisions live in the cores.

pub mod admission;
pub mod beacon;
pub mod ca;
pub mod channel;
pub mod clock;
pub mod close;
pub mod endpoint;
pub mod enroll;
pub mod identity;
pub mod restart;
pub mod spiffe;
pub mod tls;
pub mod token;
pub mod verifier;
