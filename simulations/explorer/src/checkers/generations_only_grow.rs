//! Promise 7: generations only grow: on the wire (as one journal's coordinator sends
//! them), on each agent's disk, and in its routes. And no agent holds a candidate under
//! a generation with which nobody ever sent it; nor does a generation that took a version away
//! ever give it to anybody.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::{Assignment, VersionRef, Withdrawal};
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::report::Receipt;
use rollcall_shared::wire::ToAgent;

use super::Verdicts;

type Generations = BTreeMap<ModelName, Generation>;

/// The highest generations seen.
#[derive(Debug)]
pub struct GenerationsOnlyGrow {
    sent: Vec<Generations>,
    sent_candidates: Vec<BTreeSet<(Generation, VersionRef)>>,
    on_disk: Vec<Generations>,
    in_route: Vec<Generations>,
    receipted: Vec<Generations>,
    /// What withdrawals took away, as the present journal's coordinators broadcast them.
    took_away: BTreeSet<(ModelName, Generation, VersionRef)>,
}

/// Raises the mark; `Err` with the old one when that would lower it.
fn raise(
    marks: &mut Generations,
    model: &ModelName,
    generation: Generation,
) -> Result<(), Generation> {
    match marks.get_mut(model) {
        Some(mark) if generation < *mark => Err(*mark),
        Some(mark) => {
            *mark = generation;
            Ok(())
        }
        None => {
            marks.insert(model.clone(), generation);
            Ok(())
        }
    }
}

impl GenerationsOnlyGrow {
    /// Nothing was ever assigned.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            sent: vec![Generations::new(); nodes],
            sent_candidates: vec![BTreeSet::new(); nodes],
            on_disk: vec![Generations::new(); nodes],
            in_route: vec![Generations::new(); nodes],
            receipted: vec![Generations::new(); nodes],
            took_away: BTreeSet::new(),
        }
    }

    /// The coordinator broadcasts, perhaps what will never be durable.
    pub fn broadcast(&mut self, withdrawal: &Withdrawal) {
        let model = withdrawal.model.clone();
        let took = (model, withdrawal.generation, withdrawal.withdrawn);
        self.took_away.insert(took);
    }

    /// The coordinator sends to a node.
    pub fn sent(&mut self, node: usize, message: &ToAgent, verdicts: &mut Verdicts) {
        let assignments: &[Assignment] = match message {
            ToAgent::Welcome(welcome) => &welcome.snapshot.assignments,
            ToAgent::Sync(snapshot) => &snapshot.assignments,
            ToAgent::Assign(assignment) => std::slice::from_ref(assignment),
            ToAgent::HeartbeatAnswer(_)
            | ToAgent::Withdraw(_)
            | ToAgent::Rehearse(_)
            | ToAgent::Feedback(_)
            | ToAgent::Refused { .. } => &[],
        };
        let current = match message {
            ToAgent::HeartbeatAnswer(answer) => &answer.current[..],
            _ => &[],
        };
        for assignment in assignments {
            let candidate = assignment
                .candidate
                .map(|c| (assignment.generation, c.version));
            self.sent_candidates[node].extend(candidate);
            let again = candidate.filter(|(generation, version)| {
                let took = (assignment.model.clone(), *generation, *version);
                self.took_away.contains(&took)
            });
            if let Some((generation, version)) = again {
                let what = format!(
                    "generation {generation} of {} took {} away, and now gives it",
                    assignment.model, version.version
                );
                verdicts.broken(7, Some(node), what);
            }
        }
        let generations = assignments.iter().map(|a| (&a.model, a.generation));
        for (model, generation) in generations.chain(current.iter().map(|(m, g)| (m, *g))) {
            if let Err(before) = raise(&mut self.sent[node], model, generation) {
                let what = format!("generation {generation} of {model} is sent after {before}");
                verdicts.broken(7, Some(node), what);
            }
        }
    }

    /// Somebody else sends to a node.
    pub fn forged(&mut self, node: usize, assignment: &Assignment) {
        let candidate = assignment
            .candidate
            .map(|c| (assignment.generation, c.version));
        self.sent_candidates[node].extend(candidate);
    }

    /// An agent puts a route in place.
    pub fn swapped(&mut self, node: usize, route: &Route, verdicts: &mut Verdicts) {
        if let Err(before) = raise(&mut self.in_route[node], &route.model, route.generation) {
            let what = format!(
                "the route of {} goes from generation {before} to {}",
                route.model, route.generation
            );
            verdicts.broken(7, Some(node), what);
        }
    }

    /// The newest generation of which a node gave its word.
    #[must_use]
    pub fn last_receipt(&self, node: usize, model: &ModelName) -> Option<Generation> {
        self.receipted[node].get(model).copied()
    }

    /// An agent sends its word.
    pub fn receipted(
        &mut self,
        node: usize,
        receipt: &Receipt,
        disk: &DurableState,
        verdicts: &mut Verdicts,
    ) {
        let held = disk
            .assignments
            .get(&receipt.model)
            .map(|a| a.generation)
            .unwrap_or_default();
        if held < receipt.generation {
            let what = format!(
                "a receipt of {} for generation {} is sent while the disk holds {held}",
                receipt.model, receipt.generation
            );
            verdicts.broken(7, Some(node), what);
        }
        // A lower receipt is no word on what is on disk.
        let _ = raise(
            &mut self.receipted[node],
            &receipt.model,
            receipt.generation,
        );
    }

    pub(super) fn persisted(&mut self, node: usize, state: &DurableState, verdicts: &mut Verdicts) {
        for (model, assignment) in &state.assignments {
            let generation = assignment.generation;
            if let Err(before) = raise(&mut self.on_disk[node], model, generation) {
                let what =
                    format!("the disk's generation of {model} goes from {before} to {generation}");
                verdicts.broken(7, Some(node), what);
            }
            let candidate = assignment.candidate.map(|c| (generation, c.version));
            if let Some((_, version)) =
                candidate.filter(|c| !self.sent_candidates[node].contains(c))
            {
                let what = format!(
                    "the disk holds {model}@{} on trial under generation {generation}, as nobody ever sent it",
                    version.version
                );
                verdicts.broken(7, Some(node), what);
            }
        }
        let lost = self.on_disk[node]
            .keys()
            .find(|model| !state.assignments.contains_key(*model));
        if let Some(model) = lost {
            verdicts.broken(
                7,
                Some(node),
                format!("the disk forgot its assignment of {model}"),
            );
        }
    }

    pub(super) fn process_started(
        &mut self,
        node: usize,
        state: &DurableState,
        verdicts: &mut Verdicts,
    ) {
        let held: Generations = state
            .assignments
            .iter()
            .map(|(m, a)| (m.clone(), a.generation))
            .collect();
        for (model, receipted) in &self.receipted[node] {
            let generation = held.get(model).copied().unwrap_or_default();
            if generation < *receipted {
                let what = format!(
                    "generation {receipted} of {model} was receipted, and the disk holds {generation}"
                );
                verdicts.broken(7, Some(node), what);
            }
        }
        self.on_disk[node] = held;
        // After a restart nothing is ready: routes begin again, at the disk's word.
        self.in_route[node].clear();
    }

    pub(super) fn state_lost(&mut self, node: usize) {
        self.on_disk[node].clear();
        self.receipted[node].clear();
    }

    /// The present journal's coordinator may have lost generations; it learns them from `Hello`.
    pub(super) fn backup_restored(&mut self) {
        self.sent.iter_mut().for_each(Generations::clear);
        self.took_away.clear();
    }
}
