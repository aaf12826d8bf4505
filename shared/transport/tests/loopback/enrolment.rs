//! How a node gets its identity.

use std::collections::BTreeMap;

use rollcall_shared::digest::Digest;
use rollcall_shared::ids::NodeId;
use rollcall_shared::wire::{EnrollAnswer, EnrollRequest};
use rollcall_transport::admission::Admitted;
use rollcall_transport::channel::ChannelError;
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::{agent_endpoint, enroll_config};
use rollcall_transport::enroll::{EnrollError, enroll, serve_enrolment};
use rollcall_transport::identity::{AgentKey, Identity, new_agent_key};
use rollcall_transport::verifier::Trust;

use crate::fleet::{Fleet, LOOPBACK, dial, ending, now, within};

fn request(key: &AgentKey) -> EnrollRequest {
    EnrollRequest {
        token: "rollcall1.k7.secret".to_owned(),
        node: "node-4".to_owned(),
        labels: BTreeMap::new(),
        csr: key.csr.clone(),
    }
}

/// Lets one node in and answers whatever it asks with a certificate.
async fn serve_one(fleet: &Fleet) -> (Option<NodeId>, Result<(), EnrollError>) {
    let Ok(Admitted::Enrolment {
        connection,
        renewing,
    }) = fleet.admit().await
    else {
        panic!("no enrolling node came in");
    };
    let served = serve_enrolment(&connection, async |request: EnrollRequest| {
        let node = NodeId::new(request.node).unwrap();
        let issued = fleet.ca.issue_agent_from_csr(&request.csr, &node, now());
        EnrollAnswer::Enrolled {
            node: node.to_string(),
            fleet: fleet.ca.certificate().fleet().to_string(),
            certificate: issued.unwrap().pem,
            ca: fleet.ca.certificate_pem().to_owned(),
            registry_key: String::new(),
        }
    });
    (renewing, within(served).await)
}

async fn ask(fleet: &Fleet, key: &AgentKey, renewing: Option<&Identity>) -> Identity {
    let endpoint = agent_endpoint(LOOPBACK).unwrap();
    let pin = fleet.ca.fingerprint();
    let request = request(key);
    let answer = enroll(&endpoint.quic, fleet.address(), pin, &request, renewing);
    match within(answer).await.unwrap() {
        EnrollAnswer::Enrolled { certificate, .. } => {
            Identity::from_pem(&certificate, &key.key_pem).unwrap()
        }
        EnrollAnswer::Refused { reason } => panic!("{reason}"),
    }
}

#[tokio::test]
async fn a_node_with_the_right_pin_gets_an_identity_that_lets_it_in() {
    let fleet = Fleet::start("payments");
    let key = new_agent_key().unwrap();
    let (identity, (renewing, served)) = tokio::join!(ask(&fleet, &key, None), serve_one(&fleet));
    served.unwrap();
    assert_eq!(renewing, None);
    let (_agent, admitted) = tokio::join!(fleet.dial(&identity), fleet.admit());
    assert!(matches!(
        admitted.unwrap(),
        Admitted::Agent { node, .. } if node.as_str() == "node-4"
    ));
}

#[tokio::test]
async fn a_node_that_shows_its_certificate_is_known_by_it() {
    let fleet = Fleet::start("payments");
    let old = fleet.agent("node-4");
    let key = new_agent_key().unwrap();
    let (renewed, (renewing, served)) =
        tokio::join!(ask(&fleet, &key, Some(&old)), serve_one(&fleet));
    served.unwrap();
    assert_eq!(renewing, Some(NodeId::new("node-4").unwrap()));
    assert_ne!(renewed.fingerprint(), old.fingerprint());
}

#[tokio::test]
async fn a_coordinator_with_another_ca_than_the_pinned_one_gets_no_token() {
    let fleet = Fleet::start("payments");
    let endpoint = agent_endpoint(LOOPBACK).unwrap();
    let request = request(&new_agent_key().unwrap());
    let pin = Digest::of(b"another CA");
    let answer = enroll(&endpoint.quic, fleet.address(), pin, &request, None);
    let (refused, admitted) = tokio::join!(within(answer), fleet.admit());
    assert!(matches!(refused, Err(EnrollError::Connect(_))));
    assert!(admitted.is_err());
}

#[tokio::test]
async fn a_leaf_that_the_pinned_ca_did_not_sign_is_refused_though_the_ca_is_in_the_chain() {
    let (fleet, other) = (Fleet::start("payments"), Fleet::start("payments"));
    // The impostor sends the pinned CA's certificate, which is no secret.
    let impostor = crate::fleet::serve(&other.ca.issue_server(&[], now()).unwrap(), &fleet.ca);
    let config = enroll_config(Trust::Pin(fleet.ca.fingerprint()), None).unwrap();
    let address = impostor.local_addr().unwrap();
    let (client, _) = tokio::join!(dial(address, config), async {
        impostor.accept().await.unwrap().await.map(drop)
    });
    assert!(matches!(client, Err(Closed::Transport { .. })));
}

#[tokio::test]
async fn a_refusal_reaches_the_node() {
    let fleet = Fleet::start("payments");
    let endpoint = agent_endpoint(LOOPBACK).unwrap();
    let request = request(&new_agent_key().unwrap());
    let refusal = EnrollAnswer::Refused {
        reason: "the token was used".to_owned(),
    };
    let pin = fleet.ca.fingerprint();
    let (answer, ()) = tokio::join!(
        within(enroll(&endpoint.quic, fleet.address(), pin, &request, None)),
        async {
            let Ok(Admitted::Enrolment { connection, .. }) = fleet.admit().await else {
                panic!("no enrolling node came in");
            };
            let decide = async |_| refusal.clone();
            within(serve_enrolment(&connection, decide)).await.unwrap();
        }
    );
    assert_eq!(answer.unwrap(), refusal);
}

#[tokio::test]
async fn a_request_over_the_bound_is_refused_unread() {
    let fleet = Fleet::start("payments");
    let config = enroll_config(Trust::Pin(fleet.ca.fingerprint()), None).unwrap();
    let (client, admitted) = tokio::join!(dial(fleet.address(), config), fleet.admit());
    let client = client.unwrap();
    let Ok(Admitted::Enrolment { connection, .. }) = admitted else {
        panic!("no enrolling node came in");
    };
    let (mut send, _receive) = within(client.open_bi()).await.unwrap();
    send.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
    let decide = async |_| panic!("nothing was asked");
    let served = within(serve_enrolment(&connection, decide)).await;
    assert!(matches!(
        served,
        Err(EnrollError::Channel(ChannelError::OverBound { .. }))
    ));
    assert!(matches!(
        ending(&client).await,
        Closed::ByPeer {
            code: CloseCode::ProtocolError,
            ..
        }
    ));
}
