//! How a coordinator is recognised.
//!
//! Agents dial an address, so a host name says nothing. What counts is that the
//! fleet's authority vouches for the certificate, that it may serve, and that it
//! names the coordinator: another agent's certificate, or another service's of
//! the same authority, does not do. Chain and handshake signatures are checked by
//! webpki; only the *name* check is ours.

use std::fmt;
use std::sync::Arc;

use rollcall_shared::digest::Digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};

use crate::ca::CaCertificate;
use crate::identity::{IdentityError, certificate_fingerprint};
use crate::spiffe::SpiffeId;
use crate::tls;

/// What a client knows of the fleet before it connects.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The authority's certificate.
    Ca(CaCertificate),
    /// Its fingerprint only, from a token: the server must send the certificate.
    Pin(Digest),
}

/// The server's chain does not hold the authority that the token names.
#[derive(thiserror::Error)]
#[error("the server does not belong to the fleet with CA fingerprint {pin}")]
struct PinNotFound {
    pin: Digest,
}

/// rustls shows the cause of a refused certificate by its `Debug`, so that is for people too.
impl fmt::Debug for PinNotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Accepts the coordinator of one fleet, and nobody else.
#[derive(Debug)]
pub(crate) struct CoordinatorVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl CoordinatorVerifier {
    pub(crate) fn new(trust: Trust) -> Arc<Self> {
        Arc::new(Self {
            trust,
            algorithms: tls::provider().signature_verification_algorithms,
        })
    }

    /// The authority to check against.
    fn authority(&self, sent: &[CertificateDer<'_>]) -> Result<CaCertificate, rustls::Error> {
        match &self.trust {
            Trust::Ca(certificate) => Ok(certificate.clone()),
            Trust::Pin(pin) => {
                let found = sent
                    .iter()
                    .find(|der| certificate_fingerprint(der) == *pin)
                    .ok_or_else(|| refusal(PinNotFound { pin: *pin }))?;
                CaCertificate::from_der(found.clone().into_owned()).map_err(refusal)
            }
        }
    }
}

impl ServerCertVerifier for CoordinatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = self.authority(intermediates)?;
        // Chain, validity and the purpose "server".
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &authority.roots()?,
            &[],
            now,
            self.algorithms.all,
        )?;
        let found = SpiffeId::of_certificate(end_entity).map_err(refusal)?;
        let expected = SpiffeId::Coordinator(authority.fleet().clone());
        if found != expected {
            return Err(refusal(IdentityError::Unexpected {
                found,
                expected: expected.to_string(),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn refusal(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}
