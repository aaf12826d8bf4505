//! The UDP socket that carries both: beacons are taken out before quinn sees them.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Connection, Runtime, TokioRuntime, UdpPoller};

use super::{End, Key, KeyId, NoKey, QUIC_BITS, Sealed, Sealer};

/// Takes the plain text of a beacon, and the connection's place in 0 to 1 among all:
/// uniform, and the same as long as the connection lives. Called where packets are
/// received: it must not block, and what it has no room for it drops, as the network
/// might have.
type Deliver = Box<dyn Fn(&[u8], f64) + Send + Sync>;

struct Listener {
    key: Key,
    deliver: Deliver,
}

/// The beacons of one endpoint: who listens on its socket, and the way out. Copies
/// share both.
#[derive(Clone, Default)]
pub struct Beacons(Arc<Shared>);

#[derive(Default)]
struct Shared {
    listeners: RwLock<HashMap<KeyId, Listener>>,
    /// The endpoint's socket; another one after [`quinn::Endpoint::rebind`].
    socket: RwLock<Option<Arc<dyn AsyncUdpSocket>>>,
}

impl fmt::Debug for Beacons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Beacons")
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    // Nothing that holds these locks can leave a half-made change.
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Beacons {
    /// Listens for the beacons of one connection until the returned guard is dropped;
    /// once it is dropped, `deliver` is not called again.
    ///
    /// # Errors
    /// When the connection's TLS session exports no keys.
    pub fn listen(
        &self,
        connection: &Connection,
        our_end: End,
        deliver: impl Fn(&[u8], f64) + Send + Sync + 'static,
    ) -> Result<Listening, NoKey> {
        let key = Key::of(connection, our_end.other())?;
        let id = key.id;
        let listener = Listener {
            key,
            deliver: Box::new(deliver),
        };
        write(&self.0.listeners).insert(id, listener);
        Ok(Listening {
            beacons: self.clone(),
            id,
        })
    }

    /// Seals `body` and sends it to where the connection's peer was heard last. Waits
    /// only while the socket's buffer is full. `packet` is room to work in.
    ///
    /// # Errors
    /// When the system refuses the packet: it is lost, as any may be.
    pub async fn send(
        &self,
        connection: &Connection,
        sealer: &Sealer,
        body: &[u8],
        packet: &mut Vec<u8>,
    ) -> io::Result<()> {
        sealer.seal(body, packet);
        let transmit = Transmit {
            destination: connection.remote_address(),
            ecn: None,
            contents: packet,
            segment_size: None,
            src_ip: connection.local_ip(),
        };
        let Some(socket) = read(&self.0.socket).clone() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut poller = None;
        loop {
            match socket.try_send(&transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let poller =
                        poller.get_or_insert_with(|| Arc::clone(&socket).create_io_poller());
                    poll_fn(|cx| poller.as_mut().poll_writable(cx)).await?;
                }
                sent => return sent,
            }
        }
    }

    /// Anybody can send us anything: what is not sealed for a listener is nothing.
    fn take(&self, packet: &mut [u8]) {
        let Some(sealed) = Sealed::parse(packet) else {
            return;
        };
        let place = sealed.key.place();
        let listeners = read(&self.0.listeners);
        if let Some(listener) = listeners.get(&sealed.key)
            && let Some(body) = sealed.open(&listener.key)
        {
            (listener.deliver)(body, place);
        }
    }

    /// Takes the beacons out of what was received together and closes the gaps.
    /// Segments are of one size, but for the last.
    fn take_out_of(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let (stride, length) = (meta.stride.max(1), meta.len);
        let is_beacon = |first: Option<&u8>| first.is_some_and(|first| first & QUIC_BITS == 0);
        if !buffer[..length]
            .chunks(stride)
            .any(|segment| is_beacon(segment.first()))
        {
            return;
        }
        let mut kept = 0;
        for start in (0..length).step_by(stride) {
            let end = (start + stride).min(length);
            if is_beacon(buffer.get(start)) {
                self.take(&mut buffer[start..end]);
            } else {
                buffer.copy_within(start..end, kept);
                kept += end - start;
            }
        }
        meta.len = kept;
    }
}

/// As long as it lives, beacons of a connection are delivered.
#[derive(Debug)]
pub struct Listening {
    beacons: Beacons,
    id: KeyId,
}

impl Drop for Listening {
    fn drop(&mut self) {
        write(&self.beacons.0.listeners).remove(&self.id);
    }
}

/// Tokio with sockets that know beacons; so that [`quinn::Endpoint::rebind`] gives one too.
#[derive(Debug)]
pub(crate) struct BeaconRuntime(pub(crate) Beacons);

impl Runtime for BeaconRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        *write(&self.0.0.socket) = Some(Arc::clone(&inner));
        Ok(Arc::new(BeaconSocket {
            inner,
            beacons: self.0.clone(),
        }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct BeaconSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    beacons: Beacons,
}

impl AsyncUdpSocket for BeaconSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, buffers, metas);
        if let Poll::Ready(Ok(count)) = &received {
            for (buffer, meta) in buffers.iter_mut().zip(metas).take(*count) {
                self.beacons.take_out_of(buffer, meta);
            }
        }
        // What is left may be empty: quinn skips that, and counts it as work, so that
        // a flood of beacons cannot keep it here for ever.
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_packets_that_came_with_beacons_stay_in_order() {
        let mut buffer = b"\x40AAA\x2ebbb\xc0CCC\x2ed".to_vec();
        let mut meta = RecvMeta {
            len: buffer.len(),
            stride: 4,
            ..RecvMeta::default()
        };
        Beacons::default().take_out_of(&mut buffer, &mut meta);
        assert_eq!(&buffer[..meta.len], b"\x40AAA\xc0CCC");

        let mut quic = b"\x40AAA\xc0C".to_vec();
        let mut meta = RecvMeta {
            len: quic.len(),
            stride: 4,
            ..RecvMeta::default()
        };
        Beacons::default().take_out_of(&mut quic, &mut meta);
        assert_eq!(&quic[..meta.len], b"\x40AAA\xc0C");
    }
}
