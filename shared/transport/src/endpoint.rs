//! QUIC endpoints, every bound set by hand, and dialling.
//!
//! quinn's defaults serve browsers: 100 streams a side, an unbounded receive
//! window, 30 s of idling, 0-RTT. A coordinator holds ten thousand connections of
//! one known shape, so each figure here is what that shape needs.
//!
//! **Control is never stuck behind artifacts.** A sender's buffer and a receiver's
//! window are shared by all streams of a connection, so eight artifact streams
//! that nobody reads could fill them and hold up a withdrawal. Both are therefore
//! as large as all streams' windows together: each stream can only fill its own.
//!
//! **No greased packets.** Every QUIC packet here has its fixed bit set, and neither
//! end tells the other that it may clear it: [`crate::beacon`] lives on the rest.
//!
//! That a restarted coordinator is noticed at once is [`crate::restart`]'s part.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig,
    ValidationTokenConfig, VarInt,
};
use rollcall_shared::limits::{HEARTBEAT_EVERY, IDLE_TIMEOUT};

use crate::beacon::{BeaconRuntime, Beacons};
use crate::ca::CaCertificate;
use crate::close::Closed;
use crate::identity::Identity;
use crate::restart::coordinator_endpoint_config;
use crate::tls::{TlsError, agent_tls, coordinator_tls, enroll_tls};
use crate::verifier::Trust;

/// Artifact streams that one agent may have open. More wait in quinn.
pub const ARTIFACT_STREAMS_MAX: u32 = 8;
/// Report streams that one agent may have open: a late one, this one, and slack.
pub const REPORT_STREAMS_MAX: u32 = 4;
/// Longest handshake, on both sides.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams that an agent may open: its control stream and artifacts.
const BIDI_STREAMS_MAX: u32 = 1 + ARTIFACT_STREAMS_MAX;

/// Per stream towards the coordinator: small messages. A large `Hello` takes
/// several round trips, once.
const WINDOW_TO_COORDINATOR: u32 = 128 << 10;
/// Per stream towards an agent: 1 MiB a round trip is 20 MB/s over 50 ms, times
/// the artifact streams.
const WINDOW_TO_AGENT: u32 = 1 << 20;

/// All windows towards the coordinator: see the module's first promise. Times
/// 10,000 agents it is a bound against abuse, not a budget: what is read is freed.
const WINDOWS_TO_COORDINATOR: u32 = WINDOW_TO_COORDINATOR * (BIDI_STREAMS_MAX + REPORT_STREAMS_MAX);
/// All windows towards an agent, 9 MiB. The coordinator also buffers so much for
/// an agent at most; it must bound how many agents fetch artifacts at a time.
const WINDOWS_TO_AGENT: u32 = WINDOW_TO_AGENT * BIDI_STREAMS_MAX;

/// Datagrams waiting, each way: some fifty. When full the oldest is dropped, and
/// the control stream repairs the loss.
const DATAGRAM_BUFFER_BYTES: usize = 64 << 10;

/// The size that QUIC guarantees on every path.
const MTU: u16 = 1_200;

/// Handshakes waiting for [`crate::admission`], some 2 KiB each. More are dropped unread,
/// so whoever takes them in should refuse some before that.
pub const INCOMING_MAX: usize = 16_384;
/// Bytes kept for one waiting handshake: without 0-RTT only repeats of its first packets.
const INCOMING_BUFFER_BYTES: u64 = 8 << 10;
/// Bytes kept for all of them.
const INCOMING_BUFFERS_BYTES: u64 = 8 << 20;

/// quinn wants a server name; ours is in the certificate, and SNI is off.
const SERVER_NAME: &str = "coordinator";

/// What both ends share.
fn transport(window: u32, windows: u32, send_window: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(windows))
        .send_window(u64::from(send_window))
        // A dead peer is given up after this long; heartbeats come well within it.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        // Discovery costs packets and memory on every connection and gains little
        // for messages of a hundred bytes; artifacts are bound by disks.
        .initial_mtu(MTU)
        .min_mtu(MTU)
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        // Nobody on the path needs to measure round trips.
        .allow_spin(false);
    config
}

const IDLE_TIMEOUT_MS: u32 = IDLE_TIMEOUT.as_secs() as u32 * 1_000;
const _: () = assert!(IDLE_TIMEOUT.as_millis() == IDLE_TIMEOUT_MS as u128);
const _: () = assert!(IDLE_TIMEOUT.as_millis() >= 4 * HEARTBEAT_EVERY.as_millis());

fn coordinator_transport() -> TransportConfig {
    let mut config = transport(
        WINDOW_TO_COORDINATOR,
        WINDOWS_TO_COORDINATOR,
        WINDOWS_TO_AGENT,
    );
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(REPORT_STREAMS_MAX));
    config
}

