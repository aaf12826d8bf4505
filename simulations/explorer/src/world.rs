//! A whole fleet under virtual time: the shipping cores, driven by simulated shells.
//!
//! Phase 1 lets faults rage and watches safety; phase 2 heals everything and demands
//! that the fleet comes together. The world is the only thing that knows true time.
//!
//! | module | holds |
//! | --- | --- |
//! | `agent_process` | one agent's shell: inbox, restarts, timers |
//! | `agent_effects` | what it does when its core asks |
//! | `preparation` | versions being prepared, reports |
//! | `coordinator_links` | what the coordinator sends and what reaches it |
//! | `requests` | what clients and onlookers see |
//! | `links` | dialling, arrivals, old messages delivered again |
//! | `coordinator_process` | the coordinator's shell: journal, sends, replies |
//! | `weather` | crashes, pauses, partitions |
//! | `convergence` | phase 2 |
//! | [`crate::workload`] | the operator |

mod agent_effects;
mod agent_process;
mod convergence;
mod coordinator_links;
mod coordinator_process;
mod links;
mod preparation;
mod requests;
mod weather;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rollcall_coordinator_core::record::{Event as Recorded, Record};
use rollcall_shared::digest::Digest;
use rollcall_shared::time::Timestamp;
use serde::Serialize;

use crate::checkers::{ASSERTION, Checkers, Violation};
use crate::faults::{Fired, Knob, Options, Setup};
use crate::network::Network;
use crate::schedule::{Event, Schedule};
use crate::seed::Draws;
use crate::trace::Trace;
use crate::workload::Operator;

pub(crate) use agent_process::AgentProcess;
pub(crate) use convergence::Convergence;
pub(crate) use coordinator_process::CoordinatorProcess;
pub(crate) use requests::keen_key;

/// True time at the beginning: late enough that clocks can be far behind it.
pub(crate) const START: Timestamp = Timestamp::from_nanos(1_767_225_600_000_000_000);

/// The fleet is set up in calm weather.
pub const CALM: Duration = Duration::from_secs(5);

/// A core that asks to be woken for the same moment this often does nothing but spin.
const SPINS_MAX: u32 = 200;

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Which run.
    pub seed: u64,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// How many events there were.
    pub events: u64,
    /// How long it took, in simulated time.
    pub simulated: Duration,
    /// All options of the run.
    pub options: Options,
    /// How often each knob fired.
    #[serde(skip)]
    pub fired: Fired,
    /// The trace, where it was kept.
    #[serde(skip)]
    pub trace: Vec<String>,
    /// Hash of the trace.
    #[serde(skip)]
    pub trace_hash: Digest,
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    pub(crate) options: Options,
    pub(crate) schedule: Schedule,
    pub(crate) network: Network,
    pub(crate) agents: Vec<AgentProcess>,
    pub(crate) coordinator: CoordinatorProcess,
    pub(crate) operator: Operator,
    pub(crate) convergence: Convergence,
    pub(crate) checkers: Checkers,
    pub(crate) fired: Fired,
    pub(crate) trace: Trace,
    observer: Draws,
    healed: bool,
}

/// Runs one seed to its end, or to its first violation.
#[must_use]
pub fn run(seed: u64, setup: &Setup) -> Outcome {
    let mut world = World::new(seed, setup);
    let drawn = world.options.clone();
    let mut events = 0;
    // A core that finds itself in an impossible state stops its process by a panic. Here it
    // ends the run, which then says with which seed.
    let steps = AssertUnwindSafe(|| world.play(&mut events));
    if let Err(panic) = catch_unwind(steps) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let what = text.unwrap_or("a panic without words").to_owned();
        world.checkers.verdicts.broken(ASSERTION, None, what);
    }
    Outcome {
        seed,
        violations: world.checkers.verdicts.violations,
        events,
        simulated: world.schedule.now().since(START),
        options: drawn,
        fired: world.fired,
        trace: world.trace.lines().to_vec(),
        trace_hash: world.trace.hash(),
    }
}

impl World {
    fn new(seed: u64, setup: &Setup) -> Self {
        let options = Options::draw(seed, setup.without);
        Self {
            seed,
            setup: *setup,
            schedule: Schedule::new(START),
            network: Network::new(setup.agents, seed),
            agents: (0..setup.agents)
                .map(|node| AgentProcess::new(node, seed))
                .collect(),
            coordinator: CoordinatorProcess::new(seed),
            operator: Operator::new(seed, &options, setup),
            convergence: Convergence::new(seed, &options),
            checkers: Checkers::new(setup.agents),
            fired: Fired::default(),
            trace: Trace::new(setup.trace, START),
            observer: Draws::child(seed, "observer"),
            healed: false,
            options,
        }
    }

