//! Beacons: sealed datagrams beside QUIC, on the same UDP socket.
//!
//! A push to ten thousand connections costs QUIC some 17 us of CPU for each: a
//! packet is assembled, protected, tracked, acknowledged, and two tasks wake up. A
//! withdrawal needs none of that to be believed, so its first copy goes out as a
//! beacon: one AEAD and one `sendto`, about 3.5 us. The answer comes back as one too.
//! The control stream then carries it to whoever has not answered.
//!
//! **Keys** come from the connection's TLS exporter (RFC 8446, section 7.5), so both
//! ends of a connection have them without a word, they are as authentic as the mutual
//! TLS handshake, and they die with the connection. Each direction has its own.
//!
//! **On the wire**, all in network byte order:
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | [`MARK`]: the two highest bits are clear, as in no QUIC packet (RFC 9443) |
//! | 8 | which key |
//! | 8 | counter: the nonce, never used twice with a key |
//! | n + 16 | ChaCha20-Poly1305 of a [`wire::Beacon`](rollcall_shared::wire::Beacon); the 17 bytes before are authenticated too |
//!
//! A beacon may be lost, late, repeated by anybody who saw it, or overtaken. That is
//! why only messages that mean the same however often they come travel so.

mod socket;

use std::sync::atomic::{AtomicU64, Ordering};

use quinn::Connection;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

pub(crate) use socket::BeaconRuntime;
pub use socket::{Beacons, Listening};

/// First byte. QUIC's short headers begin with the bits 01 and its long ones with 11,
/// as long as neither end offers to grease them; see [`crate::endpoint`].
pub const MARK: u8 = 0x2e;

/// The bits that every QUIC packet has one of.
const QUIC_BITS: u8 = 0xc0;

const KEY_ID_BYTES: usize = 8;
const COUNTER_BYTES: usize = 8;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + COUNTER_BYTES;
const SECRET_BYTES: usize = 32;

const EXPORTER_LABEL: &[u8] = b"EXPORTER-rollcall-beacon";

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where all agents connect to.
    Coordinator,
    /// A node.
    Agent,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Coordinator => Self::Agent,
            Self::Agent => Self::Coordinator,
        }
    }

    /// The exporter's context for what this end seals.
    const fn context(self) -> &'static [u8] {
        match self {
            Self::Coordinator => b"from coordinator",
            Self::Agent => b"from agent",
        }
    }
}

/// Which key a beacon is sealed with. Uniform over all 64-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct KeyId([u8; KEY_ID_BYTES]);

impl KeyId {
    /// The id as a place in 0 to 1: spreads what all agents do at once.
    fn place(self) -> f64 {
        let high = u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]);
        f64::from(high) / f64::from(u32::MAX)
    }
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection's TLS session exports no keys")]
pub struct NoKey;

/// One connection's key in one direction, the same on both ends; one of them seals.
struct Key {
    id: KeyId,
    aead: LessSafeKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// The key with which `end` seals.
    fn of(connection: &Connection, end: End) -> Result<Self, NoKey> {
        let mut material = [0; SECRET_BYTES + KEY_ID_BYTES];
        connection
            .export_keying_material(&mut material, EXPORTER_LABEL, end.context())
            .map_err(|_| NoKey)?;
        Self::from_material(&material)
    }

    fn from_material(material: &[u8; SECRET_BYTES + KEY_ID_BYTES]) -> Result<Self, NoKey> {
        let (secret, id) = material.split_at(SECRET_BYTES);
        let aead = UnboundKey::new(&CHACHA20_POLY1305, secret).map_err(|_| NoKey)?;
        Ok(Self {
            id: KeyId(id.try_into().map_err(|_| NoKey)?),
            aead: LessSafeKey::new(aead),
        })
    }
}

fn nonce(counter: [u8; COUNTER_BYTES]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter);
    Nonce::assume_unique_for_key(nonce)
}

/// Seals beacons for one connection.
#[derive(Debug)]
pub struct Sealer {
    key: Key,
    counter: AtomicU64,
}

impl Sealer {
    /// For our end of a connection whose handshake is complete.
    ///
    /// # Errors
    /// When its TLS session exports nothing.
    pub fn new(connection: &Connection, our_end: End) -> Result<Self, NoKey> {
        Ok(Self {
            key: Key::of(connection, our_end)?,
            counter: AtomicU64::new(0),
        })
    }

    /// Puts a whole packet into `packet`, in place of what was there.
    pub fn seal(&self, body: &[u8], packet: &mut Vec<u8>) {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        packet.clear();
        packet.push(MARK);
        packet.extend_from_slice(&self.key.id.0);
        packet.extend_from_slice(&counter);
        packet.extend_from_slice(body);
        let (header, sealed) = packet.split_at_mut(HEADER_BYTES);
        let tag = self
            .key
            .aead
            .seal_in_place_separate_tag(nonce(counter), Aad::from(header), sealed)
            .expect("a beacon is far below ChaCha20's 256 GiB");
        packet.extend_from_slice(tag.as_ref());
    }
}

/// What can be read of a packet before its key is known.
struct Sealed<'a> {
    key: KeyId,
    header: [u8; HEADER_BYTES],
    counter: [u8; COUNTER_BYTES],
    body: &'a mut [u8],
}

impl<'a> Sealed<'a> {
    fn parse(packet: &'a mut [u8]) -> Option<Self> {
        let (header, body) = packet.split_first_chunk_mut::<HEADER_BYTES>()?;
        let (mark, rest) = header.split_first()?;
        let (key, counter) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
        (*mark == MARK).then_some(Self {
            key: KeyId(*key),
            header: *header,
            counter: counter.try_into().ok()?,
            body,
        })
    }

    fn open(self, key: &Key) -> Option<&'a [u8]> {
        let aad = Aad::from(self.header);
        let opened = key.aead.open_in_place(nonce(self.counter), aad, self.body);
        opened.ok().map(|body| &*body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> Key {
        Key::from_material(&[seed; SECRET_BYTES + KEY_ID_BYTES]).unwrap()
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        let sealer = Sealer {
            key: key(1),
            counter: AtomicU64::new(7),
        };
        let mut packet = b"what was there".to_vec();
        sealer.seal(body, &mut packet);
        packet
    }

    #[test]
    fn what_was_sealed_is_opened_with_the_same_key_only() {
        let mut packet = sealed(b"withdraw");
        assert_eq!(packet[0] & QUIC_BITS, 0, "no QUIC packet begins so");
        let mut copy = packet.clone();
        let opened = Sealed::parse(&mut packet).unwrap();
        assert_eq!(opened.key, key(1).id);
        assert_eq!(opened.open(&key(1)).unwrap(), b"withdraw");
        assert!(Sealed::parse(&mut copy).unwrap().open(&key(2)).is_none());
    }

    #[test]
    fn no_byte_can_be_changed_and_none_left_out() {
        let packet = sealed(b"withdraw");
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 1;
            let opened = Sealed::parse(&mut changed).and_then(|sealed| sealed.open(&key(1)));
            assert!(opened.is_none(), "byte {at}");
            let mut cut = packet[..at].to_vec();
            let opened = Sealed::parse(&mut cut).and_then(|sealed| sealed.open(&key(1)));
            assert!(opened.is_none(), "cut at {at}");
        }
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let sealer = Sealer {
            key: key(1),
            counter: AtomicU64::new(0),
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        sealer.seal(b"same", &mut first);
        sealer.seal(b"same", &mut second);
        assert_ne!(first, second);
    }
}
