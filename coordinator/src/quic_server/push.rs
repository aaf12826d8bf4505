//! A withdrawal's way to everyone: a beacon first, the stream for who does not answer.
//! And a rehearsal's, which measures that way.
//!
//! One thread does nothing else, so that neither the core nor ten thousand
//! connections stand between a decision and its beacons. It sends one to every agent
//! that hosts the model, one after another. After a moment it looks who has not
//! answered: their control streams get the message too, which QUIC repeats until it
//! arrives, and they get another beacon, and again, at growing intervals. Beacons
//! know no congestion window and no probe time-out that doubled during an outage: the
//! first one after a heal arrives.
//!
//! An agent that answered gets nothing more, so a push to a healthy fleet costs the
//! beacons only.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rollcall_shared::codec::{self, CodecError};
use rollcall_shared::limits::REHEARSAL_MAX;
use rollcall_shared::wire::{Beacon, ToAgent};
use rollcall_transport::beacon::Beacons;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::outbox::{Outbox, Topic};

/// Pushes that may wait for the thread. When full, the streams carry the next at once.
const PUSHES_MAX: usize = 64;

/// How long answers are spread over for each agent that is pushed to: about what an
/// answer costs both ends, so that answers do not take the CPU from beacons that are
/// still to be sent and from agents that are still to swap. 10,000 agents: half a
/// second; 10 agents: nothing.
const ANSWER_EVERY: Duration = Duration::from_micros(50);

/// From the end of that to the first look at who did not answer: a round trip within a
/// continent. Too early costs packets, too late costs time where one was lost.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// Intervals between looks double up to this, which bounds how long after the heal of
/// a network the first beacon is under way.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(250);

/// After so many looks, 5 minutes, the connection lives and does not answer: then it is
/// the core's matter, which compares generations at every heartbeat.
const LOOKS_MAX: u128 = 1_200;

/// Looks after a rehearsal: as long as its answers count.
const LOOKS_AFTER_REHEARSAL_MAX: u128 = REHEARSAL_MAX.as_millis() / LOOK_EVERY_MAX.as_millis();

/// A message on its way to many.
pub(super) struct Push {
    pub(super) topic: Topic,
    pub(super) number: u64,
    /// For control streams.
    pub(super) frame: Bytes,
    /// For beacons.
    body: Bytes,
    answer_within: Duration,
    pub(super) outboxes: Vec<Arc<Outbox>>,
    /// Dropped when all beacons are out.
    under_way: Option<oneshot::Sender<()>>,
}

impl Push {
    pub(super) fn new(
        topic: Topic,
        number: u64,
        message: ToAgent,
        outboxes: Vec<Arc<Outbox>>,
    ) -> Result<Self, CodecError> {
        let agents = u32::try_from(outboxes.len()).unwrap_or(u32::MAX);
        let answer_within = ANSWER_EVERY.saturating_mul(agents);
        let frame = codec::encode_frame(&message)?;
        let body = codec::encode(&Beacon {
            answer_within_ms: u32::try_from(answer_within.as_millis()).unwrap_or(u32::MAX),
            message,
        })?;
        Ok(Self {
            topic,
            number,
            frame,
            body,
            answer_within,
            outboxes,
            under_way: None,
        })
    }

    /// Ends when all beacons are out, or never will be.
    pub(super) fn sent(&mut self) -> oneshot::Receiver<()> {
        let (under_way, sent) = oneshot::channel();
        self.under_way = Some(under_way);
        sent
    }

    /// Sends to those who have not answered, and keeps only them.
    async fn repeat(&mut self, beacons: &Beacons) {
        let mut packet = Vec::new();
        let (topic, number) = (&self.topic, self.number);
        self.outboxes.retain(|outbox| outbox.press(topic, number));
        for outbox in &self.outboxes {
            lost(outbox.beacon(beacons, &self.body, &mut packet).await);
        }
    }

    /// Until everybody has answered or is gone.
    async fn follow_up(mut self, beacons: Beacons) {
        let mut interval = FIRST_LOOK;
        let mut next = Instant::now() + self.answer_within + interval;
        let looks = match self.topic {
            Topic::Withdrawal(_) => LOOKS_MAX,
            Topic::Rehearsal(_) => LOOKS_AFTER_REHEARSAL_MAX,
        };
        for _ in 0..looks {
            sleep_until(next).await;
            self.repeat(&beacons).await;
            if self.outboxes.is_empty() {
                return;
            }
            interval = (interval * 2).min(LOOK_EVERY_MAX);
            next = Instant::now() + interval;
        }
    }
}

/// A beacon that the system refuses is one that got lost.
fn lost(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "a beacon was not sent");
    }
}

/// Hands pushes to the thread. Copies share it.
#[derive(Clone, Debug)]
pub(super) struct Pusher {
    pushes: mpsc::Sender<Push>,
    /// Answers come in where beacons go out.
    pub(super) beacons: Beacons,
}

impl Pusher {
    /// Starts the thread. It ends with the last handle.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(beacons: Beacons) -> io::Result<Self> {
        let (sender, mut pushes) = mpsc::channel::<Push>(PUSHES_MAX);
        let (runtime, ours) = (Handle::current(), beacons.clone());
        std::thread::Builder::new()
            .name("push".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    // Follow-ups run beside, so that a second withdrawal waits for none.
                    let mut following = JoinSet::new();
                    let mut packet = Vec::new();
                    while let Some(mut push) = pushes.recv().await {
                        let began = Instant::now();
                        for outbox in &push.outboxes {
                            outbox.hold(&push.topic, push.number, &push.frame);
                            lost(outbox.beacon(&beacons, &push.body, &mut packet).await);
                        }
                        push.under_way = None;
                        let (agents, took) = (push.outboxes.len(), began.elapsed());
                        tracing::info!(agents, ?took, "beacons sent");
                        while following.try_join_next().is_some() {}
                        following.spawn(push.follow_up(beacons.clone()));
                    }
                });
            })?;
        Ok(Self {
            pushes: sender,
            beacons: ours,
        })
    }

    /// Begins a push; gives it back when too many wait.
    pub(super) fn push(&self, push: Push) -> Option<Push> {
        match self.pushes.try_send(push) {
            Ok(()) => None,
            Err(
                mpsc::error::TrySendError::Full(push) | mpsc::error::TrySendError::Closed(push),
            ) => Some(push),
        }
    }
}
