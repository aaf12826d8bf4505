//! One agent's connection, from `Hello` to its end.
//!
//! The first bidirectional stream is the control stream. Messages of a connection
//! reach the core between its `AgentConnected` and its `AgentDisconnected`, in the
//! order in which they were read. Reading is what slows a fast agent down: the core's
//! queue is bounded, and each agent's messages are paced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use rollcall_coordinator_core::input::Input;
use rollcall_shared::codec;
use rollcall_shared::ids::{ConnectionId, NodeId};
use rollcall_shared::limits::REPORT_BYTES_MAX;
use rollcall_shared::wire::{FromAgent, FromAgentReport, Hello};
use rollcall_transport::beacon::{End, Listening, NoKey};
use rollcall_transport::channel::{ChannelError, FrameReader, FrameWriter, priority};
use rollcall_transport::close::{CloseCode, Closed, close};
use rollcall_transport::identity::peer_certificate;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::artifact::SendError;
use super::outbox::{Outbox, Topic, write_out};
use super::rate::{Datagram, DatagramRate, MessageRate};
use super::{Context, artifact, public_key};
use crate::driver::Gone;

/// From the handshake to a whole `Hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// From a report stream's beginning to its end.
const REPORT_TIMEOUT: Duration = Duration::from_secs(20);

/// A control message after `Hello`: 64 models' generations take 4 KiB.
const CONTROL_BYTES_MAX: usize = 64 << 10;

/// Artifact streams that an agent may let stall on one connection: as many as it may have open.
const STALLS_MAX: u32 = rollcall_transport::endpoint::ARTIFACT_STREAMS_MAX;

/// What an ended session says of its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing bad.
    Decent,
    /// It broke the protocol or flooded us.
    Offence,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{0}")]
    NotWanted(String),
    #[error("no Hello within {HELLO_TIMEOUT:?}")]
    NoHello,
    #[error("it broke the protocol: {0}")]
    Protocol(String),
    #[error("it sends datagrams faster than anybody could need")]
    Flood,
    #[error("it asks for files and does not take them")]
    Stalls,
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl From<Closed> for SessionError {
    fn from(closed: Closed) -> Self {
        Self::Channel(closed.into())
    }
}

/// Serves an agent until its connection is over.
pub async fn serve(connection: Connection, node: NodeId, context: &Arc<Context>) -> Ending {
    let id = context.next_connection();
    let error = match greet(&connection, &node, context).await {
        Ok((hello, reader, writer)) => {
            let session = Session {
                id,
                node: node.clone(),
                connection: connection.clone(),
                context,
            };
            session.run(hello, reader, writer).await
        }
        Err(error) => error,
    };
    let code = match &error {
        SessionError::NotWanted(_) => CloseCode::Refused,
        SessionError::NoHello | SessionError::Protocol(_) => CloseCode::ProtocolError,
        SessionError::Channel(ChannelError::Closed(_)) => CloseCode::Normal,
        SessionError::Channel(_) => CloseCode::ProtocolError,
        SessionError::Flood | SessionError::Stalls => CloseCode::Slow,
        SessionError::Gone(_) => CloseCode::Shutdown,
    };
    tracing::info!(%node, connection = id.0, %error, "agent gone");
    close(&connection, code, &error.to_string());
    match code {
        CloseCode::ProtocolError | CloseCode::Slow => Ending::Offence,
        _ => Ending::Decent,
    }
}

