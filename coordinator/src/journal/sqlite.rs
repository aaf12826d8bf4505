//! The journal in one SQLite file.
//!
//! SQLite because what is acknowledged must survive power loss (WAL with
//! `synchronous=FULL` syncs every commit), and because an auditor can open the file
//! with tools that exist. Only `seq`, `body` and `hash` are stored; the columns
//! that people query (`at`, `actor`, `event`, `previous`) are computed from `body`,
//! so that they cannot disagree with it. Triggers refuse UPDATE and DELETE: not a
//! defence against whoever owns the file (that is the chain), but against mistakes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rollcall_coordinator_core::record::Record;
use rollcall_shared::digest::Digest;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::{
    ChainVerifier, Head, Journal, JournalError, Loaded, SNAPSHOT_SCHEMA, StateSnapshot,
    StoredRecord,
};

/// Snapshots kept: the newest, and one before it should the newest not verify.
const SNAPSHOTS_KEPT: u32 = 2;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS records (
    seq      INTEGER PRIMARY KEY,
    body     TEXT NOT NULL,
    hash     TEXT NOT NULL,
    at       TEXT GENERATED ALWAYS AS (json_extract(body, '$.at')) VIRTUAL,
    actor    TEXT GENERATED ALWAYS AS (json_extract(body, '$.actor')) VIRTUAL,
    event    TEXT GENERATED ALWAYS AS (json_extract(body, '$.event')) VIRTUAL,
    previous TEXT GENERATED ALWAYS AS (json_extract(body, '$.previous')) VIRTUAL
) STRICT;
CREATE TRIGGER IF NOT EXISTS records_are_never_changed BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
CREATE TRIGGER IF NOT EXISTS records_are_never_deleted BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are append-only'); END;
CREATE TABLE IF NOT EXISTS snapshots (
    seq         INTEGER PRIMARY KEY,
    schema      INTEGER NOT NULL,
    record_hash TEXT NOT NULL,
    state_hash  TEXT NOT NULL,
    state       BLOB NOT NULL
) STRICT;
";

/// A journal in a folder of its own coordinator.
pub struct SqliteJournal {
    path: PathBuf,
    writer: Mutex<Writer>,
    /// Of its own, so that reading the log never waits for a sync.
    reader: Mutex<Connection>,
}

struct Writer {
    connection: Connection,
    /// Held until the journal is closed; the system lets go of it when the process dies.
    lock: Option<File>,
}

impl SqliteJournal {
    /// Opens the journal of the data folder `folder`, made when it is not there.
    ///
    /// # Errors
    /// When another process has it, or the store cannot be opened.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join("journal.db");
        let io = |source| JournalError::Io {
            path: path.clone(),
            source,
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(JournalError::Locked {
                    path: folder.to_owned(),
                });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        let store = |source| JournalError::Store {
            path: path.clone(),
            action: "opened",
            source,
        };
        let writer = open_writer(&path).map_err(store)?;
        let reader = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(store)?;
        // The file's own entry in its folder must survive too.
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io)?;
        let writer = Writer {
            connection: writer,
            lock: Some(lock),
        };
        Ok(Self {
            path,
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
        })
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> JournalError {
        let path = self.path.clone();
        move |source| JournalError::Store {
            path,
            action,
            source,
        }
    }

    fn newest_snapshot(
        connection: &Connection,
        hash_at: impl Fn(u64) -> Option<Digest>,
    ) -> rusqlite::Result<Option<StateSnapshot>> {
        let mut statement = connection.prepare(
            "SELECT seq, record_hash, state_hash, state FROM snapshots WHERE schema = ?1 \
             ORDER BY seq DESC",
        )?;
        let mut rows = statement.query(params![SNAPSHOT_SCHEMA])?;
        while let Some(row) = rows.next()? {
            let (seq, record_hash, state_hash): (u64, String, String) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let state: Vec<u8> = row.get(3)?;
            let fits = hash_at(seq).is_some_and(|hash| hash.to_string() == record_hash)
                && Digest::of(&state).to_string() == state_hash;
            if fits {
                return Ok(Some(StateSnapshot { seq, state }));
            }
            tracing::warn!(seq, "a snapshot does not verify and is not used");
        }
        Ok(None)
    }
}

fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    connection.execute_batch(SCHEMA)?;
    Ok(connection)
}

