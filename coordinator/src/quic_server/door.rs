//! Who shakes hands now, who waits, and who is sent away before any work is done for him.
//!
//! When a coordinator restarts its whole fleet comes back at once, and every handshake
//! costs a signature. So there are only so many at a time; the others wait here, in order.
//! Waiting is better than being sent away: it costs nothing, and nobody has to come twice.
//! It ends before the client's own patience does, since a signature for somebody who has
//! gone is lost.
//!
//! While many wait, a client must first prove that its address is its own (a Retry, one
//! more round trip, no signature): otherwise anybody could fill the queue with addresses
//! that are not there.

use std::collections::VecDeque;
use std::sync::Arc;

use quinn::{Endpoint, Incoming};
use rollcall_shared::time::Timestamp;
use rollcall_transport::admission::WAIT_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Context;
use super::comings::Beginning;
use crate::metrics::{Handshake, Metrics};

/// Handshakes at the same time, for each core. A handshake is half a millisecond of work: more
/// of them at once make none faster, but every one slower, until packets are lost for which
/// the socket has no room and clients give up. With 512 on two cores, 200 of 10,000 that came
/// back together ran out of time and the last was in after 18 s; with 64, none and 8.6 s. At
/// 100 ms a round trip these are 300 handshakes a second and core.
const HANDSHAKES_PER_CORE: usize = 32;

/// Handshakes under way and waiting from which on addresses must be proven.
const PROOF_ABOVE: usize = 256;

/// Handshakes that wait. More are refused, and come back with jitter. quinn forgets those
/// beyond its own bound without a word, so this one is below that.
const WAITING_MAX: usize = 12_288;
const _: () = assert!(WAITING_MAX < rollcall_transport::endpoint::INCOMING_MAX);

/// Connections of agents. More are refused.
const AGENTS_MAX: usize = 20_000;

/// What happens to a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waits,
    MustProve,
    Refused,
    Unanswered,
}

impl Place {
    fn of(beginning: Beginning, proven: bool, agents: usize, busy: usize, waiting: usize) -> Self {
        let full = agents >= AGENTS_MAX || waiting >= WAITING_MAX;
        match beginning {
            _ if full => Self::Refused,
            Beginning::TooMany => Self::Unanswered,
            Beginning::Proven => Self::MustProve,
            Beginning::Free if !proven && busy >= PROOF_ABOVE => Self::MustProve,
            Beginning::Free => Self::Waits,
        }
    }
}

/// The queue before the door.
pub(super) struct Door {
    endpoint: Endpoint,
    handshakes: Arc<Semaphore>,
    at_a_time: usize,
    waiting: VecDeque<(Timestamp, Incoming)>,
}

