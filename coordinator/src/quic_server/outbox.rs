//! What waits to be written to agents.
//!
//! Two ways out for each connection. Ordinary messages go through a bounded queue;
//! when it is full the agent is disconnected and resyncs on return. Withdrawals go
//! through one slot a model where the latest wins: they can be late, but are never
//! dropped, and are written ahead of everything that waits. Rehearsals go the same way,
//! in slots of their own behind those. A slot is kept until the agent answers, so that
//! [`push`](super::push) knows whom to press. Nothing here ever waits for an agent.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use quinn::Connection;
use rollcall_coordinator_core::effect::{DisconnectCause, Urgent};
use rollcall_shared::codec::{self, CodecError, HEADER_BYTES};
use rollcall_shared::ids::{ConnectionId, ModelName, NodeId};
use rollcall_shared::limits::DATAGRAM_BYTES_MAX;
use rollcall_shared::wire::{FromAgent, ToAgent};
use rollcall_transport::beacon::{Beacons, End, NoKey, Sealer};
use rollcall_transport::channel::{ChannelError, FrameWriter, send_encoded_datagram};
use rollcall_transport::close::{CloseCode, close};
use tokio::sync::{Notify, mpsc, oneshot};

use super::push::{Push, Pusher};

/// Ordinary messages that may wait for one agent. More than a stage change and a
/// repair need at once; more waiting means that the agent does not read.
pub const QUEUE_MAX: usize = 64;

/// The way to one agent.
#[derive(Debug)]
pub struct Outbox {
    node: NodeId,
    connection: Connection,
    /// The models it hosts; empty: all.
    models: Vec<ModelName>,
    sealer: Sealer,
    queue: mpsc::Sender<Bytes>,
    slots: Slots,
    /// As its `Welcome` says. Before that 0, and the agent gets no broadcasts: the snapshot
    /// holds them.
    protocol: AtomicU16,
}

/// What a slot is for. Withdrawals come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Counted by generation.
    Withdrawal(ModelName),
    /// Counted by the rehearsal's number.
    Rehearsal(ModelName),
}

impl Topic {
    /// What a message is about, and its number there: a higher one takes its place.
    fn of(urgent: &Urgent) -> (Self, u64) {
        match urgent {
            Urgent::Withdraw(withdrawal) => (
                Self::Withdrawal(withdrawal.model.clone()),
                withdrawal.generation.0,
            ),
            Urgent::Rehearse(rehearsal) => (
                Self::Rehearsal(rehearsal.as_if.model.clone()),
                rehearsal.rehearsal,
            ),
        }
    }

    /// What a message of an agent answers, and up to which number.
    pub(super) fn answered_by(message: &FromAgent) -> Option<(Self, u64)> {
        match message {
            FromAgent::Receipt(receipt) => Some((
                Self::Withdrawal(receipt.model.clone()),
                receipt.generation.0,
            )),
            FromAgent::Rehearsed(rehearsed) => Some((
                Self::Rehearsal(rehearsed.model.clone()),
                rehearsed.rehearsal,
            )),
            FromAgent::Hello(_)
            | FromAgent::Heartbeat(_)
            | FromAgent::Readiness(_)
            | FromAgent::Event(_) => None,
        }
    }
}

/// The latest message of each topic that is not yet answered.
#[derive(Debug, Default)]
struct Slots {
    waiting: Mutex<BTreeMap<Topic, Slot>>,
    due: Notify,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    frame: Bytes,
    way: Way,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As a beacon; on the stream only if something else is to be written to it.
    Beacon,
    /// The stream must carry it.
    Stream,
    /// The stream carries it.
    Written,
}

impl Slots {
    fn put(&self, topic: &Topic, number: u64, frame: &Bytes, way: Way) {
        let mut waiting = lock(&self.waiting);
        let newest = waiting.get(topic).map(|slot| slot.number);
        if newest.is_none_or(|newest| newest < number) {
            let slot = Slot {
                number,
                frame: frame.clone(),
                way,
            };
            waiting.insert(topic.clone(), slot);
            if way == Way::Stream {
                self.due.notify_one();
            }
        }
    }

    /// Whether this message is still to be answered; if so the stream must carry it.
    fn press(&self, topic: &Topic, number: u64) -> bool {
        let mut waiting = lock(&self.waiting);
        let slot = waiting.get_mut(topic);
        let Some(slot) = slot.filter(|slot| slot.number == number) else {
            return false;
        };
        if slot.way == Way::Beacon {
            slot.way = Way::Stream;
            self.due.notify_one();
        }
        true
    }

