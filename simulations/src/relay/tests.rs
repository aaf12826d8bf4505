//! Each fault with real UDP. What the seed decides is compared draw by draw; nothing
//! here depends on how fast the machine is.

use std::time::Duration;

use super::*;

/// A client, a relay with this weather, and a target.
struct Link {
    client: UdpSocket,
    relay: Relay,
    target: UdpSocket,
}

impl Link {
    async fn with(weather: Weather, seed: u64) -> Self {
        // With large buffers: what is lost here is lost by the relay.
        let target = bind().await.unwrap();
        let relay = Relay::start(target.local_addr().unwrap(), seed)
            .await
            .unwrap();
        relay.set(weather);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(relay.address()).await.unwrap();
        Self {
            client,
            relay,
            target,
        }
    }

    async fn send(&self, number: u8) {
        self.client.send(&[number]).await.unwrap();
    }

    /// The next packet at the target, and from where.
    async fn arrives(&self) -> (u8, SocketAddr) {
        let mut buffer = [0; 16];
        let (length, peer) = self.target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(length, 1);
        (buffer[0], peer)
    }

    async fn answer(&self, number: u8, peer: SocketAddr) {
        self.target.send_to(&[number], peer).await.unwrap();
    }

    async fn comes_back(&self) -> u8 {
        let mut buffer = [0; 16];
        assert_eq!(self.client.recv(&mut buffer).await.unwrap(), 1);
        buffer[0]
    }

    /// Waits until the relay has decided about so many packets.
    async fn until_counted(&self, packets: u64) {
        while self.relay.counts().0 + self.relay.counts().1 < packets {
            tokio::task::yield_now().await;
        }
    }
}

/// What arrives of 200 packets, in order of arrival.
async fn arrivals(weather: Weather, seed: u64, copies: usize) -> Vec<u8> {
    let link = Link::with(weather, seed).await;
    for number in 0..200 {
        link.send(number).await;
    }
    let mut arrived = Vec::new();
    while arrived.len() < copies {
        arrived.push(link.arrives().await.0);
    }
    arrived
}

#[tokio::test]
async fn packets_pass_until_the_link_is_cut_and_again_after_it_heals() {
    let link = Link::with(Weather::default(), 1).await;
    link.send(1).await;
    let (number, peer) = link.arrives().await;
    assert_eq!(number, 1);
    link.answer(2, peer).await;
    assert_eq!(link.comes_back().await, 2);

    link.relay.cut(true);
    link.send(3).await;
    link.until_counted(3).await;
    assert_eq!(link.relay.counts(), (2, 1));
    link.relay.cut(false);
    link.send(4).await;
    assert_eq!(link.arrives().await.0, 4);
}

#[tokio::test]
async fn one_direction_is_cut_alone() {
    let link = Link::with(Weather::default(), 1).await;
    link.send(1).await;
    let (_, peer) = link.arrives().await;
    link.relay.set(Weather {
        cut_to_client: true,
        ..Weather::default()
    });
    link.answer(2, peer).await;
    link.until_counted(2).await;
    link.send(3).await;
    assert_eq!(link.arrives().await.0, 3, "the way there is open");

    link.relay.set(Weather {
        cut_to_target: true,
        ..Weather::default()
    });
    link.send(4).await;
    link.until_counted(4).await;
    link.answer(5, peer).await;
    assert_eq!(link.comes_back().await, 5, "2 was lost, 5 was not");
    assert_eq!(link.relay.counts(), (3, 2));
}

#[tokio::test]
async fn the_seed_decides_which_packets_are_lost() {
    let lossy = Weather {
        loss_permille: 300,
        ..Weather::default()
    };
    let mut lost = Vec::new();
    for seed in [1, 1, 2] {
        let link = Link::with(lossy, seed).await;
        for number in 0..100 {
            link.send(number).await;
        }
        link.until_counted(100).await;
        let (passed, dropped) = link.relay.counts();
        assert!((10..60).contains(&dropped), "{dropped} of 100 lost");
        let mut arrived = Vec::new();
        for _ in 0..passed {
            arrived.push(link.arrives().await.0);
        }
        lost.push(arrived);
    }
    assert_eq!(lost[0], lost[1], "the same seed");
    assert_ne!(lost[0], lost[2], "another seed");
}

