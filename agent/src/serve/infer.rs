//! One request from its tensors to its answer, whatever protocol it came by.
//!
//! Pick, check, run, and fall back: a candidate that fails, is late or has no room
//! costs the client time but not the answer. Every request runs to its end, also
//! when its client leaves: otherwise a candidate that hangs would go uncounted
//! wherever clients are impatient.

mod arms;
mod to_the_end;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::{CandidateUsage, Pick};
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::ModelName;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_transport::clock::Clock;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::config;
use crate::engine::check::BadInput;
use crate::execute::{Executor, ExecutorBounds, Priority};
use crate::recorder::Origin;
use crate::routes::{Arm, RouteEntry, Routes};
use crate::shadow::{Copy, Shadow};
use arms::check;
use to_the_end::ToTheEnd;

/// A request, read and not yet checked.
#[derive(Clone, Debug)]
pub struct InferRequest {
    /// The model.
    pub model: ModelName,
    /// The version that the client insists on.
    pub version: Option<Version>,
    /// Its name, by which feedback finds its answer.
    pub id: String,
    /// The same key meets the same version; none given: the id.
    pub sticky_key: Option<String>,
    /// The segment that it is counted under, if the client names one.
    pub segment: Option<String>,
    /// Its tensors.
    pub inputs: Vec<Tensor>,
    /// The outputs that it wants, in order; empty: all.
    pub outputs: Vec<String>,
}

impl InferRequest {
    fn sticky_key(&self) -> &str {
        self.sticky_key.as_deref().unwrap_or(&self.id)
    }
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// Stable, by right.
    Stable,
    /// The candidate.
    Candidate,
    /// Stable, in the place of a candidate that could not.
    Fallback,
}

