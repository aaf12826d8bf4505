//! A UDP relay in user space: stands between agents and the coordinator and treats
//! their packets as badly as it is told to. (Kernels without netem are common; this
//! works anywhere.)
//!
//! Each client address gets its own socket towards the target, so the target
//! sees distinct peers. What happens to a packet is drawn from the relay's seed
//! ([`weather`]); packets that must wait lie in one queue, ordered by time, that one
//! task serves ([`queue`]): neither a task nor a timer per packet.

mod queue;
mod weather;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use queue::{Held, Queue};
pub use weather::Weather;
use weather::{Direction, Fate, Passage};

/// Largest packet that is relayed; QUIC sends up to 1,500 bytes here.
const PACKET_BYTES_MAX: usize = 2_048;
/// Clients of one relay. More: their packets are dropped.
const CLIENTS_MAX: usize = 20_000;
/// Kernel buffer of a socket: a thousand agents dial or acknowledge at once, and a lost
/// first packet of a handshake costs QUIC's initial second. The kernel gives less where
/// its own bound is lower and cannot be passed.
const SOCKET_BYTES: usize = 8 << 20;
/// Packets that one socket may have relayed before the others have their turn.
const BATCH: usize = 64;

/// A running relay; dropping it ends it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// What the relay's owner and its tasks share.
#[derive(Debug, Default)]
struct Shared {
    weather: Mutex<Weather>,
    /// How often the clients' mappings were moved: an older one is dead.
    mapping: AtomicU64,
    queue: Queue,
    forwarded: AtomicU64,
    dropped: AtomicU64,
}

impl Shared {
    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn count(&self, passed: bool) {
        let counter = if passed {
            &self.forwarded
        } else {
            &self.dropped
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a packet at once, keeps it for later, or drops it.
    async fn relay(&self, passage: &mut Passage, packet: &[u8], way: &Way) {
        let now = Instant::now();
        match passage.fate(&self.weather(), now) {
            Fate::Dropped => self.count(false),
            Fate::Passes { first, second } => {
                for due in std::iter::once(first).chain(second) {
                    if due > now {
                        let held = Held::new(packet, way.clone());
                        if !self.queue.hold(due, held) {
                            self.count(false);
                        }
                    } else {
                        self.count(way.send(packet).await);
                    }
                }
            }
        }
    }
}

/// Where a packet goes out, and to whom.
#[derive(Clone, Debug)]
struct Way {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl Way {
    /// UDP may drop, and a target that is not there yet answers with an ICMP error:
    /// both are weather too.
    async fn send(&self, packet: &[u8]) -> bool {
        self.socket.send_to(packet, self.to).await.is_ok()
    }
}

impl Relay {
    /// Relays from a fresh loopback port to `target`. `seed` decides what happens to packets.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub async fn start(target: SocketAddr, seed: u64) -> std::io::Result<Self> {
        let front = Arc::new(bind().await?);
        let address = front.local_addr()?;
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();
        let forwarder = Forwarder {
            front,
            target,
            shared: Arc::clone(&shared),
            random: ChaCha8Rng::seed_from_u64(seed),
            clients: HashMap::new(),
        };
        let (stopped, delayed) = (stop.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            tokio::select! {
                () = forwarder.run() => {}
                () = delayed.queue.serve(|passed| delayed.count(passed)) => {}
                () = stopped.cancelled() => {}
            }
        });
        Ok(Self {
            address,
            shared,
            _stop: stop.drop_guard(),
        })
    }

    /// Where clients send to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes everything that the relay does to packets from now on. Packets that wait
    /// already keep their time.
    pub fn set(&self, weather: Weather) {
        self.shared.change(|now| *now = weather);
    }

    /// What the relay does to packets.
    #[must_use]
    pub fn weather(&self) -> Weather {
        self.shared.weather()
    }

    /// Cuts or heals both directions.
    pub fn cut(&self, cut: bool) {
        self.shared.change(|weather| {
            weather.cut_to_target = cut;
            weather.cut_to_client = cut;
        });
    }

    /// Loses this many of a thousand packets, each way.
    pub fn lose(&self, permille: u32) {
        self.shared
            .change(|weather| weather.loss_permille = permille);
    }

    /// Does what a NAT does that forgot its clients: from the next packet of each client
    /// on the target sees it at a fresh port, and what it sends to the old one is dropped.
    pub fn rebind(&self) {
        self.shared.mapping.fetch_add(1, Ordering::Relaxed);
    }

    /// Packets forwarded and dropped so far. A duplicate counts as a packet.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.shared.forwarded), read(&self.shared.dropped))
    }
}

