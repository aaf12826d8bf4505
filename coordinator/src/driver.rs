//! One task owns the core: it feeds inputs, executes effects in order, and decides nothing.
//!
//! Everyone else holds a [`CoreHandle`]: a bounded queue of inputs, commands and
//! questions. After a withdrawal the only thing that may stand between the core and
//! the network is the sync of records that were made before it.
//!
//! Inputs that are ready together share one sync. That keeps the promised order: a
//! record may become durable earlier than its turn, never later, and a broadcast is
//! never put behind a sync of its own records.
//!
//! When records cannot be made durable the driver returns an error and the process
//! ends: memory is then ahead of the disk, and only a restart folds them together.

mod handle;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rollcall_coordinator_core::coordinator::{Coordinator, CoreConfig};
use rollcall_coordinator_core::effect::{Done, Effect, Refusal, Urgent};
use rollcall_coordinator_core::input::{Input, Ticket};
use rollcall_coordinator_core::record::Record;
use rollcall_coordinator_core::state::{ChainError, State};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use tokio::sync::{mpsc, oneshot, watch};

use handle::Work;
pub use handle::{CoreHandle, Gone};

use crate::journal::{Journal, JournalError, StateSnapshot};
use crate::metrics::Metrics;
use crate::quic_server::outbox::{Agents, Broadcasting};

/// Inputs, commands and questions that may wait. When full, whoever has more waits:
/// an agent's reader stops reading, an HTTP request stands.
const QUEUE_MAX: usize = 4_096;

/// Inputs that may share one sync.
const BATCH_MAX: usize = 256;

/// The longest that everything else waits for the packets of a broadcast.
const BROADCAST_FIRST_MAX: Duration = Duration::from_millis(250);

/// Records between snapshots. A fold of so many takes milliseconds.
const SNAPSHOT_EVERY: u64 = 2_000;

/// Why a driver ends other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The records do not fold.
    #[error("the journal cannot be folded: {0}")]
    Fold(#[from] ChainError),
    /// The thread that wrote the journal died.
    #[error("writing the journal panicked")]
    Panicked,
}

/// The task that owns the core.
pub struct Driver {
    core: Coordinator,
    clock: Clock,
    journal: Arc<dyn Journal>,
    agents: Agents,
    metrics: Metrics,
    work: mpsc::Receiver<Work>,
    replies: BTreeMap<Ticket, oneshot::Sender<Result<Done, Refusal>>>,
    tickets: u64,
    changes: watch::Sender<u64>,
    snapshot_seq: u64,
    /// Ends when the last broadcast is out.
    broadcasting: Option<oneshot::Receiver<()>>,
}

impl Driver {
    /// Folds the journal and takes over; what the core has to say about that is durable
    /// when this returns.
    ///
    /// # Errors
    /// When the journal is damaged, cannot be folded or cannot be written.
    pub async fn start(
        journal: Arc<dyn Journal>,
        config: CoreConfig,
        agents: Agents,
        metrics: Metrics,
    ) -> Result<(Self, CoreHandle), DriverError> {
        let loading = Arc::clone(&journal);
        let (state, last_at) = tokio::task::spawn_blocking(move || fold(&*loading))
            .await
            .map_err(|_| DriverError::Panicked)??;
        let snapshot_seq = state.seq();
        let clock = Clock::start(last_at);
        let (core, effects) = Coordinator::restore(state, config, clock.now());
        let (sender, work) = mpsc::channel(QUEUE_MAX);
        let (changes, changed) = watch::channel(0);
        let handle = CoreHandle::new(sender, changed, clock);
        let mut driver = Self {
            core,
            clock,
            journal,
            agents,
            metrics,
            work,
            replies: BTreeMap::new(),
            tickets: 0,
            changes,
            snapshot_seq,
            broadcasting: None,
        };
        driver.execute(effects.into()).await?;
        Ok((driver, handle))
    }

    /// Runs until every handle is gone.
    ///
    /// # Errors
    /// When records could not be made durable. The process must end.
    pub async fn run(mut self) -> Result<(), DriverError> {
        loop {
            let wakeup = self.core.next_wakeup().unwrap_or(Timestamp::MAX);
            tokio::select! {
                work = self.work.recv() => match work {
                    Some(work) => self.take_batch(work).await?,
                    None => return Ok(()),
                },
                () = self.clock.sleep_until(wakeup) => {
                    let effects = self.core.handle(Input::TimePassed, self.clock.now());
                    if !effects.is_empty() {
                        self.changed();
                    }
                    self.carry_out(effects.into()).await?;
                }
            }
            self.snapshot_if_due();
        }
    }

    /// Handles `first` and what else is ready, up to a broadcast, and executes it together.
    async fn take_batch(&mut self, first: Work) -> Result<(), DriverError> {
        let mut effects = VecDeque::new();
        let (mut next, mut changed) = (Some(first), false);
        let mut left = BATCH_MAX;
        while let Some(work) = next.take() {
            let input = match work {
                // What is asked must not show what is not yet durable.
                Work::Query(query) if effects.is_empty() => {
                    query(&self.core, self.clock.now());
                    None
                }
                Work::Query(query) => {
                    self.execute(std::mem::take(&mut effects)).await?;
                    query(&self.core, self.clock.now());
                    None
                }
                Work::Input(input) => Some(input),
                Work::Command {
                    actor,
                    command,
                    reply,
                } => {
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.replies.insert(ticket, reply);
                    Some(Input::Command {
                        ticket,
                        actor,
                        command,
                    })
                }
            };
            if let Some(input) = input {
                changed |= handle::changes_views(&input);
                let made = self.core.handle(input, self.clock.now());
                let broadcasts = made
                    .iter()
                    .any(|effect| matches!(effect, Effect::Broadcast(_)));
                effects.extend(made);
                if broadcasts {
                    break;
                }
            }
            left -= 1;
            if left > 0 {
                next = self.work.try_recv().ok();
            }
        }
        self.carry_out(effects).await?;
        if changed {
            self.changed();
        }
        Ok(())
    }

