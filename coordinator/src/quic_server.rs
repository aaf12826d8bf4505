//! The agents' door: handshakes, enrolments, and one task group for each agent.
//!
//! It moves messages between connections and the core and decides nothing. Every
//! number of things that a stranger or an agent can cause has a bound here.
//!
//! | part | does |
//! | --- | --- |
//! | [`outbox`] | what waits to be written to agents |
//! | [`push`] | a withdrawal's way to everyone |
//! | `door`, `comings` | who shakes hands now, who waits, who is sent away; who comes too often |
//! | [`session`] | one agent's connection from `Hello` to its end |
//! | [`artifact`] | files for agents |
//! | [`enrolment`] | a node's first certificate |
//! | [`public_key`] | how nodes are recognised |

pub mod artifact;
mod comings;
mod door;
pub mod enrolment;
pub mod outbox;
pub mod public_key;
mod push;
mod rate;
pub mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{Connection, Endpoint, Incoming};
use rollcall_shared::ids::{ConnectionId, NodeId};
use rollcall_transport::admission::{Admission, Admitted};
use rollcall_transport::close::{CloseCode, close};
use tokio::sync::Semaphore;

use crate::artifacts::ArtifactStore;
use crate::driver::CoreHandle;
use crate::metrics::{Handshake, Metrics};
use comings::Comings;
use door::Door;
use enrolment::Enrolment;
use outbox::Agents;
use session::Ending;

/// Enrolments at the same time. Anybody can begin one, so more are turned away.
const ENROLMENTS_MAX: usize = 256;

/// What every connection needs.
pub struct Context {
    /// The core.
    pub core: CoreHandle,
    /// The ways to the agents.
    pub agents: Agents,
    /// The blobs.
    pub artifacts: ArtifactStore,
    /// Files that may be sent at the same time.
    pub artifact_streams: Semaphore,
    /// Signs certificates.
    pub enrolment: Enrolment,
    /// Who gets past the handshake.
    pub admission: Admission,
    /// Counts who comes.
    pub metrics: Metrics,
    comings: Comings,
    enrolments: Semaphore,
    connections: AtomicU64,
}

impl Context {
    /// What every connection needs.
    #[must_use]
    pub fn new(
        core: CoreHandle,
        agents: Agents,
        artifacts: ArtifactStore,
        artifact_streams_max: usize,
        enrolment: Enrolment,
        admission: Admission,
        metrics: Metrics,
    ) -> Self {
        Self {
            core,
            agents,
            artifacts,
            artifact_streams: Semaphore::new(artifact_streams_max),
            enrolment,
            admission,
            metrics,
            comings: Comings::default(),
            enrolments: Semaphore::new(ENROLMENTS_MAX),
            connections: AtomicU64::new(0),
        }
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Takes connections until the endpoint is closed.
pub async fn serve(endpoint: Endpoint, context: Arc<Context>) {
    let mut door = Door::new(endpoint);
    while let Some((incoming, permit)) = door.next(&context).await {
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let admitted = admit(incoming, &context).await;
            drop(permit);
            match admitted {
                Some(Admitted::Agent {
                    connection, node, ..
                }) => serve_agent(connection, node, &context).await,
                Some(Admitted::Enrolment {
                    connection,
                    renewing,
                }) => enroll(&connection, renewing, &context).await,
                None => {}
            }
        });
    }
}

async fn admit(incoming: Incoming, context: &Context) -> Option<Admitted> {
    let from = incoming.remote_address();
    match context.admission.admit(incoming).await {
        Ok(admitted) => Some(admitted),
        Err(error) => {
            context.metrics.observe_handshake(Handshake::Failed);
            tracing::info!(%from, %error, "a connection was not let in");
            None
        }
    }
}

async fn serve_agent(connection: Connection, node: NodeId, context: &Arc<Context>) {
    let (from, clock) = (connection.remote_address(), context.core.clock());
    if let Err(wait) = context.comings.came(&node, from.ip(), clock.now()) {
        context.metrics.observe_handshake(Handshake::Throttled);
        tracing::warn!(%node, %from, ?wait, "it connects too often and was sent away");
        let reason = format!("this node connects too often; come back in {wait:.0?}");
        close(&connection, CloseCode::Slow, &reason);
        return;
    }
    context.metrics.observe_handshake(Handshake::Admitted);
    if session::serve(connection, node.clone(), context).await == Ending::Offence {
        context.comings.offended(&node, clock.now());
    }
}

async fn enroll(connection: &Connection, renewing: Option<NodeId>, context: &Context) {
    context.metrics.observe_handshake(Handshake::Admitted);
    let Ok(_permit) = context.enrolments.try_acquire() else {
        close(
            connection,
            CloseCode::Slow,
            "too many enrolments; try again",
        );
        return;
    };
    let enrolling = context.enrolment.serve(connection, renewing, &context.core);
    enrolling.await;
}
