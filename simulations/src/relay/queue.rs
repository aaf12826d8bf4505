//! Packets that wait for their time, in one bounded queue that one task serves.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Way;

/// Packets that wait; more are dropped. A thousand agents that answer a push at once over
/// 50 ms hold some 4,000; ten thousand that dial hold 40,000. At 1,200 bytes 75 MiB.
pub(super) const HELD_MAX: usize = 65_536;

/// A packet on its way.
#[derive(Debug)]
pub(super) struct Held {
    packet: Box<[u8]>,
    way: Way,
}

impl Held {
    pub(super) fn new(packet: &[u8], way: Way) -> Self {
        Self {
            packet: packet.into(),
            way,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    held: Mutex<Waiting>,
    /// Something is due earlier than all else.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By when it is due, and then in the order of arrival.
    packets: BTreeMap<(Instant, u64), Held>,
    arrived: u64,
}

impl Queue {
    /// Keeps a packet until `due`. `false`: the queue is full, the packet is gone.
    pub(super) fn hold(&self, due: Instant, held: Held) -> bool {
        let mut waiting = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.packets.len() >= HELD_MAX {
            return false;
        }
        waiting.arrived += 1;
        let key = (due, waiting.arrived);
        let is_first = waiting
            .packets
            .first_key_value()
            .is_none_or(|(first, _)| key < *first);
        waiting.packets.insert(key, held);
        drop(waiting);
        if is_first {
            self.earlier.notify_one();
        }
        true
    }

    /// Takes what is due at `now`; otherwise says when something will be.
    fn take(&self, now: Instant) -> Result<Held, Option<Instant>> {
        let mut waiting = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = waiting.packets.first_entry() else {
            return Err(None);
        };
        let (due, _) = *first.key();
        if due > now {
            return Err(Some(due));
        }
        Ok(first.remove())
    }

    /// Sends packets when they are due, and tells `sent` of each whether UDP took it.
    /// Ends only by being dropped.
    pub(super) async fn serve(&self, sent: impl Fn(bool)) {
        loop {
            match self.take(Instant::now()) {
                Ok(held) => sent(held.way.send(&held.packet).await),
                Err(Some(due)) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.earlier.notified() => {}
                },
                Err(None) => self.earlier.notified().await,
            }
        }
    }
}
