//! TLS configurations: version 1.3, ring, full handshakes only.
//!
//! No resumption and no 0-RTT anywhere: a resumed session skips the certificate
//! verifiers, so a revoked node could come back on an old ticket. Reconnects cost
//! one Ed25519 signature more, of which one core makes thousands a second.

use std::sync::Arc;

use rollcall_shared::wire::{ALPN, ALPN_ENROLL};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::ca::CaCertificate;
use crate::identity::Identity;
use crate::verifier::{CoordinatorVerifier, Trust};

/// ALPN of the coordinator's HTTPS side.
const ALPN_HTTP: &[u8] = b"http/1.1";

/// A configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses it, e.g. because a key does not fit.
    #[error("TLS refuses the identity")]
    Rustls(#[from] rustls::Error),
    /// The authority's certificate cannot check clients.
    #[error("the CA certificate cannot be used to check clients")]
    ClientVerifier(#[from] rustls::server::VerifierBuilderError),
    /// The provider lacks the cipher that QUIC begins with.
    #[error("the TLS provider lacks QUIC's initial cipher suite")]
    InitialCipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The one provider. Named at every use: with a second one in the dependency tree
/// rustls' own default panics.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The coordinator's QUIC side. Asks every client for a certificate and checks it
/// against the fleet's authority, but lets clients without one finish the
/// handshake: a node that enrols has none yet. [`crate::admission`] turns such a
/// client away from everything but enrolment.
///
/// # Errors
/// When the identity or the authority's certificate is unusable.
pub fn coordinator_tls(identity: &Identity, ca: &CaCertificate) -> Result<ServerConfig, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()?), provider())
        .allow_unauthenticated()
        .clear_root_hint_subjects()
        .build()?;
    // Enrolling nodes look for the authority's certificate in the chain.
    let mut chain = identity.chain().to_vec();
    if !chain.contains(ca.der()) {
        chain.push(ca.der().clone());
    }
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, identity.key().clone_key())?;
    Ok(full_handshakes_only(config, &[ALPN, ALPN_ENROLL]))
}

/// The coordinator's HTTPS side: HTTP/1.1, no client certificates (operators show
/// tokens). The identity may be the coordinator's own, or one from the operator's
/// own authority for browsers, which do not accept Ed25519 certificates.
///
/// # Errors
/// When the identity is unusable.
pub fn https_server_tls(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain().to_vec(), identity.key().clone_key())?;
    Ok(full_handshakes_only(config, &[ALPN_HTTP]))
}

/// An agent's QUIC side: shows its certificate, accepts its fleet's coordinator.
///
/// # Errors
/// When the identity is unusable.
pub fn agent_tls(identity: &Identity, ca: &CaCertificate) -> Result<ClientConfig, TlsError> {
    client_tls(Trust::Ca(ca.clone()), Some(identity), ALPN)
}

/// The QUIC side of a node that enrols. `renewing`: it has a certificate already
/// and shows it.
///
/// # Errors
/// When the identity is unusable.
pub fn enroll_tls(trust: Trust, renewing: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    client_tls(trust, renewing, ALPN_ENROLL)
}

/// An HTTPS client that accepts its fleet's coordinator at whatever address.
///
/// # Errors
/// None in practice.
pub fn https_client_tls(trust: Trust) -> Result<ClientConfig, TlsError> {
    client_tls(trust, None, ALPN_HTTP)
}

fn client_tls(
    trust: Trust,
    identity: Option<&Identity>,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(CoordinatorVerifier::new(trust));
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(identity.chain().to_vec(), identity.key().clone_key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // A coordinator is known by its certificate's name; the host would only tell onlookers.
    config.enable_sni = false;
    Ok(config)
}

fn full_handshakes_only(mut config: ServerConfig, alpn: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    assert!(!config.ticketer.enabled(), "tickets would allow resumption");
    config
}

#[cfg(test)]
mod tests {
    use rollcall_shared::ids::FleetName;
    use rollcall_shared::time::Timestamp;

    use super::*;
    use crate::ca::FleetCa;

    #[test]
    fn neither_end_offers_resumption_or_early_data() {
        let ca = FleetCa::generate(&FleetName::new("payments").unwrap(), Timestamp::ZERO).unwrap();
        let identity = ca.issue_server(&[], Timestamp::ZERO).unwrap();
        for server in [
            coordinator_tls(&identity, ca.certificate()).unwrap(),
            https_server_tls(&identity).unwrap(),
        ] {
            assert_eq!(server.max_early_data_size, 0);
            assert_eq!(server.send_tls13_tickets, 0);
            assert!(!server.session_storage.can_cache());
        }
        let client = enroll_tls(Trust::Pin(ca.fingerprint()), None).unwrap();
        assert!(!client.enable_early_data);
        assert!(!client.enable_sni);
    }
}