fn locked<T>(connection: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no half-done change: transactions roll back when dropped.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stored_head(connection: &Connection) -> rusqlite::Result<(u64, String)> {
    connection
        .query_row(
            "SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
        .map(|head| head.unwrap_or_else(|| (0, Digest::of(b"").to_string())))
}

impl Journal for SqliteJournal {
    fn load(&self, use_snapshot: bool) -> Result<Loaded, JournalError> {
        let connection = &locked(&self.writer).connection;
        let mut statement = connection
            .prepare("SELECT seq, body, hash FROM records ORDER BY seq")
            .map_err(self.failed("read"))?;
        let mut rows = statement.query([]).map_err(self.failed("read"))?;
        let mut verifier = ChainVerifier::from_start();
        let (mut records, mut hashes) = (Vec::new(), Vec::new());
        loop {
            let next = verifier.head().seq + 1;
            // SQLite itself finds some damage; say where, as for damage that we find.
            let damaged = |error: rusqlite::Error| JournalError::Damaged {
                seq: next,
                why: format!("it cannot be read ({error})"),
            };
            let Some(row) = rows.next().map_err(damaged)? else {
                break;
            };
            let (body, hash): (String, String) = row
                .get(1)
                .and_then(|body| Ok((body, row.get(2)?)))
                .map_err(damaged)?;
            let record = verifier.check(&body)?;
            if verifier.head().hash.to_string() != hash {
                return Err(JournalError::Damaged {
                    seq: next,
                    why: "its text does not fit its hash".to_owned(),
                });
            }
            if record.hash() != verifier.head().hash {
                return Err(JournalError::Damaged {
                    seq: next,
                    why: "this software would write it differently".to_owned(),
                });
            }
            hashes.push(verifier.head().hash);
            records.push(record);
        }
        let index = |seq: u64| usize::try_from(seq).ok()?.checked_sub(1);
        let snapshot = if use_snapshot {
            Self::newest_snapshot(connection, |seq| hashes.get(index(seq)?).copied())
                .map_err(self.failed("read"))?
        } else {
            None
        };
        if let Some(folded) = snapshot.as_ref().and_then(|s| usize::try_from(s.seq).ok()) {
            records.drain(..folded);
        }
        Ok(Loaded { snapshot, records })
    }

    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut writer = locked(&self.writer);
        if writer.lock.is_none() {
            return Err(JournalError::Closed);
        }
        let transaction = writer
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(self.failed("written"))?;
        let (mut head, mut head_hash) = stored_head(&transaction).map_err(self.failed("read"))?;
        for record in records {
            if record.seq != head + 1 || record.previous.to_string() != head_hash {
                return Err(JournalError::OutOfOrder { head });
            }
            let body = serde_json::to_string(record).map_err(|error| JournalError::Damaged {
                seq: record.seq,
                why: error.to_string(),
            })?;
            head = record.seq;
            head_hash = Digest::of(body.as_bytes()).to_string();
            transaction
                .prepare_cached("INSERT INTO records (seq, body, hash) VALUES (?1, ?2, ?3)")
                .and_then(|mut insert| insert.execute(params![head, body, head_hash]))
                .map_err(self.failed("written"))?;
        }
        transaction.commit().map_err(self.failed("written"))
    }

    fn snapshot(&self, snapshot: &StateSnapshot) -> Result<(), JournalError> {
        let mut writer = locked(&self.writer);
        if writer.lock.is_none() {
            return Err(JournalError::Closed);
        }
        let write = |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO snapshots (seq, schema, record_hash, state_hash, state) \
                 SELECT seq, ?2, hash, ?3, ?4 FROM records WHERE seq = ?1",
                params![
                    snapshot.seq,
                    SNAPSHOT_SCHEMA,
                    Digest::of(&snapshot.state).to_string(),
                    snapshot.state
                ],
            )?;
            transaction.execute(
                "DELETE FROM snapshots WHERE seq NOT IN \
                 (SELECT seq FROM snapshots ORDER BY seq DESC LIMIT ?1)",
                params![SNAPSHOTS_KEPT],
            )?;
            transaction.commit()
        };
        write(&mut writer.connection).map_err(self.failed("written"))
    }

    fn records(&self, from: u64, limit: usize) -> Result<Vec<StoredRecord>, JournalError> {
        let connection = locked(&self.reader);
        let read = || -> rusqlite::Result<Vec<(u64, String, String)>> {
            connection
                .prepare_cached(
                    "SELECT seq, body, hash FROM records WHERE seq >= ?1 ORDER BY seq LIMIT ?2",
                )?
                .query_map(
                    params![from, i64::try_from(limit).unwrap_or(i64::MAX)],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )?
                .collect()
        };
        read()
            .map_err(self.failed("read"))?
            .into_iter()
            .map(|(seq, body, hash)| {
                let hash = parse_hash(seq, &hash)?;
                Ok(StoredRecord { seq, body, hash })
            })
            .collect()
    }

    fn close(&self) {
        locked(&self.writer).lock = None;
    }

    fn head(&self) -> Result<Head, JournalError> {
        let (seq, hash) = stored_head(&locked(&self.reader)).map_err(self.failed("read"))?;
        Ok(Head {
            seq,
            hash: parse_hash(seq, &hash)?,
        })
    }
}

fn parse_hash(seq: u64, hash: &str) -> Result<Digest, JournalError> {
    hash.parse().map_err(|_| JournalError::Damaged {
        seq,
        why: "its hash is not one".to_owned(),
    })
}

#[cfg(test)]
#[path = "sqlite/tests.rs"]
mod tests;
