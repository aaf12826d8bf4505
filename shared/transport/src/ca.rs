//! The fleet's certificate authority: one Ed25519 key that vouches for the
//! coordinator and for every agent.
//!
//! An agent's request contributes its public key and nothing else; name, purpose
//! and validity are decided here. Certificates begin a day before they are made,
//! because a node whose clock is behind must be able to come in. Revocation is
//! not by CRL (rustls fixes those when a configuration is built) but by
//! fingerprint, in [`crate::admission`].

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{FleetName, NodeId};
use rollcall_shared::time::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::identity::{Identity, IdentityError, certificate_fingerprint};
use crate::spiffe::{SpiffeError, SpiffeId};

const DAY: Duration = Duration::from_secs(24 * 3_600);
/// How far a certificate's beginning lies before its making.
const BACKDATED: Duration = DAY;
/// How long the coordinator's and the agents' certificates last.
const LEAF_VALIDITY: Duration = DAY.saturating_mul(366);
/// How long the authority's certificate lasts.
const CA_VALIDITY: Duration = DAY.saturating_mul(3_660);
/// An Ed25519 request has about 200 bytes. Longer: refused unread.
const CSR_BYTES_MAX: usize = 4_096;

/// The authority's certificate: what everyone in the fleet trusts. Not secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    fleet: FleetName,
}

impl CaCertificate {
    /// From PEM text.
    ///
    /// # Errors
    /// When the text holds no certificate of a fleet's authority.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|source| {
            IdentityError::Pem {
                expected: "CA certificate",
                source,
            }
        })?;
        Self::from_der(der)
    }

    /// From DER bytes.
    ///
    /// # Errors
    /// When they are not a certificate of a fleet's authority.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, IdentityError> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| SpiffeError::NotACertificate)?;
        let found = SpiffeId::of_certificate(&der)?;
        match found {
            SpiffeId::Authority(fleet) if parsed.is_ca() => Ok(Self { der, fleet }),
            SpiffeId::Authority(_) | SpiffeId::Coordinator(_) | SpiffeId::Agent(..) => {
                Err(IdentityError::Unexpected {
                    found,
                    expected: "a fleet's authority".to_owned(),
                })
            }
        }
    }

    /// BLAKE3 of the DER bytes; what an enrolment token carries.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        certificate_fingerprint(&self.der)
    }

    /// The fleet.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// The DER bytes.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The one root to trust.
    pub(crate) fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone())?;
        Ok(roots)
    }
}

/// A certificate that was just issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub pem: String,
    /// Its fingerprint: what to revoke it by.
    pub fingerprint: Digest,
    /// When it stops being valid.
    pub expires: Timestamp,
}

/// The authority with its key.
pub struct FleetCa {
    certificate: CaCertificate,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl FleetCa {
    /// Makes the authority of a new fleet.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate(fleet: &FleetName, now: Timestamp) -> Result<Self, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let name = format!("rollcall fleet {fleet}");
        let mut params = params(&name, &SpiffeId::Authority(fleet.clone()), now, CA_VALIDITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: CaCertificate::from_der(certificate.der().clone())?,
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// From the PEM texts of the certificate and of the key.
    ///
    /// # Errors
    /// When they are not an authority's, or do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let certificate = CaCertificate::from_pem(certificate_pem)?;
        Identity::from_pem(certificate_pem, key_pem)?;
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate.der, key)?,
            pem: certificate_pem.to_owned(),
            certificate,
        })
    }

    /// The certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// The certificate as PEM text.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The private key as PKCS#8 PEM text: the fleet's greatest secret.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// See [`CaCertificate::fingerprint`].
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        self.certificate.fingerprint()
    }

    /// Makes a key and a certificate for the coordinator, reachable at `hosts`
    /// (DNS names or IP addresses, for HTTPS clients). The chain ends with the
    /// authority's certificate: an enrolling node recognises that by its pin.
    ///
    /// # Errors
    /// When a host cannot stand in a certificate.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<Identity, IdentityError> {
        let id = SpiffeId::Coordinator(self.certificate.fleet.clone());
        let mut params = params("rollcall coordinator", &id, now, LEAF_VALIDITY)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Identity::from_pem(&format!("{}{}", leaf.pem(), self.pem), &key.serialize_pem())
    }

    /// Certifies that the key in a request is `node`'s. The request's signature
    /// proves that whoever asks holds the key; its other contents are ignored.
    ///
    /// # Errors
    /// When the request cannot be read, is not Ed25519, or its signature is false.
    pub fn issue_agent_from_csr(
        &self,
        csr: &[u8],
        node: &NodeId,
        now: Timestamp,
    ) -> Result<Issued, IdentityError> {
        if csr.len() > CSR_BYTES_MAX {
            return Err(IdentityError::Request(format!(
                "{} bytes are over the bound of {CSR_BYTES_MAX}",
                csr.len()
            )));
        }
        let request = CertificateSigningRequestParams::from_der(&csr.into())
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        if PublicKeyData::algorithm(&request.public_key) != &PKCS_ED25519 {
            return Err(IdentityError::Request("the key is not Ed25519".to_owned()));
        }
        let id = SpiffeId::Agent(self.certificate.fleet.clone(), node.clone());
        let mut params = params(node.as_str(), &id, now, LEAF_VALIDITY)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(Issued {
            pem: leaf.pem(),
            fingerprint: certificate_fingerprint(leaf.der()),
            expires: crate::identity::certificate_expiry(leaf.der())?,
        })
    }
}

impl fmt::Debug for FleetCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetCa({}, secret)", self.certificate.fleet)
    }
}

/// What all our certificates have in common.
fn params(
    common_name: &str,
    id: &SpiffeId,
    now: Timestamp,
    validity: Duration,
) -> Result<CertificateParams, IdentityError> {
    let begin = now - BACKDATED;
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + begin.since(Timestamp::ZERO);
    params.not_after = epoch + (now + validity).since(Timestamp::ZERO);
    params.serial_number = Some(serial_number()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 126 random bits, always 16 bytes long in DER: certificates of one kind then
/// have one length, which keeps simulated networks reproducible.
fn serial_number() -> Result<SerialNumber, IdentityError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| IdentityError::Randomness)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn host_name(host: &str) -> Result<SanType, IdentityError> {
    let refused = || IdentityError::Host {
        host: host.to_owned(),
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    rustls::pki_types::DnsName::try_from(host).map_err(|_| refused())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| refused())?))
}

#[cfg(test)]
#[path = "ca/tests.rs"]
mod tests;
