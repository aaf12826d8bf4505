//! Dynamic batching: requests for one version that wait at the same time run together.
//!
//! Off unless the configuration names the model. Every request puts a job into its executor's
//! queue, as without batching, so that bounds and priorities stay what they are. The first job
//! that finds requests waiting takes as many as fit, waits for more if `max_delay` says so, runs
//! them as one, and gives each its rows; jobs that find nothing end at once. With a delay of 0 a
//! batch is what has piled up while the threads were busy: it costs an idle node nothing.
//!
//! Only models whose inputs and outputs are all rows take part. When a batch fails, its requests
//! run one by one: one that breaks the model must not fail those that happened to wait beside it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rollcall_agent_core::tensor::Tensor;
use tokio::sync::oneshot;

use crate::config::Batching;
use crate::engine::{InferError, LoadedModel};
use crate::execute::{ExecuteError, Executor};

/// What a run gave; `None`: it was not allowed to run any more.
type Ran = Option<Result<Vec<Tensor>, InferError>>;

/// Requests for one version.
pub struct Batcher {
    model: Arc<dyn LoadedModel>,
    bounds: Batching,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    rows: usize,
}

struct Request {
    inputs: Arc<Vec<Tensor>>,
    answer: oneshot::Sender<Ran>,
}

impl Request {
    fn rows(&self) -> usize {
        self.inputs.first().map_or(1, Tensor::rows)
    }
}

impl Batcher {
    /// For a model whose inputs and outputs all have rows.
    #[must_use]
    pub fn new(model: Arc<dyn LoadedModel>, bounds: Batching) -> Self {
        Self {
            model,
            bounds,
            waiting: Mutex::default(),
            arrived: Condvar::new(),
        }
    }

