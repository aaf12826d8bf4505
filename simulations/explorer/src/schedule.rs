//! Virtual time: what happens next.

use std::collections::BTreeMap;
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
#[derive(Debug, Default)]
pub struct Schedule {
    now: Timestamp,
    seq: u64,
    queue: BTreeMap<(Timestamp, u64), Event>,
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
        self.queue.insert((when.max(self.now), self.seq), event);
    }

    /// Schedules an event.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The next event; time moves to it.
    pub fn next_event(&mut self) -> Option<Event> {
        let ((when, _), event) = self.queue.pop_first()?;
        self.now = when;
        Some(event)
    }

    /// When the next event is.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|((when, _), _)| *when)
    }
}
