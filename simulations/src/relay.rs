//! A UDP relay in user space: stands between an agent and the coordinator and
//! loses what it is told to lose. (Kernels without netem are common; this works anywhere.)
//!
//! Each client address gets its own socket towards the target, so the target
//! sees distinct peers. Packets are forwarded at once or dropped, never held.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Largest packet that is relayed; QUIC sends up to 1,500 bytes here.
const PACKET_BYTES_MAX: usize = 2_048;
/// Clients of one relay. More: their packets are dropped.
const CLIENTS_MAX: usize = 20_000;

/// What the relay does to packets.
#[derive(Debug, Default)]
struct Weather {
    cut_to_target: AtomicBool,
    cut_to_client: AtomicBool,
    loss_permille: AtomicU32,
    forwarded: AtomicU64,
    dropped: AtomicU64,
}

impl Weather {
    fn passes(&self, cut: &AtomicBool, random: u32) -> bool {
        let lost = cut.load(Ordering::Relaxed)
            || random % 1_000 < self.loss_permille.load(Ordering::Relaxed);
        let counter = if lost { &self.dropped } else { &self.forwarded };
        counter.fetch_add(1, Ordering::Relaxed);
        !lost
    }
}

/// A running relay; dropping it ends it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    weather: Arc<Weather>,
    _stop: DropGuard,
}

impl Relay {
    /// Relays from a fresh loopback port to `target`. `seed` decides which packets are lost.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub async fn start(target: SocketAddr, seed: u64) -> std::io::Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let address = front.local_addr()?;
        let weather = Arc::new(Weather::default());
        let stop = CancellationToken::new();
        let run = Forwarder {
            front,
            target,
            weather: Arc::clone(&weather),
            seed,
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = run.run() => {}
                () = stopped.cancelled() => {}
            }
        });
        Ok(Self {
            address,
            weather,
            _stop: stop.drop_guard(),
        })
    }

    /// Where clients send to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts or heals both directions.
    pub fn cut(&self, cut: bool) {
        self.weather.cut_to_target.store(cut, Ordering::Relaxed);
        self.weather.cut_to_client.store(cut, Ordering::Relaxed);
    }

    /// Loses this many of a thousand packets, each way.
    pub fn lose(&self, permille: u32) {
        self.weather
            .loss_permille
            .store(permille, Ordering::Relaxed);
    }

    /// Packets forwarded and dropped so far.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.weather.forwarded), read(&self.weather.dropped))
    }
}

struct Forwarder {
    front: Arc<UdpSocket>,
    target: SocketAddr,
    weather: Arc<Weather>,
    seed: u64,
}

impl Forwarder {
    /// Ends only by being dropped; the way back of every client ends with it.
    async fn run(self) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut ways_back = JoinSet::new();
        let mut packet = [0; PACKET_BYTES_MAX];
        loop {
            let Ok((length, client)) = self.front.recv_from(&mut packet).await else {
                continue;
            };
            if !clients.contains_key(&client) {
                if clients.len() >= CLIENTS_MAX {
                    continue;
                }
                let Ok(back) = self.connect().await else {
                    continue;
                };
                let way_back = self.way_back(Arc::clone(&back), client, random.random());
                ways_back.spawn(way_back);
                clients.insert(client, back);
            }
            if self
                .weather
                .passes(&self.weather.cut_to_target, random.random())
            {
                // UDP may drop; a full buffer is weather too.
                let _ = clients[&client].send(&packet[..length]).await;
            }
        }
    }

    async fn connect(&self) -> std::io::Result<Arc<UdpSocket>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(self.target).await?;
        Ok(Arc::new(socket))
    }

    fn way_back(
        &self,
        back: Arc<UdpSocket>,
        client: SocketAddr,
        seed: u64,
    ) -> impl Future<Output = ()> + use<> {
        let (front, weather) = (Arc::clone(&self.front), Arc::clone(&self.weather));
        async move {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut packet = [0; PACKET_BYTES_MAX];
            loop {
                // A target that is not there yet answers with an ICMP error: wait for it.
                let Ok(length) = back.recv(&mut packet).await else {
                    continue;
                };
                if weather.passes(&weather.cut_to_client, random.random()) {
                    let _ = front.send_to(&packet[..length], client).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_pass_until_the_link_is_cut_and_again_after_it_heals() {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(target.local_addr().unwrap(), 1).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(relay.address()).await.unwrap();
        let mut buffer = [0; 16];

        client.send(b"one").await.unwrap();
        let (length, peer) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"one");
        target.send_to(b"back", peer).await.unwrap();
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 4);

        relay.cut(true);
        client.send(b"lost").await.unwrap();
        while relay.counts().1 == 0 {
            tokio::task::yield_now().await;
        }
        relay.cut(false);
        client.send(b"two").await.unwrap();
        let (length, _) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"two");
    }
}
