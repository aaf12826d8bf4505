//! How agents notice at once that the coordinator restarted.
//!
//! A killed coordinator says no farewell; its agents would believe in their
//! connections for a whole idle time-out. QUIC's answer is the stateless reset
//! (RFC 9000, section 10.3): an endpoint that gets a packet of a connection that
//! it does not know replies with a token that only the connection's maker can
//! compute. Here tokens come from a key derived from the coordinator's private
//! key, so that the next process can do it for its predecessor, and an agent
//! reconnects within one keep-alive.
//!
//! quinn's own connection ids carry a mark of the process and packets without it
//! are dropped unanswered, which would defeat this; ours are plain random bytes.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::identity::Identity;

/// No least time between resets. quinn reads its clock once for all packets that it takes
/// from the socket together, so any least time lets one of them be answered: of 10,000
/// agents at a restart, hundreds heard nothing until their idle time-out. Garbage gets
/// resets too, but each is smaller than the packet that caused it: nothing to amplify, and
/// loops end.
const RESET_INTERVAL_MIN: Duration = Duration::ZERO;

/// Length of a connection id: 10,000 random ones do not meet, and quinn draws again if they do.
const ID_BYTES: usize = 8;

/// The coordinator's endpoint configuration; also for
/// [`quinn::Endpoint::new_with_abstract_socket`] on a simulated network.
#[must_use]
pub fn coordinator_endpoint_config(identity: &Identity) -> EndpointConfig {
    let root = hmac::Key::new(hmac::HMAC_SHA256, identity.key().secret_der());
    let seed = hmac::sign(&root, b"rollcall quic stateless reset");
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, seed.as_ref());
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config
        .cid_generator(|| Box::new(RandomIds))
        .min_reset_interval(RESET_INTERVAL_MIN)
        // Packets without QUIC's fixed bit are beacons.
        .grease_quic_bit(false);
    config
}

/// Connection ids that do not tell one process from the next.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        SystemRandom::new()
            .fill(&mut id)
            .expect("a running system gives randomness");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
