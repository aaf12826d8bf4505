//! Bounded executors on their own OS threads, one for each role.
//!
//! Three of them, sharing nothing: a candidate that is slow, or a shadow engine
//! that never returns, can fill its own threads and its own queue, and nothing
//! else. A full queue refuses at once; what that means (503, fallback, shed) is
//! the caller's business.
//!
//! A run that outlives everybody's patience cannot be stopped, as it is other people's code in
//! our process; it can be **abandoned** ([`Executor::abandon_overdue`]). Its thread falls to the
//! lowest priority and ends with the run, and another takes its place, so that an engine that
//! hangs takes neither the cores from those who answer nor the executor's threads for good. Only
//! as many are replaced as there were at the start; an engine that hangs more often than that
//! has a full queue.
//!
//! Threads are never joined: an engine that hangs must not hold up a shutdown.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use preempt_rt::sched::{self, Scheduler, SchedulerParams, set_scheduler};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use rustix::thread::Pid;
use tokio::sync::oneshot;

/// The niceness of threads whose work can wait.
const LOW_NICE: i32 = 19;

/// How a thread stands against the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As the process.
    Normal,
    /// Behind everything that answers clients, and yet sure to come to an end on a busy host:
    /// the lowest niceness.
    Low,
    /// What others leave: `SCHED_IDLE` (sched(7)). Whoever wakes up takes the core from it at
    /// once, where even the lowest niceness keeps it until its time slice of some milliseconds
    /// is over; that was what stable's slowest answers waited for.
    Idle,
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
    bounds: ExecutorBounds,
    clock: Clock,
}

struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    /// Threads that run a job; as few as there are threads.
    running: Vec<Running>,
    /// Threads that end with their run.
    abandoned: usize,
    next: ThreadNumber,
}

/// Numbers the threads of one executor.
type ThreadNumber = usize;

struct Running {
    number: ThreadNumber,
    thread: Pid,
    since: Timestamp,
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
                running: Vec::new(),
                abandoned: 0,
                next: 0,
            }),
            work: Condvar::new(),
            bounds,
            clock: Clock::start(Timestamp::ZERO),
        });
        for _ in 0..bounds.threads {
            shared.start_thread()?;
        }
        Ok(Self { shared })
    }

    /// Gives up on runs that began longer than `patience` ago; see the module. Tells how many.
    pub fn abandon_overdue(&self, patience: Duration) -> usize {
        let mut state = self.shared.lock();
        let room = self.shared.bounds.threads.saturating_sub(state.abandoned);
        let now = self.shared.clock.now();
        let is_overdue = |running: &mut Running| now.since(running.since) > patience;
        let overdue: Vec<Running> = state
            .running
            .extract_if(.., is_overdue)
            .take(room)
            .collect();
        state.abandoned += overdue.len();
        for running in &overdue {
            // It cannot have ended: for that it needs the lock.
            lower_priority(Some(running.thread));
        }
        drop(state);
        for _ in &overdue {
            tracing::warn!(
                executor = self.shared.bounds.name,
                ?patience,
                "a run is overdue: its thread is left to it, another takes its place"
            );
            if let Err(error) = self.shared.start_thread() {
                tracing::error!(%error, "no thread can take its place");
            }
        }
        overdue.len()
    }

    /// Queues a job whose result nobody awaits.
    ///
    /// # Errors
    /// [`ExecuteError::Full`].
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), ExecuteError> {
        let mut state = self.shared.lock();
        if state.jobs.len() >= self.shared.bounds.queue {
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

    fn start_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let number = {
            let mut state = self.lock();
            state.next += 1;
            state.next
        };
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name(format!("{}-{number}", self.bounds.name))
            .spawn(move || {
                shared.bounds.priority.take();
                shared.run(number);
            })?;
        Ok(())
    }

    fn run(&self, number: ThreadNumber) {
        let thread = rustix::thread::gettid();
        let mut first = true;
        while let Some(job) = self.next(number, thread, std::mem::take(&mut first)) {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job panicked; its thread goes on");
            }
        }
    }

    /// The next job for a thread that has done its last, or is new. `None`: the thread ends.
    fn next(&self, number: ThreadNumber, thread: Pid, is_new: bool) -> Option<Job> {
        let mut state = self.lock();
        let done = state.running.iter().position(|one| one.number == number);
        match done {
            Some(done) => drop(state.running.swap_remove(done)),
            None if is_new => {}
            None => {
                state.abandoned -= 1;
                return None;
            }
        }
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.running.push(Running {
                    number,
                    thread,
                    since: self.clock.now(),
                });
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

impl Priority {
    /// For the calling thread: on Linux threads have priorities of their own.
    fn take(self) {
        match self {
            Self::Normal => {}
            Self::Low => lower_priority(None),
            Self::Idle => {
                // Where the policy is refused, the niceness is what is left.
                lower_priority(None);
                let priority = SchedulerParams { priority: 0 };
                let idle = set_scheduler(
                    sched::Pid::current_thread(),
                    Scheduler::SCHED_IDLE,
                    priority,
                );
                if let Err(error) = idle {
                    tracing::info!(%error, "a thread that takes what others leave has a low priority only");
                }
            }
        }
    }
}

/// Of the calling thread, or of another.
fn lower_priority(thread: Option<Pid>) {
    if let Err(error) = rustix::process::setpriority_process(thread, LOW_NICE) {
        tracing::info!(%error, "a thread whose work can wait runs at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use preempt_rt::sched::get_scheduler;

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
    async fn a_thread_that_takes_what_others_leave_is_scheduled_so() {
        let policy = async |priority| {
            let bounds = ExecutorBounds {
                name: "test",
                threads: 1,
                queue: 1,
                priority,
            };
            let executor = Executor::start(bounds).unwrap();
            let policy = || get_scheduler(sched::Pid::current_thread()).unwrap();
            executor.run(policy).await.unwrap()
        };
        assert_eq!(policy(Priority::Idle).await, Scheduler::SCHED_IDLE);
        assert_eq!(policy(Priority::Low).await, Scheduler::SCHED_NORMAL);
        assert_eq!(policy(Priority::Normal).await, Scheduler::SCHED_NORMAL);
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

    #[tokio::test]
    async fn a_run_that_hangs_is_abandoned_and_others_go_on_as_often_as_there_are_threads() {
        let executor = one_thread(4);
        let (patience, long) = (Duration::ZERO, Duration::from_secs(3_600));
        let hang = || {
            let (release, blocked) = sync_channel::<()>(0);
            let (began, begun) = sync_channel::<()>(0);
            let ended = executor.submit(move || {
                began.send(()).unwrap();
                let _ = blocked.recv();
            });
            ended.unwrap();
            begun.recv().unwrap();
            release
        };
        let first = hang();
        assert_eq!(executor.abandon_overdue(long), 0);
        assert_eq!(executor.abandon_overdue(patience), 1);
        assert_eq!(executor.run(|| 1).await, Ok(1));
        let second = hang();
        assert_eq!(
            executor.abandon_overdue(patience),
            0,
            "one thread, one replacement"
        );
        drop(first);
        while executor.shared.lock().abandoned > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(executor.abandon_overdue(patience), 1);
        drop(second);
        assert_eq!(executor.run(|| 2).await, Ok(2));
    }
}