    /// Runs inputs, perhaps with those of others, if `may_run` says so when their turn comes.
    ///
    /// # Errors
    /// When the queue is full, or the engine panics past its guard.
    pub async fn run(
        self: &Arc<Self>,
        executor: &Executor,
        inputs: Arc<Vec<Tensor>>,
        may_run: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<Ran, ExecuteError> {
        let (answer, waiter) = oneshot::channel();
        self.submit(executor, Request { inputs, answer }, may_run)?;
        waiter.await.map_err(|_| ExecuteError::Panicked)
    }

    fn submit(
        self: &Arc<Self>,
        executor: &Executor,
        request: Request,
        may_run: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<(), ExecuteError> {
        let batcher = Arc::clone(self);
        // First the job, as it may be refused; it cannot run before the request is there.
        let mut waiting = self.lock();
        executor.submit(move || batcher.run_batch(may_run))?;
        waiting.rows += request.rows();
        waiting.requests.push_back(request);
        drop(waiting);
        self.arrived.notify_all();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_batch(&self, may_run: impl FnOnce() -> bool) {
        let batch = self.take();
        if batch.is_empty() {
            return;
        }
        if !may_run() {
            for request in batch {
                let _ = request.answer.send(None);
            }
            return;
        }
        let inputs: Vec<&[Tensor]> = batch.iter().map(|request| &request.inputs[..]).collect();
        let together = match inputs[..] {
            [_] => None,
            _ => run_together(self.model.as_ref(), &inputs),
        };
        let answers = together.map_or_else(
            || {
                inputs
                    .iter()
                    .map(|inputs| self.model.infer(inputs))
                    .collect()
            },
            |outputs| outputs.into_iter().map(Ok).collect::<Vec<_>>(),
        );
        drop(inputs);
        for (request, answer) in batch.into_iter().zip(answers) {
            // The waiter may have left: nobody misses the answer then.
            let _ = request.answer.send(Some(answer));
        }
    }

    /// Requests that fit into one run, the oldest first. At least one, if any waits.
    fn take(&self) -> Vec<Request> {
        let mut waiting = self.lock();
        if !self.bounds.max_delay.is_zero() && waiting.rows > 0 {
            let enough = self.bounds.max_rows;
            let (back, _) = self
                .arrived
                .wait_timeout_while(waiting, self.bounds.max_delay, |waiting| {
                    (1..enough).contains(&waiting.rows)
                })
                .unwrap_or_else(PoisonError::into_inner);
            waiting = back;
        }
        let mut batch = Vec::new();
        let mut rows = 0;
        while let Some(request) = waiting.requests.pop_front() {
            let more = request.rows();
            if !batch.is_empty() && rows + more > self.bounds.max_rows {
                waiting.requests.push_front(request);
                break;
            }
            waiting.rows -= more;
            if !request.answer.is_closed() {
                rows += more;
                batch.push(request);
            }
        }
        batch
    }
}

/// One run for all; `None`: they do not fit together, or the run failed.
fn run_together(model: &dyn LoadedModel, requests: &[&[Tensor]]) -> Option<Vec<Vec<Tensor>>> {
    let is_even = |inputs: &&[Tensor]| inputs.iter().all(|t| t.rows() == inputs[0].rows());
    if !requests.iter().all(is_even) {
        return None;
    }
    let (first, others) = requests.split_first()?;
    let mut all = first.to_vec();
    for other in others {
        let fits =
            |(all, more): (&mut Tensor, &Tensor)| all.name == more.name && all.append_rows(more);
        if all.len() != other.len() || !all.iter_mut().zip(*other).all(fits) {
            return None;
        }
    }
    let mut outputs = model.infer(&all).ok()?;
    let rows = all.first()?.rows();
    if outputs.iter().any(|output| output.rows() != rows) {
        return None;
    }
    let mut apart = Vec::with_capacity(requests.len());
    for request in requests.iter().rev() {
        let rows = request.first()?.rows();
        let own: Option<Vec<Tensor>> = outputs
            .iter_mut()
            .map(|output| output.take_last_rows(rows))
            .collect();
        apart.push(own?);
    }
    apart.reverse();
    Some(apart)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Duration;

    use rollcall_agent_core::tensor::TensorData;

    use super::*;
    use crate::execute::{ExecutorBounds, Priority};

    /// Doubles its rows, tells how many it was given, and refuses rows of a negative number.
    struct Doubler {
        seen: SyncSender<usize>,
    }

    impl LoadedModel for Doubler {
        fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            let mut output = inputs[0].clone();
            let TensorData::Fp32(rows) = &mut output.data else {
                unreachable!()
            };
            self.seen.send(rows.len()).unwrap();
            if rows.iter().any(|x| *x < 0.0) {
                return Err(InferError::Failed("negative".to_owned()));
            }
            rows.iter_mut().for_each(|x| *x *= 2.0);
            Ok(vec![output])
        }
    }

    fn rows(data: &[f32]) -> Arc<Vec<Tensor>> {
        Arc::new(vec![Tensor {
            name: "x".to_owned(),
            shape: vec![data.len(), 1],
            data: TensorData::Fp32(data.to_vec()),
        }])
    }

    struct Bench {
        batcher: Arc<Batcher>,
        executor: Executor,
        seen: Receiver<usize>,
    }

    impl Bench {
        fn new(max_rows: usize, max_delay: Duration) -> Self {
            let (sender, seen) = sync_channel(100);
            let model = Arc::new(Doubler { seen: sender });
            let bounds = Batching {
                max_rows,
                max_delay,
            };
            let executor = Executor::start(ExecutorBounds {
                name: "test",
                threads: 1,
                queue: 10,
                priority: Priority::Normal,
            });
            Self {
                batcher: Arc::new(Batcher::new(model, bounds)),
                executor: executor.unwrap(),
                seen,
            }
        }

        /// Requests that come while the only thread is busy, and what they get.
        async fn pile_up(&self, requests: &[&[f32]]) -> Vec<Ran> {
            let (release, blocked) = sync_channel::<()>(0);
            let block = move || {
                let _ = blocked.recv();
            };
            self.executor.submit(block).unwrap();
            let all = requests
                .iter()
                .map(|data| self.batcher.run(&self.executor, rows(data), || true));
            let all = futures_util::future::join_all(all);
            let (answers, ()) = tokio::join!(all, async { drop(release) });
            answers.into_iter().map(Result::unwrap).collect()
        }
    }

    fn doubled(answer: &Ran) -> Vec<f32> {
        match &answer.as_ref().unwrap().as_ref().unwrap()[0].data {
            TensorData::Fp32(rows) => rows.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_waits_together_runs_together_and_each_gets_its_rows() {
        let bench = Bench::new(4, Duration::ZERO);
        let answers = bench
            .pile_up(&[&[1.0], &[2.0, 3.0], &[4.0, 5.0], &[6.0]])
            .await;
        let answers: Vec<_> = answers.iter().map(doubled).collect();
        let expected: [&[f32]; 4] = [&[2.0], &[4.0, 6.0], &[8.0, 10.0], &[12.0]];
        assert_eq!(answers, expected);
        assert_eq!(bench.seen.try_iter().collect::<Vec<_>>(), [3, 3]);
    }

    #[tokio::test]
    async fn one_that_breaks_the_model_fails_alone() {
        let bench = Bench::new(8, Duration::ZERO);
        let answers = bench.pile_up(&[&[1.0], &[-1.0], &[2.0]]).await;
        assert_eq!(
            (doubled(&answers[0]), doubled(&answers[2])),
            (vec![2.0], vec![4.0])
        );
        assert!(matches!(answers[1], Some(Err(InferError::Failed(_)))));
        assert_eq!(bench.seen.try_iter().collect::<Vec<_>>(), [3, 1, 1, 1]);
    }

    #[tokio::test]
    async fn more_rows_than_a_batch_run_alone_and_what_may_not_run_does_not() {
        let bench = Bench::new(2, Duration::ZERO);
        let answers = bench.pile_up(&[&[1.0, 2.0, 3.0]]).await;
        assert_eq!(doubled(&answers[0]), [2.0, 4.0, 6.0]);
        let withdrawn = bench.batcher.run(&bench.executor, rows(&[1.0]), || false);
        assert_eq!(withdrawn.await, Ok(None));
        assert_eq!(bench.seen.try_iter().collect::<Vec<_>>(), [3]);
    }

    #[tokio::test]
    async fn a_delay_ends_when_the_batch_is_full() {
        // So long that the test would not end if it were waited for.
        let bench = Bench::new(2, Duration::from_secs(3_600));
        let (one, other) = tokio::join!(
            bench.batcher.run(&bench.executor, rows(&[1.0]), || true),
            bench.batcher.run(&bench.executor, rows(&[2.0]), || true),
        );
        assert_eq!(
            (doubled(&one.unwrap()), doubled(&other.unwrap())),
            (vec![2.0], vec![4.0])
        );
        assert_eq!(bench.seen.try_iter().collect::<Vec<_>>(), [2]);
    }
}
