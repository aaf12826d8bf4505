//! One connection as each side sees it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::Timestamp;

/// One connection. Its coordinator-side name is the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Which way bytes go, and so also who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the agent.
    Up,
    /// From the coordinator.
    Down,
}

impl Direction {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    /// The other way.
    #[must_use]
    pub const fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// The `seq`th frame on the control stream.
    Control {
        /// Its place.
        seq: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// A stream of its own.
    Report(Bytes),
    /// May be lost.
    Datagram {
        /// Its place among its sender's.
        seq: u64,
        /// The message.
        bytes: Bytes,
    },
}

/// What arrived, decoded from a frame or a datagram.
#[derive(Clone, Debug)]
pub enum Arrived {
    /// A frame of the control stream, in order.
    Control(Bytes),
    /// A report.
    Report(Bytes),
    /// A datagram.
    Datagram(Bytes),
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) next_seq: u64,
    pub(super) expected: u64,
    pub(super) early: BTreeMap<u64, Bytes>,
    /// Sent, and stopped by a partition.
    pub(super) lost: Vec<Packet>,
    /// Not sent yet: the sender's queue.
    pub(super) waiting: VecDeque<Bytes>,
    /// The latest withdrawal of each model goes ahead of the queue, and then the latest rehearsal.
    pub(super) slots: BTreeMap<(bool, ModelName), Bytes>,
    pub(super) datagrams_sent: u64,
    pub(super) datagram_last: u64,
}

impl Stream {
    /// Whether nothing waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.lost.is_empty() && self.slots.is_empty() && self.waiting.is_empty()
    }
}

/// One side's view of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) open: bool,
    pub(super) heard: Timestamp,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    /// Whose.
    pub node: usize,
    /// Whether the coordinator's core knows of it.
    pub announced: bool,
    /// By the direction in which each side sends.
    pub(super) ends: [End; 2],
    pub(super) streams: [Stream; 2],
}

impl Link {
    /// Whether the side that sends this way believes in the connection.
    #[must_use]
    pub const fn is_open(&self, sender: Direction) -> bool {
        self.ends[sender as usize].open
    }
}

/// Which processes run (and are not stopped), for one link.
#[derive(Clone, Copy, Debug)]
pub struct Awake {
    /// The agent.
    pub agent: bool,
    /// The coordinator.
    pub coordinator: bool,
}

impl Awake {
    pub(super) const fn of(self, side: Direction) -> bool {
        match side {
            Direction::Up => self.agent,
            Direction::Down => self.coordinator,
        }
    }
}

/// The sender's queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;
