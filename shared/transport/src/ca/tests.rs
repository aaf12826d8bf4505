use rcgen::PKCS_ECDSA_P256_SHA256;

use super::*;
use crate::identity::new_agent_key;

fn now() -> Timestamp {
    "2026-01-15T16:00:00Z".parse().unwrap()
}

fn fleet() -> FleetCa {
    FleetCa::generate(&FleetName::new("payments").unwrap(), now()).unwrap()
}

fn node() -> NodeId {
    NodeId::new("node-4").unwrap()
}

#[test]
fn an_authority_read_from_pem_is_the_same_and_issues_valid_certificates() {
    let made = fleet();
    let read = FleetCa::from_pem(made.certificate_pem(), &made.key_pem()).unwrap();
    assert_eq!(read.fingerprint(), made.fingerprint());
    assert_eq!(read.certificate().fleet().as_str(), "payments");
    let identity = read.issue_server(&[], now()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&identity.chain()[0]).unwrap();
    let (_, ca) = x509_parser::parse_x509_certificate(made.certificate().der()).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(leaf.issuer(), ca.subject());
}

#[test]
fn the_key_of_another_authority_is_refused() {
    let refused = FleetCa::from_pem(fleet().certificate_pem(), &fleet().key_pem());
    assert!(matches!(refused, Err(IdentityError::Key(_))));
}

#[test]
fn an_agents_certificate_is_no_authority() {
    let ca = fleet();
    let issued = ca
        .issue_agent_from_csr(&new_agent_key().unwrap().csr, &node(), now())
        .unwrap();
    assert!(matches!(
        CaCertificate::from_pem(&issued.pem),
        Err(IdentityError::Unexpected { .. })
    ));
}

#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let ca = fleet();
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut request = CertificateParams::default();
    request.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    request.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    request.subject_alt_names = vec![SanType::URI(
        "spiffe://payments/coordinator".try_into().unwrap(),
    )];
    let csr = request.serialize_request(&key).unwrap();
    let issued = ca.issue_agent_from_csr(csr.der(), &node(), now()).unwrap();
    let identity = Identity::from_pem(&issued.pem, &key.serialize_pem()).unwrap();
    assert_eq!(
        identity.name().unwrap().to_string(),
        "spiffe://payments/agent/node-4"
    );
    let (_, leaf) = x509_parser::parse_x509_certificate(&identity.chain()[0]).unwrap();
    assert!(!leaf.is_ca());
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && !purposes.server_auth);
    assert_eq!(leaf.subject().to_string(), "CN=node-4");
    assert_eq!(issued.expires, now() + LEAF_VALIDITY);
    assert_eq!(issued.fingerprint, identity.fingerprint());
}

#[test]
fn a_request_with_a_false_signature_or_another_kind_of_key_is_refused() {
    let ca = fleet();
    let mut csr = new_agent_key().unwrap().csr;
    *csr.last_mut().unwrap() ^= 1;
    let forged = ca.issue_agent_from_csr(&csr, &node(), now());
    assert!(matches!(forged, Err(IdentityError::Request(_))));

    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&p256)
        .unwrap();
    let other = ca.issue_agent_from_csr(csr.der(), &node(), now());
    assert!(matches!(other, Err(IdentityError::Request(_))));

    let long = ca.issue_agent_from_csr(&[0; CSR_BYTES_MAX + 1], &node(), now());
    assert!(matches!(long, Err(IdentityError::Request(_))));
}

#[test]
fn hosts_stand_in_the_servers_certificate_and_bad_ones_are_refused() {
    let ca = fleet();
    let hosts = ["coordinator.example".to_owned(), "10.0.0.7".to_owned()];
    let identity = ca.issue_server(&hosts, now()).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&identity.chain()[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 3);
    assert_eq!(identity.chain()[1], *ca.certificate().der());
    assert!(matches!(
        ca.issue_server(&["no such host".to_owned()], now()),
        Err(IdentityError::Host { .. })
    ));
}

#[test]
fn certificates_of_one_kind_have_one_length() {
    let ca = fleet();
    let lengths: std::collections::BTreeSet<usize> = (0..20)
        .map(|_| ca.issue_server(&[], now()).unwrap().chain()[0].len())
        .collect();
    assert_eq!(lengths.len(), 1, "{lengths:?}");
}
