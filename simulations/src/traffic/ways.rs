//! The ways in which clients ask: the Open Inference Protocol as JSON, with binary tensors, and
//! over gRPC. Written from the protocol, not with the agent's own reader and writer of it, whose
//! faults would cancel each other out; only gRPC's messages are shared, which a test holds
//! against their definition.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rollcall_agent::serve::grpc::wire::{InferInputTensor, ModelInferRequest, ModelInferResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How many bytes of a body are JSON; buffers follow.
const JSON_LENGTH: &str = "inference-header-content-length";
/// Before a gRPC message: not compressed, and its length.
const GRPC_HEAD_BYTES: usize = 5;

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// HTTP, tensors as JSON.
    Json,
    /// HTTP, tensors as buffers behind the JSON.
    Binary,
    /// gRPC, tensors as buffers.
    Grpc,
}

impl Way {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Json, Self::Binary, Self::Grpc];
}

/// One row for a model, and where its answer is.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) input: &'a str,
    pub(super) values: &'a [f32],
    pub(super) scores_output: &'a str,
}

impl Question<'_> {
    fn shape(&self) -> [usize; 2] {
        [1, self.values.len()]
    }

    pub(super) fn as_json(&self) -> Value {
        json!({ "inputs": [{
            "name": self.input,
            "datatype": "FP32",
            "shape": self.shape(),
            "data": self.values,
        }]})
    }

    fn buffer(&self) -> Bytes {
        self.values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

/// An answer: who gave it, and the scores of the classes.
pub(super) struct Scored {
    pub(super) version: String,
    pub(super) scores: Vec<f32>,
}

/// Asks one node.
pub(super) struct Asker {
    http: reqwest::Client,
    address: SocketAddr,
    model: String,
    grpc: Option<SendRequest<Full<Bytes>>>,
}

#[derive(Deserialize)]
struct HttpAnswer {
    model_version: String,
    outputs: Vec<HttpOutput>,
}

#[derive(Deserialize)]
struct HttpOutput {
    name: String,
    #[serde(default)]
    data: Vec<f32>,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    #[serde(default)]
    binary_data_size: usize,
}

impl Asker {
    pub(super) fn new(http: reqwest::Client, address: SocketAddr, model: &str) -> Self {
        Self {
            http,
            address,
            model: model.to_owned(),
            grpc: None,
        }
    }

    pub(super) async fn ask(
        &mut self,
        way: Way,
        key: &str,
        question: Question<'_>,
    ) -> Result<Scored> {
        match way {
            Way::Json => self.ask_json(key, question).await,
            Way::Binary => self.ask_binary(key, question).await,
            Way::Grpc => self.ask_grpc(key, question).await,
        }
    }

    fn post(&self, key: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}/v2/models/{}/infer", self.address, self.model);
        self.http.post(url).header("x-rollcall-key", key)
    }

    async fn ask_json(&self, key: &str, question: Question<'_>) -> Result<Scored> {
        let answer = self.post(key).json(&question.as_json()).send().await?;
        let answer: HttpAnswer = answer.error_for_status()?.json().await?;
        let scores = answer
            .outputs
            .into_iter()
            .find(|output| output.name == question.scores_output)
            .context("the answer has no scores")?;
        Ok(Scored {
            version: answer.model_version,
            scores: scores.data,
        })
    }

    async fn ask_binary(&self, key: &str, question: Question<'_>) -> Result<Scored> {
        let buffer = question.buffer();
        let head = json!({
            "parameters": { "binary_data_output": true },
            "inputs": [{
                "name": question.input,
                "datatype": "FP32",
                "shape": question.shape(),
                "parameters": { "binary_data_size": buffer.len() },
            }],
        });
        let head = head.to_string();
        let body = [head.as_bytes(), &buffer].concat();
        let request = self.post(key).header(JSON_LENGTH, head.len()).body(body);
        let answer = request.send().await?.error_for_status()?;
        let length = answer.headers().get(JSON_LENGTH).context("no buffers")?;
        let length: usize = length.to_str()?.parse()?;
        let body = answer.bytes().await?;
        let (head, mut buffers) = body.split_at_checked(length).context("a short answer")?;
        let answer: HttpAnswer = serde_json::from_slice(head)?;
        for output in answer.outputs {
            let (buffer, others) = buffers
                .split_at_checked(output.parameters.binary_data_size)
                .context("a short buffer")?;
            if output.name == question.scores_output {
                return Ok(Scored {
                    version: answer.model_version,
                    scores: floats(buffer),
                });
            }
            buffers = others;
        }
        bail!("the answer has no scores");
    }

    async fn ask_grpc(&mut self, key: &str, question: Question<'_>) -> Result<Scored> {
        let message = ModelInferRequest {
            model_name: self.model.clone(),
            inputs: vec![InferInputTensor {
                name: question.input.to_owned(),
                datatype: "FP32".to_owned(),
                shape: question.shape().map(|n| n as i64).to_vec(),
                ..InferInputTensor::default()
            }],
            raw_input_contents: vec![question.buffer()],
            ..ModelInferRequest::default()
        };
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut body)?;
        let request = Request::post("http://agent/inference.GRPCInferenceService/ModelInfer")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header("x-rollcall-key", key)
            .body(Full::new(body.freeze()))?;
        let answer = self.connected().await?.send_request(request).await?;
        let answer = answer.into_body().collect().await?;
        let status = answer.trailers().and_then(|all| all.get("grpc-status"));
        let is_fine = status.is_some_and(|status| status == "0");
        let mut bytes = answer.to_bytes();
        if !is_fine || bytes.len() < GRPC_HEAD_BYTES {
            bail!("the call was refused");
        }
        let answer = ModelInferResponse::decode(bytes.split_off(GRPC_HEAD_BYTES))?;
        let scores = answer
            .outputs
            .iter()
            .position(|output| output.name == question.scores_output)
            .and_then(|index| answer.raw_output_contents.get(index))
            .context("the answer has no scores")?;
        Ok(Scored {
            scores: floats(scores),
            version: answer.model_version,
        })
    }

    /// The gRPC connection; the node's status tells where it goes.
    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        if self.grpc.as_ref().is_none_or(SendRequest::is_closed) {
            let url = format!("http://{}/rollcall/v1/status", self.address);
            let status: Value = self.http.get(url).send().await?.json().await?;
            let address = status["grpc"]
                .as_str()
                .context("the node has no gRPC port")?;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            self.grpc = Some(sender);
        }
        let sender = self.grpc.as_mut().context("no connection")?;
        sender.ready().await?;
        Ok(sender)
    }
}

fn floats(buffer: &[u8]) -> Vec<f32> {
    let (floats, _) = buffer.as_chunks();
    floats
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}
