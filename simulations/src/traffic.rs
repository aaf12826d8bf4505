//! Steady inference traffic and an outside view of who answered it.
//!
//! Nothing here asks Rollcall what it believes: the version comes from the
//! answers that clients got.

mod ways;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

pub use ways::Way;
use ways::{Asker, Question};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

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

    /// An inference request for one of them, as JSON.
    pub(crate) fn request(&self, row: usize) -> serde_json::Value {
        self.row(row).as_json()
    }

    fn row(&self, row: usize) -> Question<'_> {
        let row = row % self.labels.len();
        Question {
            input: &self.input,
            values: &self.values[row * self.width..(row + 1) * self.width],
            scores_output: &self.scores_output,
        }
    }

    fn is_right(&self, row: usize, scores: &[f32]) -> bool {
        let label = self.labels[row % self.labels.len()];
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.is_some_and(|(class, _)| i64::try_from(class) == Ok(label))
    }
}

/// One answer as a client saw it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When the request was sent.
    pub sent: Instant,
    /// Index of the node that was asked.
    pub node: usize,
    /// How it was asked.
    pub way: Way,
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
    /// Answers by the way they were asked for.
    pub ways: BTreeMap<Way, usize>,
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
            *tally.ways.entry(answer.way).or_default() += 1;
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
    /// Starts a client for each of `nodes` (their HTTP addresses), which asks `model` in each of
    /// `ways` in turn.
    #[must_use]
    pub fn start(
        nodes: &[SocketAddr],
        model: &str,
        ways: &'static [Way],
        rows: &Arc<Rows>,
        rate: u32,
        observer: &Observer,
    ) -> Self {
        let mut clients = JoinSet::new();
        let http = http_client();
        for (node, address) in nodes.iter().enumerate() {
            let client = Client {
                asker: Asker::new(http.clone(), *address, model),
                ways,
                node,
                rows: Arc::clone(rows),
                observer: observer.clone(),
            };
            clients.spawn(client.run(rate));
        }
        Self { _clients: clients }
    }
}

struct Client {
    asker: Asker,
    ways: &'static [Way],
    node: usize,
    rows: Arc<Rows>,
    observer: Observer,
}

impl Client {
    async fn run(mut self, rate: u32) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let first = self.node * 37;
        for (row, way) in (first + 1..).zip(self.ways.iter().cycle()) {
            ticks.tick().await;
            let answer = self.ask(row, *way).await;
            self.observer.note(answer);
        }
    }

    async fn ask(&mut self, row: usize, way: Way) -> Answer {
        let sent = Instant::now();
        let key = format!("user-{row}");
        let asking = self.asker.ask(way, &key, self.rows.row(row));
        let scored = tokio::time::timeout(PATIENCE, asking).await;
        let latency = sent.elapsed();
        let (version, right) = match scored {
            Ok(Ok(scored)) => (
                Some(scored.version),
                self.rows.is_right(row, &scored.scores),
            ),
            Ok(Err(_)) | Err(_) => (None, false),
        };
        Answer {
            sent,
            node: self.node,
            way,
            version,
            right,
            latency,
        }
    }
}
