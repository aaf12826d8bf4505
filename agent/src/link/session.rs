//! One connection's conversation: three loops in one task.
//!
//! Control frames in, datagrams in, messages out. Whichever ends first ends the
//! connection; its loss is repaired by the next one's `Hello`.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use quinn::{Connection, RecvStream, SendStream};
use rollcall_agent_core::input::Input;
use rollcall_shared::wire::{FromAgent, ToAgent};
use rollcall_transport::channel::{
    ChannelError, FrameReader, FrameWriter, priority, read_datagram, send_datagram,
};
use rollcall_transport::close::CloseCode;
use tokio::sync::{Notify, mpsc, watch};

use super::beside_quic::BesideQuic;
use super::{Cadence, ConnectionNumber, Fence, LinkEvent, TakeFeedback};

/// A coordinator that asks for reports more often than this gets them at this pace.
const REPORT_EVERY_MIN: Duration = Duration::from_millis(100);

/// What one connection works with.
pub(super) struct Session<'a> {
    pub(super) connection: &'a Connection,
    pub(super) number: ConnectionNumber,
    pub(super) events: &'a mpsc::Sender<LinkEvent>,
    pub(super) fence: &'a Fence,
    pub(super) feedback: &'a TakeFeedback,
    pub(super) cadence: &'a watch::Sender<Option<Cadence>>,
    pub(super) reset: &'a Notify,
    /// Answers to beacons go there.
    pub(super) beside_quic: Option<BesideQuic>,
    /// Set when the coordinator let us in.
    pub(super) welcomed: &'a mut bool,
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The channel broke.
    Channel(ChannelError),
    /// The coordinator finished the control stream.
    Finished,
    /// The coordinator does not want this node.
    Refused(String),
    /// The agent asked for a fresh one.
    Reset,
    /// The driver is gone.
    Stopped,
}

impl End {
    pub(super) const fn close_code(&self) -> CloseCode {
        match self {
            Self::Channel(ChannelError::Codec(_) | ChannelError::OverBound { .. }) => {
                CloseCode::ProtocolError
            }
            Self::Channel(ChannelError::Closed(_) | ChannelError::Io(_))
            | Self::Finished
            | Self::Refused(_)
            | Self::Reset => CloseCode::Normal,
            Self::Stopped => CloseCode::Shutdown,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(error) => write!(f, "{error}"),
            Self::Finished => f.write_str("the coordinator finished the conversation"),
            Self::Refused(reason) => write!(f, "the coordinator refuses this node: {reason}"),
            Self::Reset => f.write_str("the agent starts over"),
            Self::Stopped => f.write_str("the agent is stopping"),
        }
    }
}

impl Session<'_> {
    /// Runs on the control stream until the connection's end.
    pub(super) async fn run(
        self,
        (send, receive): (SendStream, RecvStream),
        outbox: &mut mpsc::Receiver<(ConnectionNumber, FromAgent)>,
    ) -> End {
        // A reset that was asked for before this connection is done with.
        let _ = self.reset.notified().now_or_never();
        let writer = FrameWriter::new(send, priority::CONTROL);
        let reader = FrameReader::new(receive);
        let Self {
            connection,
            number,
            events,
            fence,
            feedback,
            cadence,
            reset,
            beside_quic,
            welcomed,
        } = self;
        let outgoing = Outgoing {
            connection,
            number,
            writer,
            beside_quic,
        };
        let inbox = Inbox {
            number,
            events,
            fence,
            feedback,
        };
        tokio::select! {
            end = inbox.read_control(reader, cadence, welcomed) => end,
            end = inbox.read_datagrams(connection) => end,
            end = outgoing.write(outbox) => end,
            () = reset.notified() => End::Reset,
        }
    }
}

struct Inbox<'a> {
    number: ConnectionNumber,
    events: &'a mpsc::Sender<LinkEvent>,
    fence: &'a Fence,
    feedback: &'a TakeFeedback,
}

