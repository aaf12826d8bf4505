//! What waits to be written to agents.
//!
//! Two ways out for each connection. Ordinary messages go through a bounded queue;
//! when it is full the agent is disconnected and resyncs on return. Withdrawals go
//! through one slot a model where the latest wins: they can be late, but are never
//! dropped, and are written ahead of everything that waits. Nothing here ever waits
//! for an agent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::Connection;
use rollcall_coordinator_core::effect::DisconnectCause;
use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::codec::{self, CodecError, HEADER_BYTES};
use rollcall_shared::ids::{ConnectionId, ModelName, NodeId};
use rollcall_shared::limits::DATAGRAM_BYTES_MAX;
use rollcall_shared::wire::ToAgent;
use rollcall_transport::channel::{ChannelError, FrameWriter, send_encoded_datagram};
use rollcall_transport::close::{CloseCode, close};
use tokio::sync::{Notify, mpsc};

/// Ordinary messages that may wait for one agent. More than a stage change and a
/// repair need at once; more waiting means that the agent does not read.
pub const QUEUE_MAX: usize = 64;

/// The way to one agent.
#[derive(Debug)]
pub struct Outbox {
    node: NodeId,
    connection: Connection,
    queue: mpsc::Sender<Bytes>,
    slots: Slots,
    /// Before its `Welcome` an agent gets no broadcasts: the snapshot holds them.
    welcomed: AtomicBool,
}

/// The latest withdrawal of each model that is not yet written.
#[derive(Debug, Default)]
struct Slots {
    waiting: Mutex<BTreeMap<ModelName, Bytes>>,
    filled: Notify,
}

impl Slots {
    fn fill(&self, model: ModelName, frame: Bytes) {
        lock(&self.waiting).insert(model, frame);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<Bytes> {
        lock(&self.waiting).pop_first().map(|(_, frame)| frame)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can leave a half-made change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// An outbox, and the queue that its [`write_out`] empties.
    #[must_use]
    pub fn new(node: NodeId, connection: Connection) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let outbox = Self {
            node,
            connection,
            queue,
            slots: Slots::default(),
            welcomed: AtomicBool::new(false),
        };
        (Arc::new(outbox), waiting)
    }

    fn send(&self, message: &ToAgent) {
        let frame = match codec::encode_frame(message) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(node = %self.node, %error, "a message cannot be encoded");
                close(
                    &self.connection,
                    CloseCode::ProtocolError,
                    &error.to_string(),
                );
                return;
            }
        };
        // A lost answer is made good by the next heartbeat; a late one is worth nothing.
        if matches!(message, ToAgent::HeartbeatAnswer(_)) && self.send_datagram(&frame) {
            return;
        }
        self.welcomed.store(true, Ordering::Relaxed);
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(frame) {
            tracing::warn!(node = %self.node, "does not read what it is sent; disconnected");
            close(
                &self.connection,
                CloseCode::Slow,
                "too many messages wait; connect again",
            );
        }
    }

    fn send_datagram(&self, frame: &Bytes) -> bool {
        frame.len() - HEADER_BYTES <= DATAGRAM_BYTES_MAX
            && send_encoded_datagram(&self.connection, frame.slice(HEADER_BYTES..)).is_ok()
    }

    fn withdraw(&self, model: &ModelName, frame: &Bytes) {
        if self.welcomed.load(Ordering::Relaxed) {
            self.send_datagram(frame);
            self.slots.fill(model.clone(), frame.clone());
        }
    }
}

/// Writes what waits in an outbox to the agent's control stream until the
/// connection is over. The first message is always the answer to `Hello`.
///
/// # Errors
/// When the stream or the connection is over.
pub async fn write_out(
    outbox: Arc<Outbox>,
    mut queue: mpsc::Receiver<Bytes>,
    mut stream: FrameWriter,
) -> Result<(), ChannelError> {
    let Some(answer_to_hello) = queue.recv().await else {
        return Ok(());
    };
    stream.write(answer_to_hello).await?;
    loop {
        while let Some(withdrawal) = outbox.slots.take() {
            stream.write(withdrawal).await?;
        }
        tokio::select! {
            biased;
            () = outbox.slots.filled.notified() => {}
            message = queue.recv() => {
                let Some(message) = message else { return Ok(()) };
                // One may have come in since the last look.
                while let Some(withdrawal) = outbox.slots.take() {
                    stream.write(withdrawal).await?;
                }
                stream.write(message).await?;
            }
        }
    }
}

/// The outboxes of all connections.
#[derive(Clone, Debug, Default)]
pub struct Agents(Arc<Mutex<BTreeMap<ConnectionId, Arc<Outbox>>>>);

impl Agents {
    /// Adds a connection.
    pub fn register(&self, connection: ConnectionId, outbox: Arc<Outbox>) {
        lock(&self.0).insert(connection, outbox);
    }

    /// Forgets a connection.
    pub fn unregister(&self, connection: ConnectionId) {
        lock(&self.0).remove(&connection);
    }

    /// How many connections there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// Sends to one connection; nothing happens when it is gone.
    pub fn send(&self, connection: ConnectionId, message: &ToAgent) {
        let outbox = lock(&self.0).get(&connection).cloned();
        if let Some(outbox) = outbox {
            outbox.send(message);
        }
    }

    /// Pushes a withdrawal to everyone: encoded once, a datagram first and then the
    /// slot. Never waits.
    ///
    /// # Errors
    /// When it cannot be encoded: a bug, since its bounds were checked at the door.
    pub fn broadcast(&self, withdrawal: Withdrawal) -> Result<usize, CodecError> {
        let model = withdrawal.model.clone();
        let frame = codec::encode_frame(&ToAgent::Withdraw(withdrawal))?;
        // Copied, so that connections can come and go while we send.
        let outboxes: Vec<_> = lock(&self.0).values().cloned().collect();
        for outbox in &outboxes {
            outbox.withdraw(&model, &frame);
        }
        Ok(outboxes.len())
    }

    /// Closes a connection.
    pub fn disconnect(&self, connection: ConnectionId, cause: &DisconnectCause) {
        let outbox = lock(&self.0).get(&connection).cloned();
        let Some(outbox) = outbox else { return };
        let (code, reason) = match cause {
            DisconnectCause::Superseded => (CloseCode::Superseded, "the node connected again"),
            DisconnectCause::Revoked => (CloseCode::Revoked, "the node was revoked"),
            DisconnectCause::Refused(reason) => (CloseCode::Refused, reason.as_str()),
        };
        tracing::info!(node = %outbox.node, ?code, reason, "connection closed");
        close(&outbox.connection, code, reason);
    }

    /// Closes every connection, so that agents look for a coordinator at once.
    pub fn close_all(&self, code: CloseCode, reason: &str) {
        for outbox in lock(&self.0).values() {
            close(&outbox.connection, code, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_withdrawal_of_a_model_takes_the_place_of_the_one_before() {
        let slots = Slots::default();
        let model = |name: &str| ModelName::new(name).unwrap();
        for (name, bytes) in [("digits", "old"), ("wine", "w"), ("digits", "new")] {
            slots.fill(model(name), Bytes::from(bytes));
        }
        assert_eq!(slots.take().unwrap(), "new");
        assert_eq!(slots.take().unwrap(), "w");
        assert_eq!(slots.take(), None);
    }
}
