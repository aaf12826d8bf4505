//! Pictures of rollbacks: who answered after how long, who is fenced by its lease, who is
//! silent until when and why.

use std::collections::BTreeMap;

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::histogram::{Histogram, edge};
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::report::ReadyState;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::coordinator::Coordinator;
use crate::record::{Cause, Propagation};
use crate::rollback::{Answer, Receipts, millis};
use crate::state::{Rollback, Rollout};

/// A rollback with its receipts: `rollcall rollback -o json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollbackView {
    /// The model.
    pub model: ModelName,
    /// The rollout that ended.
    pub rollout: RolloutId,
    /// The generation that receipts must have.
    pub generation: Generation,
    /// What was taken back.
    pub withdrawn: Version,
    /// What serves instead.
    pub serving: Option<Version>,
    /// Why.
    pub cause: Cause,
    /// When, on the coordinator's clock.
    pub decided_at: Timestamp,
    /// Who answered.
    pub receipts: ReceiptCounts,
    /// From the decision to the receipt in hand.
    pub propagation_ms: PropagationMs,
    /// Who was last, of those that answered.
    pub last_node: Option<NodeId>,
    /// Whether every node answered or is fenced.
    pub settled: bool,
    /// From the decision to each receipt; bins with nothing in them are left out.
    pub histogram: Vec<HistogramBin>,
    /// Node by node, by name. Empty in a brief view.
    pub nodes: Vec<RollbackNode>,
    /// Nodes that sent receipts and are not in `nodes`: all of them in a brief view, and the
    /// fastest of a large fleet once only the journal knows of the rollback.
    pub nodes_unlisted: u64,
}

/// A rollback in figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollbackSummary {
    /// The generation that receipts must have.
    pub generation: Generation,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// Whether every node answered or is fenced.
    pub settled: bool,
    /// Nodes in the fleet that host the model: `received + fenced + silent`.
    pub expected: u64,
    /// Nodes that serve what they should, by their own word.
    pub received: u64,
    /// Nodes that did not answer, but whose lease is over.
    pub fenced: u64,
    /// Nodes that did not answer and are not (yet) fenced.
    pub silent: u64,
    /// From the decision to the receipt in hand.
    pub propagation_ms: PropagationMs,
    /// Who was last, of those that answered.
    pub last_node: Option<NodeId>,
    /// From the decision to each receipt.
    pub histogram: Vec<HistogramBin>,
}

/// Answers of one span of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistogramBin {
    /// Up to so many milliseconds, and above the bin before. Bins are a factor of 1.095 apart.
    pub le_ms: f64,
    /// How many.
    pub count: u64,
}

/// Who answered a rollback. `expected = received + fenced + silent`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReceiptCounts {
    /// Nodes in the fleet that host the model.
    pub expected: u64,
    /// Nodes that serve what they should, by their own word.
    pub received: u64,
    /// Nodes that did not answer, but whose lease is over.
    pub fenced: Vec<FencedNode>,
    /// Nodes that did not answer and are not (yet) fenced.
    pub silent: Vec<NodeId>,
}

/// A node whose lease ran out before it answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedNode {
    /// Which.
    pub node: NodeId,
    /// Since when it cannot serve the candidate.
    pub at: Timestamp,
}

/// How fast a rollback spread; `None` while nobody answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PropagationMs {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// The last.
    pub max: Option<f64>,
}

/// One node in a rollback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RollbackNode {
    /// Which.
    pub node: NodeId,
    /// How it is.
    pub state: RollbackNodeState,
    /// From the decision to its receipt.
    pub after_ms: Option<f64>,
    /// What it serves by right, by its receipt.
    pub serving: Option<Version>,
    /// When its lease is (or was) over at the latest; `None` where no lease could run out.
    pub until: Option<Timestamp>,
    /// Of a node without a receipt: what is known of it.
    pub why: Option<String>,
}

/// How a node is in a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackNodeState {
    /// It serves what it should, by its own word.
    Receipt,
    /// It did not answer; its lease is over.
    Fenced,
    /// It did not answer yet; its lease will be over at `until`.
    Waiting,
    /// It did not answer, and no lease stops it: it may serve the version by right.
    Silent,
}

/// What the rollbacks of one model came to since this process began; the numbers only grow,
/// except `silent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackFigures {
    /// The model.
    pub model: ModelName,
    /// From the decision to each receipt.
    pub receipts: Histogram,
    /// Nodes that a lease had fenced when a rollback settled.
    pub fenced: u64,
    /// Nodes without a receipt in rollbacks that are not settled, now.
    pub silent: u64,
    /// Rehearsals that began.
    pub rehearsals: u64,
    /// From the beginning of a rehearsal to each answer.
    pub rehearsed: Histogram,
}

