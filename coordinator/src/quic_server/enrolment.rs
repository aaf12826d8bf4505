//! A node's first certificate, for a one-time token; later ones for the certificate before.
//!
//! The core takes the node into the fleet (durably) before anything is signed. A
//! node that lost the answer asks again with the same token, name and key and is
//! answered the same way.

use quinn::Connection;
use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::{Actor, Command};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::NodeId;
use rollcall_shared::signing::PublicKey;
use rollcall_shared::wire::{EnrollAnswer, EnrollRequest};
use rollcall_transport::ca::FleetCa;
use rollcall_transport::enroll::serve_enrolment;
use rollcall_transport::token::EnrolmentToken;

use super::public_key;
use crate::credentials::{hex, random};
use crate::driver::CoreHandle;

/// Signs certificates.
pub struct Enrolment {
    ca: FleetCa,
    registry_key: PublicKey,
}

impl Enrolment {
    /// Signs with `ca`, and tells nodes the key that checks manifests.
    #[must_use]
    pub const fn new(ca: FleetCa, registry_key: PublicKey) -> Self {
        Self { ca, registry_key }
    }

    /// Fingerprint of the CA, for enrolment tokens.
    #[must_use]
    pub fn pin(&self) -> Digest {
        self.ca.fingerprint()
    }

    /// Serves one enrolment.
    pub async fn serve(
        &self,
        connection: &Connection,
        renewing: Option<NodeId>,
        core: &CoreHandle,
    ) {
        let from = connection.remote_address();
        let decide = async |request: EnrollRequest| {
            let answer = self.decide(request, renewing, core).await;
            match &answer {
                EnrollAnswer::Enrolled { node, .. } => tracing::info!(%from, node, "enrolled"),
                EnrollAnswer::Refused { reason } => {
                    tracing::warn!(%from, reason, "an enrolment was refused");
                }
            }
            answer
        };
        if let Err(error) = serve_enrolment(connection, decide).await {
            tracing::info!(%from, %error, "an enrolment broke off");
        }
    }

    async fn decide(
        &self,
        request: EnrollRequest,
        renewing: Option<NodeId>,
        core: &CoreHandle,
    ) -> EnrollAnswer {
        let Some(key) = public_key::of_request(&request.csr) else {
            return refused("the signing request cannot be read; enrol again with a fresh key");
        };
        let allowed = match renewing {
            Some(node) if request.token.is_empty() => renew(node, key, core).await,
            Some(_) | None => take_in(&request, key, core).await,
        };
        match allowed {
            Ok(node) => self.sign(&request.csr, &node, core),
            Err(reason) => EnrollAnswer::Refused { reason },
        }
    }

    fn sign(&self, csr: &[u8], node: &NodeId, core: &CoreHandle) -> EnrollAnswer {
        match self.ca.issue_agent_from_csr(csr, node, core.clock().now()) {
            Ok(issued) => EnrollAnswer::Enrolled {
                node: node.to_string(),
                fleet: self.ca.certificate().fleet().to_string(),
                certificate: issued.pem,
                ca: self.ca.certificate_pem().to_owned(),
                registry_key: self.registry_key.to_string(),
            },
            Err(error) => EnrollAnswer::Refused {
                reason: error.to_string(),
            },
        }
    }
}

fn refused(reason: &str) -> EnrollAnswer {
    EnrollAnswer::Refused {
        reason: reason.to_owned(),
    }
}

/// A node with a valid certificate gets another for the key that it enrolled with.
async fn renew(node: NodeId, key: Digest, core: &CoreHandle) -> Result<NodeId, String> {
    let name = node.clone();
    core.ask(move |core, _| core.node_may_connect(&name, key))
        .await
        .map_err(|gone| gone.to_string())??;
    Ok(node)
}

async fn take_in(
    request: &EnrollRequest,
    key: Digest,
    core: &CoreHandle,
) -> Result<NodeId, String> {
    let token: EnrolmentToken = request
        .token
        .parse()
        .map_err(|error| format!("{error}; `rollcall token create --kind agent` makes one"))?;
    let node = if request.node.is_empty() {
        let suffix = random::<4>().map_err(|error| error.to_string())?;
        NodeId::new(format!("node-{}", hex(&suffix)))
    } else {
        NodeId::new(&request.node)
    }
    .map_err(|error| error.to_string())?;
    let command = Command::Enroll {
        token: token.credential.id().to_owned(),
        secret_hash: token.credential.secret_hash(),
        node: node.clone(),
        labels: request.labels.clone(),
        key,
    };
    match core.command(Actor::Agent { node }, command).await {
        Ok(Ok(Done::Enrolled { node })) => Ok(node),
        Ok(Ok(other)) => Err(format!(
            "the coordinator answered with {other:?}; report this"
        )),
        Ok(Err(refusal)) => Err(refusal.to_string()),
        Err(gone) => Err(gone.to_string()),
    }
}
