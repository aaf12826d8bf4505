//! Steady inference traffic and an outside view of who answered it.
//!
//! Nothing here asks Rollcall what it believes: the version comes from the
//! answers that clients got.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Labelled rows of a model's validation set; the traffic draws from them in turn.
pub struct Rows {
    input: String,
    width: usize,
    values: Vec<f32>,
    labels: Vec<i64>,
    scores_output: String,
}

#[derive(Deserialize)]
struct ValidationFile {
    inputs: Vec<ValidationInput>,
    labels: Vec<i64>,
    scores_output: String,
}

#[derive(Deserialize)]
struct ValidationInput {
    name: String,
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Rows {
    /// Reads a `validation.json` with one rank-2 input.
    ///
    /// # Errors
    /// When the file is missing or of another form.
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut file: ValidationFile = serde_json::from_str(&text)?;
        let input = file
            .inputs
            .pop()
            .context("the validation set has no input")?;
        let width = *input.shape.get(1).context("the input is not of rank 2")?;
        Ok(Self {
            input: input.name,
            width,
            values: input.data,
            labels: file.labels,
            scores_output: file.scores_output,
        })
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.labels.len()
    }

    /// An inference request for one of them.
    pub(crate) fn request(&self, row: usize) -> serde_json::Value {
        let row = row % self.labels.len();
        let data = &self.values[row * self.width..(row + 1) * self.width];
        serde_json::json!({ "inputs": [
            { "name": self.input, "datatype": "FP32", "shape": [1, self.width], "data": data }
        ]})
    }
}

/// One answer as a client saw it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request was sent.
    pub sent: Instant,
    /// Index of the node that was asked.
    pub node: usize,
    /// The version that answered; `None`: an error.
    pub version: Option<String>,
    /// Whether the label was right.
    pub right: bool,
    /// How long it took.
    pub latency: Duration,
}

impl Answer {
    /// Whether `version` answered.
    #[must_use]
    pub fn is_from(&self, version: &str) -> bool {
        self.version.as_deref() == Some(version)
    }
}

/// All answers so far. Bounded by the demo's length and rate.
#[derive(Clone, Default)]
pub struct Observer(Arc<Mutex<Vec<Answer>>>);

impl Observer {
    fn note(&self, answer: Answer) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(answer);
    }

    /// Takes all answers so far out.
    #[must_use]
    pub fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers to requests that were sent at `from` or later.
    #[must_use]
    pub fn since(&self, from: Instant) -> Vec<Answer> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .iter()
            .filter(|answer| answer.sent >= from)
            .cloned()
            .collect()
    }
}

/// What a set of answers says.
#[derive(Default)]
pub struct Tally {
    /// Answers by version.
    pub versions: BTreeMap<String, usize>,
    /// Answers by node and version.
    pub nodes: BTreeMap<usize, BTreeMap<String, usize>>,
    /// Requests without an answer.
    pub errors: usize,
    /// Answers with the right label.
    pub right: usize,
    /// All requests.
    pub total: usize,
    latencies: Vec<Duration>,
}

impl Tally {
    /// Counts answers.
    #[must_use]
    pub fn of(answers: &[Answer]) -> Self {
        let mut tally = Self {
            total: answers.len(),
            ..Self::default()
        };
        for answer in answers {
            let Some(version) = &answer.version else {
                tally.errors += 1;
                continue;
            };
            *tally.versions.entry(version.clone()).or_default() += 1;
            let node = tally.nodes.entry(answer.node).or_default();
            *node.entry(version.clone()).or_default() += 1;
            tally.right += usize::from(answer.right);
            tally.latencies.push(answer.latency);
        }
        tally.latencies.sort_unstable();
        tally
    }

    /// Share of requests that `version` answered.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "thousands of requests")]
    pub fn share(&self, version: &str) -> f64 {
        self.versions.get(version).copied().unwrap_or(0) as f64 / self.total.max(1) as f64
    }

    /// Nodes whose answers all came from `version`.
    #[must_use]
    pub fn nodes_only(&self, version: &str) -> usize {
        let only = |versions: &&BTreeMap<String, usize>| versions.keys().eq([version]);
        self.nodes.values().filter(only).count()
    }

    /// Share of answers that were right.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "thousands of requests")]
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / (self.total - self.errors).max(1) as f64
    }

    /// Median latency.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.latencies
            .get(self.latencies.len() / 2)
            .copied()
            .unwrap_or_default()
    }
}

/// A client for the agents' plain HTTP. The HTTP library wants a TLS provider all the same.
#[must_use]
pub fn http_client() -> reqwest::Client {
    // Fails only when a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Sends `rate` requests a second to each node until dropped.
pub struct Traffic {
    _clients: JoinSet<()>,
}

impl Traffic {
    /// Starts a client for each of `urls` (an inference endpoint each).
    #[must_use]
    pub fn start(urls: Vec<String>, rows: Arc<Rows>, rate: u32, observer: &Observer) -> Self {
        let mut clients = JoinSet::new();
        let http = http_client();
        for (node, url) in urls.into_iter().enumerate() {
            let client = Client {
                http: http.clone(),
                node,
                url,
                rows: Arc::clone(&rows),
                observer: observer.clone(),
            };
            clients.spawn(client.run(rate));
        }
        Self { _clients: clients }
    }
}

#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    node: usize,
    url: String,
    rows: Arc<Rows>,
    observer: Observer,
}

#[derive(Deserialize)]
struct InferAnswer {
    model_version: String,
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    data: Vec<f64>,
}

impl Client {
    async fn run(self, rate: u32) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut row = self.node * 37;
        loop {
            ticks.tick().await;
            row += 1;
            let answer = self.ask(row).await;
            self.observer.note(answer);
        }
    }

    async fn ask(&self, row: usize) -> Answer {
        let sent = Instant::now();
        let answer = self.infer(row).await;
        let latency = sent.elapsed();
        let (version, right) = match answer {
            Ok((version, right)) => (Some(version), right),
            Err(_) => (None, false),
        };
        Answer {
            sent,
            node: self.node,
            version,
            right,
            latency,
        }
    }

    async fn infer(&self, row: usize) -> Result<(String, bool)> {
        let request = self
            .http
            .post(&self.url)
            .header("x-rollcall-key", format!("user-{row}"))
            .timeout(Duration::from_secs(5))
            .json(&self.rows.request(row));
        let answer: InferAnswer = request.send().await?.error_for_status()?.json().await?;
        let scores = answer
            .outputs
            .iter()
            .find(|output| output.name == self.rows.scores_output)
            .context("the answer has no scores")?;
        let best = scores
            .data
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1));
        let label = self.rows.labels[row % self.rows.labels.len()];
        let right = best.is_some_and(|(class, _)| i64::try_from(class) == Ok(label));
        Ok((answer.model_version, right))
    }
}