impl AnsweredBy {
    /// As the response header says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Candidate => "candidate",
            Self::Fallback => "fallback",
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct InferAnswer {
    /// What answered.
    pub version: VersionRef,
    /// As what.
    pub by: AnsweredBy,
    /// All its outputs.
    pub outputs: Arc<Vec<Tensor>>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum InferRefusal {
    #[error("this node has no model {model}")]
    UnknownModel { model: ModelName },
    #[error("version {version} of {model} does not answer on this node")]
    UnknownVersion { model: ModelName, version: Version },
    #[error("the model has no output {name:?}: it has {}", known.join(", "))]
    UnknownOutput { name: String, known: Vec<String> },
    #[error(transparent)]
    BadInput(#[from] BadInput),
    #[error("no version of {model} is ready on this node; try again or ask another node")]
    NotReady { model: ModelName },
    #[error("too many requests are waiting on this node; try again or ask another node")]
    Overloaded,
    #[error("the model did not answer within {timeout:?}")]
    TimedOut { timeout: Duration },
    #[error("{reason}")]
    Failed { reason: String },
}

/// How often runs are looked at that may be overdue: often against a timeout of seconds.
const OVERDUE_EVERY: Duration = Duration::from_millis(100);

/// Answers requests.
#[derive(Debug)]
pub struct Inference {
    clock: Clock,
    routes: Arc<Routes>,
    stable: Executor,
    candidate: Executor,
    /// For candidates that cost out of proportion ([`crate::engine::cost`]).
    costly: Executor,
    shadow: Shadow,
    stable_timeout: Duration,
    candidate_timeout: Duration,
    events: mpsc::Sender<Input>,
}

impl Inference {
    /// Starts the executors. `events` takes what the coordinator should know at once.
    ///
    /// # Errors
    /// When the operating system gives no threads.
    pub fn start(
        settings: &config::Serving,
        clock: Clock,
        routes: Arc<Routes>,
        events: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = |asked: usize, or: usize| if asked == 0 { or } else { asked };
        let stable_threads = threads(settings.stable_threads, cores);
        let executor = |name, threads, queue, priority| {
            Executor::start(ExecutorBounds {
                name,
                threads,
                queue,
                priority,
            })
        };
        let candidate_threads = threads(settings.candidate_threads, stable_threads);
        let shadow = executor(
            "shadow",
            settings.shadow_threads,
            settings.shadow_queue,
            Priority::Idle,
        )?;
        Ok(Self {
            clock,
            stable: executor(
                "stable",
                stable_threads,
                settings.stable_queue,
                Priority::Normal,
            )?,
            candidate: executor(
                "candidate",
                candidate_threads,
                settings.candidate_queue,
                Priority::Normal,
            )?,
            costly: executor(
                "costly",
                candidate_threads,
                settings.candidate_queue,
                Priority::Idle,
            )?,
            shadow: Shadow::new(
                shadow,
                Arc::clone(&routes),
                clock,
                settings.candidate_timeout,
            ),
            routes,
            stable_timeout: settings.stable_timeout,
            candidate_timeout: settings.candidate_timeout,
            events,
        })
    }

    /// The routes that requests go by.
    #[must_use]
    pub const fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Requests that wait: for stable, candidate and shadow threads.
    #[must_use]
    pub fn waiting(&self) -> [usize; 3] {
        [
            self.stable.waiting(),
            self.candidate.waiting() + self.costly.waiting(),
            self.shadow.waiting(),
        ]
    }

    /// Gives up on runs that nobody waits for any more, for ever.
    pub async fn abandon_overdue(&self) {
        let mut ticks = tokio::time::interval(OVERDUE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.stable.abandon_overdue(self.stable_timeout);
            self.candidate.abandon_overdue(self.candidate_timeout);
            self.costly.abandon_overdue(self.candidate_timeout);
            self.shadow.abandon_overdue();
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the request is at fault, or nobody here can answer it.
    pub async fn infer(
        self: &Arc<Self>,
        request: InferRequest,
    ) -> Result<InferAnswer, InferRefusal> {
        let inference = Arc::clone(self);
        let answering = async move { inference.answer(request).await };
        let answering = AssertUnwindSafe(answering).catch_unwind();
        ToTheEnd::new(answering).await.unwrap_or_else(|_| {
            tracing::error!("a request panicked, which is a bug of the agent");
            Err(InferRefusal::Failed {
                reason: "the agent failed; its log says how".into(),
            })
        })
    }

    async fn answer(&self, request: InferRequest) -> Result<InferAnswer, InferRefusal> {
        let entry = self
            .routes
            .get(&request.model)
            .ok_or_else(|| InferRefusal::UnknownModel {
                model: request.model.clone(),
            })?;
        let origin = self.origin(&entry, &request);
        match request.version {
            Some(version) => self.answer_as(&entry, version, request, &origin).await,
            None => self.answer_by_route(&entry, request, &origin).await,
        }
    }

    fn origin(&self, entry: &RouteEntry, request: &InferRequest) -> Origin {
        // Whichever version answers: they share the model's segments.
        let arm = entry
            .stable
            .as_ref()
            .or_else(|| entry.candidate.as_ref().map(|candidate| &candidate.arm));
        let named = request.segment.as_deref().zip(arm);
        let segment = named.map(|(name, arm)| arm.series.segment(name));
        let recorder = self.routes.recorder();
        recorder.origin(&request.id, request.sticky_key(), segment)
    }

    async fn answer_by_route(
        &self,
        entry: &RouteEntry,
        mut request: InferRequest,
        origin: &Origin,
    ) -> Result<InferAnswer, InferRefusal> {
        let pick = entry
            .route
            .pick(request.sticky_key().as_bytes(), self.clock.now());
        let (stable, candidate) = (entry.stable.as_ref(), entry.candidate.as_ref());
        match (pick, stable, candidate) {
            (Pick::Candidate { .. }, stable, Some(candidate)) => {
                self.answer_on_trial(candidate, stable, request, origin)
                    .await
            }
            (Pick::StableAndShadow { .. }, Some(stable), candidate) => {
                let given = std::mem::take(&mut request.inputs);
                let inputs = check(stable, &request, given)?;
                let answer = self
                    .answer_by_right(stable, &inputs, AnsweredBy::Stable, origin)
                    .await?;
                if let Some(candidate) = candidate {
                    self.shadow.offer(Copy {
                        model: request.model,
                        arm: candidate.arm.clone(),
                        inputs,
                        stable: Arc::clone(&answer.outputs),
                        origin: origin.clone(),
                    });
                }
                Ok(answer)
            }
            (Pick::Stable(_) | Pick::Candidate { .. }, Some(stable), _) => {
                self.answer_stable_alone(stable, request, origin).await
            }
            (
                Pick::Nobody
                | Pick::Stable(_)
                | Pick::StableAndShadow { .. }
                | Pick::Candidate { .. },
                _,
                _,
            ) => Err(InferRefusal::NotReady {
                model: request.model,
            }),
        }
    }

    /// A version by name: stable, or a candidate that answers clients. A shadow does not.
    async fn answer_as(
        &self,
        entry: &RouteEntry,
        version: Version,
        request: InferRequest,
        origin: &Origin,
    ) -> Result<InferAnswer, InferRefusal> {
        let is_asked = |arm: &&Arm| arm.prepared.version.version == version;
        if let Some(stable) = entry.stable.as_ref().filter(is_asked) {
            return self.answer_stable_alone(stable, request, origin).await;
        }
        let now = self.clock.now();
        let answers = entry.route.candidate.as_ref().is_some_and(|candidate| {
            now < candidate.lease_until
                && match candidate.usage {
                    CandidateUsage::Canary(_) => true,
                    CandidateUsage::Shadow(_) => false,
                }
        });
        match &entry.candidate {
            Some(candidate) if answers && is_asked(&&candidate.arm) => {
                self.answer_on_trial(candidate, None, request, origin).await
            }
            Some(_) | None => Err(InferRefusal::UnknownVersion {
                model: request.model,
                version,
            }),
        }
    }

    async fn answer_stable_alone(
        &self,
        stable: &Arm,
        mut request: InferRequest,
        origin: &Origin,
    ) -> Result<InferAnswer, InferRefusal> {
        let inputs = std::mem::take(&mut request.inputs);
        let inputs = check(stable, &request, inputs)?;
        self.answer_by_right(stable, &inputs, AnsweredBy::Stable, origin)
            .await
    }

    /// The time that requests are judged by.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
