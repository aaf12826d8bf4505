use std::collections::BTreeMap;
use std::fs::File;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::version::Version;

use super::*;

fn model(n: u64) -> ModelName {
    ModelName::new(format!("model-{n}")).unwrap()
}

fn version(n: u64) -> VersionRef {
    VersionRef {
        version: Version::new(n, 0, 0),
        digest: Digest::of(&n.to_be_bytes()),
    }
}

fn assignment(n: u64, generation: u64) -> Assignment {
    Assignment {
        model: model(n),
        generation: Generation(generation),
        stable: Some(version(n)),
        previous: None,
        candidate: None,
    }
}

fn withdrawal(n: u64, rollout: u64) -> Withdrawal {
    Withdrawal {
        model: model(n),
        rollout: RolloutId(rollout),
        withdrawn: version(n + 1),
        generation: Generation(rollout),
        serving: Some(version(n)),
    }
}

fn state(assignments: &[Assignment], withdrawals: &[Withdrawal]) -> DurableState {
    DurableState {
        assignments: assignments
            .iter()
            .map(|a| (a.model.clone(), a.clone()))
            .collect(),
        withdrawals: Arc::new(withdrawals.iter().cloned().collect()),
    }
}

struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> StateStore {
        let lock = File::create(self.dir.path().join("lock")).unwrap();
        let (index, _) = Index::open(self.dir.path(), lock).unwrap();
        StateStore::new(self.dir.path(), Arc::new(index))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("state.bin")
    }
}

#[test]
fn what_was_saved_is_loaded_and_nothing_is_the_empty_state() {
    let disk = Disk::new();
    assert_eq!(disk.store().load().unwrap(), DurableState::default());
    let saved = state(&[assignment(1, 7), assignment(2, 9)], &[withdrawal(1, 3)]);
    disk.store().save(&saved).unwrap();
    assert_eq!(disk.store().load().unwrap(), saved);
    std::fs::remove_dir_all(disk.dir.path().join("index")).unwrap();
    assert_eq!(
        disk.store().load().unwrap(),
        saved,
        "the file alone is enough"
    );
}

#[test]
fn either_copy_is_enough() {
    let saved = state(&[assignment(1, 7)], &[withdrawal(1, 3)]);
    let disk = Disk::new();
    disk.store().save(&saved).unwrap();
    std::fs::remove_file(disk.file()).unwrap();
    assert_eq!(disk.store().load().unwrap(), saved);
}

#[test]
fn every_flipped_bit_and_every_cut_of_the_file_is_noticed_and_healed_from_the_copy() {
    let saved = state(&[assignment(1, 7)], &[withdrawal(1, 3)]);
    let good = encode(&saved).unwrap();
    assert_eq!(decode(&good), Ok(saved.clone()));
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(&bad), Err(Unreadable::Damaged), "bit {bit}");
    }
    for length in 0..good.len() {
        assert_eq!(
            decode(&good[..length]),
            Err(Unreadable::Damaged),
            "cut at {length}"
        );
    }
    let disk = Disk::new();
    disk.store().save(&saved).unwrap();
    std::fs::write(disk.file(), &good[..20]).unwrap();
    assert_eq!(disk.store().load().unwrap(), saved);
    assert_eq!(
        std::fs::read(disk.file()).unwrap(),
        good,
        "the file is whole again"
    );
    assert!(disk.dir.path().join("state.bin.damaged-1").exists());
}

#[test]
fn both_copies_damaged_is_the_empty_state_and_no_failure() {
    let disk = Disk::new();
    std::fs::write(disk.file(), b"nonsense").unwrap();
    assert_eq!(disk.store().load().unwrap(), DurableState::default());
}

#[test]
fn the_union_has_the_higher_generations_and_every_withdrawal() {
    let old = state(&[assignment(1, 7), assignment(2, 5)], &[withdrawal(1, 3)]);
    let new = state(&[assignment(1, 8), assignment(2, 4)], &[withdrawal(2, 4)]);
    let both = state(
        &[assignment(1, 8), assignment(2, 5)],
        &[withdrawal(1, 3), withdrawal(2, 4)],
    );
    assert_eq!(union(old.clone(), new.clone()), both);
    assert_eq!(union(new.clone(), old.clone()), both);

    let disk = Disk::new();
    disk.store().save(&new).unwrap();
    // A crash between the file and its copy, either way round.
    std::fs::write(disk.file(), encode(&old).unwrap()).unwrap();
    assert_eq!(disk.store().load().unwrap(), both);
}

#[test]
fn a_file_of_a_later_agent_is_left_alone() {
    let disk = Disk::new();
    let body = [&9_u32.to_be_bytes()[..], b"what the future holds"].concat();
    let bytes = [&MAGIC[..], Digest::of(&body).as_bytes(), &body].concat();
    std::fs::write(disk.file(), &bytes).unwrap();
    let error = disk.store().load().unwrap_err();
    assert!(
        matches!(error, StateError::Newer { found: 9, .. }),
        "{error}"
    );
    assert_eq!(std::fs::read(disk.file()).unwrap(), bytes);
}

#[test]
fn more_withdrawals_than_one_frame_holds_are_kept() {
    let withdrawals: Vec<Withdrawal> = (0..40_000).map(|n| withdrawal(n % 64, n)).collect();
    let many = state(&[assignment(1, 1)], &withdrawals);
    let bytes = encode(&many).unwrap();
    assert!(bytes.len() > 3 << 20);
    assert_eq!(decode(&bytes).unwrap(), many);
    let _: &BTreeMap<_, _> = &many.assignments;
}

#[test]
fn an_index_that_was_made_anew_gets_its_copy_at_once_and_not_at_the_next_change() {
    let disk = Disk::new();
    let saved = state(&[assignment(1, 7)], &[withdrawal(1, 3)]);
    disk.store().save(&saved).unwrap();
    std::fs::remove_dir_all(disk.dir.path().join("index")).unwrap();
    assert_eq!(disk.store().load().unwrap(), saved);
    // Before anything changes, the file goes too.
    std::fs::write(disk.file(), b"damaged").unwrap();
    assert_eq!(disk.store().load().unwrap(), saved);
}

#[test]
fn an_index_that_a_full_disk_cost_is_opened_again_for_the_next_state() {
    let disk = Disk::new();
    let store = disk.store();
    store.save(&state(&[assignment(1, 7)], &[])).unwrap();
    store.index.lose();
    let newer = state(&[assignment(1, 8)], &[withdrawal(1, 3)]);
    store.save(&newer).unwrap();
    drop(store);
    std::fs::write(disk.file(), b"damaged").unwrap();
    assert_eq!(disk.store().load().unwrap(), newer);
}
