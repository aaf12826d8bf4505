//! The agents' door: handshakes, enrolments, and one task group for each agent.
//!
//! It moves messages between connections and the core and decides nothing. Every
//! number of things that a stranger or an agent can cause has a bound here.
//!
//! | part | does |
//! | --- | --- |
//! | [`outbox`] | what waits to be written to agents |
//! | [`push`] | a withdrawal's way to everyone |
//! | [`session`] | one agent's connection from `Hello` to its end |
//! | [`artifact`] | files for agents |
//! | [`enrolment`] | a node's first certificate |
//! | [`public_key`] | how nodes are recognised |

pub mod artifact;
pub mod enrolment;
pub mod outbox;
pub mod public_key;
mod push;
mod rate;
pub mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{Endpoint, Incoming};
use rollcall_shared::ids::ConnectionId;
use rollcall_transport::admission::{Admission, Admitted};
use rollcall_transport::close::{CloseCode, close};
use tokio::sync::Semaphore;

use crate::artifacts::ArtifactStore;
use crate::driver::CoreHandle;
use crate::metrics::{Handshake, Metrics};
use enrolment::Enrolment;
use outbox::Agents;

/// Handshakes at the same time. Each costs a signature; more wait in quinn, which
/// refuses beyond its own bound.
const HANDSHAKES_MAX: usize = 512;

/// Enrolments at the same time. Anybody can begin one, so more are turned away.
const ENROLMENTS_MAX: usize = 256;

/// Connections of agents. More are refused, and come back with jitter.
const AGENTS_MAX: usize = 20_000;

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
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        if context.agents.count() >= AGENTS_MAX {
            context.metrics.observe_handshake(Handshake::Refused);
            incoming.refuse();
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let context = Arc::clone(&context);
        tokio::spawn(async move {
            let admitted = admit(incoming, &context).await;
            drop(permit);
            match admitted {
                Some(Admitted::Agent {
                    connection, node, ..
                }) => {
                    session::serve(connection, node, &context).await;
                }
                Some(Admitted::Enrolment {
                    connection,
                    renewing,
                }) => {
                    let Ok(_permit) = context.enrolments.try_acquire() else {
                        close(
                            &connection,
                            CloseCode::Slow,
                            "too many enrolments; try again",
                        );
                        return;
                    };
                    context
                        .enrolment
                        .serve(&connection, renewing, &context.core)
                        .await;
                }
                None => {}
            }
        });
    }
}

async fn admit(incoming: Incoming, context: &Context) -> Option<Admitted> {
    let from = incoming.remote_address();
    match context.admission.admit(incoming).await {
        Ok(admitted) => {
            context.metrics.observe_handshake(Handshake::Admitted);
            Some(admitted)
        }
        Err(error) => {
            context.metrics.observe_handshake(Handshake::Failed);
            tracing::info!(%from, %error, "a connection was not let in");
            None
        }
    }
}
