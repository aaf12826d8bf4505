//! What feeds the agent's core and executes its effects, and decides nothing.
//!
//! One task reads inputs and executes effects in order. Effects of one input are
//! complete before the next input is read; only a [`Effect::Prepare`] goes on beside it.
//! Withdrawals do not wait for that task: [`Driver::fence`] takes them at once,
//! whatever it is busy with; see [`desk`]. What the driver works on stands behind
//! small traits, so that a simulator drives this very loop with a memory disk and an
//! engine that is none.
//!
//! A disk that refuses to keep the state does not stop serving or withdrawing:
//! the swap has happened by then. But nothing is acknowledged to the coordinator
//! before it is durable; the save is tried again, and then a fresh connection
//! repeats what was held back.

mod desk;
mod preparing;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rollcall_agent_core::agent::Agent;
use rollcall_agent_core::effect::{DurableState, Effect};
use rollcall_agent_core::input::{Input, PrepareFailure};
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;
use rollcall_transport::clock::Clock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::link::{ConnectionNumber, Fence, LinkEvent, LinkHandle};
use desk::{Desk, Swapper};
use preparing::{Ended, Preparing};

/// Inputs from within the process that wait for the driver: breaker events, of which
/// a flapping candidate makes a few a second. When full an event is dropped; reports
/// carry the counts anyway.
pub const LOCAL_INPUTS_MAX: usize = 64;

/// How long a refusing disk is left alone.
const SAVE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Keeps what must not be forgotten.
pub trait StateStore: Send + Sync + 'static {
    /// Why it could not.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes `state` durable in place of what was there.
    ///
    /// # Errors
    /// When it is not known to be durable.
    fn save(
        self: Arc<Self>,
        state: Arc<DurableState>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

impl StateStore for crate::cache::StateStore {
    type Error = crate::cache::StateError;

    async fn save(self: Arc<Self>, state: Arc<DurableState>) -> Result<(), Self::Error> {
        let saving =
            tokio::task::spawn_blocking(move || crate::cache::StateStore::save(&self, &state));
        saving.await.unwrap_or(Err(crate::cache::StateError::Ended))
    }
}

/// Brings versions into memory and takes them out.
pub trait Preparer: Send + Sync + 'static {
    /// A version that could serve, not yet where requests find it.
    type Prepared: Send + 'static;

    /// Fetches what is missing, verifies, loads and warms. Dropped to be cancelled;
    /// nothing may be visible to requests before [`Self::install`].
    fn prepare(
        &self,
        model: ModelName,
        version: VersionRef,
    ) -> impl Future<Output = Result<Self::Prepared, PrepareFailure>> + Send;

    /// Puts a prepared version where routes find it.
    fn install(&self, model: &ModelName, version: VersionRef, prepared: Self::Prepared);

    /// Takes it away again; requests under way keep it until they are done.
    fn unload(&self, model: &ModelName, version: VersionRef);

    /// These versions, and no others, must not be evicted from the disk.
    fn pin(&self, versions: &BTreeSet<(ModelName, VersionRef)>) -> impl Future<Output = ()> + Send;
}

/// Where requests find out who answers them.
pub trait RouteTable: Send + Sync + 'static {
    /// Puts `route` in place of its model's route. Requests that begin after the
    /// return use it. Must be quick: it is called where packets are received.
    fn swap(&self, route: Route);
}

/// Called after each swap with the route and the moment: for measurements.
pub type SwapObserver = Arc<dyn Fn(&Route, Timestamp) + Send + Sync>;

/// Called with the core after each input: for status pages.
pub type AgentObserver = Box<dyn FnMut(&Agent) + Send>;

/// Everything the driver works on.
pub struct Ports<S, P, R> {
    /// Time.
    pub clock: Clock,
    /// Takes messages to the coordinator.
    pub link: LinkHandle,
    /// Brings messages from it.
    pub link_events: mpsc::Receiver<LinkEvent>,
    /// Inputs from the serving path.
    pub local_inputs: mpsc::Receiver<Input>,
    /// The disk.
    pub state_store: Arc<S>,
    /// The engine.
    pub preparer: Arc<P>,
    /// The serving path.
    pub routes: Arc<R>,
    /// Sees swaps.
    pub on_swap: Option<SwapObserver>,
    /// Sees the core.
    pub on_change: Option<AgentObserver>,
}

/// Drives an agent.
pub struct Driver<S, P: Preparer, R> {
    desk: Arc<Desk<R>>,
    clock: Clock,
    link: LinkHandle,
    link_events: mpsc::Receiver<LinkEvent>,
    local_inputs: mpsc::Receiver<Input>,
    state_store: Arc<S>,
    preparing: Preparing<P>,
    on_change: Option<AgentObserver>,
    /// Where our messages go.
    connection: ConnectionNumber,
    unsaved: Option<Unsaved>,
}

/// A state that the disk refused.
struct Unsaved {
    state: Arc<DurableState>,
    again_at: Timestamp,
}

enum Next<T> {
    Heard(LinkEvent),
    Local(Input),
    Ended(Ended<T>),
    /// Time has passed, or a withdrawal left something to do.
    Time,
}

