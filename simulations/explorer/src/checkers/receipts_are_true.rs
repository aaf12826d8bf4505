//! Promise 3, the agent's half: a receipt is a node's word that it *serves* a generation. When
//! it is said, that route is in place, and what was assigned with that generation answers.

use std::collections::BTreeMap;

use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::route::{CandidateUsage, Route};
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::report::{Receipt, Role, Serving};

use super::Verdicts;

/// A node gives its word, with these routes in place and this on its disk. What it said
/// `before` it may say again while another version stands in: a withdrawal can change what a
/// generation comes to, and the word names the version.
pub fn said(
    node: usize,
    receipt: &Receipt,
    routes: &BTreeMap<ModelName, (Route, [u8; 8])>,
    disk: &DurableState,
    before: Option<Generation>,
    verdicts: &mut Verdicts,
) {
    let model = &receipt.model;
    let mut broken = |what: String| verdicts.broken(3, Some(node), what);
    let route = routes.get(model).map(|(route, _)| route);
    if route.is_none_or(|route| route.generation != receipt.generation) {
        broken(format!(
            "it says that it serves generation {} of {model}, and its route has {:?}",
            receipt.generation,
            route.map(|route| route.generation)
        ));
    }
    let served: Vec<Serving> = route.into_iter().flat_map(serving).collect();
    if served != receipt.serving {
        broken(format!(
            "it says that it serves {:?}, and serves {served:?}",
            receipt.serving
        ));
    }
    let assigned = disk.assignments.get(model);
    let stable = served.iter().find(|s| s.role == Role::Stable);
    let reached = assigned.is_none_or(|assigned| {
        assigned.generation != receipt.generation || assigned.stable == stable.map(|s| s.version)
    });
    if !reached && before < Some(receipt.generation) {
        broken(format!(
            "it says that it serves generation {} of {model}, whose stable version it does not",
            receipt.generation
        ));
    }
}

/// What a route serves, in the order of a receipt.
fn serving(route: &Route) -> impl Iterator<Item = Serving> {
    let stable = route.stable.map(|version| Serving {
        role: Role::Stable,
        version,
    });
    let candidate = route.candidate.as_ref().map(|candidate| Serving {
        role: match candidate.usage {
            CandidateUsage::Shadow(_) => Role::Shadow,
            CandidateUsage::Canary(_) => Role::Candidate,
        },
        version: candidate.version,
    });
    stable.into_iter().chain(candidate)
}
