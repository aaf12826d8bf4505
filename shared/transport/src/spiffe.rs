//! Names in certificates, as SPIFFE IDs.
//!
//! `spiffe://<fleet>` names the fleet's authority, `spiffe://<fleet>/coordinator`
//! its coordinator and `spiffe://<fleet>/agent/<node>` one of its agents. A
//! certificate carries exactly one URI, as the SPIFFE X.509-SVID standard asks:
//! two would let a reader choose.

use std::fmt;
use std::str::FromStr;

use rollcall_shared::ids::{FleetName, NodeId};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// Who a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpiffeId {
    /// The fleet's certificate authority.
    Authority(FleetName),
    /// The fleet's coordinator.
    Coordinator(FleetName),
    /// One of the fleet's agents.
    Agent(FleetName, NodeId),
}

/// There is no Rollcall name to be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The bytes are not one X.509 certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// The certificate has no URI among its alternative names, or several.
    #[error("the certificate has {count} URI names instead of one")]
    NotOneUri {
        /// How many it has.
        count: usize,
    },
    /// The URI is not one of ours.
    #[error("{uri:?} names no fleet, coordinator or agent")]
    Unknown {
        /// What the certificate says.
        uri: String,
    },
}

impl SpiffeId {
    /// The name that a certificate carries. Who vouches for it is not checked here.
    ///
    /// # Errors
    /// When the certificate does not carry exactly one of our names.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, SpiffeError> {
        let (rest, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| SpiffeError::NotACertificate)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| SpiffeError::NotACertificate)?;
        if !rest.is_empty() {
            return Err(SpiffeError::NotACertificate);
        }
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris[..] {
            [uri] => uri.parse(),
            _ => Err(SpiffeError::NotOneUri { count: uris.len() }),
        }
    }

    /// The fleet that the name belongs to.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        match self {
            Self::Authority(fleet) | Self::Coordinator(fleet) | Self::Agent(fleet, _) => fleet,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(fleet) => write!(f, "spiffe://{fleet}"),
            Self::Coordinator(fleet) => write!(f, "spiffe://{fleet}/coordinator"),
            Self::Agent(fleet, node) => write!(f, "spiffe://{fleet}/agent/{node}"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let read = || {
            let mut parts = uri.strip_prefix("spiffe://")?.split('/');
            let fleet = FleetName::new(parts.next()?).ok()?;
            match (parts.next(), parts.next(), parts.next()) {
                (None, None, None) => Some(Self::Authority(fleet)),
                (Some("coordinator"), None, None) => Some(Self::Coordinator(fleet)),
                (Some("agent"), Some(node), None) => {
                    Some(Self::Agent(fleet, NodeId::new(node).ok()?))
                }
                _ => None,
            }
        };
        read().ok_or_else(|| SpiffeError::Unknown {
            uri: uri.chars().take(200).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_it_prints() {
        let fleet = FleetName::new("payments").unwrap();
        let node = NodeId::new("node-4").unwrap();
        for id in [
            SpiffeId::Authority(fleet.clone()),
            SpiffeId::Coordinator(fleet.clone()),
            SpiffeId::Agent(fleet, node),
        ] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for uri in [
            "",
            "spiffe://",
            "spiffe://payments/",
            "spiffe://payments/coordinator/",
            "spiffe://payments/agent",
            "spiffe://payments/agent/",
            "spiffe://payments/agent/../coordinator",
            "spiffe://payments/agent/n/x",
            "spiffe://Payments/coordinator",
            "https://payments/coordinator",
        ] {
            assert!(uri.parse::<SpiffeId>().is_err(), "{uri:?} was accepted");
        }
    }
}
