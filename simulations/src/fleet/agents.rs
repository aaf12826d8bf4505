//! Many agents in one process: the shipping core, driver and link, an engine that
//! loads nothing, and a memory disk.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::RngExt;
use rollcall_agent::driver::{Driver, Ports, Preparer, RouteTable, StateStore, SwapObserver};
use rollcall_agent::link::{LinkConfig, LinkHandle, link};
use rollcall_agent_core::agent::{Agent, AgentIdentity};
use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::input::PrepareFailure;
use rollcall_agent_core::route::Route;
use rollcall_coordinator::journal::sqlite::SqliteJournal;
use rollcall_coordinator::journal::{Head, Journal};
use rollcall_coordinator::quic_server::public_key;
use rollcall_coordinator_core::input::{Actor, TokenKind};
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_transport::ca::{CaCertificate, FleetCa};
use rollcall_transport::clock::Clock;
use rollcall_transport::endpoint::{TwoWays, agent_config, agent_endpoint_on};
use rollcall_transport::identity::{Identity, new_agent_key};
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// UDP sockets that the agents share.
pub(crate) const ENDPOINTS: usize = 8;
/// Kernel buffer of each.
const RECEIVE_BYTES: usize = 8 << 20;
/// Agents that dial at the same time: a fleet that is set up, not a storm.
const DIALLING_MAX: usize = 512;
/// Between two looks at all agents.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the fleet may take for one step.
const PATIENCE: Duration = Duration::from_secs(120);

/// An agent's way into the fleet.
pub(crate) struct Credentials {
    pub(crate) identity: Identity,
    pub(crate) ca: CaCertificate,
}

impl Credentials {
    /// A copy.
    pub(crate) fn again(&self) -> Result<Self> {
        let (chain, key) = (self.identity.chain_pem(), self.identity.key_pem());
        Ok(Self {
            identity: Identity::from_pem(chain, key)?,
            ca: self.ca.clone(),
        })
    }
}

/// Makes the observer of one node's routes.
pub(crate) type Observers<'a> = &'a (dyn Fn(usize) -> SwapObserver + Sync);

