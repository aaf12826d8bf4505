//! Certificates with their keys, and what a peer's certificate says.

use std::fmt;
use std::time::Duration;

use quinn::Connection;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{FleetName, NodeId};
use rollcall_shared::time::Timestamp;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::spiffe::{SpiffeError, SpiffeId};
use crate::tls;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is not the PEM that was expected.
    #[error("no {expected} in the PEM text")]
    Pem {
        /// What was looked for.
        expected: &'static str,
        /// What the reader says.
        source: pem::Error,
    },
    /// The certificate and the key do not belong together, or the key is unusable.
    #[error("the private key does not fit the certificate")]
    Key(#[source] rustls::Error),
    /// The certificate carries no name of ours.
    #[error(transparent)]
    Name(#[from] SpiffeError),
    /// The certificate is someone else's.
    #[error("the certificate is of {found}, not of {expected}")]
    Unexpected {
        /// Who it speaks for.
        found: SpiffeId,
        /// Who was wanted.
        expected: String,
    },
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    Missing,
    /// A certificate signing request that cannot be honoured.
    #[error("the certificate signing request is refused: {0}")]
    Request(String),
    /// A host that cannot stand in a certificate.
    #[error("{host:?} is neither a DNS name nor an IP address")]
    Host {
        /// The host.
        host: String,
    },
    /// Making a key or a certificate failed.
    #[error("cannot make a certificate")]
    Making(#[from] rcgen::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Randomness,
}

/// A certificate chain and its private key: what one end shows the other.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: String,
}

impl Identity {
    /// From PEM text: the leaf first, then any further certificates; a PKCS#8 key.
    /// Any key that ring can use is accepted, so that an operator's own
    /// certificate can serve HTTPS; what we issue is Ed25519.
    ///
    /// # Errors
    /// When either text is not PEM, or the key does not fit the leaf.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let pem_error = |expected| move |source| IdentityError::Pem { expected, source };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(pem_error("certificate"))?;
        if chain.is_empty() {
            return Err(pem_error("certificate")(pem::Error::NoItemsFound));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(pem_error("private key"))?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &tls::provider())
            .map_err(IdentityError::Key)?;
        Ok(Self {
            chain,
            key,
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// The chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    #[must_use]
    pub const fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The chain as it was read.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key as it was read: secret.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Fingerprint of the leaf.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        certificate_fingerprint(&self.chain[0])
    }

    /// Whom the leaf names.
    ///
    /// # Errors
    /// When it carries no name of ours.
    pub fn name(&self) -> Result<SpiffeId, IdentityError> {
        Ok(SpiffeId::of_certificate(&self.chain[0])?)
    }

    /// When the leaf stops being valid.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn expires(&self) -> Result<Timestamp, IdentityError> {
        certificate_expiry(&self.chain[0])
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            chain_pem: self.chain_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, secret)", self.fingerprint().short())
    }
}

/// A fresh Ed25519 key made on a node, and the request that asks for its certificate.
pub struct AgentKey {
    /// The private key, PKCS#8 PEM: secret, never leaves the node.
    pub key_pem: String,
    /// The certificate signing request, DER. It names nobody: the coordinator
    /// decides everything but the public key.
    pub csr: Vec<u8>,
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentKey(secret)")
    }
}

/// Makes a key for an agent.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn new_agent_key() -> Result<AgentKey, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?;
    Ok(AgentKey {
        key_pem: key.serialize_pem(),
        csr: csr.der().to_vec(),
    })
}

/// BLAKE3 of a certificate's DER bytes: how certificates are pinned and revoked.
#[must_use]
pub fn certificate_fingerprint(der: &[u8]) -> Digest {
    Digest::of(der)
}

/// When a certificate stops being valid.
///
/// # Errors
/// When it cannot be read.
pub fn certificate_expiry(der: &CertificateDer<'_>) -> Result<Timestamp, IdentityError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| SpiffeError::NotACertificate)?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(Timestamp::ZERO + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The certificate that the peer proved to hold, if it sent one.
#[must_use]
pub fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?
        .first()
        .cloned()
}

/// The name of the agent at the other end, from its verified certificate.
///
/// # Errors
/// When the peer sent none, or one that names no agent of `fleet`.
pub fn peer_node(connection: &Connection, fleet: &FleetName) -> Result<NodeId, IdentityError> {
    let certificate = peer_certificate(connection).ok_or(IdentityError::Missing)?;
    agent_name(&certificate, fleet)
}

/// The agent that a certificate names.
pub(crate) fn agent_name(
    certificate: &CertificateDer<'_>,
    fleet: &FleetName,
) -> Result<NodeId, IdentityError> {
    match SpiffeId::of_certificate(certificate)? {
        SpiffeId::Agent(of, node) if of == *fleet => Ok(node),
        found => Err(IdentityError::Unexpected {
            found,
            expected: format!("an agent of fleet {fleet}"),
        }),
    }
}