impl Inbox<'_> {
    async fn read_control(
        &self,
        mut reader: FrameReader,
        cadence: &watch::Sender<Option<Cadence>>,
        welcomed: &mut bool,
    ) -> End {
        loop {
            let message = match reader.next::<ToAgent>().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Finished,
                Err(error) => return End::Channel(error),
            };
            let input = match message {
                ToAgent::Welcome(welcome) => {
                    *welcomed = true;
                    let asked = Duration::from_millis(welcome.report_every_ms);
                    let report_every = asked.max(REPORT_EVERY_MIN);
                    cadence.send_replace(Some(Cadence {
                        report_every,
                        protocol: welcome.protocol,
                    }));
                    Input::Welcome(welcome)
                }
                ToAgent::Refused { reason } => return End::Refused(reason),
                ToAgent::Assign(assignment) => Input::Assign(assignment),
                ToAgent::Withdraw(withdrawal) => {
                    self.fence.take(withdrawal);
                    continue;
                }
                ToAgent::Feedback(feedback) => {
                    (self.feedback)(feedback);
                    continue;
                }
                ToAgent::Rehearse(rehearsal) => Input::Rehearse(rehearsal),
                ToAgent::Sync(snapshot) => Input::Sync(snapshot),
                ToAgent::HeartbeatAnswer(answer) => Input::HeartbeatAnswer(answer),
            };
            if let Err(end) = self.hand_over(input).await {
                return end;
            }
        }
    }

    /// Withdrawals and rehearsals, ahead of the stream, and answers. A datagram that
    /// cannot be read is dropped like one that was lost.
    async fn read_datagrams(&self, connection: &Connection) -> End {
        loop {
            let input = match read_datagram::<ToAgent>(connection).await {
                Ok(ToAgent::Withdraw(withdrawal)) => {
                    self.fence.take(withdrawal);
                    continue;
                }
                Ok(ToAgent::Rehearse(rehearsal)) => Input::Rehearse(rehearsal),
                Ok(ToAgent::HeartbeatAnswer(answer)) => Input::HeartbeatAnswer(answer),
                Ok(
                    ToAgent::Welcome(_)
                    | ToAgent::Refused { .. }
                    | ToAgent::Assign(_)
                    | ToAgent::Feedback(_)
                    | ToAgent::Sync(_),
                ) => {
                    tracing::debug!("a message that needs the stream came as a datagram");
                    continue;
                }
                Err(error @ ChannelError::Closed(_)) => return End::Channel(error),
                Err(error) => {
                    tracing::debug!(%error, "a datagram cannot be read");
                    continue;
                }
            };
            if let Err(end) = self.hand_over(input).await {
                return end;
            }
        }
    }

    async fn hand_over(&self, input: Input) -> Result<(), End> {
        let event = LinkEvent {
            connection: self.number,
            input,
        };
        self.events.send(event).await.map_err(|_| End::Stopped)
    }
}

struct Outgoing<'a> {
    connection: &'a Connection,
    number: ConnectionNumber,
    writer: FrameWriter,
    beside_quic: Option<BesideQuic>,
}

impl Outgoing<'_> {
    /// Messages for an earlier connection are dropped; heartbeats go as datagrams when
    /// they fit. The answer to a beacon waits for its place, and what follows waits behind
    /// it: at most some hundred milliseconds, in the largest fleets.
    async fn write(mut self, outbox: &mut mpsc::Receiver<(ConnectionNumber, FromAgent)>) -> End {
        while let Some((meant_for, message)) = outbox.recv().await {
            if meant_for != self.number {
                continue;
            }
            if let Some(beside_quic) = &mut self.beside_quic
                && beside_quic.answer(self.connection, &message).await
            {
                continue;
            }
            let as_datagram = matches!(message, FromAgent::Heartbeat(_))
                && send_datagram(self.connection, &message).is_ok();
            if !as_datagram && let Err(error) = self.writer.send(&message).await {
                return End::Channel(error);
            }
        }
        End::Stopped
    }
}
