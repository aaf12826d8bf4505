//! The agent's connection to the coordinator: dial, speak, notice the loss, dial again.
//!
//! It decides nothing: what arrives becomes an [`Input`] for the core, what the core
//! sends goes out. Withdrawals go to the core directly ([`Fence`]), everything else
//! through a bounded queue. Every message in either direction carries the number of its
//! connection, so that what was meant for a lost connection never reaches the next
//! one, and `Hello` is the first message on each.
//!
//! Withdrawals come beside QUIC first, and are answered there; see [`beside_quic`].
//!
//! Reports and artifacts take streams of their own through [`LinkHandle`].

mod beside_quic;
mod session;

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection};
use rollcall_agent_core::input::Input;
use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::backoff::Backoff;
use rollcall_shared::digest::Digest;
use rollcall_shared::feedback::Feedback;
use rollcall_shared::limits::{RECONNECT_FIRST, RECONNECT_MAX};
use rollcall_shared::report::Report;
use rollcall_shared::wire::{ArtifactAnswer, ArtifactRequest, FromAgent, FromAgentReport};
use rollcall_transport::channel::{ChannelError, FrameReader, FrameWriter, priority};
use rollcall_transport::close::{CloseCode, Closed, close};
use rollcall_transport::endpoint::{ConnectError, TwoWays, connect};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use beside_quic::BesideQuic;
use session::End;

/// Inputs that wait for the driver. When full the link stops reading, and QUIC's flow
/// control holds the coordinator back until it gives the connection up as slow.
const EVENTS_MAX: usize = 128;
/// Messages that wait for the link. When full the connection is dropped: `Hello`
/// repeats whatever matters.
const OUTBOX_MAX: usize = 256;
/// How long a report may take; the next window's is due by then.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// An artifact stream that stays silent for so long is given up (and resumed later).
pub const ARTIFACT_STALL_MAX: Duration = Duration::from_secs(15);
/// How long a fetch waits for a connection before it says that there is none.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// Most bytes of an artifact handed over at a time.
const ARTIFACT_CHUNK_BYTES: usize = 256 << 10;

/// Counts the connections of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionNumber(pub u64);

/// What the link has for the driver.
#[derive(Debug)]
pub struct LinkEvent {
    /// On which connection.
    pub connection: ConnectionNumber,
    /// What happened.
    pub input: Input,
}

/// Takes a withdrawal at once, wherever it is heard. Copies lead to the same agent.
#[derive(Clone)]
pub struct Fence(Arc<dyn Fn(Withdrawal) + Send + Sync>);

impl Fence {
    /// `take` must be quick: it is called where packets are received.
    pub fn new(take: impl Fn(Withdrawal) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    fn take(&self, withdrawal: Withdrawal) {
        (self.0)(withdrawal);
    }
}

/// Counts feedback. Called where control messages are read: some hundred nanoseconds an item,
/// and the coordinator sends a few hundred items at a time.
pub type TakeFeedback = Box<dyn Fn(Feedback) + Send + Sync>;

/// What a link needs.
pub struct LinkConfig {
    /// Dials from here.
    pub endpoint: TwoWays,
    /// Who we are, and whom we accept.
    pub client: ClientConfig,
    /// `HOST:PORT`, tried in turn. Empty: the link does nothing.
    pub coordinators: Vec<String>,
    /// Uniform in 0 to 1: randomness enters here.
    pub random: Box<dyn FnMut() -> f64 + Send + Sync>,
    /// Takes labels and outcomes that the coordinator hands on.
    pub feedback: TakeFeedback,
}

/// What the coordinator asked for in its `Welcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cadence {
    /// How long a report's window is.
    pub report_every: Duration,
    /// What both ends speak.
    pub protocol: u16,
}

/// Dials and speaks; see [`Link::run`].
pub struct Link {
    config: LinkConfig,
    events: mpsc::Sender<LinkEvent>,
    outbox: mpsc::Receiver<(ConnectionNumber, FromAgent)>,
    connection: watch::Sender<Option<Connection>>,
    cadence: watch::Sender<Option<Cadence>>,
    reset: Arc<Notify>,
    number: ConnectionNumber,
}

/// The rest of the agent's hold on the link. Copies share one link.
#[derive(Clone, Debug)]
pub struct LinkHandle {
    outbox: mpsc::Sender<(ConnectionNumber, FromAgent)>,
    connection: watch::Receiver<Option<Connection>>,
    cadence: watch::Receiver<Option<Cadence>>,
    reset: Arc<Notify>,
}

