//! What candidates do inside their engine that they should not.
//!
//! Each is a model as an engine hands it to the agent: it runs on the agent's threads, in the
//! agent's memory, with the agent's allocator. What is kept from it is kept from it by the
//! serving half alone.

use std::hint::black_box;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use rollcall_agent::engine::{InferError, LoadedModel};
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// How long a slow run sleeps.
const SLOW: Duration = Duration::from_millis(50);
/// Processor time that a run burns.
const BURNT: Duration = Duration::from_millis(20);
/// What a run keeps for good, and all of them together at most, so that the machine survives.
const LEAKED_BYTES: usize = 1 << 20;
const LEAKS_MAX: usize = 2 << 10;
/// What a run takes and gives back at once.
const ALLOCATED_BYTES: usize = 32 << 20;
/// Numbers in an answer that should have ten: some 700 KB as JSON.
const HUGE: usize = 1 << 16;

/// What a candidate does when it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Answers as stable does: what any candidate costs.
    Good,
    /// Sleeps 50 ms before it answers.
    Slow,
    /// Never returns.
    Hangs,
    /// Returns an error, always.
    Fails,
    /// Panics, always.
    Panics,
    /// Computes for 20 ms before it answers.
    Burns,
    /// Keeps 1 MiB of each run, 2 GiB at most.
    Leaks,
    /// Takes 32 MiB, writes to all of it, and gives it back.
    Allocates,
    /// Answers with 65,536 numbers in the place of ten.
    HugeAnswers,
}

impl Behaviour {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Good,
        Self::Slow,
        Self::Hangs,
        Self::Fails,
        Self::Panics,
        Self::Burns,
        Self::Leaks,
        Self::Allocates,
        Self::HugeAnswers,
    ];

    /// Whether a run of it ends with an answer, as the first one does, which loading makes.
    pub(super) const fn answers(self) -> bool {
        !matches!(self, Self::Hangs | Self::Fails | Self::Panics)
    }
}

/// A door that is opened once, for all who wait before it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(super) fn open(&self) {
        *lock(&self.open) = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let closed = |open: &mut bool| !*open;
        drop(self.opened.wait_while(lock(&self.open), closed));
    }

    fn wait_at_most(&self, patience: Duration) {
        let closed = |open: &mut bool| !*open;
        drop(
            self.opened
                .wait_timeout_while(lock(&self.open), patience, closed),
        );
    }
}

/// A candidate of that behaviour.
pub(super) struct Candidate {
    behaviour: Behaviour,
    /// Gives the answers, where there are any.
    model: Arc<dyn LoadedModel>,
    leaked: Mutex<Vec<Vec<u8>>>,
    /// Opens when the trial is over, so that nothing of it reaches into the calm after it.
    over: Arc<Gate>,
}

impl Candidate {
    pub(super) fn new(behaviour: Behaviour, model: Arc<dyn LoadedModel>, over: &Arc<Gate>) -> Self {
        Self {
            behaviour,
            model,
            leaked: Mutex::default(),
            over: Arc::clone(over),
        }
    }

    fn leak(&self) {
        if lock(&self.leaked).len() < LEAKS_MAX {
            let leaked = written(LEAKED_BYTES);
            lock(&self.leaked).push(leaked);
        }
    }
}

impl LoadedModel for Candidate {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        match self.behaviour {
            Behaviour::Good => {}
            Behaviour::Slow => self.over.wait_at_most(SLOW),
            Behaviour::Hangs => {
                self.over.wait();
                return Err(InferError::Failed("the trial is over".to_owned()));
            }
            Behaviour::Fails => return Err(InferError::Failed("it always does".to_owned())),
            Behaviour::Panics => panic!("it always does"),
            Behaviour::Burns => burn(),
            Behaviour::Leaks => self.leak(),
            Behaviour::Allocates => drop(written(ALLOCATED_BYTES)),
            Behaviour::HugeAnswers => return self.model.infer(inputs).map(enlarged),
        }
        self.model.infer(inputs)
    }
}

/// Processor time, not wall time: whoever gets less of the machine burns for longer.
fn burn() {
    let spent = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let end = spent() + BURNT;
    while spent() < end {
        for step in 0..1_000_u32 {
            black_box(step);
        }
    }
}

/// Memory that is really taken: each page was written to.
fn written(bytes: usize) -> Vec<u8> {
    black_box(vec![1; bytes])
}

fn enlarged(mut outputs: Vec<Tensor>) -> Vec<Tensor> {
    for output in &mut outputs {
        if let TensorData::Fp32(numbers) = &mut output.data {
            numbers.resize(HUGE, 1.0 / 3.0);
            output.shape = vec![1, HUGE];
        }
    }
    outputs
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
