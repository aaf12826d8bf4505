//! The coordinator's door: who gets past it after the handshake.
//!
//! TLS has already checked whatever certificate a client sent. Here: an agent's
//! connection needs one, it must name an agent of this fleet, and it must not be
//! revoked. Whoever is turned away is told why, with [`CloseCode::Refused`] or
//! [`CloseCode::Revoked`].
//!
//! Revoking does not touch connections that are already in: whoever revokes also
//! closes those of the same certificate.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::{Connection, Incoming};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{FleetName, NodeId};
use rollcall_shared::wire::{ALPN, ALPN_ENROLL};

use crate::close::{CloseCode, Closed, close};
use crate::endpoint::{HANDSHAKE_TIMEOUT, alpn};
use crate::identity::{IdentityError, agent_name, certificate_fingerprint, peer_certificate};

/// The longest that a handshake may wait for its turn: the client still has time for two
/// slow round trips before it gives up.
pub const WAIT_MAX: Duration = Duration::from_secs(8);
const _: () = assert!(WAIT_MAX.as_secs() + 2 <= HANDSHAKE_TIMEOUT.as_secs());

/// Fingerprints of certificates that count no more. Copies share one set; readers
/// never wait.
#[derive(Clone, Debug, Default)]
pub struct RevokedCertificates(Arc<ArcSwap<BTreeSet<Digest>>>);

impl RevokedCertificates {
    /// A set to begin with.
    #[must_use]
    pub fn new(fingerprints: BTreeSet<Digest>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(fingerprints)))
    }

    /// Adds one, for every copy at once. `false`: it was there.
    pub fn revoke(&self, fingerprint: Digest) -> bool {
        let before = self.0.rcu(|set| {
            let mut set = BTreeSet::clone(set);
            set.insert(fingerprint);
            set
        });
        !before.contains(&fingerprint)
    }

    /// Whether a certificate was revoked.
    #[must_use]
    pub fn contains(&self, fingerprint: &Digest) -> bool {
        self.0.load().contains(fingerprint)
    }
}

/// Who came in.
#[derive(Debug)]
pub enum Admitted {
    /// An agent.
    Agent {
        /// Its connection.
        connection: Connection,
        /// Its name, from its certificate.
        node: NodeId,
        /// Its certificate: what to close it by when that is revoked.
        certificate: Digest,
    },
    /// A node that wants an identity.
    Enrolment {
        /// Its connection.
        connection: Connection,
        /// Who it already is, by a valid certificate of this fleet: it asks for a new one.
        renewing: Option<NodeId>,
    },
}

/// Why someone did not come in.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The handshake failed.
    #[error("handshake failed: {0}")]
    Handshake(Closed),
    /// The handshake took longer than [`HANDSHAKE_TIMEOUT`].
    #[error("the handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    TimedOut,
    /// The certificate is missing or not an agent's of this fleet.
    #[error("refused: {0}")]
    Refused(IdentityError),
    /// The certificate was revoked.
    #[error("the certificate {} of {node} was revoked", certificate.short())]
    Revoked {
        /// Whose it was.
        node: NodeId,
        /// Its fingerprint.
        certificate: Digest,
    },
    /// Neither an agent's protocol nor enrolment; TLS lets nothing else through.
    #[error("the client speaks another protocol")]
    Protocol,
}

/// What the door goes by.
#[derive(Clone, Debug)]
pub struct Admission {
    fleet: FleetName,
    revoked: RevokedCertificates,
}

impl Admission {
    /// A door for `fleet`. `revoked` may go on growing elsewhere.
    #[must_use]
    pub const fn new(fleet: FleetName, revoked: RevokedCertificates) -> Self {
        Self { fleet, revoked }
    }

    /// Finishes one handshake and decides. Run it in a task of its own: a slow
    /// client must not keep others waiting.
    ///
    /// After registering the connection, look at the revoked set once more: a
    /// revocation may fall between this check and the registration.
    ///
    /// # Errors
    /// When the client does not come in; it has been told.
    pub async fn admit(&self, incoming: Incoming) -> Result<Admitted, AdmissionError> {
        let lost = |error: quinn::ConnectionError| AdmissionError::Handshake(error.into());
        let connecting = incoming.accept().map_err(lost)?;
        let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| AdmissionError::TimedOut)?
            .map_err(lost)?;
        self.decide(&connection)
            .inspect_err(|error| turn_away(&connection, error))
    }

    fn decide(&self, connection: &Connection) -> Result<Admitted, AdmissionError> {
        let agent = self.agent(connection)?;
        let connection = connection.clone();
        match (alpn(&connection).as_deref(), agent) {
            (Some(ALPN), Some((node, certificate))) => Ok(Admitted::Agent {
                connection,
                node,
                certificate,
            }),
            (Some(ALPN), None) => Err(AdmissionError::Refused(IdentityError::Missing)),
            (Some(ALPN_ENROLL), agent) => Ok(Admitted::Enrolment {
                connection,
                renewing: agent.map(|(node, _)| node),
            }),
            (Some(_) | None, _) => Err(AdmissionError::Protocol),
        }
    }

    /// The agent that the client proved to be; `None`: it sent no certificate.
    fn agent(&self, connection: &Connection) -> Result<Option<(NodeId, Digest)>, AdmissionError> {
        let Some(der) = peer_certificate(connection) else {
            return Ok(None);
        };
        let node = agent_name(&der, &self.fleet).map_err(AdmissionError::Refused)?;
        let certificate = certificate_fingerprint(&der);
        if self.revoked.contains(&certificate) {
            return Err(AdmissionError::Revoked { node, certificate });
        }
        Ok(Some((node, certificate)))
    }
}

fn turn_away(connection: &Connection, error: &AdmissionError) {
    let code = match error {
        AdmissionError::Revoked { .. } => CloseCode::Revoked,
        AdmissionError::Refused(_) | AdmissionError::Protocol => CloseCode::Refused,
        AdmissionError::Handshake(_) | AdmissionError::TimedOut => return,
    };
    close(connection, code, &error.to_string());
}
