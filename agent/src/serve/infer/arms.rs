//! One request on one arm: run, count, and fall back.
//!
//! What is charged to whom: a candidate's failures are its own even where stable
//! answers in the end; stable's full queue and an engine out of order are the node's;
//! what was withdrawn under way is nobody's.

use std::sync::Arc;
use std::time::Duration;

use rollcall_agent_core::answer::Rows;
use rollcall_agent_core::breaker::Transition;
use rollcall_agent_core::input::Input;
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::ids::ModelName;
use rollcall_shared::report::AgentEvent;
use rollcall_shared::time::Timestamp;
use tokio::time::error::Elapsed;

use super::{AnsweredBy, InferAnswer, InferRefusal, InferRequest, Inference};
use crate::engine::InferError;
use crate::engine::check::check_inputs;
use crate::execute::{ExecuteError, Executor};
use crate::recorder::{Failure, Origin};
use crate::routes::{Arm, CandidateArm};

/// How a run on one arm ended.
type Ran = Result<Arc<Vec<Tensor>>, RunError>;

#[derive(Debug)]
enum RunError {
    Full,
    TimedOut,
    Failed(String),
    /// The node's engine is out of order, whatever the version.
    EngineDown(String),
    /// Withdrawn, or its lease ended, while the request was under way.
    Gone,
}

impl RunError {
    fn refusal(self, model: &ModelName, timeout: Duration) -> InferRefusal {
        match self {
            Self::Full => InferRefusal::Overloaded,
            Self::TimedOut => InferRefusal::TimedOut { timeout },
            Self::Failed(reason) => InferRefusal::Failed { reason },
            Self::EngineDown(_) | Self::Gone => InferRefusal::NotReady {
                model: model.clone(),
            },
        }
    }
}

impl Inference {
    /// On stable's threads, with stable's deadline, counted for stable.
    pub(super) async fn answer_by_right(
        &self,
        arm: &Arm,
        inputs: &Arc<Vec<Tensor>>,
        by: AnsweredBy,
        origin: &Origin,
    ) -> Result<InferAnswer, InferRefusal> {
        let began = self.clock.now();
        let error = match run(&self.stable, arm, inputs, self.stable_timeout).await {
            Ok(outputs) => {
                self.credit(arm, inputs, &outputs, began, origin);
                return Ok(InferAnswer {
                    version: arm.prepared.version,
                    by,
                    outputs,
                });
            }
            Err(error) => error,
        };
        match &error {
            // The node is short of room, which is no fault of the version.
            RunError::Full => return Err(InferRefusal::Overloaded),
            RunError::TimedOut => self.blame(arm, Failure::TimedOut, false, origin),
            RunError::Failed(_) => self.blame(arm, Failure::Failed, false, origin),
            RunError::EngineDown(why) => self.blame_engine(arm, why),
            RunError::Gone => {}
        }
        Err(error.refusal(&arm.prepared.manifest.model, self.stable_timeout))
    }

    /// On the candidate, unless its breaker is open, and on stable if it fails.
    pub(super) async fn answer_on_trial(
        &self,
        candidate: &CandidateArm,
        stable: Option<&Arm>,
        mut request: InferRequest,
        origin: &Origin,
    ) -> Result<InferAnswer, InferRefusal> {
        let arm = &candidate.arm;
        let given = std::mem::take(&mut request.inputs);
        // The contract with clients is stable's signature, where there is a stable.
        let inputs = check(stable.unwrap_or(arm), &request, given)?;
        let refusal = if candidate.breaker.allows(self.clock.now()) {
            let own = match stable {
                Some(stable) if !takes_the_same(stable, arm) => {
                    check(arm, &request, inputs.to_vec())
                }
                Some(_) | None => Ok(Arc::clone(&inputs)),
            };
            let began = self.clock.now();
            let ran = match own {
                Ok(own) => {
                    let ran = self
                        .run_candidate(&request.model, arm, stable, Arc::clone(&own))
                        .await;
                    if let Ok(outputs) = &ran {
                        self.credit(arm, &own, outputs, began, origin);
                    }
                    ran
                }
                Err(refusal) => Err(RunError::Failed(refusal.to_string())),
            };
            self.charge(candidate, &ran, stable.is_some(), origin);
            let (version, by) = (arm.prepared.version, AnsweredBy::Candidate);
            match ran {
                Ok(outputs) => {
                    return Ok(InferAnswer {
                        version,
                        by,
                        outputs,
                    });
                }
                Err(error) => error.refusal(&request.model, self.candidate_timeout),
            }
        } else {
            InferRefusal::NotReady {
                model: request.model,
            }
        };
        match stable {
            Some(stable) => {
                self.answer_by_right(stable, &inputs, AnsweredBy::Fallback, origin)
                    .await
            }
            None => Err(refusal),
        }
    }

    /// Counts an answer for the version that gave it, and remembers it for feedback.
    fn credit(
        &self,
        arm: &Arm,
        inputs: &[Tensor],
        outputs: &[Tensor],
        began: Timestamp,
        origin: &Origin,
    ) {
        let latency = self.clock.now().since(began);
        let rows = Rows::of(outputs);
        arm.series.record_answer(latency, inputs, &rows, origin);
        self.routes.recorder().remember(&arm.series, &rows, origin);
    }

    fn blame_engine(&self, arm: &Arm, why: &str) {
        let model = &arm.prepared.manifest.model;
        tracing::debug!(%model, why, "the engine is out of order");
        self.routes.recorder().record_engine_fault();
    }

