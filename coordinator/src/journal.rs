//! The coordinator's one durable log, behind one trait.
//!
//! The state of a coordinator is a fold over these records; nothing else is kept.
//! What [`Journal::append`] returned `Ok` for survives kill -9 and power loss.
//! A record's exact JSON text is what is hashed, stored, exported and verified;
//! it is never written again from a parsed form.
//!
//! [`sqlite::SqliteJournal`] is the one implementation; a clustered store would be another.

pub mod sqlite;

use std::path::PathBuf;

use rollcall_coordinator_core::record::Record;
use rollcall_shared::digest::Digest;

/// Version of the snapshot's form. Another one: the snapshot is ignored and every record folded.
pub const SNAPSHOT_SCHEMA: u32 = 2;

/// A record as it is stored: its exact text and the hash of that text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its number.
    pub seq: u64,
    /// The JSON text.
    pub body: String,
    /// BLAKE3 of `body`.
    pub hash: Digest,
}

/// A folded state, to start from instead of from the first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSnapshot {
    /// The last record that is folded into it.
    pub seq: u64,
    /// The state, encoded by whoever folds.
    pub state: Vec<u8>,
}

/// What a journal held when it was opened; the chain is verified.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest snapshot that verifies, if there is one.
    pub snapshot: Option<StateSnapshot>,
    /// The records after it; all of them when there is none.
    pub records: Vec<Record>,
}

/// The end of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record; 0 when there is none.
    pub seq: u64,
    /// Its hash; of nothing when there is none.
    pub hash: Digest,
}

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store failed.
    #[error("the journal {} cannot be {action}: {source}", path.display())]
    Store {
        /// Where it lies.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The file system failed.
    #[error("the journal {} cannot be opened: {source}", path.display())]
    Io {
        /// Where it lies.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "another coordinator uses {}: stop it first; two would write two histories", path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The chain is broken.
    #[error(
        "the journal is damaged at record {seq}: {why}. Nothing was changed. Restore the folder \
         from a backup, or keep a copy of it and ask who wrote to it"
    )]
    Damaged {
        /// The first bad record.
        seq: u64,
        /// What does not fit.
        why: String,
    },
    /// [`Journal::close`] was called.
    #[error("the journal is closed: the coordinator is shutting down")]
    Closed,
    /// The records do not continue what is stored: a bug of ours, or a second writer.
    #[error("records that do not follow record {head} were to be appended")]
    OutOfOrder {
        /// The last stored record.
        head: u64,
    },
}

/// An append-only, hash-chained log.
pub trait Journal: Send + Sync {
    /// Verifies the whole chain and gives what the state is folded from; without
    /// `use_snapshot`, every record.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] names the first record that does not fit.
    fn load(&self, use_snapshot: bool) -> Result<Loaded, JournalError>;

    /// Makes records durable, all or none.
    ///
    /// # Errors
    /// When they are not durable. The caller must stop: its memory is ahead of the disk.
    fn append(&self, records: &[Record]) -> Result<(), JournalError>;

    /// Keeps a folded state, so that the next start need not fold everything.
    ///
    /// # Errors
    /// When it was not kept; nothing is lost by that.
    fn snapshot(&self, snapshot: &StateSnapshot) -> Result<(), JournalError>;

    /// At most `limit` records from number `from` on.
    ///
    /// # Errors
    /// When the store fails.
    fn records(&self, from: u64, limit: usize) -> Result<Vec<StoredRecord>, JournalError>;

    /// Lets another process take over: nothing is appended from here on, and an append
    /// that is under way ends first. Reading goes on.
    fn close(&self);

    /// The end of the chain.
    ///
    /// # Errors
    /// When the store fails.
    fn head(&self) -> Result<Head, JournalError>;
}

/// Checks a chain record by record; the same code serves the start of a
/// coordinator and `rollcall audit verify`.
#[derive(Clone, Copy, Debug)]
pub struct ChainVerifier {
    head: Head,
}

impl Default for ChainVerifier {
    fn default() -> Self {
        Self::from_start()
    }
}

impl ChainVerifier {
    /// Expects record 1 next.
    #[must_use]
    pub fn from_start() -> Self {
        Self {
            head: Head {
                seq: 0,
                hash: Digest::of(b""),
            },
        }
    }

    /// Checks that `body` is the next record and gives it.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] with what does not fit.
    pub fn check(&mut self, body: &str) -> Result<Record, JournalError> {
        let seq = self.head.seq + 1;
        let damaged = |why: String| JournalError::Damaged { seq, why };
        let record: Record = serde_json::from_str(body)
            .map_err(|error| damaged(format!("it cannot be read ({error})")))?;
        if record.seq != seq {
            return Err(damaged(format!(
                "it is missing; record {} is there instead",
                record.seq
            )));
        }
        if record.previous != self.head.hash {
            return Err(damaged(format!(
                "it was written after a record with hash {}, but the one before it has {}",
                record.previous.short(),
                self.head.hash.short()
            )));
        }
        self.head = Head {
            seq,
            hash: Digest::of(body.as_bytes()),
        };
        Ok(record)
    }

    /// The last record that was checked.
    #[must_use]
    pub const fn head(&self) -> Head {
        self.head
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Records for tests.

    use rollcall_coordinator_core::input::Actor;
    use rollcall_coordinator_core::record::{Event, Record};
    use rollcall_shared::digest::Digest;
    use rollcall_shared::time::Timestamp;

    /// A chain of `count` boots.
    pub(crate) fn chain(count: u64) -> Vec<Record> {
        let mut previous = Digest::of(b"");
        (1..=count)
            .map(|seq| {
                let record = Record {
                    seq,
                    at: Timestamp::from_nanos(seq * 1_000_000),
                    actor: Actor::System,
                    event: Event::Booted {
                        software: format!("test {seq}"),
                    },
                    previous,
                };
                previous = record.hash();
                record
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_record_is_named_by_its_place() {
        let records = fixture::chain(3);
        let mut verifier = ChainVerifier::from_start();
        verifier
            .check(&serde_json::to_string(&records[0]).unwrap())
            .unwrap();
        let error = verifier
            .check(&serde_json::to_string(&records[2]).unwrap())
            .unwrap_err();
        assert!(
            matches!(error, JournalError::Damaged { seq: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_changed_record_is_found_by_the_one_after_it() {
        let records = fixture::chain(2);
        let mut verifier = ChainVerifier::from_start();
        let changed = serde_json::to_string(&records[0])
            .unwrap()
            .replace("test 1", "test X");
        verifier.check(&changed).unwrap();
        assert!(
            verifier
                .check(&serde_json::to_string(&records[1]).unwrap())
                .is_err()
        );
    }
}
