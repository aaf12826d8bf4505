//! The one task that owns the agent's core.
//!
//! It feeds inputs in, executes the effects that come out in order, and decides
//! nothing. Effects of one input are complete before the next input is read; only
//! a [`Effect::Prepare`] goes on beside it. What it works on stands behind small
//! traits, so that a simulator drives this very loop with a memory disk and an
//! engine that is none.
//!
//! A disk that refuses to keep the state does not stop serving or withdrawing:
//! the swap has happened by then. But nothing is acknowledged to the coordinator
//! before it is durable; the save is tried again, and then a fresh connection
//! repeats what was held back.

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

use crate::link::{ConnectionNumber, LinkEvent, LinkHandle};
use preparing::Preparing;

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
    /// return use it.
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

/// Drives `agent` until `shutdown`, or until the link is gone. `boot` are the effects
/// that the core's making gave.
pub async fn run<S: StateStore, P: Preparer, R: RouteTable>(
    agent: Agent,
    boot: Vec<Effect>,
    ports: Ports<S, P, R>,
    shutdown: CancellationToken,
) {
    let preparing = Preparing::new(Arc::clone(&ports.preparer));
    let connection = ConnectionNumber::default();
    let mut driver = Driver {
        agent,
        ports,
        preparing,
        connection,
        unsaved: None,
    };
    driver.execute(boot).await;
    loop {
        let input = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            input = driver.next_input() => input,
        };
        match input {
            Some(input) => driver.handle(input).await,
            None => return,
        }
    }
}

struct Driver<S, P: Preparer, R> {
    agent: Agent,
    ports: Ports<S, P, R>,
    preparing: Preparing<P>,
    /// Whose messages are heard, and where ours go.
    connection: ConnectionNumber,
    unsaved: Option<Unsaved>,
}

/// A state that the disk refused.
struct Unsaved {
    state: Arc<DurableState>,
    again_at: Timestamp,
}

#[expect(clippy::large_enum_variant, reason = "lives for one move")]
enum Next {
    Input(Input),
    SaveAgain,
}

impl<S: StateStore, P: Preparer, R: RouteTable> Driver<S, P, R> {
    /// The next input, whatever its source; withdrawals come over the link, so the
    /// link goes first. `None`: nothing can come any more.
    async fn next_input(&mut self) -> Option<Input> {
        loop {
            match self.next().await? {
                Next::Input(input) => return Some(input),
                Next::SaveAgain => self.save_again().await,
            }
        }
    }

    /// Cancel-safe: every branch is.
    async fn next(&mut self) -> Option<Next> {
        let clock = self.ports.clock;
        let wakeup = self.agent.next_wakeup().unwrap_or(Timestamp::MAX);
        let again_at = self
            .unsaved
            .as_ref()
            .map_or(Timestamp::MAX, |unsaved| unsaved.again_at);
        tokio::select! {
            biased;
            event = self.ports.link_events.recv() => {
                let LinkEvent { connection, input } = event?;
                self.connection = connection;
                Some(Next::Input(input))
            }
            Some(input) = self.ports.local_inputs.recv() => Some(Next::Input(input)),
            input = self.preparing.next() => Some(Next::Input(input)),
            () = clock.sleep_until(wakeup) => Some(Next::Input(Input::TimePassed)),
            () = clock.sleep_until(again_at) => Some(Next::SaveAgain),
        }
    }

    async fn handle(&mut self, input: Input) {
        let effects = self.agent.handle(input, self.ports.clock.now());
        self.execute(effects).await;
    }

    async fn execute(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Swap(route) => self.swap(route),
                Effect::Persist(state) => self.save(Arc::new(state)).await,
                Effect::Send(message) => self.send(message),
                Effect::Prepare { model, version } => self.preparing.begin(model, version),
                Effect::Unload { model, version } => self.preparing.unload(model, version),
                Effect::Pin(versions) => self.ports.preparer.pin(&versions).await,
            }
        }
        if let Some(observe) = &mut self.ports.on_change {
            observe(&self.agent);
        }
    }

    fn swap(&self, route: Route) {
        match &self.ports.on_swap {
            Some(observe) => {
                self.ports.routes.swap(route.clone());
                observe(&route, self.ports.clock.now());
            }
            None => self.ports.routes.swap(route),
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
        self.ports.link.send(self.connection, message);
    }

    async fn save(&mut self, state: Arc<DurableState>) {
        let store = Arc::clone(&self.ports.state_store);
        match store.save(Arc::clone(&state)).await {
            Ok(()) => {
                if self.unsaved.take().is_some() {
                    tracing::info!("the state is on disk again");
                    self.ports.link.reset();
                }
            }
            Err(error) => {
                let error = crate::link::chain(&error);
                tracing::error!(%error, "the state is not durable: no receipt is sent until it is");
                let again_at = self.ports.clock.now() + SAVE_AGAIN_AFTER;
                self.unsaved = Some(Unsaved { state, again_at });
            }
        }
    }

    async fn save_again(&mut self) {
        if let Some(Unsaved { state, .. }) = &self.unsaved {
            self.save(Arc::clone(state)).await;
        }
    }
}