    /// Executes effects. After a broadcast the core has catching up to do, which nobody's
    /// question may find undone; but the packets come first, and they get the processor:
    /// whatever else is heard or asked meanwhile waits for some 10 us an agent.
    async fn carry_out(&mut self, effects: VecDeque<Effect>) -> Result<(), DriverError> {
        self.execute(effects).await?;
        if let Some(sent) = self.broadcasting.take() {
            // Sent, or given up, or too slow: then they compete.
            let _ = tokio::time::timeout(BROADCAST_FIRST_MAX, sent).await;
            let effects = self.core.handle(Input::TimePassed, self.clock.now());
            self.execute(effects.into()).await?;
        }
        Ok(())
    }

    /// Executes effects in order, with all records up to the next broadcast in one sync.
    async fn execute(&mut self, mut effects: VecDeque<Effect>) -> Result<(), DriverError> {
        while !effects.is_empty() {
            let end = effects
                .iter()
                .position(|effect| matches!(effect, Effect::Broadcast(_)))
                .unwrap_or(effects.len());
            let mut records = Vec::new();
            let mut others = Vec::new();
            for effect in effects.drain(..end) {
                match effect {
                    Effect::Append(more) => records.extend(more),
                    Effect::Broadcast(_)
                    | Effect::Send { .. }
                    | Effect::Offer { .. }
                    | Effect::Disconnect { .. }
                    | Effect::Reply { .. } => others.push(effect),
                }
            }
            self.append(records).await?;
            for effect in others.into_iter().chain(effects.pop_front()) {
                self.execute_one(effect);
            }
        }
        Ok(())
    }

    async fn append(&self, records: Vec<Record>) -> Result<(), DriverError> {
        if records.is_empty() {
            return Ok(());
        }
        self.metrics.observe_records(&records);
        let journal = Arc::clone(&self.journal);
        tokio::task::spawn_blocking(move || journal.append(&records))
            .await
            .map_err(|_| DriverError::Panicked)??;
        Ok(())
    }

    fn execute_one(&mut self, effect: Effect) {
        match effect {
            Effect::Append(_) => unreachable!("records were taken out before"),
            Effect::Broadcast(urgent) => self.broadcast(urgent),
            Effect::Send {
                node: _,
                connection,
                message,
            } => self.agents.send(connection, &message),
            Effect::Offer { to, message } => self.agents.offer(&to, &message),
            Effect::Disconnect {
                node: _,
                connection,
                cause,
            } => {
                self.agents.disconnect(connection, &cause);
            }
            Effect::Reply { ticket, result } => {
                if let Some(reply) = self.replies.remove(&ticket) {
                    // Whoever asked may have gone; what was done stays done.
                    let _ = reply.send(result);
                }
            }
        }
    }

    fn broadcast(&mut self, urgent: Urgent) {
        let (model, is_real) = (
            urgent.model().clone(),
            matches!(urgent, Urgent::Withdraw(_)),
        );
        match self.agents.broadcast(urgent) {
            Ok(Broadcasting { agents, sent }) => {
                self.broadcasting = Some(sent);
                if is_real {
                    tracing::warn!(%model, agents, "withdrawal broadcast");
                } else {
                    tracing::info!(%model, agents, "rehearsal broadcast");
                }
            }
            Err(error) => tracing::error!(%model, %error, "a broadcast was not encoded"),
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// A snapshot only saves time at the next start: made beside, and a failure is only logged.
    fn snapshot_if_due(&mut self) {
        let seq = self.core.state().seq();
        if seq < self.snapshot_seq + SNAPSHOT_EVERY {
            return;
        }
        self.snapshot_seq = seq;
        match serde_json::to_vec(self.core.state()) {
            Ok(state) => {
                let journal = Arc::clone(&self.journal);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = journal.snapshot(&StateSnapshot { seq, state }) {
                        tracing::warn!(%error, "no snapshot was kept");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "the state cannot be encoded; no snapshot"),
        }
    }
}

/// The state that a journal folds to, and the time of its last record.
fn fold(journal: &dyn Journal) -> Result<(State, Timestamp), DriverError> {
    let loaded = journal.load(true)?;
    let last_at = match loaded.records.last() {
        Some(record) => record.at,
        None => last_record_at(journal)?,
    };
    let Some(snapshot) = loaded.snapshot else {
        return Ok((State::from_records(loaded.records)?, last_at));
    };
    let Ok(mut state) = serde_json::from_slice::<State>(&snapshot.state) else {
        tracing::warn!(
            seq = snapshot.seq,
            "the snapshot is of another form; folding every record"
        );
        return Ok((State::from_records(journal.load(false)?.records)?, last_at));
    };
    for record in &loaded.records {
        state.apply(record)?;
    }
    Ok((state, last_at))
}

fn last_record_at(journal: &dyn Journal) -> Result<Timestamp, JournalError> {
    let last = journal.records(journal.head()?.seq, 1)?;
    let record = last
        .first()
        .and_then(|stored| serde_json::from_str::<Record>(&stored.body).ok());
    Ok(record.map_or(Timestamp::ZERO, |record| record.at))
}

#[cfg(test)]
#[path = "driver/tests.rs"]
mod tests;
