//! What bodies of REST and messages of gRPC have in common before anyone reads them: bounds in
//! time, and room in memory that all of them share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request may take to arrive.
pub(super) const ARRIVAL_MAX: Duration = Duration::from_secs(30);
/// Larger ones are read by a blocking thread: few threads have all the connections.
pub(super) const INLINE_BYTES_MAX: usize = 128 << 10;
/// Memory is reserved for a declared length up to here; the rest as it arrives.
pub(super) const RESERVE_BYTES_MAX: usize = 1 << 20;

/// There is no room now.
#[derive(Debug, thiserror::Error)]
#[error("too many large requests are in memory on this node; try again or ask another node")]
pub struct NoRoom;

/// Room for one request among all, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    /// One a KiB.
    taken: OwnedSemaphorePermit,
}

impl Room {
    /// Takes room for `bytes` out of `all`, which has a permit a KiB.
    pub(super) fn take(all: &Arc<Semaphore>, bytes: usize) -> Result<Self, NoRoom> {
        Ok(Self {
            taken: permits(all, kib(bytes))?,
            all: Arc::clone(all),
        })
    }

    /// Takes what is missing for `bytes` in all.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let more = kib(bytes).saturating_sub(self.taken.num_permits());
        if more > 0 {
            self.taken.merge(permits(&self.all, more)?);
        }
        Ok(())
    }
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1_024).max(1)
}

fn permits(all: &Arc<Semaphore>, kib: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
    let permits = u32::try_from(kib).unwrap_or(u32::MAX);
    Arc::clone(all)
        .try_acquire_many_owned(permits)
        .map_err(|_| NoRoom)
}
