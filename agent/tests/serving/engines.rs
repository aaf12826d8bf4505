//! Engines that misbehave in one way each, for whoever needs one.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rollcall_agent::engine::{InferError, LoadedModel};
use rollcall_agent_core::tensor::{Tensor, TensorData};

/// An engine that answers nobody.
#[derive(Default)]
pub(crate) struct Hanging {
    released: Mutex<bool>,
    changed: Condvar,
}

impl Hanging {
    pub(crate) fn release(&self) {
        *self.released.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        let mut released = self.released.lock().unwrap();
        while !*released {
            released = self.changed.wait(released).unwrap();
        }
    }
}

/// However a test ends, nothing hangs after it.
pub(crate) struct ReleasedAtTheEnd(pub(crate) Arc<Hanging>);

impl Drop for ReleasedAtTheEnd {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl LoadedModel for Hanging {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.wait();
        Err(InferError::Failed("released".to_owned()))
    }
}

/// An engine that is out of order.
pub(crate) struct Down;

impl LoadedModel for Down {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        Err(InferError::Unavailable("the server is gone".to_owned()))
    }

    fn platform(&self) -> &str {
        "down"
    }
}

/// An engine that counts the rows of each run, and takes the first one only when it is let.
#[derive(Default)]
pub(crate) struct Counting {
    pub(crate) gate: Hanging,
    pub(crate) runs: Mutex<Vec<usize>>,
}

impl LoadedModel for Counting {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = inputs[0].rows();
        self.runs.lock().unwrap().push(rows);
        if self.runs.lock().unwrap().len() == 1 {
            let _ = self.gate.infer(inputs);
        }
        Ok(sevens(rows))
    }
}

/// An engine that computes for so long, and says which thread it ran on.
pub(crate) struct Computing {
    lasting: Duration,
    pub(crate) ran_on: Mutex<Vec<String>>,
}

impl Computing {
    pub(crate) fn new(lasting: Duration) -> Arc<Self> {
        Arc::new(Self {
            lasting,
            ran_on: Mutex::default(),
        })
    }
}

impl LoadedModel for Computing {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let began = thread_cpu();
        while thread_cpu() - began < self.lasting {}
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().to_owned();
        self.ran_on.lock().unwrap().push(name);
        Ok(sevens(1))
    }
}

fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.try_into().unwrap()
}

/// What the digits' versions answer to rows of sevens.
fn sevens(rows: usize) -> Vec<Tensor> {
    let output = |name: &str, shape: &[usize], data| Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data,
    };
    vec![
        output("label", &[rows], TensorData::Int64(vec![7; rows])),
        output(
            "probabilities",
            &[rows, 10],
            TensorData::Fp32(vec![0.1; 10 * rows]),
        ),
    ]
}
