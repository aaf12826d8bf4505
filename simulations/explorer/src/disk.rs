//! Disks: a write is complete at its sync and not before.
//!
//! A crash during a sync leaves the old content or the new, never a mixture: both
//! real stores write whole transactions. With the sync sabotaged, a write is called
//! complete at once and a crash takes it away again.

use rollcall_coordinator_core::record::Record;

use crate::seed::Draws;

/// What a crash did to the write that was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashOutcome {
    /// None was under way.
    Nothing,
    /// It is on disk, though nobody was told.
    Kept,
    /// It is gone.
    Lost,
}

/// A value that survives crashes once it is synced.
#[derive(Clone, Debug, Default)]
pub struct Disk<T> {
    synced: T,
    pending: Option<T>,
    /// Where there is no sync: what the disk held before the last write.
    before: Option<T>,
}

impl<T: Clone> Disk<T> {
    /// What a process finds after a crash.
    #[must_use]
    pub const fn synced(&self) -> &T {
        &self.synced
    }

    /// A write begins.
    pub fn begin(&mut self, value: T) {
        self.pending = Some(value);
    }

    /// The sync is complete. `honest`: it really was one.
    pub fn complete(&mut self, honest: bool) {
        if let Some(value) = self.pending.take() {
            let before = std::mem::replace(&mut self.synced, value);
            self.before = (!honest).then_some(before);
        }
    }

    /// Power is gone.
    pub fn crash(&mut self, draws: &mut Draws) -> CrashOutcome {
        if let Some(before) = self.before.take() {
            self.synced = before;
        }
        match self.pending.take() {
            None => CrashOutcome::Nothing,
            Some(value) if draws.chance(0.5) => {
                self.synced = value;
                CrashOutcome::Kept
            }
            Some(_) => CrashOutcome::Lost,
        }
    }

    /// The disk is replaced by another.
    pub fn replace(&mut self, value: T) {
        *self = Self {
            synced: value,
            pending: None,
            before: None,
        };
    }
}

/// The coordinator's journal: records that are only ever appended.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    records: Vec<Record>,
    length: Disk<usize>,
}

impl Journal {
    /// What a process finds after a crash.
    #[must_use]
    pub fn synced(&self) -> &[Record] {
        &self.records[..*self.length.synced()]
    }

    /// An append begins.
    pub fn begin(&mut self, records: Vec<Record>) {
        self.records.extend(records);
        self.length.begin(self.records.len());
    }

    /// The sync is complete.
    pub fn complete(&mut self, honest: bool) {
        self.length.complete(honest);
    }

    /// Power is gone.
    pub fn crash(&mut self, draws: &mut Draws) -> CrashOutcome {
        let outcome = self.length.crash(draws);
        self.records.truncate(*self.length.synced());
        outcome
    }

    /// Only the first so many records are left: an old backup.
    pub fn restore_backup(&mut self, length: usize) {
        self.records.truncate(length);
        self.length.replace(self.records.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_and_what_is_not_may_be_lost() {
        let mut draws = Draws::child(1, "disk");
        let mut disk = Disk::<u32>::default();
        disk.begin(1);
        disk.complete(true);
        assert_eq!(disk.crash(&mut draws), CrashOutcome::Nothing);
        assert_eq!(*disk.synced(), 1);
        let outcomes: Vec<_> = (2..40)
            .map(|value| {
                let before = *disk.synced();
                disk.begin(value);
                let outcome = disk.crash(&mut draws);
                let after = if outcome == CrashOutcome::Kept {
                    value
                } else {
                    before
                };
                assert_eq!(*disk.synced(), after);
                outcome
            })
            .collect();
        assert!(outcomes.contains(&CrashOutcome::Kept) && outcomes.contains(&CrashOutcome::Lost));
    }

    #[test]
    fn a_sync_that_lies_loses_what_it_called_complete() {
        let mut disk = Disk::<u32>::default();
        disk.begin(1);
        disk.complete(false);
        assert_eq!(*disk.synced(), 1);
        disk.crash(&mut Draws::child(1, "disk"));
        assert_eq!(*disk.synced(), 0);
    }
}
