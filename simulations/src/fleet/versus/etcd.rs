//! etcd's v3 watch over gRPC: one HTTP/2 connection a watcher, all watching the key
//! that the publisher puts. A put is on etcd's disk before any watcher hears of it.
//!
//! Only the fields that are used here are named; protobuf skips the others.
//! <https://github.com/etcd-io/etcd/blob/release-3.4/etcdserver/etcdserverpb/rpc.proto>

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::client::Grpc;

use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{Fanout, PATIENCE, now, number_of, payload};

const KEY: &[u8] = b"fleet";
/// Watches that are opened at the same time.
const OPENING: usize = 64;

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
    #[prost(bool, tag = "4")]
    canceled: bool,
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    pair: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// A cluster of one; `peers` is an address that it needs for others, who do not come.
pub(super) fn configure(command: &mut Command, clients: SocketAddr, peers: SocketAddr) {
    let (clients, peers) = (format!("http://{clients}"), format!("http://{peers}"));
    command
        .args(["--name", "one", "--data-dir", "data"])
        .args(["--listen-client-urls", &clients])
        .args(["--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers])
        .args(["--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("one={peers}")])
        .args(["--logger", "zap", "--log-level", "error"]);
}

/// The message under way, and who has it.
struct Round {
    message: u64,
    published_at: Instant,
    receivers: usize,
    waited: Vec<Duration>,
}

struct Board {
    round: Mutex<Round>,
    complete: Notify,
}

impl Board {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, number: u64, at: Instant) {
        let mut round = self.round();
        if number == round.message {
            let waited = at - round.published_at;
            round.waited.push(waited);
            if round.waited.len() == round.receivers {
                self.complete.notify_one();
            }
        }
    }
}

/// The watchers and the connection that puts. They have threads of their own.
pub(super) struct Watchers {
    endpoint: Endpoint,
    publisher: Grpc<Channel>,
    board: Arc<Board>,
    /// They end only by failing.
    listeners: JoinSet<anyhow::Error>,
    runtime: Runtime,
}

impl Watchers {
    /// Connects the publisher and puts the key a first time.
    pub(super) fn open(address: SocketAddr) -> Result<Self> {
        let runtime = Runtime::new()?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let mut publisher = Grpc::new(runtime.block_on(endpoint.connect())?);
        runtime.block_on(in_time("the first put is done", put(&mut publisher, 0)))?;
        let round = Round {
            message: 0,
            published_at: now(),
            receivers: 0,
            waited: Vec::new(),
        };
        let board = Arc::new(Board {
            round: Mutex::new(round),
            complete: Notify::new(),
        });
        Ok(Self {
            endpoint,
            publisher,
            board,
            listeners: JoinSet::new(),
            runtime,
        })
    }
}

impl Fanout for Watchers {
    fn subscribe(&mut self, receivers: u32) -> Result<()> {
        self.board.round().receivers = receivers as usize;
        let (board, listeners) = (&self.board, &mut self.listeners);
        let watches = stream::iter((0..receivers).map(|_| watch(&self.endpoint)));
        let all = watches.buffer_unordered(OPENING).try_for_each(|stream| {
            listeners.spawn(listen(stream, Arc::clone(board)));
            std::future::ready(Ok(()))
        });
        self.runtime.block_on(in_time("all watch", all))
    }

    fn publish(&mut self, number: u64) -> Result<Vec<Duration>> {
        let (board, listeners) = (&self.board, &mut self.listeners);
        {
            let mut round = board.round();
            round.message = number;
            round.waited = Vec::with_capacity(round.receivers);
            round.published_at = now();
        }
        let publish = async {
            put(&mut self.publisher, number).await?;
            tokio::select! {
                () = board.complete.notified() => Ok(()),
                Some(ended) = listeners.join_next() => Err(ended?),
            }
        };
        self.runtime
            .block_on(in_time("all watchers have the message", publish))?;
        Ok(std::mem::take(&mut board.round().waited))
    }

    fn serve(&mut self, time: Duration) -> Result<()> {
        let (runtime, listeners) = (&self.runtime, &mut self.listeners);
        runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => Ok(()),
                Some(ended) = listeners.join_next() => Err(ended?),
            }
        })
    }
}

async fn in_time<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, step)
        .await
        .with_context(|| format!("waited {PATIENCE:?} in vain until {what}"))?
}

async fn put(publisher: &mut Grpc<Channel>, number: u64) -> Result<()> {
    let request = PutRequest {
        key: KEY.to_vec(),
        value: payload(number).to_vec(),
    };
    publisher.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    publisher
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(())
}

/// A watch on a connection of its own, which etcd has confirmed.
async fn watch(endpoint: &Endpoint) -> Result<Streaming<WatchResponse>> {
    let mut client = Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let create = WatchCreateRequest { key: KEY.to_vec() };
    let request = WatchRequest {
        create: Some(create),
    };
    // A request stream that ended would end the watch.
    let requests = stream::iter([request]).chain(stream::pending());
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let answer = client
        .streaming(tonic::Request::new(requests), path, codec)
        .await?;
    let mut stream = answer.into_inner();
    let first = stream.message().await?;
    let first = first.context("etcd closed a watch")?;
    ensure!(
        first.created && !first.canceled,
        "etcd refused a watch: {first:?}"
    );
    Ok(stream)
}

async fn listen(mut stream: Streaming<WatchResponse>, board: Arc<Board>) -> anyhow::Error {
    let listen: Result<Infallible> = async {
        while let Some(response) = stream.message().await? {
            ensure!(!response.canceled, "etcd cancelled a watch");
            for pair in response.events.into_iter().filter_map(|event| event.pair) {
                let number = number_of(&pair.value)?;
                board.arrived(number, now());
            }
        }
        bail!("etcd closed a watch");
    }
    .await;
    let Err(error) = listen;
    error
}
