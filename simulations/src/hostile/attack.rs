//! What an enrolled node with bad intentions does. Each attacker connects with a valid
//! certificate, does its worst, and when it is cut off comes back at once.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::limits::FRAME_BYTES_MAX;
use rollcall_shared::report::Receipt;
use rollcall_shared::wire::{
    ArtifactRequest, FromAgent, Heartbeat, Hello, PROTOCOL, PROTOCOL_MIN, ToAgent,
};
use rollcall_transport::channel::{FrameReader, FrameWriter, priority, send_datagram};
use rollcall_transport::close::Closed;
use rollcall_transport::endpoint::{
    ARTIFACT_STREAMS_MAX, ConnectError, REPORT_STREAMS_MAX, TwoWays, agent_config, agent_endpoint,
    connect,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::fleet::agents::Credentials;

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// The ways to be a bad neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Reads nothing.
    Deaf,
    /// Heartbeats on the control stream, as fast as it takes them.
    FloodControl,
    /// Heartbeats as datagrams, as fast as they leave.
    FloodDatagrams,
    /// Generations from the future, invented rollouts and models.
    Lie,
    /// Opens all streams and leaves half a frame in each.
    HalfWritten,
    /// Frames at the bound, on the control stream and as reports.
    HugeFrames,
    /// Connects and goes, as fast as it can.
    Reconnect,
    /// Bytes that mean nothing.
    Garbage,
    /// Asks for the largest file on every stream and takes nothing.
    Greedy,
}

impl Behaviour {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Deaf,
        Self::FloodControl,
        Self::FloodDatagrams,
        Self::Lie,
        Self::HalfWritten,
        Self::HugeFrames,
        Self::Reconnect,
        Self::Garbage,
        Self::Greedy,
    ];
}

/// What attackers counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Things done: messages, streams, connections.
    pub(super) acts: AtomicU64,
    /// How their connections ended.
    endings: Mutex<BTreeMap<String, u64>>,
}

impl Tally {
    fn act(&self) {
        self.acts.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, ending: String) {
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        *endings.entry(ending).or_default() += 1;
    }

    pub(super) fn endings(&self) -> BTreeMap<String, u64> {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings.clone()
    }
}

/// An attacker.
pub(super) struct Attacker {
    pub(super) behaviour: Behaviour,
    pub(super) coordinator: SocketAddr,
    /// Its own address, which is not its neighbours'.
    pub(super) from: Ipv4Addr,
    /// A blob that is worth asking for.
    pub(super) largest: Digest,
    pub(super) tally: Arc<Tally>,
}

/// A connection after its `Welcome`.
struct Inside {
    reader: FrameReader,
    writer: FrameWriter,
    model: ModelName,
    generation: Generation,
}

impl Attacker {
    /// Attacks until `stop`, and then leaves with a word, so that the next round begins
    /// with none of its connections.
    ///
    /// # Errors
    /// When it has no socket.
    pub(super) async fn run(self, credentials: Credentials, stop: CancellationToken) -> Result<()> {
        let endpoint = agent_endpoint((self.from, 0).into())?;
        tokio::select! {
            () = self.attack(&endpoint, &credentials) => {}
            () = stop.cancelled() => {}
        }
        endpoint.quic.close(0u32.into(), b"");
        let _ = tokio::time::timeout(FAREWELL, endpoint.quic.wait_idle()).await;
        Ok(())
    }

    async fn attack(&self, endpoint: &TwoWays, credentials: &Credentials) {
        loop {
            let ending = match self.once(endpoint, credentials).await {
                Ok(()) => "left by itself".to_owned(),
                Err(error) => error.to_string(),
            };
            self.tally.end(ending);
            // Attackers share a thread: none may keep it.
            tokio::task::yield_now().await;
        }
    }

    /// One connection, from the handshake to its end.
    async fn once(&self, endpoint: &TwoWays, credentials: &Credentials) -> Result<()> {
        let config = agent_config(&credentials.identity, &credentials.ca)?;
        let connected = connect(&endpoint.quic, config, self.coordinator).await;
        let connection = connected.map_err(|error| match error {
            ConnectError::Handshake(closed) => ending(&closed),
            ConnectError::Dial(error) => error.into(),
        })?;
        self.tally.act();
        if self.behaviour == Behaviour::Reconnect {
            return Ok(());
        }
        let worst = async {
            let (send, receive) = connection.open_bi().await?;
            let mut writer = FrameWriter::new(send, priority::CONTROL);
            let mut reader = FrameReader::new(receive);
            writer.send(&FromAgent::Hello(hello(Vec::new()))).await?;
            let Some(ToAgent::Welcome(welcome)) = reader.next().await? else {
                anyhow::bail!("not welcome");
            };
            let assignment = welcome.snapshot.assignments.first();
            let assignment = assignment.context("there is no model")?;
            let inside = Inside {
                reader,
                writer,
                model: assignment.model.clone(),
                generation: assignment.generation,
            };
            match self.behaviour {
                Behaviour::Deaf => std::future::pending().await,
                Behaviour::FloodControl => self.flood_control(inside).await,
                Behaviour::FloodDatagrams => loop {
                    send_datagram(&connection, &heartbeat(&inside, 0))?;
                    self.tally.act();
                    tokio::task::yield_now().await;
                },
                Behaviour::Lie => self.lie(inside).await,
                Behaviour::HugeFrames => self.huge_control_frames(inside).await,
                Behaviour::Garbage => {
                    let mut control = inside.writer;
                    control
                        .write(Bytes::from_static(&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]))
                        .await?;
                    self.tally.act();
                    std::future::pending().await
                }
                Behaviour::HalfWritten | Behaviour::Greedy | Behaviour::Reconnect => {
                    // Kept, so that the control stream stays open.
                    let _inside = inside;
                    std::future::pending::<Result<()>>().await
                }
            }
        };
        let streams = async {
            match self.behaviour {
                Behaviour::HalfWritten => self.half_written_streams(&connection).await,
                Behaviour::Greedy => self.greedy_streams(&connection).await,
                Behaviour::HugeFrames => self.huge_reports(&connection).await,
                _ => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            closed = connection.closed() => Err(closed.into()),
            ended = worst => ended,
            ended = streams => ended,
        };
        // The connection's own end says more than a stream's.
        match connection.close_reason() {
            Some(reason) => Err(ending(&reason.into())),
            None => ended,
        }
    }