    fn answered(&self, topic: &Topic, number: u64) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(topic).is_some_and(|slot| slot.number <= number) {
            waiting.remove(topic);
        }
    }

    /// The next one for the stream. `overtaken`: something else is about to be
    /// written, and nothing may stand before a withdrawal.
    fn take(&self, overtaken: bool) -> Option<Bytes> {
        let mut waiting = lock(&self.waiting);
        let mut due = waiting
            .values_mut()
            .filter(|slot| slot.way == Way::Stream || (overtaken && slot.way == Way::Beacon));
        due.next().map(|slot| {
            slot.way = Way::Written;
            slot.frame.clone()
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can leave a half-made change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// An outbox for a node that hosts `models` (none named: all), and the queue that
    /// its [`write_out`] empties.
    ///
    /// # Errors
    /// When the connection gives no key for beacons.
    pub fn new(
        node: NodeId,
        models: Vec<ModelName>,
        connection: Connection,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Bytes>), NoKey> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let outbox = Self {
            node,
            sealer: Sealer::new(&connection, End::Coordinator)?,
            connection,
            models,
            queue,
            slots: Slots::default(),
            protocol: AtomicU16::new(0),
        };
        Ok((Arc::new(outbox), waiting))
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
        if let ToAgent::Welcome(welcome) = message {
            self.protocol.store(welcome.protocol, Ordering::Relaxed);
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(frame) {
            tracing::warn!(node = %self.node, "does not read what it is sent; disconnected");
            close(
                &self.connection,
                CloseCode::Slow,
                "too many messages wait; connect again",
            );
        }
    }

    /// Queues what may get lost where that leaves room for what may not.
    fn offer(&self, frame: &Bytes) -> bool {
        self.queue.capacity() > QUEUE_MAX / 2 && self.queue.try_send(frame.clone()).is_ok()
    }

    fn send_datagram(&self, frame: &Bytes) -> bool {
        frame.len() - HEADER_BYTES <= DATAGRAM_BYTES_MAX
            && send_encoded_datagram(&self.connection, frame.slice(HEADER_BYTES..)).is_ok()
    }

    /// Whether the agent hosts the model and can read the message.
    fn wants(&self, urgent: &Urgent) -> bool {
        self.protocol.load(Ordering::Relaxed) >= urgent.protocol_min()
            && (self.models.is_empty() || self.models.contains(urgent.model()))
    }

    /// Keeps a message until it is answered; a beacon carries it.
    pub(super) fn hold(&self, topic: &Topic, number: u64, frame: &Bytes) {
        self.slots.put(topic, number, frame, Way::Beacon);
    }

    /// Whether an agent that is still there has yet to answer. From now on the stream
    /// carries the message too.
    pub(super) fn press(&self, topic: &Topic, number: u64) -> bool {
        self.connection.close_reason().is_none() && self.slots.press(topic, number)
    }

    /// Notes what the agent has answered, if anything.
    pub(super) fn note_answer(&self, answer: Option<(Topic, u64)>) {
        if let Some((topic, number)) = answer {
            self.slots.answered(&topic, number);
        }
    }

    /// Sends a beacon to the agent.
    pub(super) async fn beacon(
        &self,
        beacons: &Beacons,
        body: &[u8],
        packet: &mut Vec<u8>,
    ) -> io::Result<()> {
        beacons
            .send(&self.connection, &self.sealer, body, packet)
            .await
    }
}

/// Writes what waits in an outbox to the agent's control stream until the
/// connection is over. The first message is always the answer to `Hello`.
///
/// # Errors
/// When the stream or the connection is over.
pub async fn write_out(
    outbox: &Outbox,
    mut queue: mpsc::Receiver<Bytes>,
    mut stream: FrameWriter,
) -> Result<(), ChannelError> {
    let Some(answer_to_hello) = queue.recv().await else {
        return Ok(());
    };
    stream.write(answer_to_hello).await?;
    loop {
        while let Some(withdrawal) = outbox.slots.take(false) {
            stream.write(withdrawal).await?;
        }
        tokio::select! {
            biased;
            () = outbox.slots.due.notified() => {}
            message = queue.recv() => {
                let Some(message) = message else { return Ok(()) };
                while let Some(withdrawal) = outbox.slots.take(true) {
                    stream.write(withdrawal).await?;
                }
                stream.write(message).await?;
            }
        }
    }
}

/// A broadcast that has begun.
#[derive(Debug)]
pub struct Broadcasting {
    /// To how many agents.
    pub agents: usize,
    /// Ends when the first packet to each is out, or will come by the streams.
    pub sent: oneshot::Receiver<()>,
}

/// The outboxes of all connections.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    outboxes: Arc<Mutex<BTreeMap<ConnectionId, Arc<Outbox>>>>,
    pusher: Arc<OnceLock<Pusher>>,
}

impl Agents {
    /// Gives withdrawals their fast way; until then the streams carry them.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn push_by(&self, beacons: Beacons) -> io::Result<()> {
        // A second one would be a second socket: there is none.
        let _ = self.pusher.set(Pusher::start(beacons)?);
        Ok(())
    }

    /// Where answers to pushes come in; `None` before [`Self::push_by`].
    pub(super) fn beacons(&self) -> Option<&Beacons> {
        self.pusher.get().map(|pusher| &pusher.beacons)
    }

    /// Adds a connection.
    pub fn register(&self, connection: ConnectionId, outbox: Arc<Outbox>) {
        lock(&self.outboxes).insert(connection, outbox);
    }

    /// Forgets a connection.
    pub fn unregister(&self, connection: ConnectionId) {
        lock(&self.outboxes).remove(&connection);
    }

    /// How many connections there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.outboxes).len()
    }

    /// Sends to one connection; nothing happens when it is gone.
    pub fn send(&self, connection: ConnectionId, message: &ToAgent) {
        let outbox = lock(&self.outboxes).get(&connection).cloned();
        if let Some(outbox) = outbox {
            outbox.send(message);
        }
    }

    /// Sends to some connections what may get lost, encoded once.
    pub fn offer(&self, to: &[ConnectionId], message: &ToAgent) {
        let frame = match codec::encode_frame(message) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "a message cannot be encoded");
                return;
            }
        };
        let outboxes = lock(&self.outboxes);
        let found = to.iter().filter_map(|connection| outboxes.get(connection));
        let dropped = found.filter(|outbox| !outbox.offer(&frame)).count();
        if dropped > 0 {
            tracing::info!(
                dropped,
                "agents have too much to read for what may get lost"
            );
        }
    }

    /// Pushes what is urgent to everyone who hosts its model and can read it; see
    /// [`super::push`]. Encoded once; never waits.
    ///
    /// # Errors
    /// When it cannot be encoded: a bug, since its bounds were checked at the door.
    pub fn broadcast(&self, urgent: Urgent) -> Result<Broadcasting, CodecError> {
        let (topic, number) = Topic::of(&urgent);
        let outboxes: Vec<_> = lock(&self.outboxes)
            .values()
            .filter(|outbox| outbox.wants(&urgent))
            .cloned()
            .collect();
        let agents = outboxes.len();
        let mut push = Push::new(topic, number, urgent.into_message(), outboxes)?;
        let sent = push.sent();
        let left = match self.pusher.get() {
            Some(pusher) => pusher.push(push),
            None => Some(push),
        };
        if let Some(push) = left {
            for outbox in &push.outboxes {
                let slots = &outbox.slots;
                slots.put(&push.topic, push.number, &push.frame, Way::Stream);
            }
        }
        Ok(Broadcasting { agents, sent })
    }

    /// Closes a connection.
    pub fn disconnect(&self, connection: ConnectionId, cause: &DisconnectCause) {
        let outbox = lock(&self.outboxes).get(&connection).cloned();
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
        for outbox in lock(&self.outboxes).values() {
            close(&outbox.connection, code, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn withdrawal(name: &str) -> Topic {
        Topic::Withdrawal(ModelName::new(name).unwrap())
    }

    fn rehearsal(name: &str) -> Topic {
        Topic::Rehearsal(ModelName::new(name).unwrap())
    }

    fn put(slots: &Slots, topic: &Topic, number: u64, way: Way) {
        let (Topic::Withdrawal(name) | Topic::Rehearsal(name)) = topic;
        let frame = Bytes::from(format!("{name} {number}"));
        slots.put(topic, number, &frame, way);
    }

    #[test]
    fn the_latest_withdrawal_of_a_model_takes_the_place_of_the_one_before() {
        let slots = Slots::default();
        for (name, generation) in [("digits", 3), ("wine", 1), ("digits", 4), ("digits", 2)] {
            put(&slots, &withdrawal(name), generation, Way::Stream);
        }
        assert_eq!(slots.take(false).unwrap(), "digits 4");
        assert_eq!(slots.take(false).unwrap(), "wine 1");
        assert_eq!(slots.take(false), None, "each is written once");
    }

    #[test]
    fn a_rehearsal_never_takes_the_place_of_a_withdrawal_and_comes_after_it() {
        let slots = Slots::default();
        put(&slots, &rehearsal("digits"), 57, Way::Stream);
        put(&slots, &withdrawal("wine"), 3, Way::Stream);
        put(&slots, &withdrawal("digits"), 4, Way::Stream);
        put(&slots, &rehearsal("digits"), 58, Way::Stream);
        slots.answered(&rehearsal("digits"), 57);
        slots.answered(&rehearsal("wine"), 99);
        assert_eq!(slots.take(false).unwrap(), "digits 4");
        assert_eq!(slots.take(false).unwrap(), "wine 3");
        assert_eq!(slots.take(false).unwrap(), "digits 58");
    }

    #[test]
    fn a_beacons_copy_is_written_when_pressed_or_when_it_would_be_overtaken() {
        let slots = Slots::default();
        put(&slots, &withdrawal("digits"), 3, Way::Beacon);
        assert_eq!(slots.take(false), None);
        assert!(slots.press(&withdrawal("digits"), 3));
        assert_eq!(slots.take(false).unwrap(), "digits 3");
        put(&slots, &withdrawal("wine"), 1, Way::Beacon);
        assert_eq!(slots.take(true).unwrap(), "wine 1");
    }

    #[test]
    fn who_answered_is_not_pressed_any_more() {
        let (slots, digits) = (Slots::default(), withdrawal("digits"));
        put(&slots, &digits, 3, Way::Beacon);
        slots.answered(&digits, 2);
        assert!(slots.press(&digits, 3));
        slots.answered(&digits, 3);
        assert!(!slots.press(&digits, 3));
        put(&slots, &digits, 5, Way::Beacon);
        assert!(!slots.press(&digits, 3), "a newer one waits");
    }
}