impl Door {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_a_time = HANDSHAKES_PER_CORE * cores;
        Self {
            endpoint,
            handshakes: Arc::new(Semaphore::new(at_a_time)),
            at_a_time,
            waiting: VecDeque::new(),
        }
    }

    /// The next to shake hands with, and his right to; `None`: the endpoint is closed.
    pub(super) async fn next(
        &mut self,
        context: &Context,
    ) -> Option<(Incoming, OwnedSemaphorePermit)> {
        loop {
            // Neither may starve the other, so `select!` draws.
            tokio::select! {
                incoming = self.endpoint.accept() => self.sort(incoming?, context),
                permit = Arc::clone(&self.handshakes).acquire_owned(), if !self.waiting.is_empty() => {
                    let now = context.core.clock().now();
                    let first = self.first(now, &context.metrics);
                    if let (Ok(permit), Some(first)) = (permit, first) {
                        return Some((first, permit));
                    }
                }
            }
        }
    }

    fn sort(&mut self, incoming: Incoming, context: &Context) {
        let now = context.core.clock().now();
        let proven = incoming.remote_address_validated();
        let from = incoming.remote_address().ip();
        let waiting = self.waiting.len();
        let busy = waiting + self.at_a_time - self.handshakes.available_permits();
        let beginning = context.comings.begin(from, proven, now);
        match Place::of(beginning, proven, context.agents.count(), busy, waiting) {
            Place::Waits => self.waiting.push_back((now, incoming)),
            Place::MustProve => {
                context.metrics.observe_handshake(Handshake::Retried);
                // An address that is not proven may always be asked for proof.
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
            // Even a refusal costs keys and a packet, and brings the next try at once; who gets no
            // answer tries again after one second, two, four.
            Place::Unanswered => {
                context.metrics.observe_handshake(Handshake::Unanswered);
                incoming.ignore();
            }
            Place::Refused => {
                context.metrics.observe_handshake(Handshake::Refused);
                incoming.refuse();
            }
        }
    }

    /// The first who still waits for an answer.
    fn first(&mut self, now: Timestamp, metrics: &Metrics) -> Option<Incoming> {
        while let Some((since, incoming)) = self.waiting.pop_front() {
            if now.since(since) < WAIT_MAX {
                return Some(incoming);
            }
            metrics.observe_handshake(Handshake::Stale);
            // Whoever is still there comes again at once and waits anew. Without a word he would
            // wait for his own patience to end, while nobody stands at the door.
            incoming.refuse();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use quinn::{ConnectionError, TransportErrorCode};
    use rollcall_shared::ids::FleetName;
    use rollcall_transport::ca::FleetCa;
    use rollcall_transport::clock::Clock;
    use rollcall_transport::endpoint::{agent_endpoint, coordinator_endpoint, enroll_config};
    use rollcall_transport::verifier::Trust;

    use super::*;

    #[tokio::test]
    async fn who_waited_too_long_is_told_at_once_and_the_next_gets_in() {
        let now = Clock::start(Timestamp::ZERO).now();
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let ca = FleetCa::generate(&FleetName::new("ours").unwrap(), now).unwrap();
        let identity = ca.issue_server(&[], now).unwrap();
        let socket = UdpSocket::bind(anywhere).unwrap();
        let address = socket.local_addr().unwrap();
        let endpoint = coordinator_endpoint(socket, &identity, ca.certificate()).unwrap();
        let mut door = Door::new(endpoint.quic.clone());
        let client = agent_endpoint(anywhere).unwrap();
        let dial = || {
            let config = enroll_config(Trust::Pin(ca.fingerprint()), None).unwrap();
            client.quic.connect_with(config, address, "ours").unwrap()
        };

        let late = dial();
        let incoming = door.endpoint.accept().await.unwrap();
        door.waiting.push_back((now, incoming));
        let in_time = dial();
        let incoming = door.endpoint.accept().await.unwrap();
        let since = now + Duration::from_millis(1);
        door.waiting.push_back((since, incoming));

        let first = door.first(now + WAIT_MAX, &Metrics::default()).unwrap();
        match late.await {
            Err(ConnectionError::ConnectionClosed(close)) => {
                assert_eq!(close.error_code, TransportErrorCode::CONNECTION_REFUSED);
            }
            other => panic!("{other:?}"),
        }
        let (came, admitted) = tokio::join!(in_time, first.accept().unwrap());
        came.unwrap();
        admitted.unwrap();
    }

    #[test]
    fn an_idle_door_asks_for_no_proof_and_a_busy_one_does() {
        let place = |proven, busy| Place::of(Beginning::Free, proven, 0, busy, 0);
        assert_eq!(place(false, 0), Place::Waits);
        assert_eq!(place(false, PROOF_ABOVE), Place::MustProve);
        assert_eq!(place(true, PROOF_ABOVE), Place::Waits);
        assert_eq!(place(true, PROOF_ABOVE + WAITING_MAX - 1), Place::Waits);
    }

    #[test]
    fn a_full_queue_and_a_full_house_refuse() {
        let place = |agents, waiting| Place::of(Beginning::Free, true, agents, 0, waiting);
        assert_eq!(place(0, WAITING_MAX), Place::Refused);
        assert_eq!(place(AGENTS_MAX, 0), Place::Refused);
        assert_eq!(
            Place::of(Beginning::TooMany, true, 0, 0, 0),
            Place::Unanswered
        );
        assert_eq!(
            Place::of(Beginning::Proven, false, 0, 0, 0),
            Place::MustProve
        );
    }
}