/// Checks who it is and reads its `Hello`.
async fn greet(
    connection: &Connection,
    node: &NodeId,
    context: &Context,
) -> Result<(Hello, FrameReader, FrameWriter), SessionError> {
    let key = peer_certificate(connection)
        .and_then(|der| public_key::of_certificate(&der))
        .ok_or_else(|| SessionError::NotWanted("its certificate cannot be read".to_owned()))?;
    let name = node.clone();
    context
        .core
        .ask(move |core, _| core.node_may_connect(&name, key))
        .await?
        .map_err(SessionError::NotWanted)?;
    let hello = async {
        let (send, receive) = connection.accept_bi().await.map_err(Closed::from)?;
        let mut reader = FrameReader::new(receive);
        match reader.next().await? {
            Some(FromAgent::Hello(hello)) => {
                Ok((hello, reader, FrameWriter::new(send, priority::CONTROL)))
            }
            Some(_) | None => Err(SessionError::Protocol("Hello must come first".to_owned())),
        }
    };
    tokio::time::timeout(HELLO_TIMEOUT, hello)
        .await
        .map_err(|_| SessionError::NoHello)?
}

struct Session<'a> {
    id: ConnectionId,
    node: NodeId,
    connection: Connection,
    context: &'a Arc<Context>,
}