/// A loopback socket with large buffers that is known to be writable.
async fn bind() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    // Beyond the kernel's usual bound where we may, up to it otherwise.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES).is_err() {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES);
    }
    Ok(socket)
}

/// A client's way to the target.
struct Client {
    /// Of which mapping its socket is.
    mapping: u64,
    way: Way,
    passage: Passage,
    /// Ends with the mapping.
    _way_back: AbortOnDropHandle<()>,
}

struct Forwarder {
    front: Arc<UdpSocket>,
    target: SocketAddr,
    shared: Arc<Shared>,
    random: ChaCha8Rng,
    clients: HashMap<SocketAddr, Client>,
}

impl Forwarder {
    /// Ends only by being dropped; the way back of every client ends with it.
    async fn run(mut self) {
        let mut packet = [0; PACKET_BYTES_MAX];
        loop {
            if self.front.readable().await.is_err() {
                continue;
            }
            for _ in 0..BATCH {
                let Ok((length, client)) = self.front.try_recv_from(&mut packet) else {
                    break;
                };
                self.forward(client, &packet[..length]).await;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn forward(&mut self, from: SocketAddr, packet: &[u8]) {
        let mapping = self.shared.mapping.load(Ordering::Relaxed);
        if self
            .clients
            .get(&from)
            .is_none_or(|client| client.mapping < mapping)
        {
            match self.map(from, mapping).await {
                Some(client) => self.clients.insert(from, client),
                None => return self.shared.count(false),
            };
        }
        if let Some(client) = self.clients.get_mut(&from) {
            self.shared
                .relay(&mut client.passage, packet, &client.way)
                .await;
        }
    }

    /// A fresh port for a client; `None`: there is none left.
    async fn map(&mut self, from: SocketAddr, mapping: u64) -> Option<Client> {
        let old = self.clients.remove(&from);
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let back = Arc::new(bind().await.ok()?);
        let way = Way {
            socket: Arc::clone(&back),
            to: self.target,
        };
        let way_back = WayBack {
            back,
            mapping,
            shared: Arc::clone(&self.shared),
            way: Way {
                socket: Arc::clone(&self.front),
                to: from,
            },
            passage: Passage::new(Direction::ToClient, self.random.random()),
        };
        let seed = self.random.random();
        Some(Client {
            mapping,
            way,
            // A client's packets go on as they would have.
            passage: old.map_or_else(
                || Passage::new(Direction::ToTarget, seed),
                |old| old.passage,
            ),
            _way_back: AbortOnDropHandle::new(tokio::spawn(way_back.run())),
        })
    }
}

/// From the target back to one client.
struct WayBack {
    back: Arc<UdpSocket>,
    mapping: u64,
    shared: Arc<Shared>,
    way: Way,
    passage: Passage,
}

impl WayBack {
    async fn run(mut self) {
        let mut packet = [0; PACKET_BYTES_MAX];
        loop {
            if self.back.readable().await.is_err() {
                continue;
            }
            for _ in 0..BATCH {
                let received = self.back.try_recv_from(&mut packet);
                let Ok((length, _)) = received else {
                    // Nothing more, or an ICMP error of a target that is not there yet.
                    break;
                };
                if self.mapping < self.shared.mapping.load(Ordering::Relaxed) {
                    self.shared.count(false);
                    continue;
                }
                self.shared
                    .relay(&mut self.passage, &packet[..length], &self.way)
                    .await;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests;