    async fn flood_control(&self, mut inside: Inside) -> Result<()> {
        loop {
            let message = heartbeat(&inside, 0);
            inside.writer.send(&message).await?;
            self.tally.act();
        }
    }

    /// Every lie that there is a message for; the last is a `Hello` and costs the connection.
    async fn lie(&self, mut inside: Inside) -> Result<()> {
        for step in 1..=200 {
            let receipt = Receipt {
                model: inside.model.clone(),
                generation: Generation(inside.generation.0 + (1 << 40) + step),
                serving: Vec::new(),
            };
            let future = heartbeat(&inside, step * 1_000);
            for message in [FromAgent::Receipt(receipt), future] {
                inside.writer.send(&message).await?;
                self.tally.act();
            }
        }
        let invented = (0..2_000).map(|number| Withdrawal {
            model: ModelName::new(format!("invented-{}", number % 60))
                .unwrap_or_else(|_| inside.model.clone()),
            rollout: RolloutId(1_000 + number),
            withdrawn: VersionRef {
                version: rollcall_shared::version::Version {
                    major: 9,
                    minor: 9,
                    patch: 9,
                },
                digest: Digest::of(b"invented"),
            },
            generation: Generation(number),
            serving: None,
        });
        inside
            .writer
            .send(&FromAgent::Hello(hello(invented.collect())))
            .await?;
        while inside.reader.next::<ToAgent>().await?.is_some() {}
        Ok(())
    }

    async fn huge_control_frames(&self, mut inside: Inside) -> Result<()> {
        let bytes = u32::try_from(FRAME_BYTES_MAX)?;
        loop {
            inside
                .writer
                .write(Bytes::copy_from_slice(&bytes.to_be_bytes()))
                .await?;
            inside
                .writer
                .write(Bytes::from(vec![0; FRAME_BYTES_MAX]))
                .await?;
            self.tally.act();
        }
    }

    async fn huge_reports(&self, connection: &quinn::Connection) -> Result<()> {
        loop {
            let mut stream = connection.open_uni().await?;
            let body = Bytes::from(vec![0; (1 << 20) - 4]);
            stream.write_all(&(body.len() as u32).to_be_bytes()).await?;
            stream.write_chunk(body).await?;
            stream.finish()?;
            self.tally.act();
        }
    }

    async fn half_written_streams(&self, connection: &quinn::Connection) -> Result<()> {
        let mut kept = Vec::new();
        for _ in 0..ARTIFACT_STREAMS_MAX {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(&[0, 0, 0, 40, 1]).await?;
            kept.push((send, Some(receive)));
            self.tally.act();
        }
        for _ in 0..REPORT_STREAMS_MAX {
            let mut send = connection.open_uni().await?;
            send.write_all(&[0, 0, 0, 40, 1]).await?;
            kept.push((send, None));
            self.tally.act();
        }
        std::future::pending().await
    }

    async fn greedy_streams(&self, connection: &quinn::Connection) -> Result<()> {
        let mut kept = Vec::new();
        loop {
            let (send, receive) = connection.open_bi().await?;
            let mut writer = FrameWriter::new(send, priority::ARTIFACT);
            let digest = self.largest;
            writer.send(&ArtifactRequest { digest, offset: 0 }).await?;
            writer.finish();
            kept.push((writer, receive));
            self.tally.act();
        }
    }
}

fn ending(closed: &Closed) -> anyhow::Error {
    match closed {
        Closed::ByPeer { code, .. } => anyhow::anyhow!("{code:?}"),
        Closed::Transport { .. } => anyhow::anyhow!("refused at the door"),
        Closed::ByUs => anyhow::anyhow!("left by itself"),
        Closed::TimedOut => anyhow::anyhow!("timed out"),
        Closed::Reset => anyhow::anyhow!("reset"),
    }
}

fn heartbeat(inside: &Inside, ahead: u64) -> FromAgent {
    FromAgent::Heartbeat(Heartbeat {
        seq: 1,
        held: vec![(
            inside.model.clone(),
            Generation(inside.generation.0 + ahead),
        )],
    })
}

fn hello(withdrawals: Vec<Withdrawal>) -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        software: "hostile".to_owned(),
        labels: BTreeMap::new(),
        models: Vec::new(),
        held: Vec::new(),
        withdrawals,
        receipts: Vec::new(),
        ready: Vec::new(),
    }
}
