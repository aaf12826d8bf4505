//! A few of what only one thread may use at a time.
//!
//! Who finds none free waits for one. Nobody waits for a new one to be made, because
//! that can take seconds: a thread of its own makes it, beside the requests, when one
//! had to wait and there may be more.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

type Make<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// The pool.
pub(super) struct Pool<T> {
    state: Mutex<State<T>>,
    freed: Condvar,
    make: Make<T>,
}

struct State<T> {
    idle: Vec<T>,
    made: usize,
    max: usize,
    growing: bool,
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(f, "{} of {} idle", state.idle.len(), state.made)
    }
}

impl<T: Send + 'static> Pool<T> {
    /// A pool with one member, that may grow to `max`.
    pub(super) fn new(
        first: T,
        max: usize,
        make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                idle: vec![first],
                made: 1,
                max,
                growing: false,
            }),
            freed: Condvar::new(),
            make: Box::new(make),
        })
    }

    /// Takes one, waiting if there is none.
    pub(super) fn take(self: &Arc<Self>) -> Taken<T> {
        let mut state = self.lock();
        loop {
            if let Some(member) = state.idle.pop() {
                return Taken {
                    member: Some(member),
                    pool: Arc::clone(self),
                };
            }
            if !state.growing && state.made < state.max {
                state.growing = true;
                self.grow(&mut state);
            }
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn grow(self: &Arc<Self>, state: &mut State<T>) {
        let pool = Arc::clone(self);
        let grow = move || {
            let made = super::panics::catch(|| (pool.make)()).and_then(|made| made);
            pool.lock().take_in(made);
            // All who wait: one takes it, and another sees that there may be more.
            pool.freed.notify_all();
        };
        if let Err(error) = thread::Builder::new().name("grow".to_owned()).spawn(grow) {
            state.take_in(Err(error.to_string()));
        }
    }
}

impl<T> Pool<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// What cannot be made now is not tried at every request.
    fn take_in(&mut self, made: Result<T, String>) {
        self.growing = false;
        match made {
            Ok(member) => {
                self.made += 1;
                self.idle.push(member);
            }
            Err(why) => {
                tracing::warn!(why, "a model runs on {} sessions, not more", self.made);
                self.max = self.made;
            }
        }
    }
}

/// A member in use; goes back when it is dropped.
pub(super) struct Taken<T> {
    /// Gone only while this is dropped.
    member: Option<T>,
    pool: Arc<Pool<T>>,
}

impl<T> Deref for Taken<T> {
    type Target = T;

    #[expect(clippy::expect_used, reason = "only a drop takes it")]
    fn deref(&self) -> &T {
        self.member.as_ref().expect("a member in use")
    }
}

impl<T> DerefMut for Taken<T> {
    #[expect(clippy::expect_used, reason = "only a drop takes it")]
    fn deref_mut(&mut self) -> &mut T {
        self.member.as_mut().expect("a member in use")
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        self.pool.lock().idle.extend(self.member.take());
        self.pool.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn it_grows_while_someone_waits_and_no_further_than_it_may() {
        let made = Arc::new(AtomicUsize::new(1));
        let counter = Arc::clone(&made);
        let pool = Pool::new(0, 3, move || Ok(counter.fetch_add(1, Ordering::SeqCst)));
        drop(pool.take());
        assert_eq!(made.load(Ordering::SeqCst), 1);
        // All three are in use at once, or this would never end.
        let barrier = Barrier::new(3);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let _taken = pool.take();
                    barrier.wait();
                });
            }
        });
        let all: Vec<_> = (0..3).map(|_| pool.take()).collect();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| *pool.take());
            drop(all);
            assert!(waiting.join().unwrap() < 3);
        });
        assert_eq!(made.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn what_cannot_be_made_is_tried_once_and_waited_for_no_longer() {
        let tried = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&tried);
        let pool = Pool::new(7, 8, move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Err("no memory".to_owned())
        });
        for _ in 0..3 {
            let taken = pool.take();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| *pool.take());
                while tried.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                drop(taken);
                assert_eq!(waiting.join().unwrap(), 7);
            });
        }
        assert_eq!(tried.load(Ordering::SeqCst), 1);
    }
}
