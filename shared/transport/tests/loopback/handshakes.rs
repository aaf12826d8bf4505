//! Every handshake is a full one.

use std::sync::Arc;

use rollcall_transport::admission::Admitted;
use rollcall_transport::channel::{read_datagram, send_datagram};
use rollcall_transport::endpoint::{agent_config, agent_endpoint};
use rollcall_transport::tls::{agent_tls, coordinator_tls};
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;

use crate::fleet::{Fleet, LOOPBACK, now, within};

#[tokio::test]
async fn a_second_connection_offers_no_early_data() {
    let fleet = Fleet::start("payments");
    let endpoint = agent_endpoint(LOOPBACK).unwrap();
    let config = agent_config(&fleet.agent("node-4"), fleet.ca.certificate()).unwrap();
    for _ in 0..2 {
        let dial = || {
            endpoint
                .quic
                .connect_with(config.clone(), fleet.address(), "coordinator")
        };
        let Err(connecting) = dial().unwrap().into_0rtt() else {
            panic!("0-RTT was offered");
        };
        let (agent, admitted) = tokio::join!(within(connecting), fleet.admit());
        let Admitted::Agent { connection, .. } = admitted.unwrap() else {
            panic!("an agent was taken for an enrolling node");
        };
        // A ticket would have come ahead of this.
        send_datagram(&connection, &0u8).unwrap();
        let ahead = read_datagram::<u8>(agent.as_ref().unwrap());
        within(ahead).await.unwrap();
    }
}

#[tokio::test]
async fn the_same_two_ends_meet_with_full_handshakes_each_time() {
    let fleet = Fleet::start("payments");
    let identity = fleet.ca.issue_server(&[], now()).unwrap();
    let server = Arc::new(coordinator_tls(&identity, fleet.ca.certificate()).unwrap());
    let client = agent_tls(&fleet.agent("node-4"), fleet.ca.certificate()).unwrap();
    let client = Arc::new(client);
    for _ in 0..2 {
        let name = ServerName::try_from("coordinator").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut sent = Vec::new();
            client.write_tls(&mut sent).unwrap();
            server.read_tls(&mut &sent[..]).unwrap();
            server.process_new_packets().unwrap();
            let mut sent = Vec::new();
            server.write_tls(&mut sent).unwrap();
            client.read_tls(&mut &sent[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        assert_eq!(client.tls13_tickets_received(), 0);
        for kind in [client.handshake_kind(), server.handshake_kind()] {
            assert_eq!(kind, Some(HandshakeKind::Full));
        }
    }
}
