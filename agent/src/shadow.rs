//! Copies of requests, run on the candidate and compared with stable's answers.
//!
//! Off the request path in every way: the client has been answered, the threads
//! are the shadow's own and get what others leave, and a full queue sheds the copy and
//! counts it. A copy that waited is dropped when its candidate has gone by then:
//! nothing runs a version after its withdrawal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rollcall_agent_core::answer::Rows;
use rollcall_agent_core::compare::{Comparison, compare};
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::ids::ModelName;
use rollcall_transport::clock::Clock;

use crate::execute::Executor;
use crate::recorder::{Failure, Origin, Recorder};
use crate::routes::{Arm, Routes};

/// Bytes of tensors that copies may hold, waiting and running. More: shed. The
/// bound on requests' bodies does not count them, because a shadow that hangs must
/// not take room from live requests.
const COPIES_BYTES_MAX: usize = 64 << 20;

/// A request that stable has answered.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The model.
    pub model: ModelName,
    /// The candidate, and what counts for it.
    pub arm: Arm,
    /// The request's inputs, in the signature's order.
    pub inputs: Arc<Vec<Tensor>>,
    /// Stable's answer.
    pub stable: Arc<Vec<Tensor>>,
    /// Where the request came from.
    pub origin: Origin,
}

/// Runs copies.
#[derive(Debug)]
pub struct Shadow {
    executor: Executor,
    routes: Arc<Routes>,
    clock: Clock,
    timeout: Duration,
    bytes: Arc<AtomicUsize>,
}

impl Shadow {
    /// Runs copies on `executor`. A run longer than `timeout` counts as timed out.
    #[must_use]
    pub fn new(executor: Executor, routes: Arc<Routes>, clock: Clock, timeout: Duration) -> Self {
        Self {
            executor,
            routes,
            clock,
            timeout,
            bytes: Arc::default(),
        }
    }

    /// Takes a copy, or sheds it. Never waits.
    pub fn offer(&self, copy: Copy) {
        let Some(room) = Room::take(&self.bytes, bytes(&copy.inputs) + bytes(&copy.stable)) else {
            return copy.arm.series.record_shed(&copy.origin);
        };
        let (series, origin) = (Arc::clone(&copy.arm.series), copy.origin.clone());
        let (routes, clock, timeout) = (Arc::clone(&self.routes), self.clock, self.timeout);
        let job = move || {
            let version = copy.arm.prepared.version;
            if routes.has_candidate(&copy.model, version, clock.now()) {
                run(routes.recorder(), clock, timeout, &copy);
            }
            drop(room);
        };
        if self.executor.submit(job).is_err() {
            series.record_shed(&origin);
        }
    }

    /// Gives up on runs that take longer than the timeout.
    pub fn abandon_overdue(&self) {
        self.executor.abandon_overdue(self.timeout);
    }

    /// How many copies wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.executor.waiting()
    }
}

/// Room that a copy takes, until it is dropped.
struct Room {
    taken: Arc<AtomicUsize>,
    bytes: usize,
}

impl Room {
    fn take(taken: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let before = taken.fetch_add(bytes, Ordering::Relaxed);
        let room = Self {
            taken: Arc::clone(taken),
            bytes,
        };
        // Otherwise dropping the room gives it back.
        (before.saturating_add(bytes) <= COPIES_BYTES_MAX).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn bytes(tensors: &[Tensor]) -> usize {
    let of = |tensor: &Tensor| match &tensor.data {
        TensorData::Bytes(elements) => elements.iter().map(|e| e.len() + size_of_val(e)).sum(),
        TensorData::Bool(_) | TensorData::Uint8(_) | TensorData::Int8(_) => tensor.data.len(),
        TensorData::Uint16(_) | TensorData::Int16(_) => 2 * tensor.data.len(),
        TensorData::Uint32(_) | TensorData::Int32(_) | TensorData::Fp32(_) => 4 * tensor.data.len(),
        TensorData::Uint64(_) | TensorData::Int64(_) | TensorData::Fp64(_) => 8 * tensor.data.len(),
    };
    tensors.iter().map(of).sum()
}

fn run(recorder: &Recorder, clock: Clock, timeout: Duration, copy: &Copy) {
    let (series, origin) = (&copy.arm.series, &copy.origin);
    let began = clock.now();
    let answer = copy.arm.prepared.loaded.infer(&copy.inputs);
    // Waiting behind other copies says nothing about the version, so it is not counted.
    let now = clock.now();
    let latency = now.since(began);
    match answer {
        Err(error) if error.is_the_nodes() => {
            tracing::debug!(model = %copy.model, %error, "a copy was not run");
            recorder.record_engine_fault();
            series.record_shed(origin);
        }
        Err(error) => {
            tracing::debug!(model = %copy.model, %error, "a shadow run failed");
            series.record_failure(Failure::Failed, false, origin, now);
        }
        Ok(_) if latency > timeout => {
            series.record_failure(Failure::TimedOut, false, origin, now);
        }
        Ok(outputs) => {
            let rows = Rows::of(&outputs);
            series.record_answer(latency, &copy.inputs, &rows, origin);
            recorder.remember_shadow(series, &rows, origin);
            let agreement = compare(&copy.stable, &outputs, &Comparison::default());
            if let Some(reason) = &agreement.reason {
                tracing::debug!(model = %copy.model, reason, "the shadow disagrees");
            }
            series.record_pair(agreement.agreed, origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_and_never_overdrawn() {
        let taken = Arc::default();
        let room = Room::take(&taken, COPIES_BYTES_MAX - 1).unwrap();
        assert!(Room::take(&taken, 2).is_none());
        assert!(Room::take(&taken, 1).is_some());
        drop(room);
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }
}
