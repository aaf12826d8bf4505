//! Who comes in, and who does not.

use rcgen::ExtendedKeyUsagePurpose;
use rollcall_shared::ids::{FleetName, NodeId};
use rollcall_shared::wire::ALPN;
use rollcall_transport::admission::{AdmissionError, Admitted};
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::agent_config;
use rollcall_transport::identity::{IdentityError, peer_node};
use rollcall_transport::spiffe::SpiffeId;
use rollcall_transport::tls::enroll_tls;
use rollcall_transport::verifier::Trust;

use crate::fleet::{Fleet, dial, ending, quic, serve, within};

#[tokio::test]
async fn an_agent_comes_in_under_the_name_in_its_certificate() {
    let fleet = Fleet::start("payments");
    let identity = fleet.agent("node-4");
    let (agent, admitted) = tokio::join!(fleet.dial(&identity), fleet.admit());
    let agent = agent.unwrap();
    match admitted.unwrap() {
        Admitted::Agent {
            connection,
            node,
            certificate,
        } => {
            assert_eq!(node.as_str(), "node-4");
            assert_eq!(certificate, identity.fingerprint());
            let of = |fleet: &str| peer_node(&connection, &FleetName::new(fleet).unwrap());
            assert_eq!(of("payments").unwrap(), node);
            assert!(of("fraud").is_err());
        }
        Admitted::Enrolment { .. } => panic!("an agent was taken for an enrolling node"),
    }
    agent.close(0u32.into(), b"");
}

#[tokio::test]
async fn an_agents_connection_without_a_certificate_is_refused() {
    let fleet = Fleet::start("payments");
    let mut tls = enroll_tls(Trust::Ca(fleet.ca.certificate().clone()), None).unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let (client, admitted) = tokio::join!(dial(fleet.address(), quic(tls)), fleet.admit());
    assert!(matches!(
        admitted,
        Err(AdmissionError::Refused(IdentityError::Missing))
    ));
    assert!(matches!(
        ending(&client.unwrap()).await,
        Closed::ByPeer {
            code: CloseCode::Refused,
            ..
        }
    ));
}

#[tokio::test]
async fn another_protocol_is_refused_by_tls() {
    let fleet = Fleet::start("payments");
    let mut tls = enroll_tls(Trust::Ca(fleet.ca.certificate().clone()), None).unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let (client, admitted) = tokio::join!(dial(fleet.address(), quic(tls)), fleet.admit());
    assert!(matches!(client, Err(Closed::Transport { .. })));
    assert!(matches!(admitted, Err(AdmissionError::Handshake(_))));
}

#[tokio::test]
async fn an_agent_refuses_a_coordinator_of_another_authority() {
    let (fleet, other) = (Fleet::start("payments"), Fleet::start("payments"));
    let config = agent_config(&fleet.agent("node-4"), other.ca.certificate()).unwrap();
    let (client, admitted) = tokio::join!(dial(fleet.address(), config), fleet.admit());
    assert!(matches!(client, Err(Closed::Transport { .. })));
    assert!(matches!(admitted, Err(AdmissionError::Handshake(_))));
}

#[tokio::test]
async fn a_coordinator_refuses_an_agent_of_another_authority_even_of_the_same_fleet_name() {
    let (fleet, other) = (Fleet::start("payments"), Fleet::start("payments"));
    let stranger = other.agent("node-4");
    let (client, admitted) = tokio::join!(fleet.dial(&stranger), fleet.admit());
    assert!(matches!(admitted, Err(AdmissionError::Handshake(_))));
    // TLS 1.3 lets the client finish first; it learns right after.
    if let Ok(connection) = client {
        assert!(matches!(
            ending(&connection).await,
            Closed::Transport { .. }
        ));
    }
}

#[tokio::test]
async fn an_agent_of_another_fleet_under_the_same_authority_is_refused() {
    let fleet = Fleet::start("payments");
    let id = SpiffeId::Agent(
        FleetName::new("fraud").unwrap(),
        NodeId::new("node-4").unwrap(),
    );
    let stranger = fleet.forge(&id, ExtendedKeyUsagePurpose::ClientAuth);
    let (client, admitted) = tokio::join!(fleet.dial(&stranger), fleet.admit());
    assert!(matches!(
        admitted,
        Err(AdmissionError::Refused(IdentityError::Unexpected { .. }))
    ));
    assert!(matches!(
        ending(&client.unwrap()).await,
        Closed::ByPeer {
            code: CloseCode::Refused,
            ..
        }
    ));
}

#[tokio::test]
async fn an_agents_certificate_cannot_play_coordinator() {
    let fleet = Fleet::start("payments");
    let name = SpiffeId::Agent(
        FleetName::new("payments").unwrap(),
        NodeId::new("node-5").unwrap(),
    );
    for impostor in [
        fleet.agent("node-5"),
        // Even where the purpose allows it, the name does not.
        fleet.forge(&name, ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let impostor = serve(&impostor, &fleet.ca);
        let config = agent_config(&fleet.agent("node-4"), fleet.ca.certificate()).unwrap();
        let address = impostor.local_addr().unwrap();
        let (client, _) = tokio::join!(dial(address, config), async {
            impostor.accept().await.unwrap().await.map(drop)
        });
        assert!(
            matches!(client, Err(Closed::Transport { .. })),
            "{client:?}"
        );
    }
}

#[tokio::test]
async fn the_coordinators_certificate_cannot_play_agent() {
    let fleet = Fleet::start("payments");
    let coordinator = fleet.ca.issue_server(&[], crate::fleet::now()).unwrap();
    let (_, admitted) = tokio::join!(fleet.dial(&coordinator), fleet.admit());
    assert!(matches!(admitted, Err(AdmissionError::Handshake(_))));
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_a_new_one_of_the_node_is_not() {
    let fleet = Fleet::start("payments");
    let identity = fleet.agent("node-4");
    let (_first, admitted) = tokio::join!(fleet.dial(&identity), fleet.admit());
    assert!(admitted.is_ok());

    assert!(fleet.revoked.revoke(identity.fingerprint()));
    assert!(
        !fleet.revoked.revoke(identity.fingerprint()),
        "it was there"
    );
    let (client, admitted) = tokio::join!(fleet.dial(&identity), fleet.admit());
    assert!(matches!(admitted, Err(AdmissionError::Revoked { .. })));
    assert!(matches!(
        ending(&client.unwrap()).await,
        Closed::ByPeer {
            code: CloseCode::Revoked,
            ..
        }
    ));

    let renewed = fleet.agent("node-4");
    let (_client, admitted) = tokio::join!(fleet.dial(&renewed), fleet.admit());
    assert!(admitted.is_ok());
}

#[tokio::test]
async fn an_address_that_is_asked_for_proof_gives_it_and_gets_in() {
    let fleet = Fleet::start("payments");
    let identity = fleet.agent("node-4");
    let door = async {
        let stranger = within(fleet.coordinator.accept()).await.unwrap();
        assert!(!stranger.remote_address_validated());
        stranger.retry().unwrap();
        let proven = within(fleet.coordinator.accept()).await.unwrap();
        assert!(proven.remote_address_validated());
        within(proven.into_future()).await
    };
    let (agent, admitted) = tokio::join!(fleet.dial(&identity), door);
    assert!(agent.is_ok() && admitted.is_ok());
}
