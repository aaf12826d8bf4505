//! What Prometheus reads at `/metrics`.
//!
//! Figures that the core or the journal know are read from them at each scrape;
//! only what passes by and is gone is counted here.

mod binned;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rollcall_coordinator_core::record::{Event, Record};
use rollcall_coordinator_core::view::{FleetStatus, RollbackFigures, RolloutPhase, RolloutView};
use rollcall_shared::plan::Strategy;
use rollcall_shared::verdict::Outcome;

use binned::Binned;

/// The coordinator's metrics; copies share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    connected: Gauge,
    enrolled: Gauge,
    unauthorised: Gauge,
    rollouts: Family<StateLabel, Gauge>,
    journal_seq: Gauge<u64, AtomicU64>,
    withdrawals: Counter,
    last_receipt: Histogram,
    fenced: Counter,
    by_model: ByModel,
    handshakes: Family<OutcomeLabel, Counter>,
    judge: JudgeCounters,
}

/// How often the judge acts, and how often it is known to be wrong.
#[derive(Default)]
struct JudgeCounters {
    barred: Counter,
    aa_rollouts: Counter,
    aa_false_alarms: Counter,
}

impl JudgeCounters {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "judge_barred_nodes",
            "Nodes that went on without a candidate because they alone were to blame",
            self.barred.clone(),
        );
        registry.register(
            "judge_aa_rollouts",
            "Rollouts that compare stable with itself",
            self.aa_rollouts.clone(),
        );
        registry.register(
            "judge_aa_false_alarms",
            "Of these, rollouts in which the judge found a failure: its realised error",
            self.aa_false_alarms.clone(),
        );
    }

    fn observe(&self, event: &Event) {
        match event {
            Event::CandidateBarred { .. } => {
                self.barred.inc();
            }
            Event::RolloutStarted { plan, .. } if plan.strategy == Strategy::Aa => {
                self.aa_rollouts.inc();
            }
            Event::RolloutFinished { verdict, .. } if verdict.outcome == Outcome::Fail => {
                self.aa_false_alarms.inc();
            }
            _ => {}
        }
    }
}

/// What the rollbacks of each model came to. Only read from the core at a scrape.
#[derive(Clone, Default)]
struct ByModel {
    propagation: Family<ModelLabel, Binned>,
    receipts: Family<ModelLabel, Counter>,
    fenced: Family<ModelLabel, Counter>,
    silent: Family<ModelLabel, Gauge>,
    rehearsals: Family<ModelLabel, Counter>,
    rehearsed: Family<ModelLabel, Binned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

impl ByModel {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "rollback_propagation_seconds",
            "From the decision to withdraw to each receipt",
            self.propagation.clone(),
        );
        registry.register(
            "rollback_receipts",
            "Receipts of rollbacks: nodes that serve what they should",
            self.receipts.clone(),
        );
        registry.register(
            "rollback_fenced",
            "Nodes that a lease had fenced when a rollback settled",
            self.fenced.clone(),
        );
        registry.register(
            "rollback_silent",
            "Nodes without a receipt in rollbacks that are not settled, now",
            self.silent.clone(),
        );
        registry.register(
            "rollback_rehearsals",
            "Rehearsals of rollbacks",
            self.rehearsals.clone(),
        );
        registry.register(
            "rollback_rehearsal_seconds",
            "From the beginning of a rehearsal to each answer",
            self.rehearsed.clone(),
        );
    }

    fn set(&self, figures: Vec<RollbackFigures>) {
        for figures in figures {
            let label = ModelLabel {
                model: figures.model.to_string(),
            };
            let raise = |family: &Family<ModelLabel, Counter>, to: u64| {
                let counter = family.get_or_create(&label);
                counter.inc_by(to.saturating_sub(counter.get()));
            };
            raise(&self.receipts, figures.receipts.count());
            raise(&self.fenced, figures.fenced);
            raise(&self.rehearsals, figures.rehearsals);
            let silent = i64::try_from(figures.silent).unwrap_or(i64::MAX);
            self.silent.get_or_create(&label).set(silent);
            self.propagation.get_or_create(&label).set(figures.receipts);
            self.rehearsed.get_or_create(&label).set(figures.rehearsed);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What became of someone who came to the agents' door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Came in.
    Admitted,
    /// Was asked to prove its address first, because many wait.
    Retried,
    /// Was sent away before any work, because too many wait; comes back with jitter.
    Refused,
    /// Waited longer than it would itself: nobody is there any more.
    Stale,
    /// Did not finish, or was not wanted.
    Failed,
    /// Connects too often.
    Throttled,
}

impl Handshake {
    const ALL: [Self; 6] = [
        Self::Admitted,
        Self::Retried,
        Self::Refused,
        Self::Stale,
        Self::Failed,
        Self::Throttled,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Retried => "retried",
            Self::Refused => "refused",
            Self::Stale => "stale",
            Self::Failed => "failed",
            Self::Throttled => "throttled",
        }
    }
}

