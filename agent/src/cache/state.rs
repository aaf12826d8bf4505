//! What the agent must not forget, kept twice.
//!
//! `state.bin` counts: it is replaced whole and synced before [`StateStore::save`]
//! returns, and carries a checksum. The cache index holds a second copy for the day the
//! file is damaged; sled's flush survives a killed process and not a power cut. Reading
//! takes the union of the two, which can only err to the safe side: the higher generation
//! of each model, and every withdrawal that either knows.
//!
//! ```text
//! "RCSTATE\n"  BLAKE3 of the rest (32 bytes)  version (u32, big endian)  body: one frame a record
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use rollcall_agent_core::effect::DurableState;
use rollcall_shared::assignment::{Assignment, Withdrawal};
use rollcall_shared::codec::{self, CodecError};
use rollcall_shared::digest::Digest;
use serde::{Deserialize, Serialize};

use super::files::{FileError, set_aside, write_durably};
use super::index::Index;

const MAGIC: &[u8; 8] = b"RCSTATE\n";
const VERSION: u32 = 1;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// A record is over the bound of a frame.
    #[error("the agent's state cannot be encoded")]
    Encode(#[source] CodecError),
    /// The process is ending.
    #[error("the process ended before the state was written")]
    Ended,
    /// Written by a later agent.
    #[error(
        "{path} has form {found}, this agent knows {VERSION}: run the rollcall-agent that wrote it, or a later one"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its form.
        found: u32,
    },
}

/// Why bytes are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Unreadable {
    #[error("it is damaged")]
    Damaged,
    #[error("it has form {0}")]
    Newer(u32),
}

/// One record each, so that no number of withdrawals is over the bound of a frame.
#[derive(Serialize, Deserialize)]
enum Record<A, W> {
    Assignment(A),
    Withdrawal(W),
}

/// Where the agent's state lies.
#[derive(Clone, Debug)]
pub struct StateStore {
    path: PathBuf,
    index: Arc<Index>,
}

impl StateStore {
    pub(super) fn new(dir: &Path, index: Arc<Index>) -> Self {
        Self {
            path: dir.join("state.bin"),
            index,
        }
    }

    /// The state that was saved last; the empty one where none was. Blocking.
    ///
    /// A damaged file is set aside. Where both copies are damaged, the state is empty and
    /// the coordinator hands back what it knows.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or a later agent wrote it.
    pub fn load(&self) -> Result<DurableState, StateError> {
        let file = match std::fs::read(&self.path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(FileError::to("read", &self.path)(error).into()),
        };
        let file = file.map(|bytes| decode(&bytes));
        if let Some(Err(Unreadable::Newer(found))) = file {
            return Err(StateError::Newer {
                path: self.path.clone(),
                found,
            });
        }
        let copy = self.index.state().and_then(|bytes| decode(&bytes).ok());
        let knew = copy.clone();
        let is_damaged = matches!(file, Some(Err(_)));
        if is_damaged {
            let aside = set_aside(&self.path)?;
            if copy.is_some() {
                tracing::warn!(
                    "the agent's state was damaged and lies in {}; the copy in the cache index is used",
                    aside.display()
                );
            } else {
                tracing::error!(
                    "the agent's state was damaged and lies in {}, and there is no copy: assignments and withdrawals are unknown until the coordinator is reached",
                    aside.display()
                );
            }
        }
        let state = union(
            file.and_then(Result::ok).unwrap_or_default(),
            copy.unwrap_or_default(),
        );
        if is_damaged {
            self.save(&state)?;
        } else if knew.unwrap_or_default() != state {
            // An index that was made anew has no copy yet: without one, the next damage to
            // the file would cost every withdrawal.
            self.index
                .put_state(&encode(&state).map_err(StateError::Encode)?);
        }
        Ok(state)
    }

    /// Makes the state durable: when this returns, it survives a power cut. Blocking.
    ///
    /// # Errors
    /// When the disk refuses; what was saved before is still there.
    pub fn save(&self, state: &DurableState) -> Result<(), StateError> {
        let bytes = encode(state).map_err(StateError::Encode)?;
        write_durably(&self.path, &bytes)?;
        self.index.put_state(&bytes);
        Ok(())
    }
}

fn encode(state: &DurableState) -> Result<Vec<u8>, CodecError> {
    let mut body = VERSION.to_be_bytes().to_vec();
    for assignment in state.assignments.values() {
        let record = Record::<_, &Withdrawal>::Assignment(assignment);
        body.extend_from_slice(&codec::encode_frame(&record)?);
    }
    for withdrawal in state.withdrawals.iter() {
        let record = Record::<&Assignment, _>::Withdrawal(withdrawal);
        body.extend_from_slice(&codec::encode_frame(&record)?);
    }
    Ok([&MAGIC[..], Digest::of(&body).as_bytes(), &body].concat())
}

fn decode(bytes: &[u8]) -> Result<DurableState, Unreadable> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Unreadable::Damaged)?;
    let (digest, rest) = rest.split_first_chunk::<32>().ok_or(Unreadable::Damaged)?;
    if magic != MAGIC || Digest::of(rest).as_bytes() != digest {
        return Err(Unreadable::Damaged);
    }
    let (version, body) = rest.split_first_chunk::<4>().ok_or(Unreadable::Damaged)?;
    match u32::from_be_bytes(*version) {
        VERSION => {}
        newer => return Err(Unreadable::Newer(newer)),
    }
    let mut state = DurableState::default();
    let mut body = BytesMut::from(body);
    while !body.is_empty() {
        let record = codec::take_frame::<Record<Assignment, Withdrawal>>(&mut body);
        match record.ok().flatten().ok_or(Unreadable::Damaged)? {
            Record::Assignment(assignment) => {
                state
                    .assignments
                    .insert(assignment.model.clone(), assignment);
            }
            Record::Withdrawal(withdrawal) => {
                Arc::make_mut(&mut state.withdrawals).insert(withdrawal);
            }
        }
    }
    Ok(state)
}

/// Both together; at equal generations `first` counts.
fn union(first: DurableState, second: DurableState) -> DurableState {
    let mut all = first;
    for (model, assignment) in second.assignments {
        let known = all.assignments.get(&model).map(|known| known.generation);
        if known.is_none_or(|known| known < assignment.generation) {
            all.assignments.insert(model, assignment);
        }
    }
    let withdrawals = second.withdrawals.iter().cloned();
    Arc::make_mut(&mut all.withdrawals).extend(withdrawals);
    all
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
