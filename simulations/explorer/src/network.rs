//! One QUIC connection an agent, as seen from above: a reliable ordered stream each
//! way, streams of their own for reports, and datagrams.
//!
//! Every message is really encoded and decoded. A partition stops delivery but not
//! belief: each side gives a connection up only when it has heard nothing for the
//! idle time-out, so that half-open connections and superseded ones occur.
//! Deliberately absent: TLS, congestion, and bytes (a frame arrives whole).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rollcall_coordinator_core::effect::Urgent;
use rollcall_shared::codec::{self, HEADER_BYTES};
use rollcall_shared::limits::{DATAGRAM_BYTES_MAX, IDLE_TIMEOUT};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::faults::{Fired, Knob, Options};
use crate::schedule::{Event, Schedule};
use crate::seed::Draws;

mod link;

pub use link::{Arrived, Awake, Direction, Link, LinkId, Overflow, Packet};

use link::End;

/// How often a link sends keep-alives, retransmits and looks at its idle timer.
pub const TICK: Duration = Duration::from_millis(500);

/// All connections and the weather between.
#[derive(Debug)]
pub struct Network {
    /// Live connections.
    pub links: BTreeMap<LinkId, Link>,
    /// How many partitions stop each node's packets, each way.
    blocked: Vec<[u32; 2]>,
    draws: Draws,
    next_link: u64,
}

