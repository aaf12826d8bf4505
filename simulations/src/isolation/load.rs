//! Clients at a steady rate, who do not wait for each other.
//!
//! Those whom a canary answers have a thread and connections of their own: what its answers
//! cost *them*, a body of a megabyte to read say, is theirs, and no delay of stable's answers
//! to others.
//!
//! A request is sent when it is due, whatever became of those before it, on a keep-alive
//! connection that is free or on a new one; and its latency counts from the moment at which
//! it was due. So an answer that comes late neither delays the next request nor hides what it
//! did to it (*coordinated omission*, G. Tene), and a request of stable's does not wait behind
//! one that a candidate holds up on the same connection, which no agent could help.
//!
//! Due by a timer of the kernel's, because tokio's ticks once a millisecond.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use rollcall_shared::assignment::Share;
use rollcall_shared::ids::ModelName;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ground::{CANARY_PERCENT, users};
use crate::fleet::MODEL;
use crate::traffic::{Rows, http_client};

/// Longer than an agent waits for a candidate and stable together.
const PATIENCE: Duration = Duration::from_secs(40);

/// Who answered, by the header that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnsweredBy {
    Stable,
    Candidate,
    Fallback,
    Nobody,
}

/// How many requests had which end.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Answers {
    /// Requests.
    pub sent: u64,
    /// Answered by stable, by right.
    pub by_stable: u64,
    /// Answered by the candidate.
    pub by_candidate: u64,
    /// Answered by stable in the candidate's place.
    pub by_fallback: u64,
    /// Refused, failed, or not answered at all.
    pub unanswered: u64,
}

/// What clients saw for a while.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) answers: Answers,
    /// Of stable's answers by right.
    pub(super) latencies: Vec<Duration>,
}

impl Seen {
    fn note(&mut self, by: AnsweredBy, latency: Duration) {
        let answers = &mut self.answers;
        answers.sent += 1;
        match by {
            AnsweredBy::Stable => {
                answers.by_stable += 1;
                self.latencies.push(latency);
            }
            AnsweredBy::Candidate => answers.by_candidate += 1,
            AnsweredBy::Fallback => answers.by_fallback += 1,
            AnsweredBy::Nobody => answers.unanswered += 1,
        }
    }
}

impl Answers {
    pub(super) const fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.by_stable += other.by_stable;
        self.by_candidate += other.by_candidate;
        self.by_fallback += other.by_fallback;
        self.unanswered += other.unanswered;
    }
}

/// The clients of one agent.
pub(super) struct Clients {
    of_stable: Crowd,
    of_canaries: Crowd,
}

impl Clients {
    /// All of them ask so often a second.
    pub(super) fn new(agent: &str, rows: &Rows, rate: u32) -> Result<Self> {
        let model = ModelName::new(MODEL)?;
        let (hasher, share) = (users(&model), Share::from_percent(CANARY_PERCENT)?);
        let bodies = (0..rows.len()).map(|row| rows.request(row).to_string().into());
        let bodies: Vec<Bytes> = bodies.collect();
        let crowd = |on_trial, percent: f64| {
            let hasher = hasher.clone();
            let is_one = move |key: &str| share.holds(hasher.bucket(key.as_bytes())) == on_trial;
            anyhow::Ok(Crowd {
                runtime: runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?,
                requests: Requests {
                    http: http_client(),
                    url: format!("http://{agent}/v2/models/{MODEL}/infer"),
                    bodies: bodies.clone(),
                    period: Duration::from_secs_f64(100.0 / percent / f64::from(rate)),
                    is_one: Box::new(is_one),
                    sent: 0,
                    keys: 0,
                },
            })
        };
        Ok(Self {
            of_stable: crowd(false, 100.0 - CANARY_PERCENT)?,
            of_canaries: crowd(true, CANARY_PERCENT)?,
        })
    }

    /// Sends for as long, and waits for all answers.
    pub(super) fn send(&mut self, lasting: Duration) -> Result<Seen> {
        let Self {
            of_stable,
            of_canaries,
        } = self;
        thread::scope(|scope| {
            let others = scope.spawn(|| of_canaries.send(lasting));
            let mut seen = of_stable.send(lasting)?;
            let others = others.join().map_err(|_| anyhow!("a client panicked"))??;
            // Not their latencies: in calm it is stable that answers them, in a trial not.
            seen.answers.add(&others.answers);
            Ok(seen)
        })
    }
}

/// Clients with a thread of their own.
struct Crowd {
    runtime: Runtime,
    requests: Requests,
}

impl Crowd {
    fn send(&mut self, lasting: Duration) -> Result<Seen> {
        self.runtime.block_on(self.requests.send(lasting))
    }
}

/// What a crowd asks.
struct Requests {
    http: reqwest::Client,
    url: String,
    bodies: Vec<Bytes>,
    period: Duration,
    /// Whether a key is one of the crowd's.
    is_one: Box<dyn Fn(&str) -> bool + Send>,
    sent: usize,
    keys: u64,
}

impl Requests {
    async fn send(&mut self, lasting: Duration) -> Result<Seen> {
        let (mut seen, mut asking) = (Seen::default(), JoinSet::new());
        let mut due = Instant::now();
        let (end, timer) = (due + lasting, Timer::start(self.period)?);
        while due < end {
            for _ in 0..timer.expired().await? {
                due += self.period;
                asking.spawn(answered(self.next(), due));
            }
            while let Some(answered) = asking.try_join_next() {
                let (by, latency) = answered?;
                seen.note(by, latency);
            }
        }
        for (by, latency) in asking.join_all().await {
            seen.note(by, latency);
        }
        Ok(seen)
    }

    fn next(&mut self) -> reqwest::RequestBuilder {
        let key = loop {
            let key = format!("user-{}", self.keys);
            self.keys += 1;
            if (self.is_one)(&key) {
                break key;
            }
        };
        let body = self.bodies[self.sent % self.bodies.len()].clone();
        self.sent += 1;
        self.http
            .post(&self.url)
            .timeout(PATIENCE)
            .header("x-rollcall-key", key)
            .body(body)
    }
}

/// Sends, and reads the answer to its end.
async fn answered(request: reqwest::RequestBuilder, due: Instant) -> (AnsweredBy, Duration) {
    let by = ask(request).await.unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        AnsweredBy::Nobody
    });
    (by, due.elapsed())
}

async fn ask(request: reqwest::RequestBuilder) -> Result<AnsweredBy> {
    let response = request.send().await?.error_for_status()?;
    let arm = response.headers().get("x-rollcall-arm");
    let by = match arm.map(reqwest::header::HeaderValue::as_bytes) {
        Some(b"stable") => AnsweredBy::Stable,
        Some(b"candidate") => AnsweredBy::Candidate,
        Some(b"fallback") => AnsweredBy::Fallback,
        other => anyhow::bail!("an answer by {other:?}"),
    };
    response.bytes().await?;
    Ok(by)
}

/// Expires again and again.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn start(period: Duration) -> Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let period = Timespec::try_from(period).context("a period that no timer takes")?;
        let periods = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &periods)?;
        #[expect(
            deprecated,
            reason = "unsound where the descriptor can be swapped; this one is private, and is not"
        )]
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Waits until it has expired; how often, since the last call.
    async fn expired(&self) -> Result<u64> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?));
            if let Ok(read) = read {
                read?;
                return Ok(u64::from_ne_bytes(count));
            }
        }
    }
}
