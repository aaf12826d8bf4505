//! The gRPC port of a bench, and a client of it: tonic's, over one connection.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rollcall_agent::serve::connections::Bounded;
use rollcall_agent::serve::grpc;
use rollcall_agent::serve::grpc::wire::{InferInputTensor, ModelInferRequest, ModelInferResponse};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic_prost::ProstCodec;

use crate::support::Bench;

pub const SERVICE: &str = "inference.GRPCInferenceService";

/// The port, until it is dropped.
pub struct Port {
    pub address: SocketAddr,
    pub task: tokio::task::JoinHandle<()>,
    pub stop: DropGuard,
}

pub async fn open_port(bench: &Bench) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(grpc::serve(
        Arc::clone(&bench.app),
        Bounded::new(listener, Arc::new(Semaphore::new(100))),
        stop.clone(),
    ));
    Port {
        address,
        task,
        stop: stop.drop_guard(),
    }
}

/// One connection.
#[derive(Clone)]
pub struct Client(Channel);

#[derive(Clone)]
struct Channel(SendRequest<Body>);

impl GrpcService<Body> for Channel {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// An HTTP/2 connection without a word of gRPC.
pub async fn connect<B>(address: SocketAddr) -> SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self(Channel(connect(address).await))
    }

    /// `service` and method, as `SERVICE/ServerLive`.
    pub async fn call<Q, A>(
        &self,
        method: &str,
        request: tonic::Request<Q>,
    ) -> Result<tonic::Response<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = match method.contains('/') {
            true => format!("/{method}"),
            false => format!("/{SERVICE}/{method}"),
        };
        let origin = "http://agent".parse().unwrap();
        let mut client = tonic::client::Grpc::with_origin(self.0.clone(), origin);
        client.ready().await.unwrap();
        let path = PathAndQuery::try_from(path).unwrap();
        client.unary(request, path, ProstCodec::default()).await
    }

    pub async fn ask<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let answer = self.call(method, tonic::Request::new(request)).await;
        answer.map(tonic::Response::into_inner)
    }

    pub async fn infer(
        &self,
        request: ModelInferRequest,
    ) -> Result<tonic::Response<ModelInferResponse>, Status> {
        self.call("ModelInfer", tonic::Request::new(request)).await
    }
}

/// Rows for `digits`, as stock clients send them.
pub fn request(rows: &[Vec<f64>]) -> ModelInferRequest {
    #[expect(clippy::cast_possible_truncation, reason = "the model takes FP32")]
    let elements = rows.iter().flatten().map(|x| *x as f32);
    ModelInferRequest {
        model_name: "digits".to_owned(),
        inputs: vec![InferInputTensor {
            name: "input".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![rows.len().try_into().unwrap(), 64],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![elements.flat_map(f32::to_le_bytes).collect()],
        ..ModelInferRequest::default()
    }
}

/// The labels of an answer.
pub fn labels(answer: &ModelInferResponse) -> Vec<i64> {
    let label = answer
        .outputs
        .iter()
        .position(|output| output.name == "label");
    let (numbers, rest) = answer.raw_output_contents[label.unwrap()].as_chunks();
    assert!(rest.is_empty());
    numbers
        .iter()
        .map(|number| i64::from_le_bytes(*number))
        .collect()
}

pub fn header<'a, A>(answer: &'a tonic::Response<A>, name: &str) -> &'a str {
    answer
        .metadata()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}