/// A link, what holds it, and what it has for the driver.
#[must_use]
pub fn link(config: LinkConfig) -> (Link, LinkHandle, mpsc::Receiver<LinkEvent>) {
    let (events, events_receiver) = mpsc::channel(EVENTS_MAX);
    let (outbox, outbox_receiver) = mpsc::channel(OUTBOX_MAX);
    let (connection, connection_receiver) = watch::channel(None);
    let (cadence, cadence_receiver) = watch::channel(None);
    let reset = Arc::new(Notify::new());
    let link = Link {
        config,
        events,
        outbox: outbox_receiver,
        connection,
        cadence,
        reset: Arc::clone(&reset),
        number: ConnectionNumber::default(),
    };
    let handle = LinkHandle {
        outbox,
        connection: connection_receiver,
        cadence: cadence_receiver,
        reset,
    };
    (link, handle, events_receiver)
}

/// Why a coordinator was not reached.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot resolve the address")]
    Resolve(#[from] io::Error),
    #[error("the address has no IP of the socket's kind")]
    NoAddress,
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl Link {
    /// Keeps a connection until `shutdown`; then closes it in an orderly way. Withdrawals
    /// go to `fence`, everything else to the receiver of [`link`].
    pub async fn run(mut self, fence: Fence, shutdown: CancellationToken) {
        if self.config.coordinators.is_empty() {
            return shutdown.cancelled().await;
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep_connected(&fence) => {}
        }
        if let Some(connection) = self.connection.send_replace(None) {
            close(&connection, CloseCode::Shutdown, "the agent is stopping");
            // The farewell gets a moment; a peer that is gone gets no more.
            let idle = self.config.endpoint.quic.wait_idle();
            let _ = tokio::time::timeout(Duration::from_millis(200), idle).await;
        }
    }

    /// Returns only when the driver is gone.
    async fn keep_connected(&mut self, fence: &Fence) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        for attempt in 0.. {
            let index = attempt % self.config.coordinators.len();
            let coordinator = self.config.coordinators[index].clone();
            match dial(&self.config, &coordinator).await {
                Ok(connection) => {
                    tracing::info!(%coordinator, "connected");
                    let conversation = self.converse(connection, fence, &mut backoff);
                    if conversation.await.is_break() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(
                    %coordinator,
                    error = %chain(&error),
                    "no coordinator; serving what is here and trying again"
                ),
            }
            let delay = backoff.next((self.config.random)());
            tokio::time::sleep(delay).await;
        }
    }

    /// One connection from `Connected` to `Disconnected`. Breaks when the driver is gone.
    async fn converse(
        &mut self,
        connection: Connection,
        fence: &Fence,
        backoff: &mut Backoff,
    ) -> ControlFlow<()> {
        self.number.0 += 1;
        let number = self.number;
        // Before anyone else can open a stream: the first is the control stream.
        let streams = match connection.open_bi().await {
            Ok(streams) => streams,
            Err(error) => {
                tracing::warn!(reason = %Closed::from(error), "the connection did not last");
                return ControlFlow::Continue(());
            }
        };
        // Before `Connected`: the answer to it must find a connection.
        self.connection.send_replace(Some(connection.clone()));
        let connected = LinkEvent {
            connection: number,
            input: Input::Connected,
        };
        if self.events.send(connected).await.is_err() {
            return ControlFlow::Break(());
        }
        // Until the end of this conversation.
        let beside_quic = BesideQuic::listen(
            &self.config.endpoint.beacons,
            &connection,
            number,
            &self.events,
            fence.clone(),
        );
        if let Err(error) = &beside_quic {
            tracing::warn!(%error, "withdrawals come by the control stream only");
        }
        let mut welcomed = false;
        let end = session::Session {
            connection: &connection,
            number,
            events: &self.events,
            fence,
            feedback: &self.config.feedback,
            cadence: &self.cadence,
            reset: &self.reset,
            beside_quic: beside_quic.ok(),
            welcomed: &mut welcomed,
        }
        .run(streams, &mut self.outbox)
        .await;
        self.connection.send_replace(None);
        self.cadence.send_replace(None);
        tracing::warn!(reason = %end, "disconnected; serving goes on");
        close(&connection, end.close_code(), &end.to_string());
        if welcomed && !was_sent_away(&end) {
            backoff.reset();
        }
        let gone = LinkEvent {
            connection: number,
            input: Input::Disconnected,
        };
        if self.events.send(gone).await.is_err() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Whether the coordinator ended it because of something that an immediate return would
/// repeat: two processes with one identity, say, would supersede each other for ever.
const fn was_sent_away(end: &End) -> bool {
    match end {
        End::Channel(ChannelError::Closed(Closed::ByPeer { code, .. })) => match code {
            CloseCode::Normal | CloseCode::Shutdown => false,
            CloseCode::ProtocolError
            | CloseCode::Revoked
            | CloseCode::Superseded
            | CloseCode::Slow
            | CloseCode::Refused => true,
        },
        End::Refused(_) => true,
        End::Channel(_) | End::Finished | End::Reset | End::Stopped => false,
    }
}

async fn dial(config: &LinkConfig, coordinator: &str) -> Result<Connection, DialError> {
    let usable = |address: &SocketAddr| match config.endpoint.quic.local_addr() {
        // A socket of IPv6 reaches both, one of IPv4 only its own.
        Ok(local) => local.is_ipv6() || address.is_ipv4(),
        Err(_) => true,
    };
    let addresses: Vec<_> = tokio::net::lookup_host(coordinator)
        .await?
        .filter(usable)
        .collect();
    let mut last = DialError::NoAddress;
    for address in addresses {
        match connect(&config.endpoint.quic, config.client.clone(), address).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Why the link could not carry something.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no coordinator in sight.
    #[error("no connection to the coordinator")]
    NotConnected,
    /// The connection or the stream broke.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The coordinator did not go on in time.
    #[error("the coordinator sent nothing for {:?}", ARTIFACT_STALL_MAX)]
    Stalled,
    /// The stream ended before it began.
    #[error("the coordinator finished without an answer")]
    Silent,
    /// The coordinator has no such blob, or nothing at that offset.
    #[error("the coordinator has no blob {}", digest.short())]
    Missing {
        /// Which.
        digest: Digest,
    },
}

impl LinkHandle {
    /// Queues a message for a connection; dropped with it, or when there is none. When
    /// too many wait, the connection is given up.
    pub fn send(&self, connection: ConnectionNumber, message: FromAgent) {
        if !self.is_connected() {
            return;
        }
        if self.outbox.try_send((connection, message)).is_err() {
            tracing::warn!("the connection does not take our messages; connecting anew");
            self.reset();
        }
    }

    /// Drops the connection, so that the next one's `Hello` repeats everything.
    pub fn reset(&self) {
        self.reset.notify_one();
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// What this connection's `Welcome` asked for; `None` before it.
    #[must_use]
    pub fn cadence(&self) -> Option<Cadence> {
        *self.cadence.borrow()
    }

    /// Waits for a `Welcome`, if this connection has not had its own yet.
    pub async fn welcomed(&self) {
        let mut cadence = self.cadence.clone();
        if cadence.wait_for(Option::is_some).await.is_err() {
            // The link is gone: nobody welcomes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Sends a window's report on a stream of its own, in the shape that the coordinator knows.
    ///
    /// # Errors
    /// When there is no connection, or it does not take the report in time.
    pub async fn send_report(&self, report: Report) -> Result<(), LinkError> {
        let connection = self
            .connection
            .borrow()
            .clone()
            .ok_or(LinkError::NotConnected)?;
        let protocol = self.cadence().ok_or(LinkError::NotConnected)?.protocol;
        let sending = async {
            let stream = connection.open_uni().await.map_err(lost)?;
            let mut writer = FrameWriter::new(stream, priority::REPORT);
            writer.send(&FromAgentReport::new(report, protocol)).await?;
            writer.finish();
            Ok(())
        };
        tokio::time::timeout(REPORT_TIMEOUT, sending)
            .await
            .map_err(|_| LinkError::Stalled)?
    }

    /// Asks for a blob from `offset` on.
    ///
    /// # Errors
    /// When there is no connection, or the coordinator does not have it.
    pub async fn open_artifact(&self, digest: Digest, offset: u64) -> Result<Artifact, LinkError> {
        let mut connection = self.connection.clone();
        let connection =
            tokio::time::timeout(CONNECTION_WAIT, connection.wait_for(Option::is_some))
                .await
                .ok()
                .and_then(|waited| waited.ok().and_then(|connection| connection.clone()))
                .ok_or(LinkError::NotConnected)?;
        let asking = async {
            let (send, receive) = connection.open_bi().await.map_err(lost)?;
            let mut writer = FrameWriter::new(send, priority::ARTIFACT);
            writer.send(&ArtifactRequest { digest, offset }).await?;
            writer.finish();
            let mut reader = FrameReader::new(receive);
            match reader
                .next::<ArtifactAnswer>()
                .await?
                .ok_or(LinkError::Silent)?
            {
                ArtifactAnswer::Found { size } => Ok(Artifact { size, reader }),
                ArtifactAnswer::Missing => Err(LinkError::Missing { digest }),
            }
        };
        tokio::time::timeout(ARTIFACT_STALL_MAX, asking)
            .await
            .map_err(|_| LinkError::Stalled)?
    }
}

/// A blob on its way.
#[derive(Debug)]
pub struct Artifact {
    /// The whole blob's size in bytes, as the coordinator says.
    pub size: u64,
    reader: FrameReader,
}

impl Artifact {
    /// The next bytes; `None`: that was all.
    ///
    /// # Errors
    /// When the stream breaks or stalls.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, LinkError> {
        tokio::time::timeout(
            ARTIFACT_STALL_MAX,
            self.reader.next_bytes(ARTIFACT_CHUNK_BYTES),
        )
        .await
        .map_err(|_| LinkError::Stalled)?
        .map_err(LinkError::from)
    }
}

fn lost(error: quinn::ConnectionError) -> LinkError {
    LinkError::Channel(Closed::from(error).into())
}