impl Coordinator {
    /// The rollout of a model that was withdrawn last.
    #[must_use]
    pub fn latest_rollback(&self, model: &ModelName) -> Option<RolloutId> {
        Some(self.latest_withdrawal(model)?.rollout)
    }

    /// What took a version of a model away last.
    #[must_use]
    pub fn latest_withdrawal(&self, model: &ModelName) -> Option<&Withdrawal> {
        let of_model = self.state.rollouts.values().filter(|r| r.model == *model);
        of_model
            .filter_map(|rollout| Some(&rollout.rollback()?.withdrawal))
            .max_by_key(|withdrawal| (withdrawal.generation, withdrawal.rollout))
    }

    /// How the latest rollback of a model spreads.
    #[must_use]
    pub fn rollback_of_model(&self, model: &ModelName, now: Timestamp) -> Option<RollbackView> {
        self.rollback(self.latest_rollback(model)?, now)
    }

    /// How the withdrawal of a rollout spreads; `None` when it was not withdrawn.
    #[must_use]
    pub fn rollback(&self, rollout: RolloutId, now: Timestamp) -> Option<RollbackView> {
        let rollback = self.state.rollouts.get(&rollout)?.rollback()?;
        let propagation = self.propagation(rollout, rollback, now);
        let mut view = brief_view(rollback, &propagation);
        view.nodes = self.rollback_nodes(rollout, &rollback.withdrawal, &propagation);
        view.nodes_unlisted -= propagation.receipts_ms.len() as u64;
        Some(view)
    }

    /// As [`Self::rollback`], without the nodes.
    #[must_use]
    pub fn rollback_brief(&self, rollout: RolloutId, now: Timestamp) -> Option<RollbackView> {
        let rollback = self.state.rollouts.get(&rollout)?.rollback()?;
        let propagation = self.propagation(rollout, rollback, now);
        Some(brief_view(rollback, &propagation))
    }

    /// Whether every node answered or is fenced; `None` when the rollout was not withdrawn.
    #[must_use]
    pub fn rollback_is_settled(&self, rollout: RolloutId) -> Option<bool> {
        let rollback = self.state.rollouts.get(&rollout)?.rollback()?;
        Some(rollback.propagation.is_some())
    }

    /// What monitoring adds up, of every model that had a rollback or a rehearsal.
    #[must_use]
    pub fn rollback_figures(&self) -> Vec<RollbackFigures> {
        let silent = |model: &ModelName| {
            let open = self.rollbacks.values().filter(|r| r.model() == model);
            open.map(Receipts::unanswered).sum()
        };
        let mut models: Vec<&ModelName> = self.tallies.keys().collect();
        models.extend(self.rollbacks.values().map(Receipts::model));
        models.sort_unstable();
        models.dedup();
        models
            .into_iter()
            .map(|model| {
                let tally = self.tallies.get(model).cloned().unwrap_or_default();
                RollbackFigures {
                    model: model.clone(),
                    receipts: tally.receipts,
                    fenced: tally.fenced,
                    silent: silent(model),
                    rehearsals: tally.rehearsals,
                    rehearsed: tally.rehearsed,
                }
            })
            .collect()
    }

    pub(super) fn rollback_summary(
        &self,
        rollout: &Rollout,
        now: Timestamp,
    ) -> Option<RollbackSummary> {
        let rollback = rollout.rollback()?;
        let propagation = self.propagation(rollout.id, rollback, now);
        let (fenced, silent) = (propagation.fenced.len(), propagation.silent.len());
        Some(RollbackSummary {
            generation: rollback.withdrawal.generation,
            decided_at: rollback.decided_at,
            settled: rollback.propagation.is_some(),
            expected: propagation.received + (fenced + silent) as u64,
            received: propagation.received,
            fenced: fenced as u64,
            silent: silent as u64,
            propagation_ms: propagation_ms(&propagation),
            histogram: bins(&propagation),
            last_node: propagation.last_node,
        })
    }

    /// Memory knows more than the record: nodes that answered after they were fenced, and
    /// every receipt of a large fleet.
    fn propagation(&self, id: RolloutId, rollback: &Rollback, now: Timestamp) -> Propagation {
        match (self.rollbacks.get(&id), &rollback.propagation) {
            (Some(receipts), _) => receipts.propagation(now),
            (None, Some(recorded)) => recorded.clone(),
            (None, None) => Propagation::default(),
        }
    }

