use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use rollcall_coordinator_core::input::{Actor, Command, Role, TokenKind};
use rollcall_shared::digest::Digest;

use super::*;
use crate::journal::{Head, Loaded, StoredRecord};

/// A journal in memory that fails after so many appends.
struct Failing {
    appends_left: Mutex<usize>,
    stored: Mutex<Vec<Record>>,
}

impl Failing {
    fn after(appends: usize) -> Arc<Self> {
        Arc::new(Self {
            appends_left: Mutex::new(appends),
            stored: Mutex::new(Vec::new()),
        })
    }
}

impl Journal for Failing {
    fn load(&self, _: bool) -> Result<Loaded, JournalError> {
        Ok(Loaded {
            snapshot: None,
            records: self.stored.lock().unwrap().clone(),
        })
    }
    fn append(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut left = self.appends_left.lock().unwrap();
        *left = left.checked_sub(1).ok_or(JournalError::Closed)?;
        self.stored.lock().unwrap().extend_from_slice(records);
        Ok(())
    }
    fn snapshot(&self, _: &StateSnapshot) -> Result<(), JournalError> {
        Ok(())
    }
    fn records(&self, _: u64, _: usize) -> Result<Vec<StoredRecord>, JournalError> {
        Ok(vec![])
    }
    fn close(&self) {}
    fn head(&self) -> Result<Head, JournalError> {
        Ok(Head {
            seq: 0,
            hash: Digest::of(b""),
        })
    }
}

async fn start(journal: Arc<Failing>) -> (Driver, CoreHandle) {
    let config = CoreConfig {
        software: "test".to_owned(),
        heartbeat_every: Duration::from_secs(1),
        report_every: Duration::from_secs(5),
    };
    Driver::start(journal, config, Agents::default(), Metrics::default())
        .await
        .unwrap()
}

fn admin() -> Actor {
    Actor::Operator {
        name: "ana".to_owned(),
        roles: BTreeSet::from([Role::Admin]),
    }
}

fn new_token(id: &str) -> Command {
    Command::CreateToken {
        id: id.to_owned(),
        secret_hash: Digest::of(id.as_bytes()),
        kind: TokenKind::Operator {
            roles: BTreeSet::from([Role::Viewer]),
        },
        name: id.to_owned(),
        expires_at: None,
    }
}

#[tokio::test]
async fn commands_that_are_ready_together_share_one_append_and_all_are_answered() {
    let journal = Failing::after(2);
    let (driver, core) = start(Arc::clone(&journal)).await;
    let asked: Vec<_> = ["a", "b", "c"]
        .map(|id| {
            let core = core.clone();
            tokio::spawn(async move { core.command(admin(), new_token(id)).await })
        })
        .into();
    // The first append was the boot's; let all three wait before the driver begins.
    tokio::task::yield_now().await;
    let driving = tokio::spawn(driver.run());
    for command in asked {
        assert_eq!(command.await.unwrap(), Ok(Ok(Done::Done)));
    }
    assert_eq!(journal.stored.lock().unwrap().len(), 4);
    drop(core);
    driving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_journal_that_fails_stops_the_driver_and_nothing_is_acknowledged() {
    let journal = Failing::after(1);
    let (driver, core) = start(journal).await;
    let driving = tokio::spawn(driver.run());
    assert_eq!(core.command(admin(), new_token("a")).await, Err(Gone));
    assert!(matches!(
        driving.await.unwrap(),
        Err(DriverError::Journal(JournalError::Closed))
    ));
    assert_eq!(core.ask(|core, _| core.state().seq()).await, Err(Gone));
}

#[tokio::test]
async fn a_refusal_needs_no_append_and_counts_as_no_loss() {
    let (driver, core) = start(Failing::after(1)).await;
    let driving = tokio::spawn(driver.run());
    let nobody = Actor::Operator {
        name: "eve".to_owned(),
        roles: BTreeSet::new(),
    };
    let refused = core.command(nobody, new_token("a")).await.unwrap();
    assert!(matches!(refused, Err(Refusal::Forbidden(_))), "{refused:?}");
    drop(core);
    driving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_snapshot_and_the_records_after_it_fold_to_the_same_state() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Arc::new(crate::journal::sqlite::SqliteJournal::open(folder.path()).unwrap());
    let config = CoreConfig {
        software: "test".to_owned(),
        heartbeat_every: Duration::from_secs(1),
        report_every: Duration::from_secs(5),
    };
    let started = Driver::start(
        Arc::clone(&journal) as Arc<dyn Journal>,
        config,
        Agents::default(),
        Metrics::default(),
    );
    let (driver, core) = started.await.unwrap();
    let driving = tokio::spawn(driver.run());
    core.command(admin(), new_token("a"))
        .await
        .unwrap()
        .unwrap();
    let state = core.ask(|core, _| core.state().clone()).await.unwrap();
    let encoded = serde_json::to_vec(&state).unwrap();
    journal
        .snapshot(&StateSnapshot {
            seq: state.seq(),
            state: encoded,
        })
        .unwrap();
    core.command(admin(), new_token("b"))
        .await
        .unwrap()
        .unwrap();
    let state = core.ask(|core, _| core.state().clone()).await.unwrap();

    assert_eq!(
        journal.load(true).unwrap().records.len(),
        1,
        "the rest is in the snapshot"
    );
    let (folded, last_at) = fold(&*journal).unwrap();
    assert_eq!(folded, state);
    assert_eq!(
        folded,
        State::from_records(journal.load(false).unwrap().records).unwrap()
    );
    assert!(last_at > Timestamp::ZERO);
    drop(core);
    driving.await.unwrap().unwrap();
}