/// Makes identities for `count` nodes with the fleet's CA and writes their enrolment
/// into the journal of a coordinator that does not run: what a thousand `enroll`s
/// would do, without the wait.
pub(crate) fn enroll(coordinator: &Path, count: u32) -> Result<Vec<Credentials>> {
    let read = |name: &str| {
        let path = coordinator.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let ca = FleetCa::from_pem(&read("ca.pem")?, &read("ca.key")?)?;
    let now = Clock::start(Timestamp::ZERO).now();
    let journal = SqliteJournal::open(coordinator)?;
    let mut chain = Chain {
        head: journal.head()?,
        now,
        records: Vec::new(),
    };
    let token = "fleet".to_owned();
    chain.add(Event::TokenCreated {
        id: token.clone(),
        secret_hash: Digest::of(b"nobody knows it"),
        kind: TokenKind::Agent,
        name: "for a benchmark".to_owned(),
        expires_at: None,
    });
    let mut all = Vec::new();
    for index in 0..count {
        let node = NodeId::new(format!("node-{}", index + 1))?;
        let key = new_agent_key()?;
        let issued = ca.issue_agent_from_csr(&key.csr, &node, now)?;
        chain.add(Event::NodeEnrolled {
            node,
            labels: BTreeMap::new(),
            key: public_key::of_request(&key.csr).context("the request is unreadable")?,
            token: token.clone(),
        });
        let identity = Identity::from_pem(&issued.pem, &key.key_pem)?;
        all.push(Credentials {
            identity,
            ca: ca.certificate().clone(),
        });
    }
    journal.append(&chain.records)?;
    Ok(all)
}

/// Records that follow each other.
struct Chain {
    head: Head,
    now: Timestamp,
    records: Vec<Record>,
}

impl Chain {
    fn add(&mut self, event: Event) {
        let (seq, previous) = (self.head.seq + 1, self.head.hash);
        let record = Record {
            seq,
            at: self.now,
            actor: Actor::System,
            event,
            previous,
        };
        self.head = Head {
            seq,
            hash: record.hash(),
        };
        self.records.push(record);
    }
}

/// What an agent's route shows from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The coordinator let it in.
    Connected,
    /// This version answers alone.
    Stable(Version),
    /// This version is on trial.
    Candidate(Version),
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeState {
    stable: Option<Version>,
    candidate: Option<Version>,
    swapped_at: Timestamp,
}

/// Where all routes land.
struct Board {
    nodes: Mutex<Vec<NodeState>>,
}

impl Board {
    fn count(&self, seen: Seen) -> usize {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |node: &&NodeState| match seen {
            Seen::Connected => true,
            Seen::Stable(version) => node.stable == Some(version) && node.candidate.is_none(),
            Seen::Candidate(version) => node.candidate == Some(version),
        };
        nodes.iter().filter(fits).count()
    }
}

struct NodeRoutes {
    index: usize,
    board: Arc<Board>,
    clock: Clock,
}

impl RouteTable for NodeRoutes {
    fn swap(&self, route: Route) {
        let state = NodeState {
            stable: route.stable.map(|version| version.version),
            candidate: route
                .candidate
                .as_ref()
                .map(|candidate| candidate.version.version),
            swapped_at: self.clock.now(),
        };
        let mut nodes = self
            .board
            .nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let node = &mut nodes[self.index];
        // A renewed lease is a swap too; only who answers counts here.
        if (node.stable, node.candidate) != (state.stable, state.candidate) {
            *node = state;
        }
    }
}

/// Loads nothing.
struct NoEngine;

impl Preparer for NoEngine {
    type Prepared = ();

    async fn prepare(&self, _: ModelName, _: VersionRef) -> Result<(), PrepareFailure> {
        Ok(())
    }

    fn install(&self, _: &ModelName, _: VersionRef, (): ()) {}

    fn unload(&self, _: &ModelName, _: VersionRef) {}

    async fn pin(&self, _: &BTreeSet<(ModelName, VersionRef)>) {}
}

/// Forgets nothing, as long as the process lives; nothing in it ever starts again.
struct MemoryDisk;

impl StateStore for MemoryDisk {
    type Error = Infallible;

    async fn save(self: Arc<Self>, _: Arc<DurableState>) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The thread that receives for all agents and swaps their routes. On machines of their
/// own they would do what follows a swap, and all else, at the same time: here the caller's
/// runtime does it, and [yields](Agents::yield_to_others).
struct Receiving(Option<Runtime>);

impl Receiving {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("receiving")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Sockets that are received from here.
    fn endpoints(&self) -> Result<Vec<TwoWays>> {
        let _entered = self.0.as_ref().map(Runtime::enter);
        (0..ENDPOINTS).map(|_| endpoint()).collect()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A socket for a good thousand agents, with room for what a node's own socket would hold.
fn endpoint() -> Result<TwoWays> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // The kernel gives less where its own bound is lower; then figures show losses.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BYTES);
    Ok(agent_endpoint_on(socket)?)
}

/// Running agents; dropping them ends them.
pub(crate) struct Agents {
    board: Arc<Board>,
    connected: Vec<LinkHandle>,
    delays: Arc<AtomicU64>,
    clock: Clock,
    _stop: DropGuard,
    _receiving: Receiving,
}

/// How many of them the coordinator has let in.
fn welcomed(links: &[LinkHandle]) -> usize {
    links.iter().filter(|link| link.cadence().is_some()).count()
}

impl Agents {
    /// Starts one agent for each of `credentials`.
    pub(crate) async fn start(
        credentials: Vec<Credentials>,
        coordinator: SocketAddr,
        observers: Option<Observers<'_>>,
    ) -> Result<Self> {
        let receiving = Receiving::start()?;
        let endpoints = receiving.endpoints()?;
        let clock = Clock::start(Timestamp::ZERO);
        let nodes = Mutex::new(vec![NodeState::default(); credentials.len()]);
        let board = Arc::new(Board { nodes });
        let stop = CancellationToken::new();
        let delays = Arc::new(AtomicU64::new(0));
        let mut connected = Vec::with_capacity(credentials.len());
        for (index, Credentials { identity, ca }) in credentials.into_iter().enumerate() {
            let counted = Arc::clone(&delays);
            let config = LinkConfig {
                feedback: Box::new(drop),
                endpoint: endpoints[index % ENDPOINTS].clone(),
                client: agent_config(&identity, &ca)?,
                coordinators: vec![coordinator.to_string()],
                random: Box::new(move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    rand::make_rng::<rand::rngs::StdRng>().random()
                }),
            };
            while index >= DIALLING_MAX + welcomed(&connected) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (link, handle, link_events) = link(config);
            connected.push(handle.clone());
            let identity = AgentIdentity {
                software: "rollcall-sim".to_owned(),
                ..AgentIdentity::default()
            };
            let (agent, boot) = Agent::restore(identity, DurableState::default(), clock.now());
            // The serving path has nothing to say: nobody sends requests here.
            let (local, local_inputs) = mpsc::channel(1);
            let ports = Ports {
                clock,
                link: handle,
                link_events,
                local_inputs,
                state_store: Arc::new(MemoryDisk),
                preparer: Arc::new(NoEngine),
                routes: Arc::new(NodeRoutes {
                    index,
                    board: Arc::clone(&board),
                    clock,
                }),
                on_swap: observers.map(|observe| observe(index)),
                on_change: None,
            };
            let driver = Driver::new(agent, boot, ports);
            tokio::spawn(link.run(driver.fence(), stop.clone()));
            let stopped = stop.clone();
            tokio::spawn(async move {
                driver.run(stopped).await;
                drop(local);
            });
        }
        Ok(Self {
            board,
            connected,
            delays,
            clock,
            _stop: stop.drop_guard(),
            _receiving: receiving,
        })
    }

    /// From now on what the agents do beside receiving and swapping takes no processor that
    /// anybody else wants. For a runtime with one thread, which keeps the priority.
    pub(crate) async fn yield_to_others(&self) -> Result<()> {
        // Refused or not: figures are upper bounds anyway.
        let nice = tokio::spawn(async { rustix::process::nice(19) });
        let _ = nice.await?;
        Ok(())
    }

    /// The clock of all routes.
    pub(crate) const fn clock(&self) -> Clock {
        self.clock
    }

    /// How often any of them has waited before it dialled again.
    pub(crate) fn delays(&self) -> u64 {
        self.delays.load(Ordering::Relaxed)
    }

    /// Waits until `count` agents show what is asked for.
    pub(crate) async fn until(&self, count: u32, seen: Seen) -> Result<()> {
        let count = count as usize;
        let wait = async {
            loop {
                let now = match seen {
                    Seen::Connected => welcomed(&self.connected),
                    Seen::Stable(_) | Seen::Candidate(_) => self.board.count(seen),
                };
                if now >= count {
                    return;
                }
                // Ten thousand changes come at once, and connecting changes no route: looks
                // are paced, so that looking does not cost the agents their CPU.
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .with_context(|| format!("not all of {count} agents came to {seen:?}"))
    }

    /// When each agent's route changed last.
    pub(crate) fn swapped_at(&self) -> Vec<Timestamp> {
        let nodes = self
            .board
            .nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        nodes.iter().map(|node| node.swapped_at).collect()
    }
}