impl<S: StateStore, P: Preparer, R: RouteTable> Driver<S, P, R> {
    /// A driver for `agent`. `boot` are the effects that its making gave.
    pub fn new(agent: Agent, boot: Vec<Effect>, ports: Ports<S, P, R>) -> Self {
        let swapper = Swapper {
            routes: ports.routes,
            on_swap: ports.on_swap,
        };
        Self {
            desk: Arc::new(Desk::new(agent, boot, ports.clock, swapper)),
            clock: ports.clock,
            link: ports.link,
            link_events: ports.link_events,
            local_inputs: ports.local_inputs,
            state_store: ports.state_store,
            preparing: Preparing::new(ports.preparer),
            on_change: ports.on_change,
            connection: ConnectionNumber::default(),
            unsaved: None,
        }
    }

    /// Where withdrawals go, from now on.
    #[must_use]
    pub fn fence(&self) -> Fence {
        let desk = Arc::clone(&self.desk);
        Fence::new(move |withdrawal| desk.fence(withdrawal))
    }

    /// Drives until `shutdown`, or until the link is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.work_off().await;
            if let Some(observe) = &mut self.on_change {
                self.desk.show(observe);
            }
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                next = self.next() => next,
            };
            let Some(next) = next else { return };
            if let Some(input) = self.input(next) {
                self.desk.tell(input);
            }
        }
    }

    /// What comes next: the rest of a withdrawal before anything else. `None`: nothing can
    /// come any more. Cancel-safe: every branch is.
    async fn next(&mut self) -> Option<Next<P::Prepared>> {
        let wakeup = self.desk.next_wakeup().unwrap_or(Timestamp::MAX);
        let again_at = self.unsaved.as_ref().map(|unsaved| unsaved.again_at);
        let time = wakeup.min(again_at.unwrap_or(Timestamp::MAX));
        tokio::select! {
            biased;
            () = self.desk.fenced() => Some(Next::Time),
            event = self.link_events.recv() => event.map(Next::Heard),
            Some(input) = self.local_inputs.recv() => Some(Next::Local(input)),
            ended = self.preparing.next() => Some(Next::Ended(ended)),
            () = self.clock.sleep_until(time) => Some(Next::Time),
        }
    }

    /// The input that something comes to, if any.
    fn input(&mut self, next: Next<P::Prepared>) -> Option<Input> {
        match next {
            Next::Heard(LinkEvent { connection, input }) => {
                self.connection = connection;
                Some(input)
            }
            Next::Local(input) => Some(input),
            Next::Ended(ended) => self.preparing.finish(ended),
            Next::Time => Some(Input::TimePassed),
        }
    }

    /// Executes what waits.
    async fn work_off(&mut self) {
        self.save_again_if_due().await;
        while let Some(effect) = self.desk.next_effect() {
            match effect {
                Effect::Persist(state) => self.save(Arc::new(state)).await,
                Effect::Send(message) => self.send(message),
                Effect::Prepare { model, version } => self.preparing.begin(model, version),
                Effect::Unload { model, version } => self.preparing.unload(model, version),
                Effect::Pin(versions) => self.preparing.pin(&versions).await,
                // The desk has done it.
                Effect::Swap(_) => {}
            }
        }
    }

    /// What speaks of durable state waits until the state is durable: receipts are
    /// held back, and `Hello` brings them when the link connects anew after the save.
    /// A node that would give no receipt answers no rehearsal either.
    fn send(&self, message: FromAgent) {
        let message = match message {
            FromAgent::Receipt(_) | FromAgent::Rehearsed(_) if self.unsaved.is_some() => return,
            FromAgent::Hello(mut hello) if self.unsaved.is_some() => {
                hello.receipts.clear();
                FromAgent::Hello(hello)
            }
            other @ (FromAgent::Receipt(_)
            | FromAgent::Rehearsed(_)
            | FromAgent::Hello(_)
            | FromAgent::Heartbeat(_)
            | FromAgent::Readiness(_)
            | FromAgent::Event(_)) => other,
        };
        self.link.send(self.connection, message);
    }

    async fn save(&mut self, state: Arc<DurableState>) {
        let store = Arc::clone(&self.state_store);
        match store.save(Arc::clone(&state)).await {
            Ok(()) => {
                if self.unsaved.take().is_some() {
                    tracing::info!("the state is on disk again");
                    self.link.reset();
                }
            }
            Err(error) => {
                let error = crate::link::chain(&error);
                tracing::error!(%error, "the state is not durable: no receipt is sent until it is");
                let again_at = self.clock.now() + SAVE_AGAIN_AFTER;
                self.unsaved = Some(Unsaved { state, again_at });
            }
        }
    }

    async fn save_again_if_due(&mut self) {
        let now = self.clock.now();
        let due = self.unsaved.as_ref().filter(|u| u.again_at <= now);
        if let Some(state) = due.map(|unsaved| Arc::clone(&unsaved.state)) {
            self.save(state).await;
        }
    }
}