/// Seconds: 1 ms to a little over a minute, doubling.
const PROPAGATION_BUCKETS: u16 = 17;

impl Default for Metrics {
    fn default() -> Self {
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(
            0.001,
            2.0,
            PROPAGATION_BUCKETS,
        );
        let mut registry = Registry::with_prefix("rollcall");
        let connected = Gauge::default();
        let enrolled = Gauge::default();
        let unauthorised = Gauge::default();
        let rollouts = Family::default();
        let journal_seq = Gauge::default();
        let withdrawals = Counter::default();
        let last_receipt = Histogram::new(buckets);
        let fenced = Counter::default();
        let handshakes = Family::<OutcomeLabel, Counter>::default();
        for outcome in Handshake::ALL.map(Handshake::name) {
            // Seen at zero, too.
            let _ = handshakes.get_or_create(&OutcomeLabel { outcome });
        }
        registry.register(
            "agents_connected",
            "Agents connected now",
            connected.clone(),
        );
        registry.register("agents_enrolled", "Nodes in the fleet", enrolled.clone());
        registry.register(
            "agents_unauthorised",
            "Nodes that serve something that was not approved",
            unauthorised.clone(),
        );
        registry.register("rollouts", "Rollouts by state", rollouts.clone());
        registry.register(
            "journal_seq",
            "Number of the journal's last record",
            journal_seq.clone(),
        );
        registry.register("withdrawals", "Candidates taken back", withdrawals.clone());
        registry.register(
            "rollback_last_receipt_seconds",
            "From the decision to withdraw to the last receipt, one sample a settled rollback",
            last_receipt.clone(),
        );
        registry.register(
            "rollback_nodes_fenced",
            "Nodes that a lease fenced before they answered a rollback",
            fenced.clone(),
        );
        let by_model = ByModel::default();
        by_model.register(&mut registry);
        registry.register(
            "handshakes",
            "Connections that came to the agents' door, by what became of them",
            handshakes.clone(),
        );
        let judge = JudgeCounters::default();
        judge.register(&mut registry);
        Self(Arc::new(Inner {
            registry,
            connected,
            enrolled,
            unauthorised,
            rollouts,
            journal_seq,
            withdrawals,
            last_receipt,
            fenced,
            by_model,
            handshakes,
            judge,
        }))
    }
}

impl Metrics {
    /// Counts someone who came to the agents' door.
    pub fn observe_handshake(&self, outcome: Handshake) {
        let outcome = outcome.name();
        self.0
            .handshakes
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    /// Counts what passes into the journal.
    pub fn observe_records(&self, records: &[Record]) {
        for record in records {
            self.0.judge.observe(&record.event);
            match &record.event {
                Event::Withdrawn { .. } => {
                    self.0.withdrawals.inc();
                }
                Event::RollbackSettled { propagation, .. } => {
                    if let Some(ms) = propagation.max_ms {
                        self.0.last_receipt.observe(ms / 1_000.0);
                    }
                    self.0.fenced.inc_by(propagation.fenced.len() as u64);
                }
                _ => {}
            }
        }
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(
        &self,
        status: &FleetStatus,
        rollouts: &[RolloutView],
        rollbacks: Vec<RollbackFigures>,
    ) -> String {
        self.0.by_model.set(rollbacks);
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.connected.set(gauge(status.nodes.connected));
        self.0.enrolled.set(gauge(status.nodes.enrolled));
        self.0.unauthorised.set(gauge(status.nodes.unauthorised));
        self.0.journal_seq.set(status.seq);
        for phase in PHASES {
            let count = rollouts
                .iter()
                .filter(|rollout| rollout.state == phase)
                .count();
            let label = StateLabel {
                state: phase_name(phase),
            };
            self.0
                .rollouts
                .get_or_create(&label)
                .set(gauge(count as u64));
        }
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

const PHASES: [RolloutPhase; 7] = [
    RolloutPhase::Staging,
    RolloutPhase::Running,
    RolloutPhase::Paused,
    RolloutPhase::AwaitingApproval,
    RolloutPhase::Withdrawn,
    RolloutPhase::Promoted,
    RolloutPhase::Finished,
];

/// A phase as JSON has it.
#[must_use]
pub const fn phase_name(phase: RolloutPhase) -> &'static str {
    match phase {
        RolloutPhase::Staging => "staging",
        RolloutPhase::Running => "running",
        RolloutPhase::Paused => "paused",
        RolloutPhase::AwaitingApproval => "awaiting_approval",
        RolloutPhase::Withdrawn => "withdrawn",
        RolloutPhase::Promoted => "promoted",
        RolloutPhase::Finished => "finished",
    }
}
