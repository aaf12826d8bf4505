//! The CLI's side of the HTTP API.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::tls::https_client_tls;
use rollcall_transport::verifier::Trust;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliError;

/// To the TLS handshake's end.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the request to the whole answer; longer than the longest long poll.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);

/// An operator's connection to a coordinator.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// What every error answer holds.
#[derive(serde::Deserialize)]
struct ErrorBody {
    error: String,
}

impl Client {
    /// For the coordinator at `url`. `ca`: the fleet's CA, PEM; without it the server's
    /// certificate must be one that this machine trusts.
    ///
    /// # Errors
    /// When the URL is not HTTPS or the CA certificate is none.
    pub fn new(url: &str, token: &str, ca: Option<&str>) -> Result<Self, CliError> {
        if !url.starts_with("https://") {
            return Err(CliError::Usage(format!(
                "{url:?} is not a coordinator's URL: write https://HOST:PORT"
            )));
        }
        // Whatever is not preconfigured must not have to guess a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(ca) = ca {
            let ca = CaCertificate::from_pem(ca).map_err(CliError::failed)?;
            let tls = https_client_tls(Trust::Ca(ca)).map_err(CliError::failed)?;
            builder = builder.tls_backend_preconfigured(tls);
        }
        Ok(Self {
            http: builder.build().map_err(CliError::failed)?,
            url: url.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
        })
    }

    /// A request to a path under `/api/v1`, with a bound on its time.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.upload(method, path).timeout(REQUEST_TIMEOUT)
    }

    /// A request that may take as long as it takes.
    pub fn upload(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}/api/v1{path}", self.url))
            .bearer_auth(&self.token)
    }

    /// Sends a request; a refusal is an error with the coordinator's words.
    ///
    /// # Errors
    /// When the coordinator does not answer, or refuses.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.map_err(|error| self.lost(&error))?;
        let why = serde_json::from_str::<ErrorBody>(&text).map_or_else(
            |_| format!("the coordinator answers {status}"),
            |body| body.error,
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(CliError::Unreachable {
                url: self.url.clone(),
                why,
            });
        }
        Err(CliError::Failed(why))
    }

    /// Sends a request and reads a JSON answer.
    ///
    /// # Errors
    /// As [`Self::send`]; and when the answer is of another form.
    pub async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let response = self.send(request).await?;
        let body = response.bytes().await.map_err(|error| self.lost(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::Failed(format!(
                "the coordinator's answer cannot be read ({error}): is it another release?"
            ))
        })
    }

    /// Looks at something.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Asks for a change.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    fn lost(&self, error: &reqwest::Error) -> CliError {
        // The innermost cause says most, e.g. "connection refused".
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        CliError::Unreachable {
            url: self.url.clone(),
            why: cause.to_string(),
        }
    }
}
