//! The core, and what it wants done: every input ends here.
//!
//! A withdrawal is handled where it is heard, in the very call that received the packet,
//! as far as it concerns requests: it waits neither for a task to wake up nor for a disk
//! that is busy with something older. All else is the driver's, one after another.
//!
//! Swaps are done under the lock, so that they come in the order of the inputs.

use std::sync::{Arc, Mutex, MutexGuard};

use rollcall_agent_core::agent::Agent;
use rollcall_agent_core::backlog::Backlog;
use rollcall_agent_core::effect::Effect;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use tokio::sync::Notify;

use super::{RouteTable, SwapObserver};

/// See the module.
pub(super) struct Desk<R> {
    state: Mutex<State>,
    /// The core has something to do after a withdrawal.
    fenced: Notify,
    clock: Clock,
    swapper: Swapper<R>,
}

struct State {
    agent: Agent,
    backlog: Backlog,
}

pub(super) struct Swapper<R> {
    pub(super) routes: Arc<R>,
    pub(super) on_swap: Option<SwapObserver>,
}

impl<R: RouteTable> Swapper<R> {
    fn swap(&self, route: Route, clock: Clock) {
        match &self.on_swap {
            Some(observe) => {
                self.routes.swap(route.clone());
                observe(&route, clock.now());
            }
            None => self.routes.swap(route),
        }
    }
}

impl<R: RouteTable> Desk<R> {
    /// `boot` are the effects that the core's making gave.
    pub(super) fn new(agent: Agent, boot: Vec<Effect>, clock: Clock, swapper: Swapper<R>) -> Self {
        let mut backlog = Backlog::default();
        backlog.add(boot);
        Self {
            state: Mutex::new(State { agent, backlog }),
            fenced: Notify::new(),
            clock,
            swapper,
        }
    }

    #[expect(clippy::expect_used, reason = "the agent starts again, into stable")]
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the core broke an invariant")
    }

    /// Carries a withdrawal out at once, as far as it concerns requests.
    pub(super) fn fence(&self, withdrawal: Withdrawal) {
        // Whatever happens here, the driver looks: also if the core breaks.
        let _driver_wakes = Wake(&self.fenced);
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        if let Some(route) = state.agent.fence(withdrawal, self.clock.now()) {
            state.backlog.overtaken_by(&route);
            self.swapper.swap(route, self.clock);
        }
    }

    /// Handles an input; nothing may wait to be executed.
    pub(super) fn tell(&self, input: Input) {
        let mut state = self.lock();
        let effects = state.agent.handle(input, self.clock.now());
        state.backlog.add(effects);
    }

    /// The next effect that is not a swap; swaps before it are done.
    pub(super) fn next_effect(&self) -> Option<Effect> {
        let mut state = self.lock();
        loop {
            match state.backlog.pop()? {
                Effect::Swap(route) => self.swapper.swap(route, self.clock),
                effect => return Some(effect),
            }
        }
    }

    /// When the core must hear that time has passed.
    pub(super) fn next_wakeup(&self) -> Option<Timestamp> {
        self.lock().agent.next_wakeup()
    }

    /// Waits until the core has something to do after a withdrawal.
    pub(super) async fn fenced(&self) {
        self.fenced.notified().await;
    }

    /// Shows the core.
    pub(super) fn show(&self, observe: impl FnOnce(&Agent)) {
        observe(&self.lock().agent);
    }
}

/// Wakes the driver when it goes out of scope.
struct Wake<'a>(&'a Notify);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