impl Network {
    /// Nobody is connected, everybody can be reached.
    #[must_use]
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self {
            links: BTreeMap::new(),
            blocked: vec![[0; 2]; nodes],
            draws: Draws::child(seed, "network"),
            next_link: 0,
        }
    }

    /// Stops a node's packets one way.
    pub fn block(&mut self, node: usize, direction: Direction) {
        self.blocked[node][direction as usize] += 1;
    }

    /// Ends one reason for which a node's packets are stopped.
    pub fn unblock(&mut self, node: usize, direction: Direction) {
        let count = &mut self.blocked[node][direction as usize];
        *count = count.saturating_sub(1);
    }

    /// Whether a node's packets are stopped this way.
    #[must_use]
    pub fn is_blocked(&self, node: usize, direction: Direction) -> bool {
        self.blocked[node][direction as usize] > 0
    }

    /// One trip of a packet that needs no retransmission.
    pub fn delay(&mut self, options: &Options) -> Duration {
        self.draws.between(options.delay_min, options.delay_max)
    }

    /// Whether a handshake that could reach everybody succeeds in spite of loss.
    pub fn handshake_succeeds(&mut self, options: &Options) -> bool {
        !self.draws.chance(options.loss.powi(2))
    }

    /// A handshake is complete.
    pub fn connect(&mut self, node: usize, schedule: &mut Schedule) -> LinkId {
        self.next_link += 1;
        let id = LinkId(self.next_link);
        let end = End {
            open: true,
            heard: schedule.now(),
        };
        let link = Link {
            node,
            announced: false,
            ends: [end; 2],
            streams: Default::default(),
        };
        self.links.insert(id, link);
        let phase = self.draws.between(Duration::ZERO, TICK);
        schedule.after(phase, Event::LinkTick { link: id });
        id
    }

    /// The open link that this side of this node uses: the newest.
    #[must_use]
    pub fn link_of(&self, node: usize, side: Direction) -> Option<LinkId> {
        let mut links = self.links.iter().rev();
        links
            .find(|(_, link)| link.node == node && link.is_open(side))
            .map(|(id, _)| *id)
    }

    /// A side forgets all its connections without a word: its process is dead.
    pub fn forget(&mut self, side: Direction, node: Option<usize>) {
        for link in self
            .links
            .values_mut()
            .filter(|link| node.is_none_or(|n| n == link.node))
        {
            link.ends[side as usize].open = false;
        }
    }

    /// One side closes a connection and says so once, if the network lets it.
    pub fn close(
        &mut self,
        id: LinkId,
        side: Direction,
        options: &Options,
        schedule: &mut Schedule,
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.ends[side as usize].open = false;
        let node = link.node;
        if !self.is_blocked(node, side) && !self.draws.chance(options.loss) {
            let delay = self.delay(options);
            schedule.after(
                delay,
                Event::Farewell {
                    link: id,
                    direction: side,
                },
            );
        }
    }

    /// A farewell arrives; true when the receiver still believed in the connection.
    pub fn farewell_arrives(&mut self, id: LinkId, direction: Direction) -> bool {
        let Some(node) = self.links.get(&id).map(|link| link.node) else {
            return false;
        };
        let blocked = self.is_blocked(node, direction);
        match self.links.get_mut(&id) {
            Some(link) if !blocked => {
                std::mem::replace(&mut link.ends[direction.back() as usize].open, false)
            }
            Some(_) | None => false,
        }
    }

    /// Queues a frame on the control stream.
    ///
    /// # Errors
    /// When frames wait because of a partition and there are too many.
    pub fn send_control<T: Serialize>(
        &mut self,
        id: LinkId,
        direction: Direction,
        message: &T,
        world: (&Options, &mut Schedule, &mut Fired),
    ) -> Result<(), Overflow> {
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        let bytes = codec::encode_frame(message).expect("our own messages are within bounds");
        link.streams[direction as usize].waiting.push_back(bytes);
        let waits = link.streams[direction as usize].waiting.len();
        if self.blocked[link.node][direction as usize] == 0 {
            self.flush(id, direction, world);
            Ok(())
        } else if waits > world.0.queue_max {
            Err(Overflow)
        } else {
            Ok(())
        }
    }

    /// Queues what is urgent ahead of everything, in its model's slot (rehearsals behind
    /// withdrawals), and sends a fast copy.
    pub fn send_urgent(
        &mut self,
        id: LinkId,
        urgent: &Urgent,
        world: (&Options, &mut Schedule, &mut Fired),
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let slot = (
            matches!(urgent, Urgent::Rehearse(_)),
            urgent.model().clone(),
        );
        let message = urgent.clone().into_message();
        let frame = codec::encode_frame(&message).expect("a withdrawal is small");
        link.streams[Direction::Down as usize]
            .slots
            .insert(slot, frame);
        let blocked = self.blocked[link.node][Direction::Down as usize] > 0;
        let (options, schedule, fired) = world;
        self.send_datagram(
            id,
            Direction::Down,
            &message,
            (options, &mut *schedule, &mut *fired),
        );
        if !blocked {
            self.flush(id, Direction::Down, (options, schedule, fired));
        }
    }

    /// Sends a report on a stream of its own.
    pub fn send_report<T: Serialize>(
        &mut self,
        id: LinkId,
        message: &T,
        world: (&Options, &mut Schedule, &mut Fired),
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let bytes = codec::encode_frame(message).expect("our own messages are within bounds");
        let packet = Packet::Report(bytes);
        if self.blocked[link.node][Direction::Up as usize] > 0 {
            link.streams[Direction::Up as usize].lost.push(packet);
        } else {
            self.launch(id, Direction::Up, packet, world);
        }
    }

    /// Sends a datagram, or a frame if it is too large for one.
    pub fn send_datagram<T: Serialize>(
        &mut self,
        id: LinkId,
        direction: Direction,
        message: &T,
        world: (&Options, &mut Schedule, &mut Fired),
    ) {
        let bytes = codec::encode(message).expect("our own messages are within bounds");
        if bytes.len() > DATAGRAM_BYTES_MAX {
            // A full queue drops it: what travels as a datagram may be lost.
            let _ = self.send_control(id, direction, message, world);
            return;
        }
        let (options, schedule, fired) = world;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let stream = &mut link.streams[direction as usize];
        stream.datagrams_sent += 1;
        let packet = Packet::Datagram {
            seq: stream.datagrams_sent,
            bytes,
        };
        if self.blocked[link.node][direction as usize] > 0 {
            return;
        }
        if self.draws.chance(options.loss) {
            fired.hit(Knob::DatagramLost);
            return;
        }
        let copies = 1 + u32::from(self.draws.chance(options.duplicates));
        for copy in 0..copies {
            if copy > 0 {
                fired.hit(Knob::DatagramDuplicated);
            }
            let delay = self.delay(options);
            schedule.after(
                delay,
                Event::Arrive {
                    link: id,
                    direction,
                    packet: packet.clone(),
                },
            );
        }
    }

    /// Sends what waits: retransmissions, then withdrawals, then the queue.
    fn flush(
        &mut self,
        id: LinkId,
        direction: Direction,
        world: (&Options, &mut Schedule, &mut Fired),
    ) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let stream = &mut link.streams[direction as usize];
        if stream.is_idle() {
            return;
        }
        let mut packets = std::mem::take(&mut stream.lost);
        let slots = std::mem::take(&mut stream.slots);
        let waiting = std::mem::take(&mut stream.waiting);
        for bytes in slots.into_values().chain(waiting) {
            packets.push(Packet::Control {
                seq: stream.next_seq,
                bytes,
            });
            stream.next_seq += 1;
        }
        let (options, schedule, fired) = world;
        for packet in packets {
            self.launch(
                id,
                direction,
                packet,
                (options, &mut *schedule, &mut *fired),
            );
        }
    }

    fn launch(
        &mut self,
        id: LinkId,
        direction: Direction,
        packet: Packet,
        world: (&Options, &mut Schedule, &mut Fired),
    ) {
        let (options, schedule, fired) = world;
        let mut delay = self.delay(options);
        let mut timeout = Duration::from_millis(100) + options.delay_min * 3;
        while self.draws.chance(options.loss) && timeout < IDLE_TIMEOUT {
            fired.hit(Knob::FrameRetransmitted);
            delay += timeout;
            timeout *= 2;
        }
        schedule.after(
            delay,
            Event::Arrive {
                link: id,
                direction,
                packet,
            },
        );
    }

    /// A packet reaches the other end's machine; gives what its process can read now.
    pub fn arrive(
        &mut self,
        id: LinkId,
        direction: Direction,
        packet: Packet,
        fired: &mut Fired,
    ) -> Vec<Arrived> {
        let Some(node) = self.links.get(&id).map(|link| link.node) else {
            return vec![];
        };
        let blocked = self.is_blocked(node, direction);
        let Some(link) = self.links.get_mut(&id) else {
            return vec![];
        };
        if !link.is_open(direction.back()) {
            return vec![];
        }
        let stream = &mut link.streams[direction as usize];
        match packet {
            Packet::Datagram { .. } if blocked => vec![],
            Packet::Control { .. } | Packet::Report(_) if blocked => {
                fired.hit(Knob::FrameHeldByPartition);
                stream.lost.push(packet);
                vec![]
            }
            Packet::Datagram { seq, bytes } => {
                if seq < stream.datagram_last {
                    fired.hit(Knob::DatagramReordered);
                }
                stream.datagram_last = stream.datagram_last.max(seq);
                vec![Arrived::Datagram(bytes)]
            }
            Packet::Report(bytes) => vec![Arrived::Report(bytes)],
            Packet::Control { seq, bytes } => {
                if seq >= stream.expected {
                    stream.early.insert(seq, bytes);
                }
                let mut ready = vec![];
                while let Some(bytes) = stream.early.remove(&stream.expected) {
                    stream.expected += 1;
                    ready.push(Arrived::Control(bytes));
                }
                ready
            }
        }
    }

    /// Keep-alives, retransmissions, idle timers. Gives the sides that gave up now,
    /// named by the direction in which they send.
    pub fn tick(
        &mut self,
        id: LinkId,
        awake: Awake,
        world: (&Options, &mut Schedule, &mut Fired),
    ) -> Vec<Direction> {
        let (options, schedule, fired) = world;
        let now = schedule.now();
        let Some(node) = self.links.get(&id).map(|link| link.node) else {
            return vec![];
        };
        for direction in Direction::BOTH {
            let open = self
                .links
                .get(&id)
                .is_some_and(|link| link.is_open(direction));
            if open && awake.of(direction) && !self.is_blocked(node, direction) {
                self.flush(id, direction, (options, &mut *schedule, &mut *fired));
                if let Some(link) = self.links.get_mut(&id) {
                    link.ends[direction.back() as usize].heard = now;
                }
            }
        }
        let Some(link) = self.links.get_mut(&id) else {
            return vec![];
        };
        let mut gave_up = vec![];
        // A coordinator that knows nothing of the connection answers its packets with a reset.
        let reached = Direction::BOTH
            .iter()
            .all(|way| self.blocked[node][*way as usize] == 0);
        let unknown = link.is_open(Direction::Up) && !link.is_open(Direction::Down);
        if unknown && reached && awake.agent && awake.coordinator {
            link.ends[Direction::Up as usize].open = false;
            fired.hit(Knob::Reset);
            gave_up.push(Direction::Up);
        }
        for side in Direction::BOTH {
            let end = &mut link.ends[side as usize];
            if end.open && awake.of(side) && now.since(end.heard) > IDLE_TIMEOUT {
                end.open = false;
                gave_up.push(side);
            }
        }
        let open = link.ends.iter().filter(|end| end.open).count();
        if !gave_up.is_empty() && open == 1 {
            fired.hit(Knob::HalfOpen);
        }
        if open > 0 {
            schedule.after(TICK, Event::LinkTick { link: id });
        } else {
            self.links.remove(&id);
        }
        gave_up
    }
}

/// Reads one whole frame.
#[must_use]
pub fn decode_frame<T: DeserializeOwned>(bytes: &Bytes) -> Option<T> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let announced = codec::body_length(*header).ok()?;
    (announced == body.len())
        .then(|| codec::decode(body).ok())
        .flatten()
}
