use super::*;
use crate::journal::fixture::chain;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes to the file behind the journal's back, triggers removed.
fn tamper(folder: &Path, sql: &str) {
    let connection = Connection::open(folder.join("journal.db")).unwrap();
    connection
        .execute_batch(&format!(
            "DROP TRIGGER records_are_never_changed; DROP TRIGGER records_are_never_deleted; {sql}"
        ))
        .unwrap();
}

fn damage_after(sql: &str) -> JournalError {
    let folder = folder();
    let journal = SqliteJournal::open(folder.path()).unwrap();
    journal.append(&chain(5)).unwrap();
    drop(journal);
    tamper(folder.path(), sql);
    SqliteJournal::open(folder.path())
        .unwrap()
        .load(true)
        .unwrap_err()
}

#[test]
fn what_was_appended_is_there_after_a_crash_without_close() {
    let folder = folder();
    let records = chain(4);
    let journal = SqliteJournal::open(folder.path()).unwrap();
    journal.append(&records[..1]).unwrap();
    journal.append(&records[1..]).unwrap();
    // A crash closes nothing: what another process would find is a copy of the files now.
    let copy = self::folder();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let loaded = SqliteJournal::open(copy.path())
        .unwrap()
        .load(true)
        .unwrap();
    assert_eq!(loaded.records, records);
    assert!(loaded.snapshot.is_none());
}

#[test]
fn a_torn_transaction_loses_only_itself() {
    let folder = folder();
    let records = chain(3);
    let journal = SqliteJournal::open(folder.path()).unwrap();
    journal.append(&records[..2]).unwrap();
    let before = std::fs::metadata(folder.path().join("journal.db-wal"))
        .unwrap()
        .len();
    journal.append(&records[2..]).unwrap();
    let copy = self::folder();
    for name in ["journal.db", "journal.db-wal"] {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let wal = File::options()
        .write(true)
        .open(copy.path().join("journal.db-wal"))
        .unwrap();
    wal.set_len(before + 100).unwrap();
    let loaded = SqliteJournal::open(copy.path())
        .unwrap()
        .load(true)
        .unwrap();
    assert_eq!(loaded.records, records[..2]);
}

#[test]
fn a_changed_record_is_refused_by_name() {
    let error =
        damage_after("UPDATE records SET body = replace(body, 'test 3', 'test X') WHERE seq = 3;");
    assert!(
        matches!(error, JournalError::Damaged { seq: 3, .. }),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("Restore the folder from a backup")
    );
}

#[test]
fn a_removed_record_is_refused_by_name() {
    let error = damage_after("DELETE FROM records WHERE seq = 2;");
    assert!(
        matches!(error, JournalError::Damaged { seq: 2, .. }),
        "{error}"
    );
}

#[test]
fn a_changed_record_with_a_fitting_hash_breaks_the_chain_after_it() {
    let record = serde_json::to_string(&chain(2)[1])
        .unwrap()
        .replace("test 2", "test X");
    let hash = Digest::of(record.as_bytes());
    let error = damage_after(&format!(
        "UPDATE records SET body = '{record}', hash = '{hash}' WHERE seq = 2;"
    ));
    assert!(
        matches!(error, JournalError::Damaged { seq: 3, .. }),
        "{error}"
    );
}

#[test]
fn records_cannot_be_changed_or_deleted_by_mistake() {
    let folder = folder();
    let journal = SqliteJournal::open(folder.path()).unwrap();
    journal.append(&chain(1)).unwrap();
    let connection = &locked(&journal.writer).connection;
    for sql in ["DELETE FROM records", "UPDATE records SET hash = ''"] {
        let error = connection.execute_batch(sql).unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

#[test]
fn two_coordinators_cannot_share_a_folder() {
    let folder = folder();
    let _first = SqliteJournal::open(folder.path()).unwrap();
    let second = SqliteJournal::open(folder.path()).err().unwrap();
    assert!(matches!(second, JournalError::Locked { .. }), "{second}");
}

#[test]
fn a_closed_journal_lets_another_take_over_and_appends_nothing_more() {
    let folder = folder();
    let first = SqliteJournal::open(folder.path()).unwrap();
    first.close();
    let second = SqliteJournal::open(folder.path()).unwrap();
    second.append(&chain(1)).unwrap();
    assert!(matches!(first.append(&chain(1)), Err(JournalError::Closed)));
    assert_eq!(first.head().unwrap().seq, 1, "reading goes on");
}

#[test]
fn records_that_do_not_follow_are_refused_and_nothing_is_written() {
    let folder = folder();
    let journal = SqliteJournal::open(folder.path()).unwrap();
    let records = chain(3);
    let gap = [records[0].clone(), records[2].clone()];
    assert!(matches!(
        journal.append(&gap),
        Err(JournalError::OutOfOrder { head: 1 })
    ));
    assert_eq!(journal.head().unwrap().seq, 0);
}

#[test]
fn a_snapshot_saves_the_fold_and_a_damaged_one_is_passed_over() {
    let folder = folder();
    let journal = SqliteJournal::open(folder.path()).unwrap();
    let records = chain(5);
    journal.append(&records).unwrap();
    for (seq, state) in [(2, b"two"), (4, b"for")] {
        journal
            .snapshot(&StateSnapshot {
                seq,
                state: state.to_vec(),
            })
            .unwrap();
    }
    let loaded = journal.load(true).unwrap();
    assert_eq!(loaded.snapshot.unwrap().state, b"for");
    assert_eq!(loaded.records, records[4..]);
    drop(journal);
    tamper(
        folder.path(),
        "UPDATE snapshots SET state = x'00' WHERE seq = 4;",
    );
    let loaded = SqliteJournal::open(folder.path())
        .unwrap()
        .load(true)
        .unwrap();
    assert_eq!(loaded.snapshot.unwrap().seq, 2);
    assert_eq!(loaded.records, records[2..]);
}

#[test]
fn an_auditor_reads_columns_that_cannot_disagree_with_the_text() {
    let folder = folder();
    let journal = SqliteJournal::open(folder.path()).unwrap();
    journal.append(&chain(1)).unwrap();
    let (at, event): (String, String) = locked(&journal.reader)
        .query_row("SELECT at, event FROM records", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(at, "1970-01-01T00:00:00.001Z");
    assert_eq!(event, r#"{"booted":{"software":"test 1"}}"#);
}
