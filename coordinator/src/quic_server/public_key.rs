//! How nodes are recognised: by the BLAKE3 digest of their public key, as DER
//! `SubjectPublicKeyInfo`. It is recorded at enrolment, and stays the same when a
//! certificate is renewed for the same key.

use rollcall_shared::digest::Digest;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Digest of the key in a signing request; `None`: it is not one.
#[must_use]
pub fn of_request(csr: &[u8]) -> Option<Digest> {
    let (_, request) = X509CertificationRequest::from_der(csr).ok()?;
    Some(Digest::of(
        request.certification_request_info.subject_pki.raw,
    ))
}

/// Digest of the key in a certificate; `None`: it is not one.
#[must_use]
pub fn of_certificate(der: &[u8]) -> Option<Digest> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(Digest::of(certificate.public_key().raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollcall_shared::ids::{FleetName, NodeId};
    use rollcall_shared::time::Timestamp;
    use rollcall_transport::ca::FleetCa;
    use rollcall_transport::identity::{Identity, new_agent_key};

    #[test]
    fn a_certificate_has_the_key_of_the_request_it_was_issued_for() {
        let fleet = FleetName::new("payments").unwrap();
        let ca = FleetCa::generate(&fleet, Timestamp::ZERO).unwrap();
        let (key, other) = (new_agent_key().unwrap(), new_agent_key().unwrap());
        let node = NodeId::new("node-1").unwrap();
        let issued = ca
            .issue_agent_from_csr(&key.csr, &node, Timestamp::ZERO)
            .unwrap();
        let identity = Identity::from_pem(&issued.pem, &key.key_pem).unwrap();
        let digest = of_certificate(&identity.chain()[0]);
        assert!(digest.is_some());
        assert_eq!(digest, of_request(&key.csr));
        assert_ne!(digest, of_request(&other.csr));
        assert_eq!(of_request(b"no request"), None);
    }
}