    fn play(&mut self, events: &mut u64) {
        self.begin();
        while self.checkers.verdicts.violations.is_empty() && !self.convergence.is_done() {
            let Some(event) = self.schedule.next_event() else {
                break;
            };
            *events += 1;
            self.step(event);
        }
    }

    fn begin(&mut self) {
        self.checkers.verdicts.now = START;
        self.start_coordinator();
        self.enroll_everybody();
        for node in 0..self.agents.len() {
            let delay = Duration::from_millis(500 + 50 * node as u64);
            self.schedule.after(delay, Event::AgentStarts { node });
        }
        self.schedule.after(CALM, Event::OperatorActs);
        self.schedule.after(CALM, Event::Observe);
        self.schedule
            .after(CALM + self.setup.faults_for, Event::Convergence);
        self.forecast(CALM);
    }

    fn step(&mut self, event: Event) {
        self.checkers.verdicts.now = self.schedule.now();
        match event {
            Event::Dial { node, epoch } => self.dial(node, epoch),
            Event::Handshake { node, epoch } => self.handshake_ends(node, epoch),
            Event::LinkTick { link } => self.link_tick(link),
            Event::Arrive {
                link,
                direction,
                packet,
            } => self.arrive(link, direction, packet),
            Event::Farewell { link, direction } => self.farewell(link, direction),
            Event::AgentEffectDone { node, epoch } => self.agent_effect_done(node, epoch),
            Event::AgentWakes { node, epoch } => self.agent_wakes(node, epoch),
            Event::Prepared {
                node,
                epoch,
                model,
                version,
                attempt,
            } => {
                self.prepared(node, epoch, model, version, attempt);
            }
            Event::ReportDue { node, epoch } => self.report_due(node, epoch),
            Event::CoordinatorEffectDone { epoch } => self.coordinator_effect_done(epoch),
            Event::CoordinatorWakes { epoch } => self.coordinator_wakes(epoch),
            Event::AgentFault { node, kind } => self.agent_fault(node, kind),
            Event::PartitionHeals { node, partition } => self.partition_heals(node, partition),
            Event::AgentStarts { node } => self.start_agent(node),
            Event::AgentResumes { node, epoch } => self.resume_agent(node, epoch),
            Event::CoordinatorFault { kind } => self.coordinator_fault(kind),
            Event::CoordinatorStarts => self.start_coordinator(),
            Event::Blackout { over } => self.blackout(over),
            Event::CoordinatorResumes { epoch } => self.resume_coordinator(epoch),
            Event::OperatorActs => self.operator_acts(),
            Event::Observe => self.observe_all(),
            Event::Convergence => self.converge(),
        }
    }

    /// Counts what became durable, and tells the checkers.
    pub(crate) fn note_durable(&mut self, from: usize) {
        use rollcall_coordinator_core::record::Cause;
        let records = &self.coordinator.journal.synced()[from..];
        for record in records {
            match &record.event {
                Recorded::RolloutStarted { .. } => self.fired.hit(Knob::RolloutStarted),
                Recorded::Promoted { .. } => self.fired.hit(Knob::Promoted),
                Recorded::RolloutFinished { .. } => self.fired.hit(Knob::RolloutFinished),
                Recorded::NodeQuarantined { .. } => self.fired.hit(Knob::Quarantined),
                Recorded::KnowledgeAdopted { .. } => self.fired.hit(Knob::KnowledgeAdopted),
                Recorded::RollbackSettled { propagation, .. } if !propagation.fenced.is_empty() => {
                    self.fired.hit(Knob::SettledWithFencedNode);
                }
                Recorded::Withdrawn { withdrawal, cause } => {
                    self.fired.hit(match cause {
                        Cause::Operator { .. }
                            if self.checkers.approved.was_promoted(withdrawal.withdrawn) =>
                        {
                            Knob::StableWithdrawn
                        }
                        Cause::Operator { .. } => Knob::WithdrawnByOperator,
                        Cause::Judge { .. } => Knob::WithdrawnByJudge,
                        Cause::Rejected { .. } => Knob::WithdrawnByRejection,
                        Cause::Adopted { .. } => Knob::KnowledgeAdopted,
                    });
                }
                _ => {}
            }
            self.trace.line(
                self.schedule.now(),
                "journal",
                format_args!("{} {:?}", record.seq, record.event),
            );
        }
        self.checkers.durable(records);
        let settled = |record: &Record| matches!(record.event, Recorded::RollbackSettled { .. });
        if records.iter().any(settled) {
            self.compare_claims();
        }
    }
}
