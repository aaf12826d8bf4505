//! A fleet of one coordinator on the loopback, for tests.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rollcall_shared::ids::{FleetName, NodeId};
use rollcall_shared::time::Timestamp;
use rollcall_transport::admission::{Admission, AdmissionError, Admitted, RevokedCertificates};
use rollcall_transport::ca::FleetCa;
use rollcall_transport::clock::Clock;
use rollcall_transport::close::Closed;
use rollcall_transport::endpoint::{agent_config, agent_endpoint, connect, coordinator_endpoint};
use rollcall_transport::identity::{Identity, new_agent_key};
use rollcall_transport::spiffe::SpiffeId;

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) struct Fleet {
    pub(crate) ca: FleetCa,
    pub(crate) revoked: RevokedCertificates,
    pub(crate) coordinator: Endpoint,
    admission: Admission,
}

impl Fleet {
    pub(crate) fn start(name: &str) -> Self {
        let name = FleetName::new(name).unwrap();
        let ca = FleetCa::generate(&name, now()).unwrap();
        let identity = ca.issue_server(&[], now()).unwrap();
        let revoked = RevokedCertificates::new(BTreeSet::new());
        Self {
            coordinator: serve(&identity, &ca),
            admission: Admission::new(name, revoked.clone()),
            ca,
            revoked,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.coordinator.local_addr().unwrap()
    }

    /// A new agent's identity.
    pub(crate) fn agent(&self, node: &str) -> Identity {
        let key = new_agent_key().unwrap();
        let node = NodeId::new(node).unwrap();
        let issued = self
            .ca
            .issue_agent_from_csr(&key.csr, &node, now())
            .unwrap();
        Identity::from_pem(&issued.pem, &key.key_pem).unwrap()
    }

    /// An identity that our own code would never issue.
    pub(crate) fn forge(&self, id: &SpiffeId, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let ca_key = KeyPair::from_pem(&self.ca.key_pem()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(self.ca.certificate_pem(), ca_key).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "forged");
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![purpose];
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Identity::from_pem(&leaf.pem(), &key.serialize_pem()).unwrap()
    }

    /// Takes the next client at the door.
    pub(crate) async fn admit(&self) -> Result<Admitted, AdmissionError> {
        let incoming = within(self.coordinator.accept()).await.unwrap();
        within(self.admission.admit(incoming)).await
    }

    /// Both ends of a fresh connection of `node`: the agent's and the coordinator's.
    pub(crate) async fn connected(&self, node: &str) -> (Connection, Connection) {
        let identity = self.agent(node);
        let (agent, admitted) = tokio::join!(self.dial(&identity), self.admit());
        match admitted.unwrap() {
            Admitted::Agent { connection, .. } => (agent.unwrap(), connection),
            Admitted::Enrolment { .. } => panic!("an agent was taken for an enrolling node"),
        }
    }

    /// Dials this fleet's coordinator, trusting its CA.
    pub(crate) async fn dial(&self, identity: &Identity) -> Result<Connection, Closed> {
        let config = agent_config(identity, self.ca.certificate()).unwrap();
        dial(self.address(), config).await
    }
}

/// A server with any identity.
pub(crate) fn serve(identity: &Identity, ca: &FleetCa) -> Endpoint {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    coordinator_endpoint(socket, identity, ca.certificate())
        .unwrap()
        .quic
}

pub(crate) async fn dial(
    address: SocketAddr,
    config: quinn::ClientConfig,
) -> Result<Connection, Closed> {
    use rollcall_transport::endpoint::ConnectError;
    let endpoint = agent_endpoint(LOOPBACK).unwrap();
    within(connect(&endpoint.quic, config, address))
        .await
        .map_err(|error| match error {
            ConnectError::Handshake(closed) => closed,
            ConnectError::Dial(error) => panic!("{error}"),
        })
}

/// A client configuration around any TLS.
pub(crate) fn quic(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// How the peer ended a connection.
pub(crate) async fn ending(connection: &Connection) -> Closed {
    within(connection.closed()).await.into()
}

/// Fails a test that hangs.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("nothing happened for 20 s")
}

pub(crate) fn now() -> Timestamp {
    Clock::start(Timestamp::ZERO).now()
}
