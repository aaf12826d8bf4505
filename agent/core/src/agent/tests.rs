//! One rule a test: a fixture, one `handle`, the whole list of effects.

use std::sync::Arc;

use super::fixtures::*;
use super::*;
use crate::effect::Effect::{Persist, Pin, Prepare, Send, Swap, Unload};
use crate::route::{CandidateRoute, CandidateUsage};
use rollcall_shared::assignment::{CandidateAssignment, CandidateMode, Share};
use rollcall_shared::assignment::{Snapshot, Withdrawal};
use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::RolloutId;
use rollcall_shared::limits::HEARTBEATS_IN_FLIGHT_MAX;
use rollcall_shared::report::{AgentEvent, ReadyState, Receipt, Role, Serving};

fn fresh() -> Agent {
    Agent::restore(AgentIdentity::default(), DurableState::default(), at(0)).0
}

fn ready(agent: &mut Agent, major: u64, seconds: u64) -> Vec<Effect> {
    prepared(agent, major, Ok(()), seconds)
}

fn prepared(
    agent: &mut Agent,
    major: u64,
    result: Result<(), PrepareFailure>,
    seconds: u64,
) -> Vec<Effect> {
    let (model, version) = (model(), version(major));
    let input = Input::Prepared {
        model,
        version,
        result,
    };
    agent.handle(input, at(seconds))
}

fn assign(agent: &mut Agent, assignment: &Assignment, seconds: u64) -> Vec<Effect> {
    agent.handle(Input::Assign(assignment.clone()), at(seconds))
}

fn withdraw(agent: &mut Agent, withdrawal: &Withdrawal, seconds: u64) -> Vec<Effect> {
    agent.handle(Input::Withdraw(withdrawal.clone()), at(seconds))
}

fn welcome(assignments: &[Assignment]) -> Input {
    Input::Welcome(Welcome {
        protocol: PROTOCOL,
        heartbeat_every_ms: 1_000,
        report_every_ms: 5_000,
        snapshot: Snapshot {
            assignments: assignments.to_vec(),
            withdrawals: vec![],
        },
    })
}

fn answer(seq: u64, generation: u64) -> Input {
    Input::HeartbeatAnswer(HeartbeatAnswer {
        seq,
        current: vec![(model(), Generation(generation))],
    })
}

/// Version 1 serves under generation 1.
fn serving_1() -> Agent {
    let mut agent = fresh();
    assign(&mut agent, &assignment(1, 1), 0);
    ready(&mut agent, 1, 0);
    agent
}

fn canary_assignment(generation: u64) -> Assignment {
    Assignment {
        candidate: Some(candidate(1, 2, canary(10.0))),
        ..assignment(generation, 1)
    }
}

/// Version 1 serves; version 2 is a canary of 10 % under generation 2, leased until
/// second 11 by a `Hello` of second 1. Heartbeat 1 is due at second 2.
fn with_canary() -> Agent {
    let mut agent = serving_1();
    agent.handle(Input::Connected, at(1));
    agent.handle(welcome(&[canary_assignment(2)]), at(1));
    ready(&mut agent, 2, 1);
    agent
}

fn route(generation: u64, stable: impl Into<Option<u64>>) -> Route {
    Route {
        model: model(),
        generation: Generation(generation),
        stable: stable.into().map(version),
        candidate: None,
    }
}

fn canary_route(generation: u64, lease_until: u64) -> Route {
    let share = Share::from_percent(10.0).unwrap();
    Route {
        candidate: Some(CandidateRoute {
            rollout: RolloutId(1),
            version: version(2),
            usage: CandidateUsage::Canary(share),
            lease_until: at(lease_until),
            hasher: CohortHasher::new(&model(), RolloutId(1)),
        }),
        ..route(generation, 1)
    }
}

fn receipt(generation: u64, serving: &[(Role, u64)]) -> FromAgent {
    FromAgent::Receipt(Receipt {
        model: model(),
        generation: Generation(generation),
        serving: serving
            .iter()
            .map(|(role, major)| Serving {
                role: *role,
                version: version(*major),
            })
            .collect(),
    })
}

fn readiness(major: u64, state: ReadyState) -> FromAgent {
    FromAgent::Readiness(Readiness {
        model: model(),
        version: version(major),
        state,
    })
}

fn failed(reason: &str, retrying: bool) -> ReadyState {
    ReadyState::Failed {
        reason: reason.to_owned(),
        retrying,
    }
}

fn failure(reason: &str, retryable: bool) -> Result<(), PrepareFailure> {
    Err(PrepareFailure {
        reason: reason.to_owned(),
        retryable,
    })
}

fn prepare(major: u64) -> Effect {
    Prepare {
        model: model(),
        version: version(major),
    }
}

fn unload(major: u64) -> Effect {
    Unload {
        model: model(),
        version: version(major),
    }
}

fn pin(majors: &[u64]) -> Effect {
    Pin(majors.iter().map(|m| (model(), version(*m))).collect())
}

fn durable(assignment: &Assignment, withdrawals: &[Withdrawal]) -> DurableState {
    DurableState {
        assignments: BTreeMap::from([(model(), assignment.clone())]),
        withdrawals: Arc::new(withdrawals.iter().cloned().collect()),
    }
}

fn persist(assignment: &Assignment, withdrawals: &[Withdrawal]) -> Effect {
    Persist(durable(assignment, withdrawals))
}

fn lease_expired() -> FromAgent {
    FromAgent::Event(AgentEvent::LeaseExpired {
        model: model(),
        rollout: RolloutId(1),
    })
}

mod assigning;
mod fencing;
mod leasing;
mod preparing;
mod rehearsing;
mod withdrawing;
