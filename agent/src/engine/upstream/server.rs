//! The server's REST API, and what its refusals mean.

use std::error::Error;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;

use super::super::panics::cut;
use super::wire::{Body, JSON_LENGTH, Metadata};

/// A server on the same node takes a connection at once or is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server may think about whether a model is ready.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Below the 5 s after which uvicorn closes a connection that nobody uses.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest answer: a batch of 8,192 rows of 8,192 floats. Longer: an error.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where the server is.
#[derive(Debug)]
pub(super) struct Server {
    client: Client,
    url: String,
}

/// Why a call brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// No connection, or it broke.
    #[error("the server does not answer: {0}")]
    Unreachable(String),
    /// It has other things to do (429, 502, 503, 504).
    #[error("the server has no room: {0}")]
    Busy(String),
    /// No answer in time.
    #[error("the server did not answer within {0:?}")]
    TimedOut(Duration),
    /// It says no.
    #[error("the server says {status}: {text}")]
    Refused {
        /// The status.
        status: u16,
        /// Its words.
        text: String,
    },
}

impl Server {
    pub(super) fn new(url: &str) -> Result<Self, reqwest::Error> {
        // reqwest wants a TLS provider even for plain HTTP. Installed twice: the first stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    pub(super) async fn load(&self, name: &str, timeout: Duration) -> Result<(), CallError> {
        let url = format!("{}/v2/repository/models/{name}/load", self.url);
        let request = self.client.post(url).json(&serde_json::json!({}));
        send(request, timeout).await.map(drop)
    }

    pub(super) async fn unload(&self, name: &str, timeout: Duration) -> Result<(), CallError> {
        let url = format!("{}/v2/repository/models/{name}/unload", self.url);
        let request = self.client.post(url).json(&serde_json::json!({}));
        send(request, timeout).await.map(drop)
    }

    pub(super) async fn is_ready(&self, name: &str) -> Result<bool, CallError> {
        let url = format!("{}/v2/models/{name}/ready", self.url);
        match send(self.client.get(url), ASK_TIMEOUT).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn metadata(&self, name: &str) -> Result<Metadata, CallError> {
        let url = format!("{}/v2/models/{name}", self.url);
        let body = send(self.client.get(url), ASK_TIMEOUT).await?;
        serde_json::from_slice(&body.bytes).map_err(|error| CallError::Refused {
            status: 200,
            text: cut(format!("its metadata cannot be read: {error}")),
        })
    }

    pub(super) async fn infer(
        &self,
        name: &str,
        body: Body,
        timeout: Duration,
    ) -> Result<Body, CallError> {
        let url = format!("{}/v2/models/{name}/infer", self.url);
        let mut request = self.client.post(url);
        request = match body.json_length {
            Some(length) => request
                .header("content-type", "application/octet-stream")
                .header(JSON_LENGTH, length),
            None => request.header("content-type", "application/json"),
        };
        send(request.body(body.bytes), timeout).await
    }
}

/// The timeout covers the whole of the answer.
async fn send(request: RequestBuilder, timeout: Duration) -> Result<Body, CallError> {
    let failed = |error: reqwest::Error| {
        if error.is_timeout() && !error.is_connect() {
            CallError::TimedOut(timeout)
        } else {
            CallError::Unreachable(cut(chain(&error)))
        }
    };
    let response = request.timeout(timeout).send().await.map_err(failed)?;
    let status = response.status();
    let body = read(response).await.map_err(failed)?;
    let Some(body) = body else {
        let text = format!("its answer is longer than {ANSWER_BYTES_MAX} bytes");
        let status = status.as_u16();
        return Err(CallError::Refused { status, text });
    };
    if status.is_success() {
        return Ok(body);
    }
    let text = words(&body.bytes);
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => CallError::Busy(text),
        other => CallError::Refused {
            status: other.as_u16(),
            text,
        },
    })
}

/// `None`: it is too long.
async fn read(mut response: Response) -> Result<Option<Body>, reqwest::Error> {
    let length = response.headers().get(JSON_LENGTH);
    let json_length = length
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok());
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(Body { bytes, json_length }))
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

fn words(bytes: &[u8]) -> String {
    let text = serde_json::from_slice(bytes).map_or_else(
        |_| String::from_utf8_lossy(bytes).into_owned(),
        |ErrorBody { error }| error,
    );
    cut(text)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