fn agent_transport() -> TransportConfig {
    let mut config = transport(WINDOW_TO_AGENT, WINDOWS_TO_AGENT, WINDOWS_TO_COORDINATOR);
    config
        // The coordinator opens no streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    // No keep-alive on either side: heartbeats are one. Pings every 500 ms were what
    // brought a push through after an outage; beacons do that now, and the pings of
    // 10,000 agents cost a core half of its time.
    config
}

/// The coordinator's configuration. To change the identity of a running endpoint,
/// pass a new one to [`Endpoint::set_server_config`]; live connections stay.
///
/// # Errors
/// When the identity or the authority's certificate is unusable.
pub fn coordinator_config(
    identity: &Identity,
    ca: &CaCertificate,
) -> Result<ServerConfig, TlsError> {
    let tls = coordinator_tls(identity, ca)?;
    assert_eq!(tls.max_early_data_size, 0, "0-RTT must stay off");
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    // Tokens that spare a Retry would not survive a restart, when they would help.
    let mut validation_tokens = ValidationTokenConfig::default();
    validation_tokens.sent(0);
    config
        .transport_config(Arc::new(coordinator_transport()))
        .validation_token_config(validation_tokens)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
    Ok(config)
}

/// QUIC, and the beacons beside it, on one socket.
#[derive(Clone, Debug)]
pub struct TwoWays {
    /// Dials or accepts; an agent's serves for enrolment too.
    pub quic: Endpoint,
    /// Sends beacons, and is where connections listen for them.
    pub beacons: Beacons,
}

impl TwoWays {
    fn on(
        socket: UdpSocket,
        config: EndpointConfig,
        server: Option<ServerConfig>,
    ) -> io::Result<Self> {
        let beacons = Beacons::default();
        let runtime = Arc::new(BeaconRuntime(beacons.clone()));
        let quic = Endpoint::new(config, server, socket, runtime)?;
        Ok(Self { quic, beacons })
    }
}

/// The coordinator's endpoint, on a socket that the caller bound (and may have given
/// larger kernel buffers: a push to 10,000 agents comes back as 10,000 answers).
///
/// # Errors
/// When the identity is unusable, or the socket cannot be used.
pub fn coordinator_endpoint(
    socket: UdpSocket,
    identity: &Identity,
    ca: &CaCertificate,
) -> Result<TwoWays, EndpointError> {
    let config = coordinator_endpoint_config(identity);
    let server = coordinator_config(identity, ca)?;
    Ok(TwoWays::on(socket, config, Some(server))?)
}

/// An agent's endpoint. `[::]:0` reaches both IP versions.
///
/// # Errors
/// When the address cannot be bound.
pub fn agent_endpoint(bind: SocketAddr) -> Result<TwoWays, EndpointError> {
    agent_endpoint_on(UdpSocket::bind(bind)?)
}

/// [`agent_endpoint`] on a socket that the caller bound.
///
/// # Errors
/// When the socket cannot be used.
pub fn agent_endpoint_on(socket: UdpSocket) -> Result<TwoWays, EndpointError> {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false);
    Ok(TwoWays::on(socket, config, None)?)
}

/// An agent's configuration for [`connect`]. Make it once, and again when the
/// identity changes.
///
/// # Errors
/// When the identity is unusable.
pub fn agent_config(identity: &Identity, ca: &CaCertificate) -> Result<ClientConfig, TlsError> {
    client_config(agent_tls(identity, ca)?)
}

/// An enrolling node's configuration for [`connect`]; see [`enroll_tls`].
///
/// # Errors
/// When the identity is unusable.
pub fn enroll_config(trust: Trust, renewing: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    client_config(enroll_tls(trust, renewing)?)
}

fn client_config(tls: rustls::ClientConfig) -> Result<ClientConfig, TlsError> {
    assert!(!tls.enable_early_data, "0-RTT must stay off");
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(agent_transport()));
    Ok(config)
}

/// Dials the coordinator. That this succeeds does not mean that it lets us in: it
/// judges our certificate after the handshake, and closes if it does not like it.
///
/// # Errors
/// When there is no coordinator of ours at `address` within [`HANDSHAKE_TIMEOUT`].
pub async fn connect(
    endpoint: &Endpoint,
    config: ClientConfig,
    address: SocketAddr,
) -> Result<Connection, ConnectError> {
    let connecting = endpoint.connect_with(config, address, SERVER_NAME)?;
    tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| ConnectError::Handshake(Closed::TimedOut))?
        .map_err(|error| ConnectError::Handshake(error.into()))
}

/// The protocol that TLS agreed on.
pub(crate) fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?;
    data.downcast::<HandshakeData>().ok()?.protocol
}

/// An endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The identity is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket is.
    #[error("cannot open the socket")]
    Socket(#[from] io::Error),
}

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not even tried.
    #[error("cannot dial")]
    Dial(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error("handshake failed: {0}")]
    Handshake(Closed),
}
