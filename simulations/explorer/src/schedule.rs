//! Virtual time: what happens next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::Timestamp;

use crate::network::{Direction, LinkId, Packet};

/// Something that happens at a moment.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "`node` is an index, `epoch` the life of a process"
)]
pub enum Event {
    /// An agent tries to connect.
    Dial { node: usize, epoch: u64 },
    /// A handshake comes to its end.
    Handshake { node: usize, epoch: u64 },
    /// Keep-alives, retransmissions and idle timers of one connection.
    LinkTick { link: LinkId },
    /// Bytes reach the other end's machine.
    Arrive {
        link: LinkId,
        direction: Direction,
        packet: Packet,
    },
    /// The other side's farewell arrives.
    Farewell { link: LinkId, direction: Direction },
    /// An agent's effect that takes time is complete.
    AgentEffectDone { node: usize, epoch: u64 },
    /// An agent's timer.
    AgentWakes { node: usize, epoch: u64 },
    /// A version is prepared, or is not.
    Prepared {
        node: usize,
        epoch: u64,
        model: ModelName,
        version: VersionRef,
        attempt: u64,
    },
    /// A report's window is over.
    ReportDue { node: usize, epoch: u64 },
    /// The coordinator's sync is complete.
    CoordinatorEffectDone { epoch: u64 },
    /// The coordinator's timer.
    CoordinatorWakes { epoch: u64 },
    /// The weather changes for an agent: crash, pause or partition.
    AgentFault { node: usize, kind: FaultKind },
    /// A node can be reached again in these directions.
    PartitionHeals { node: usize, partition: u64 },
    /// A process is started.
    AgentStarts { node: usize },
    /// A stopped process goes on.
    AgentResumes { node: usize, epoch: u64 },
    /// The weather changes for the coordinator.
    CoordinatorFault { kind: FaultKind },
    /// The coordinator's machine is gone, or another one takes its place.
    Blackout { over: bool },
    /// A process is started.
    CoordinatorStarts,
    /// A stopped process goes on.
    CoordinatorResumes { epoch: u64 },
    /// The operator does something.
    OperatorActs,
    /// Somebody looks at what all nodes would answer.
    Observe,
    /// The next step of phase 2.
    Convergence,
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// kill -9.
    Crash,
    /// SIGSTOP.
    Pause,
    /// The network.
    Partition,
}

/// Events in order of time; of equal times, first scheduled first.
///
/// The heap holds times and places only; moving events about in it would cost more than
/// most of them do.
#[derive(Debug, Default)]
pub struct Schedule {
    now: Timestamp,
    seq: u64,
    queue: BinaryHeap<Reverse<(Timestamp, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
}

impl Schedule {
    /// Time begins here.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self {
            now: start,
            ..Self::default()
        }
    }

    /// True time.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Schedules an event at a moment, or now if that is past.
    pub fn at(&mut self, when: Timestamp, event: Event) {
        self.seq += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        let next = (when.max(self.now), self.seq, place);
        self.queue.push(Reverse(next));
    }

    /// Schedules an event.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The next event; time moves to it.
    pub fn next_event(&mut self) -> Option<Event> {
        let Reverse((when, _, place)) = self.queue.pop()?;
        self.now = when;
        self.free.push(place);
        self.events[place].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_equal_times_in_order_of_scheduling() {
        let mut schedule = Schedule::new(Timestamp::ZERO);
        let second = Duration::from_secs(1);
        let starts = |node| Event::AgentStarts { node };
        for (delay, node) in [(second * 2, 0), (second, 1), (second, 2)] {
            schedule.after(delay, starts(node));
        }
        let mut order = Vec::new();
        while let Some(Event::AgentStarts { node }) = schedule.next_event() {
            order.push((schedule.now().since(Timestamp::ZERO), node));
            if node == 1 {
                // Into the past: now, after what is due now already.
                schedule.at(Timestamp::ZERO, starts(3));
            }
        }
        assert_eq!(
            order,
            [(second, 1), (second, 2), (second, 3), (second * 2, 0)]
        );
    }
}