    fn blame(&self, arm: &Arm, failure: Failure, fallback: bool, origin: &Origin) {
        let now = self.clock.now();
        arm.series.record_failure(failure, fallback, origin, now);
    }

    /// Charges what a candidate did not answer, whoever answers in the end, and tells its
    /// breaker. One that was withdrawn meanwhile is nobody's to judge.
    fn charge(&self, candidate: &CandidateArm, ran: &Ran, fallback: bool, origin: &Origin) {
        let arm = &candidate.arm;
        let model = &arm.prepared.manifest.model;
        match ran {
            Ok(_) => {}
            // Candidates get as many threads as stable: who fills them is too slow.
            Err(RunError::Full | RunError::TimedOut) => {
                self.blame(arm, Failure::TimedOut, fallback, origin);
            }
            Err(RunError::Failed(reason)) => {
                tracing::debug!(%model, reason, "the candidate failed");
                self.blame(arm, Failure::Failed, fallback, origin);
            }
            Err(RunError::EngineDown(why)) => return self.blame_engine(arm, why),
            Err(RunError::Gone) => return,
        }
        let transition = candidate.breaker.record(ran.is_ok(), self.clock.now());
        self.tell(model, candidate, transition);
    }

    /// Whatever began before a withdrawal or a lease's end does not answer after it.
    async fn run_candidate(
        &self,
        model: &ModelName,
        arm: &Arm,
        stable: Option<&Arm>,
        inputs: Arc<Vec<Tensor>>,
    ) -> Ran {
        let version = arm.prepared.version;
        let (routes, clock) = (Arc::clone(&self.routes), self.clock);
        let name = model.clone();
        let may_run = move || routes.has_candidate(&name, version, clock.now());
        let cost = &arm.prepared.cost;
        let executor = match stable {
            Some(stable) if cost.is_out_of_proportion_to(&stable.prepared.cost) => &self.costly,
            Some(_) | None => &self.candidate,
        };
        let running = run_in_turn(executor, arm, inputs, may_run);
        let ran = tokio::time::timeout(self.candidate_timeout, running).await;
        if !self.routes.has_candidate(model, version, self.clock.now()) {
            return Err(RunError::Gone);
        }
        outcome(ran)
    }

    fn tell(&self, model: &ModelName, candidate: &CandidateArm, transition: Option<Transition>) {
        let (model, rollout) = (model.clone(), candidate.rollout);
        let event = match transition {
            Some(Transition::Opened { failures }) => AgentEvent::BreakerOpened {
                model,
                rollout,
                failures,
            },
            Some(Transition::Closed) => AgentEvent::BreakerClosed { model, rollout },
            Some(Transition::Reopened) | None => return,
        };
        tracing::warn!(?event, "the candidate's breaker");
        // A full queue drops it: the counts say the same, a window later.
        let _ = self.events.try_send(Input::Event(event));
    }
}

fn takes_the_same(a: &Arm, b: &Arm) -> bool {
    a.prepared.manifest.signature.inputs == b.prepared.manifest.signature.inputs
}

/// Holds a request against what `arm` takes and gives.
pub(super) fn check(
    arm: &Arm,
    request: &InferRequest,
    inputs: Vec<Tensor>,
) -> Result<Arc<Vec<Tensor>>, InferRefusal> {
    let signature = &arm.prepared.manifest.signature;
    let has = |name: &String| signature.outputs.iter().any(|output| output.name == *name);
    if let Some(name) = request.outputs.iter().find(|name| !has(name)) {
        return Err(InferRefusal::UnknownOutput {
            name: name.clone(),
            known: signature
                .outputs
                .iter()
                .map(|output| output.name.clone())
                .collect(),
        });
    }
    Ok(Arc::new(check_inputs(signature, inputs)?.tensors))
}

async fn run(executor: &Executor, arm: &Arm, inputs: &Arc<Vec<Tensor>>, timeout: Duration) -> Ran {
    let running = run_in_turn(executor, arm, Arc::clone(inputs), || true);
    outcome(tokio::time::timeout(timeout, running).await)
}

/// What a model gave; `None`: when its turn came, it was not allowed to run any more.
type Inferred = Option<Result<Vec<Tensor>, InferError>>;

/// On a thread of the executor, alone or in a batch.
async fn run_in_turn(
    executor: &Executor,
    arm: &Arm,
    inputs: Arc<Vec<Tensor>>,
    may_run: impl FnOnce() -> bool + Send + 'static,
) -> Result<Inferred, ExecuteError> {
    if let Some(batcher) = &arm.prepared.batcher {
        return batcher.run(executor, inputs, may_run).await;
    }
    let prepared = Arc::clone(&arm.prepared);
    let job = move || may_run().then(|| prepared.loaded.infer(&inputs));
    executor.run(job).await
}

fn outcome(ran: Result<Result<Inferred, ExecuteError>, Elapsed>) -> Ran {
    match ran {
        Ok(Ok(Some(Ok(outputs)))) => Ok(Arc::new(outputs)),
        Ok(Ok(Some(Err(error)))) if error.is_the_nodes() => {
            Err(RunError::EngineDown(error.to_string()))
        }
        Ok(Ok(Some(Err(error)))) => Err(RunError::Failed(error.to_string())),
        Ok(Ok(None)) => Err(RunError::Gone),
        Ok(Err(ExecuteError::Full)) => Err(RunError::Full),
        Ok(Err(ExecuteError::Panicked)) => Err(RunError::Failed("the engine panicked".to_owned())),
        Err(_) => Err(RunError::TimedOut),
    }
}
