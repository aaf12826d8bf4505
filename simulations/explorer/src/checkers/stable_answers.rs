//! Promise 1: a node that answered with a stable version goes on answering, unless it
//! knows that version to be withdrawn and has nothing else.
//!
//! Within one process: a new process answers again when its versions are loaded,
//! which phase 2 demands.

use std::collections::BTreeMap;

use rollcall_agent_core::route::{Pick, Route};
use rollcall_shared::assignment::{Assignment, VersionRef};
use rollcall_shared::ids::ModelName;

use super::{Verdicts, VersionSet};

/// What answered last by right.
#[derive(Debug)]
pub struct StableAnswers {
    last: Vec<BTreeMap<ModelName, VersionRef>>,
}

impl StableAnswers {
    /// Nobody answered yet.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            last: vec![BTreeMap::new(); nodes],
        }
    }

    pub(super) fn process_started(&mut self, node: usize) {
        self.last[node].clear();
    }

    /// An agent's shell is told to unload a version, while its disk holds this assignment.
    pub fn unloads(
        &self,
        node: usize,
        version: VersionRef,
        held: Option<&Assignment>,
        verdicts: &mut Verdicts,
    ) {
        let Some(held) = held else {
            return;
        };
        if held.stable == Some(version) || held.previous == Some(version) {
            let what = format!(
                "{}@{} is unloaded, though it is what answers or what there is to go back to",
                held.model, version.version
            );
            verdicts.broken(1, Some(node), what);
        }
    }

    /// A route that waited for the disk was undone by a withdrawal: what it would have
    /// answered with is what the withdrawal took away.
    pub(crate) fn overtaken(&mut self, node: usize, undone: &Route) {
        if let Some(stable) = undone.stable {
            self.last[node].insert(undone.model.clone(), stable);
        }
    }

    pub(super) fn picked(
        &mut self,
        node: usize,
        route: &Route,
        pick: Pick,
        withdrawn: &VersionSet,
        verdicts: &mut Verdicts,
    ) {
        if let Pick::Candidate { fallback, .. } = pick
            && fallback != route.stable
        {
            let what = format!(
                "if the candidate of {} fails, {fallback:?} answers, and not stable",
                route.model
            );
            verdicts.broken(1, Some(node), what);
        }
        let last = self.last[node].get(&route.model);
        match pick {
            Pick::Nobody => {
                if let Some(last) = last.filter(|last| !withdrawn.contains(last)) {
                    let what = format!(
                        "{} answers nobody (generation {}), though {} answered before and is not withdrawn",
                        route.model, route.generation, last.version
                    );
                    verdicts.broken(1, Some(node), what);
                }
            }
            Pick::Stable(stable)
            | Pick::StableAndShadow { stable, .. }
            | Pick::Candidate {
                fallback: Some(stable),
                ..
            } => {
                if last != Some(&stable) {
                    self.last[node].insert(route.model.clone(), stable);
                }
            }
            Pick::Candidate { fallback: None, .. } => {
                if let Some(last) = last.filter(|last| !withdrawn.contains(last)) {
                    let what = format!(
                        "the candidate of {} has no fallback, though {} answered before",
                        route.model, last.version
                    );
                    verdicts.broken(1, Some(node), what);
                }
            }
        }
    }
}
