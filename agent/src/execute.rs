//! Bounded executors on their own OS threads, one for each role.
//!
//! Three of them, sharing nothing: a candidate that is slow, or a shadow engine
//! that never returns, can fill its own threads and its own queue, and nothing
//! else. A full queue refuses at once; what that means (503, fallback, shed) is
//! the caller's business.
//!
//! Threads are never joined: an engine that hangs must not hold up a shutdown.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// A thread's niceness when it runs shadow copies: it gets what others leave.
const SHADOW_NICE: i32 = 10;

/// How a thread stands against the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As the process.
    Normal,
    /// Behind everything that answers clients.
    Low,
}

/// What one executor may use.
#[derive(Clone, Copy, Debug)]
pub struct ExecutorBounds {
    /// Its name in thread lists, at most 12 bytes.
    pub name: &'static str,
    /// How many threads it has.
    pub threads: usize,
    /// How many jobs may wait.
    pub queue: usize,
    /// How its threads stand against others.
    pub priority: Priority,
}

/// Why a job gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError {
    /// As many jobs as may wait are waiting.
    #[error("the queue is full")]
    Full,
    /// The job panicked.
    #[error("the job panicked")]
    Panicked,
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on its own threads. Dropped: jobs that began go on, those that wait are dropped.
#[derive(Debug)]
pub struct Executor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    queue_max: usize,
}

struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.jobs.len())
    }
}

impl Executor {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(bounds: ExecutorBounds) -> std::io::Result<Self> {
        assert!(
            bounds.threads > 0 && bounds.queue > 0,
            "an executor without room"
        );
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                closed: false,
            }),
            work: Condvar::new(),
            queue_max: bounds.queue,
        });
        for i in 0..bounds.threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("{}-{i}", bounds.name))
                .spawn(move || {
                    if bounds.priority == Priority::Low {
                        lower_priority();
                    }
                    shared.run();
                })?;
        }
        Ok(Self { shared })
    }

    /// Queues a job whose result nobody awaits.
    ///
    /// # Errors
    /// [`ExecuteError::Full`].
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), ExecuteError> {
        let mut state = self.shared.lock();
        if state.jobs.len() >= self.shared.queue_max {
            return Err(ExecuteError::Full);
        }
        state.jobs.push_back(Box::new(job));
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Queues a job and awaits its result. A job whose waiter has gone before it
    /// began is skipped.
    ///
    /// # Errors
    /// When the queue is full, or the job panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ExecuteError> {
        let (answer, waiter) = oneshot::channel();
        self.submit(move || {
            if !answer.is_closed() {
                // The waiter may leave while the job runs: nobody misses the result then.
                let _ = answer.send(job());
            }
        })?;
        waiter.await.map_err(|_| ExecuteError::Panicked)
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().jobs.len()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job panicked; its thread goes on");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// On Linux `setpriority` without a pid is the calling thread's own.
fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, SHADOW_NICE) {
        tracing::info!(%error, "shadow threads run at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn one_thread(queue: usize) -> Executor {
        let bounds = ExecutorBounds {
            name: "test",
            threads: 1,
            queue,
            priority: Priority::Low,
        };
        Executor::start(bounds).unwrap()
    }

    #[tokio::test]
    async fn a_job_gives_its_result_and_a_panic_leaves_the_thread_alive() {
        let executor = one_thread(4);
        assert_eq!(executor.run(|| 7).await, Ok(7));
        let panicked = executor.run(|| -> u8 { panic!("on purpose") }).await;
        assert_eq!(panicked, Err(ExecuteError::Panicked));
        assert_eq!(executor.run(|| 8).await, Ok(8));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let executor = one_thread(1);
        let (release, blocked) = sync_channel::<()>(0);
        let (began, begun) = sync_channel::<()>(0);
        executor
            .submit(move || {
                began.send(()).unwrap();
                let _ = blocked.recv();
            })
            .unwrap();
        begun.recv().unwrap();
        executor.submit(|| ()).unwrap();
        assert_eq!(executor.run(|| ()).await, Err(ExecuteError::Full));
        drop(release);
    }

    #[tokio::test]
    async fn a_job_that_nobody_awaits_any_more_is_skipped() {
        let executor = one_thread(4);
        let (release, blocked) = sync_channel::<()>(0);
        executor
            .submit(move || {
                let _ = blocked.recv();
            })
            .unwrap();
        let ran = Arc::new(Mutex::new(false));
        let flag = Arc::clone(&ran);
        let waiter = executor.run(move || *flag.lock().unwrap() = true);
        let timed = tokio::time::timeout(std::time::Duration::from_millis(5), waiter).await;
        assert!(timed.is_err());
        drop(release);
        executor.run(|| ()).await.unwrap();
        assert!(!*ran.lock().unwrap());
    }
}
