//! How the rest of the process speaks with the core.

use rollcall_coordinator_core::coordinator::Coordinator;
use rollcall_coordinator_core::effect::{Done, Refusal};
use rollcall_coordinator_core::input::{Actor, Command, Input};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;
use rollcall_transport::clock::Clock;
use tokio::sync::{mpsc, oneshot, watch};

/// A question: runs on the driver's task, so it must be short.
pub(super) type Query = Box<dyn FnOnce(&Coordinator, Timestamp) + Send>;

/// What the driver takes in.
pub(super) enum Work {
    Input(Input),
    Command {
        actor: Actor,
        command: Command,
        reply: oneshot::Sender<Result<Done, Refusal>>,
    },
    Query(Query),
}

/// The coordinator is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct Gone;

/// A way to the core; cheap to copy.
#[derive(Clone)]
pub struct CoreHandle {
    work: mpsc::Sender<Work>,
    changes: watch::Receiver<u64>,
    clock: Clock,
}

impl CoreHandle {
    pub(super) const fn new(
        work: mpsc::Sender<Work>,
        changes: watch::Receiver<u64>,
        clock: Clock,
    ) -> Self {
        Self {
            work,
            changes,
            clock,
        }
    }

    /// Feeds an input; waits while the queue is full.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn input(&self, input: Input) -> Result<(), Gone> {
        self.work.send(Work::Input(input)).await.map_err(|_| Gone)
    }

    /// Hands an input to the core if there is room now; whether there was. For what may
    /// get lost.
    #[must_use]
    pub fn try_input(&self, input: Input) -> bool {
        self.work.try_send(Work::Input(input)).is_ok()
    }

    /// Has a command carried out; what is reported as done is durable.
    ///
    /// # Errors
    /// When the driver has ended; the command may or may not have been carried out.
    pub async fn command(
        &self,
        actor: Actor,
        command: Command,
    ) -> Result<Result<Done, Refusal>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.work
            .send(Work::Command {
                actor,
                command,
                reply,
            })
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Looks at the core. `question` runs on the driver's task: copy out, do not compute.
    ///
    /// # Errors
    /// When the driver has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Coordinator, Timestamp) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        let query: Query = Box::new(move |core, now| {
            // Whoever asked may have gone.
            let _ = reply.send(question(core, now));
        });
        self.work.send(Work::Query(query)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Counts changes of what the views show, from zero at the process's start.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The coordinator's clock.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }
}

/// Whether an input can change what people look at. Heartbeats cannot, and there
/// are thousands a second.
pub(super) const fn changes_views(input: &Input) -> bool {
    match input {
        Input::FromAgent { message, .. } => !matches!(message, FromAgent::Heartbeat(_)),
        Input::Command { .. }
        | Input::AgentConnected { .. }
        | Input::AgentDisconnected { .. }
        | Input::Reported { .. }
        | Input::TimePassed => true,
    }
}