    fn rollback_nodes(
        &self,
        rollout: RolloutId,
        withdrawal: &Withdrawal,
        propagation: &Propagation,
    ) -> Vec<RollbackNode> {
        let receipts = self.rollbacks.get(&rollout);
        let until = receipts.map(fences).unwrap_or_default();
        let open = |node: &NodeId, state, until| RollbackNode {
            node: node.clone(),
            state,
            after_ms: None,
            serving: None,
            until,
            // Of a rollback that only the journal knows, today's news would explain nothing.
            why: receipts.map(|_| self.why_silent(node, withdrawal)),
        };
        let should_serve = withdrawal.serving.map(|v| v.version);
        let answered = propagation.receipts_ms.iter().map(|(node, after)| {
            let otherwise = propagation.serving_otherwise.get(node).copied();
            RollbackNode {
                node: node.clone(),
                state: RollbackNodeState::Receipt,
                after_ms: Some(*after),
                serving: otherwise.unwrap_or(should_serve),
                until: None,
                why: None,
            }
        });
        let fenced = propagation
            .fenced
            .iter()
            .map(|(node, at)| open(node, RollbackNodeState::Fenced, Some(*at)));
        let silent = propagation.silent.iter().map(|node| {
            let until = until.get(node).copied();
            open(node, waiting_or_silent(until), until)
        });
        let mut nodes: Vec<RollbackNode> = answered.chain(fenced).chain(silent).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }

    /// What is known of a node that has not answered.
    pub(super) fn why_silent(&self, node: &NodeId, withdrawal: &Withdrawal) -> String {
        let Some(presence) = self.fleet.nodes.get(node) else {
            return "not heard since the coordinator started".to_owned();
        };
        if presence.connection.is_none() {
            return format!("not connected, last heard at {}", presence.last_seen);
        }
        let serving = withdrawal.serving;
        let ready = serving.and_then(|v| Some((v, presence.ready_state(&withdrawal.model, v)?)));
        match ready {
            Some((version, ReadyState::Fetching)) => {
                format!("connected, loading {} first", version.version)
            }
            Some((version, ReadyState::Failed { reason, .. })) => {
                format!("connected, cannot load {}: {reason}", version.version)
            }
            Some((_, ReadyState::Ready)) | None => "connected, has not answered".to_owned(),
        }
    }
}

pub(super) const fn waiting_or_silent(until: Option<Timestamp>) -> RollbackNodeState {
    match until {
        Some(_) => RollbackNodeState::Waiting,
        None => RollbackNodeState::Silent,
    }
}

fn brief_view(rollback: &Rollback, propagation: &Propagation) -> RollbackView {
    RollbackView {
        decided_at: rollback.decided_at,
        settled: rollback.propagation.is_some(),
        ..undecided_view(&rollback.withdrawal, &rollback.cause, propagation)
    }
}

/// Without nodes, and without a decision.
pub(super) fn undecided_view(
    withdrawal: &Withdrawal,
    cause: &Cause,
    propagation: &Propagation,
) -> RollbackView {
    RollbackView {
        model: withdrawal.model.clone(),
        rollout: withdrawal.rollout,
        generation: withdrawal.generation,
        withdrawn: withdrawal.withdrawn.version,
        serving: withdrawal.serving.map(|v| v.version),
        cause: cause.clone(),
        decided_at: Timestamp::ZERO,
        receipts: receipt_counts(propagation),
        propagation_ms: propagation_ms(propagation),
        last_node: propagation.last_node.clone(),
        settled: false,
        histogram: bins(propagation),
        nodes: Vec::new(),
        nodes_unlisted: propagation.received,
    }
}

fn propagation_ms(propagation: &Propagation) -> PropagationMs {
    PropagationMs {
        p50: propagation.p50_ms,
        p99: propagation.p99_ms,
        max: propagation.max_ms,
    }
}

fn bins(propagation: &Propagation) -> Vec<HistogramBin> {
    let histogram = propagation.histogram();
    let bins = histogram.bins().map(|(bin, count)| HistogramBin {
        le_ms: millis(edge(bin)),
        count,
    });
    bins.collect()
}

/// When each node that has not answered is fenced.
fn fences(receipts: &Receipts) -> BTreeMap<NodeId, Timestamp> {
    let answers = receipts.answers().iter();
    answers
        .filter_map(|(node, answer)| match answer {
            Answer::Pending { fenced_at } => Some((node.clone(), (*fenced_at)?)),
            Answer::Receipt { .. } => None,
        })
        .collect()
}

fn receipt_counts(propagation: &Propagation) -> ReceiptCounts {
    let fenced: Vec<FencedNode> = propagation
        .fenced
        .iter()
        .map(|(node, at)| FencedNode {
            node: node.clone(),
            at: *at,
        })
        .collect();
    let silent: Vec<NodeId> = propagation.silent.iter().cloned().collect();
    ReceiptCounts {
        expected: propagation.received + (fenced.len() + silent.len()) as u64,
        received: propagation.received,
        fenced,
        silent,
    }
}