#[tokio::test]
async fn a_delayed_packet_does_not_come_early_and_keeps_its_order_in_spite_of_jitter() {
    let slow = Weather {
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(30),
        ..Weather::default()
    };
    let sent = Instant::now();
    let arrived = arrivals(slow, 1, 200).await;
    assert!(sent.elapsed() >= slow.delay);
    assert!(arrived.iter().copied().eq(0..200), "{arrived:?}");
}

#[tokio::test]
async fn packets_held_back_are_overtaken_and_none_is_lost() {
    let shuffled = Weather {
        reorder_permille: 200,
        ..Weather::default()
    };
    let mut arrived = arrivals(shuffled, 1, 200).await;
    assert!(!arrived.is_sorted(), "nothing was overtaken");
    arrived.sort_unstable();
    assert!(arrived.iter().copied().eq(0..200), "{arrived:?}");
}

#[tokio::test]
async fn duplicates_arrive_twice() {
    let doubled = Weather {
        duplicate_permille: 1_000,
        ..Weather::default()
    };
    let arrived = arrivals(doubled, 1, 400).await;
    assert!(arrived.iter().copied().eq((0..200).flat_map(|n| [n, n])));
}

#[tokio::test]
async fn after_a_rebinding_the_target_sees_another_port_and_the_old_one_is_dead() {
    let link = Link::with(Weather::default(), 1).await;
    link.send(1).await;
    let (_, before) = link.arrives().await;
    link.relay.rebind();
    link.answer(2, before).await;
    link.until_counted(2).await;
    assert_eq!(link.relay.counts().1, 1, "nobody forwards from there");

    link.send(3).await;
    let (number, after) = link.arrives().await;
    assert_eq!(number, 3);
    assert_ne!(before, after);
    link.answer(4, after).await;
    assert_eq!(link.comes_back().await, 4);
}

#[test]
fn what_happens_to_a_packet_does_not_depend_on_the_weather_before() {
    let now = Instant::now();
    let lossy = Weather {
        loss_permille: 500,
        ..Weather::default()
    };
    let wild = Weather {
        reorder_permille: 500,
        duplicate_permille: 500,
        jitter: Duration::from_secs(1),
        ..lossy
    };
    let after = |first: &Weather| {
        let mut passage = Passage::new(Direction::ToTarget, 9);
        for _ in 0..50 {
            passage.fate(first, now);
        }
        let lost = |_| passage.fate(&lossy, now) == Fate::Dropped;
        (0..50).map(lost).collect::<Vec<_>>()
    };
    assert_eq!(after(&lossy), after(&wild));
}

#[tokio::test]
async fn a_full_queue_drops_and_what_was_there_keeps_its_place() {
    let queue = Queue::default();
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let to = socket.local_addr().unwrap();
    let now = Instant::now();
    let hold = |number: u8, due| {
        let way = Way {
            socket: Arc::clone(&socket),
            to,
        };
        queue.hold(due, Held::new(&[number], way))
    };
    assert!(hold(2, now));
    assert!(hold(1, now - Duration::from_millis(1)));
    while hold(3, now) {}
    assert!(!hold(4, now), "full");
    let mut buffer = [0; 1];
    for expected in [1, 2, 3] {
        tokio::select! {
            () = queue.serve(|_| ()) => {}
            received = socket.recv(&mut buffer) => { received.unwrap(); }
        }
        assert_eq!(buffer, [expected]);
    }
}

#[tokio::test]
async fn eight_sockets_with_a_thousand_agents_lose_nothing_to_a_delay() {
    const SOCKETS: usize = 8;
    const PACKETS: usize = 500;
    let target = bind().await.unwrap();
    let relay = Relay::start(target.local_addr().unwrap(), 1).await.unwrap();
    relay.set(Weather {
        delay: Duration::from_millis(50),
        ..Weather::default()
    });
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let socket = bind().await.unwrap();
        socket.connect(relay.address()).await.unwrap();
        for _ in 0..PACKETS {
            socket.send(&[0; 1_200]).await.unwrap();
        }
        sockets.push(socket);
    }
    let mut buffer = [0; PACKET_BYTES_MAX];
    for _ in 0..SOCKETS * PACKETS {
        let (length, peer) = target.recv_from(&mut buffer).await.unwrap();
        target.send_to(&buffer[..length], peer).await.unwrap();
    }
    for socket in sockets {
        for _ in 0..PACKETS {
            assert_eq!(socket.recv(&mut buffer).await.unwrap(), 1_200);
        }
    }
    assert_eq!(relay.counts(), (2 * (SOCKETS * PACKETS) as u64, 0));
}
