//! Networks that change under a connection: an address that a NAT gives anew, and a node
//! that vanishes without a word.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::net::UdpSocket;
use std::time::Duration;

use fixture::street::{Node, Street, heartbeat, within};
use rollcall_coordinator_core::view::NodeView;
use rollcall_shared::wire::ToAgent;
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::agent_endpoint;

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_on_its_way_reaches_a_node_whose_address_changes() {
    let mut street = Street::new().await;
    let before = street.good.connection.stable_id();
    // What is sent to the old address from here on is lost.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    street.good_node.endpoint.quic.rebind(socket).unwrap();
    let reason = serde_json::json!({ "reason": "tried" });
    let rollback = "/models/digits/rollback";
    let _: serde_json::Value = street.client.post(rollback, &reason).await.unwrap();
    street.good.writer.send(&heartbeat(1, 0)).await.unwrap();
    loop {
        let message = within(street.good.reader.next()).await.unwrap();
        if let ToAgent::Withdraw(_) = message.expect("the stream ended") {
            break;
        }
    }
    assert_eq!(street.good.connection.stable_id(), before);
    assert!(street.good.connection.close_reason().is_none());
    street.running.stop().await;
}

/// A node that was welcomed and is gone without a farewell: its runtime is.
fn vanished(street: &Street) -> Node {
    let gone = tokio::runtime::Runtime::new().unwrap();
    let (ca, identity) = (street.bad.ca.clone(), street.bad.again());
    let endpoint = {
        let _inside = gone.enter();
        agent_endpoint("127.0.0.1:0".parse().unwrap()).unwrap()
    };
    let node = Node {
        endpoint,
        identity,
        ca,
    };
    let connecting = node.welcomed(&street.running, node.config());
    let session = std::thread::scope(|scope| {
        let here = scope.spawn(|| gone.block_on(connecting));
        here.join().unwrap()
    });
    gone.shutdown_background();
    drop(session);
    node
}

async fn seen(street: &Street) -> NodeView {
    street.client.get("/agents/bad").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_vanished_is_believed_in_until_it_is_idle_too_long() {
    let mut street = Street::new().await;
    let _gone = vanished(&street);
    assert!(seen(&street).await.connected, "nobody said farewell");
    let forgotten = async {
        while seen(&street).await.connected {
            // The other one lives, and says so.
            street.good.writer.send(&heartbeat(1, 0)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    within(forgotten).await;
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_returns_takes_the_place_of_its_vanished_connection_at_once() {
    let street = Street::new().await;
    let _gone = vanished(&street);
    let mut first = street.enter().await;
    assert!(seen(&street).await.connected);
    let second = street.enter().await;
    let closed: Closed = within(first.connection.closed()).await.into();
    let superseded = matches!(
        closed,
        Closed::ByPeer {
            code: CloseCode::Superseded,
            ..
        }
    );
    assert!(superseded, "{closed}");
    assert!(within(first.reader.next::<ToAgent>()).await.is_err());
    assert!(second.connection.close_reason().is_none());
    street.all_is_well().await;
}
