//! What checkers know by version. They look at every version that any request meets, which
//! is most of what they do, and never go through what they know: so these are hashed, and the
//! digest in a version is the hash.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use rollcall_shared::assignment::VersionRef;

/// Versions, in no order.
pub type VersionSet = HashSet<VersionRef, BuildHasherDefault<DigestHasher>>;

/// Something of each version, in no order.
pub type VersionMap<T> = HashMap<VersionRef, T, BuildHasherDefault<DigestHasher>>;

/// Takes eight bytes of each word that it is given; those of a digest are as good as random.
#[derive(Debug, Default)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        let end = bytes.len().min(8);
        word[..end].copy_from_slice(&bytes[..end]);
        self.0 ^= u64::from_le_bytes(word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
