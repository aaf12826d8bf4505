//! A coordinator that was killed and started again.

use std::net::UdpSocket;
use std::time::Duration;

use rollcall_transport::close::Closed;
use rollcall_transport::endpoint::coordinator_endpoint;

use crate::fleet::{Fleet, LOOPBACK, ending, now};

#[test]
fn an_agent_learns_of_a_killed_and_restarted_coordinator_without_waiting_for_a_time_out() {
    let first = tokio::runtime::Runtime::new().unwrap();
    let second = tokio::runtime::Runtime::new().unwrap();
    let mut fleet = first.block_on(async { Fleet::start("payments") });
    let identity = fleet.ca.issue_server(&[], now()).unwrap();
    let start = |socket| {
        coordinator_endpoint(socket, &identity, fleet.ca.certificate())
            .unwrap()
            .quic
    };
    let killed = first.block_on(async { start(UdpSocket::bind(LOOPBACK).unwrap()) });
    let address = killed.local_addr().unwrap();
    fleet.coordinator = killed;

    let dialling = {
        let identity = fleet.agent("node-4");
        let config = rollcall_transport::endpoint::agent_config(&identity, fleet.ca.certificate());
        second.spawn(crate::fleet::dial(address, config.unwrap()))
    };
    let accepted = first.block_on(fleet.admit()).unwrap();
    let agent = second.block_on(dialling).unwrap().unwrap();

    // Without its runtime the first process can say no farewell.
    first.shutdown_timeout(Duration::from_secs(5));
    drop(accepted);
    let ca = fleet.ca.certificate().clone();
    drop(fleet);

    let _successor = second.block_on(async {
        let socket = UdpSocket::bind(address).unwrap();
        coordinator_endpoint(socket, &identity, &ca).unwrap().quic
    });
    assert_eq!(second.block_on(ending(&agent)), Closed::Reset);
}