impl Session<'_> {
    async fn run(self, hello: Hello, reader: FrameReader, writer: FrameWriter) -> SessionError {
        let made = Outbox::new(
            self.node.clone(),
            hello.models.clone(),
            self.connection.clone(),
        );
        let (outbox, queue) = match made {
            Ok(made) => made,
            Err(error) => return SessionError::Protocol(error.to_string()),
        };
        // Registered first: the core's answer to `Hello` must find its way.
        self.context.agents.register(self.id, Arc::clone(&outbox));
        tracing::info!(node = %self.node, connection = self.id.0, software = hello.software, "agent connected");
        let error = self.exchange(hello, reader, &outbox, queue, writer).await;
        self.context.agents.unregister(self.id);
        let gone = Input::AgentDisconnected {
            connection: self.id,
            node: self.node,
        };
        // The driver may have ended first; then nobody needs to know.
        let _ = self.context.core.input(gone).await;
        error
    }

    async fn exchange(
        &self,
        hello: Hello,
        reader: FrameReader,
        outbox: &Arc<Outbox>,
        queue: mpsc::Receiver<Bytes>,
        writer: FrameWriter,
    ) -> SessionError {
        let (connection, node) = (self.id, self.node.clone());
        let connected = Input::AgentConnected {
            connection,
            node,
            hello,
        };
        if let Err(gone) = self.context.core.input(connected).await {
            return gone.into();
        }
        // Not before the core knows the connection, and not after it forgets it.
        let _answers = match self.listen(outbox) {
            Ok(listening) => listening,
            Err(error) => return SessionError::Protocol(error.to_string()),
        };
        let ended = tokio::select! {
            ended = write_out(outbox, queue, writer) => ended.map_err(SessionError::from),
            ended = self.read_control(reader, outbox) => ended,
            ended = self.read_datagrams() => ended,
            ended = self.read_reports() => ended,
            ended = self.serve_artifacts() => ended,
        };
        match ended {
            Ok(()) => SessionError::Channel(Closed::ByUs.into()),
            Err(error) => error,
        }
    }

    /// Takes answers to pushes. One that is lost, here as on the way, comes again on the
    /// control stream: who does not answer is pressed.
    fn listen(&self, outbox: &Arc<Outbox>) -> Result<Option<Listening>, NoKey> {
        let Some(beacons) = self.context.agents.beacons() else {
            return Ok(None);
        };
        let (connection, node) = (self.id, self.node.clone());
        let (core, outbox) = (self.context.core.clone(), Arc::clone(outbox));
        let rate = Mutex::new(MessageRate::new());
        let deliver = move |body: &[u8], _: f64| {
            let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
            let in_time = rate.spend(body.len() as u64, core.clock().now()).is_zero();
            let Ok(message @ (FromAgent::Receipt(_) | FromAgent::Rehearsed(_))) =
                codec::decode(body)
            else {
                return;
            };
            let answer = Topic::answered_by(&message);
            let input = Input::FromAgent {
                connection,
                node: node.clone(),
                message,
            };
            if in_time && core.try_input(input) {
                outbox.note_answer(answer);
            }
        };
        beacons
            .listen(&self.connection, End::Coordinator, deliver)
            .map(Some)
    }

    async fn read_control(
        &self,
        mut reader: FrameReader,
        outbox: &Outbox,
    ) -> Result<(), SessionError> {
        let mut rate = MessageRate::new();
        reader.narrow(CONTROL_BYTES_MAX);
        loop {
            let before = reader.bytes_taken();
            let message = match reader.next::<FromAgent>().await? {
                Some(FromAgent::Hello(_)) => {
                    return Err(SessionError::Protocol("a second Hello".to_owned()));
                }
                Some(message) => message,
                None => {
                    return Err(SessionError::Protocol(
                        "the control stream ended".to_owned(),
                    ));
                }
            };
            outbox.note_answer(Topic::answered_by(&message));
            let bytes = reader.bytes_taken() - before;
            let wait = rate.spend(bytes, self.context.core.clock().now());
            self.pass_on(message).await?;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn read_datagrams(&self) -> Result<(), SessionError> {
        let mut rate = DatagramRate::new();
        loop {
            let body = self
                .connection
                .read_datagram()
                .await
                .map_err(Closed::from)?;
            match rate.arrived(self.context.core.clock().now()) {
                Datagram::Take => {}
                // Unread: what it says is not worth the work.
                Datagram::Drop => continue,
                Datagram::Flood => return Err(SessionError::Flood),
            }
            let message =
                codec::decode(&body).map_err(|error| SessionError::Protocol(error.to_string()))?;
            if !matches!(message, FromAgent::Hello(_)) {
                self.pass_on(message).await?;
            }
        }
    }

    async fn pass_on(&self, message: FromAgent) -> Result<(), Gone> {
        let (connection, node) = (self.id, self.node.clone());
        self.context
            .core
            .input(Input::FromAgent {
                connection,
                node,
                message,
            })
            .await
    }

    /// Reports come one a stream; an agent may have a few open, but they are read in turn.
    async fn read_reports(&self) -> Result<(), SessionError> {
        let mut rate = MessageRate::new();
        loop {
            let stream = self.connection.accept_uni().await.map_err(Closed::from)?;
            let mut reader = FrameReader::bounded(stream, REPORT_BYTES_MAX);
            let read = tokio::time::timeout(REPORT_TIMEOUT, reader.next::<FromAgentReport>()).await;
            let wait = rate.spend(reader.bytes_taken(), self.context.core.clock().now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let report = match read {
                Ok(Ok(Some(sent))) => sent.into_report(),
                Ok(Ok(None)) | Err(_) => continue,
                Ok(Err(ChannelError::Io(_))) => continue,
                Ok(Err(error)) => return Err(error.into()),
            };
            report
                .check()
                .map_err(|what| SessionError::Protocol(format!("a report {what}")))?;
            let (connection, node) = (self.id, self.node.clone());
            self.context
                .core
                .input(Input::Reported {
                    connection,
                    node,
                    report,
                })
                .await?;
        }
    }

    /// QUIC bounds how many of these streams an agent may have open.
    async fn serve_artifacts(&self) -> Result<(), SessionError> {
        let mut running = JoinSet::new();
        let mut stalls = 0;
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => {
                    let (send, receive) = stream.map_err(Closed::from)?;
                    let (context, node) = (Arc::clone(self.context), self.node.clone());
                    running.spawn(async move {
                        let sent = artifact::serve(send, receive, &context).await;
                        if let Err(error) = &sent {
                            tracing::debug!(%node, %error, "a file was not sent to its end");
                        }
                        sent
                    });
                }
                Some(sent) = running.join_next() => {
                    stalls += u32::from(matches!(sent, Ok(Err(SendError::Stalled(_)))));
                    if stalls >= STALLS_MAX {
                        return Err(SessionError::Stalls);
                    }
                }
            }
        }
    }
}
