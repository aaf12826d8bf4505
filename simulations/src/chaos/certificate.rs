//! A node whose certificate ends: it is not let in any more, goes on serving, and disturbs
//! nobody.

use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rollcall_shared::ids::NodeId;
use rollcall_shared::time::Timestamp;
use rollcall_transport::ca::FleetCa;
use rollcall_transport::clock::Clock;

use super::ground::{Ground, Node};

/// The same key, certified until `lasts` from now.
fn short_lived(ground: &Ground, node: &Node, lasts: Duration) -> Result<String> {
    let read = |name: &str| std::fs::read_to_string(ground.coordinator_dir().join(name));
    let ca = FleetCa::from_pem(&read("ca.pem")?, &read("ca.key")?)?;
    let key = KeyPair::from_pem(&std::fs::read_to_string(node.dir.join("node.key"))?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?;
    let (csr, name) = (csr.der(), NodeId::new(node.name.clone())?);
    let now = Clock::start(Timestamp::ZERO).now();
    let usual = ca.issue_agent_from_csr(csr, &name, now)?;
    let validity = usual.expires.since(now);
    let issued = ca.issue_agent_from_csr(csr, &name, now - validity + lasts)?;
    Ok(issued.pem)
}

/// Gives a node a certificate that ends, lets it end, and connects the node anew: for
/// `shut_out` it must stay outside. Then it gets its old one back.
pub(super) async fn expire(
    ground: &Ground,
    index: usize,
    good_for: Duration,
    shut_out: Duration,
) -> Result<()> {
    let node = &ground.nodes[index];
    let _turn = node.process.lock().await;
    let path = node.dir.join("node.pem");
    let usual = std::fs::read_to_string(&path).context("the node has no certificate")?;
    ground.kill_agent(node);
    std::fs::write(&path, short_lived(ground, node, good_for)?)?;
    ground.start_agent(node)?;
    // What is under way when it ends goes on; only a new handshake looks at it. A
    // certificate counts whole seconds, the last one included.
    tokio::time::sleep(good_for + Duration::from_secs(2)).await;
    ground.kill_agent(node);
    // A coordinator forgets the dead connection after its idle time-out, not before.
    let gone = async {
        while ground
            .connected()
            .await
            .is_none_or(|nodes| nodes.contains(&node.name))
        {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let forgotten = tokio::time::timeout(Duration::from_secs(15), gone).await;
    ground.start_agent(node)?;
    super::faults::until_up(ground, node).await;
    let end = ground.now() + shut_out;
    while forgotten.is_ok() && ground.now() < end {
        if ground
            .connected()
            .await
            .is_some_and(|nodes| nodes.contains(&node.name))
        {
            ground.incident(
                5,
                format!("{} was let in with a certificate that has ended", node.name),
            );
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ground.kill_agent(node);
    std::fs::write(&path, usual)?;
    ground.start_agent(node)
}
