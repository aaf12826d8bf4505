//! Pictures of rehearsals: what a rollback would come to, node by node.

use rollcall_shared::ids::{ModelName, NodeId};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::coordinator::Coordinator;
use crate::rehearsal::{Part, Rehearsing, Word};
use crate::rollback::millis;
use crate::view::rollbacks::{undecided_view, waiting_or_silent};
use crate::view::{RollbackNode, RollbackNodeState, RollbackView};

/// What a rollback would come to now: `rollcall rollback --rehearse -o json`. Nothing was
/// decided, and no route changed. As a [`RollbackView`], with these differences: receipts are
/// answers, nobody is fenced, and a node's `until` is when its lease would fence it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RehearsalView {
    /// Always: tells it from a rollback.
    pub rehearsal: bool,
    /// The journal's record that began it.
    pub number: u64,
    /// What the rollback would be; `settled`: nobody is waited for any longer.
    #[serde(flatten)]
    pub as_if: RollbackView,
    /// Nodes that answered, and would have nothing to serve or would have to load it first.
    pub unready: Vec<UnreadyNode>,
    /// After how many milliseconds the rollback would have been settled: with the last answer,
    /// or with the last lease of a node that is silent or unready. `None`: never by itself,
    /// because no lease ends one of them.
    pub expected_ms: Option<f64>,
}

/// A node that is not ready for a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadyNode {
    /// Which.
    pub node: NodeId,
    /// What would answer requests there at once; `None`: nothing.
    pub serving: Option<Version>,
    /// What it would have to load first.
    pub missing: Option<Version>,
    /// In words.
    pub why: String,
}

impl Coordinator {
    /// The last rehearsal of a model since this process began.
    #[must_use]
    pub fn rehearsal(&self, model: &ModelName) -> Option<RehearsalView> {
        let rehearsing = self.rehearsals.get(model)?;
        let propagation = rehearsing.propagation();
        let nodes = rehearsing.parts.iter();
        let nodes = nodes.map(|(node, part)| self.rehearsal_node(rehearsing, node, part));
        Some(RehearsalView {
            rehearsal: true,
            number: rehearsing.number,
            as_if: RollbackView {
                decided_at: rehearsing.began_at,
                settled: rehearsing.ended,
                nodes: nodes.collect(),
                nodes_unlisted: 0,
                ..undecided_view(&rehearsing.as_if, &rehearsing.cause, &propagation)
            },
            unready: unready_nodes(rehearsing),
            expected_ms: expected_ms(rehearsing),
        })
    }

    /// Whether nobody is waited for any longer; `None`: there was no rehearsal.
    #[must_use]
    pub fn rehearsal_is_over(&self, model: &ModelName) -> Option<bool> {
        self.rehearsals
            .get(model)
            .map(|rehearsing| rehearsing.ended)
    }

    fn rehearsal_node(&self, rehearsing: &Rehearsing, node: &NodeId, part: &Part) -> RollbackNode {
        let open = |why: String| RollbackNode {
            node: node.clone(),
            state: waiting_or_silent(part.fenced_at),
            after_ms: None,
            serving: None,
            until: part.fenced_at,
            why: Some(why),
        };
        match &part.word {
            Word::Answered { at, serving, .. } => RollbackNode {
                node: node.clone(),
                state: RollbackNodeState::Receipt,
                after_ms: Some(millis(at.since(rehearsing.began_at))),
                serving: *serving,
                until: None,
                why: None,
            },
            Word::TooOld { software } => {
                open(format!("cannot rehearse: software too old ({software})"))
            }
            Word::Lost => open("its connection ended before it answered".to_owned()),
            Word::Absent | Word::Asked(_) => open(self.why_silent(node, &rehearsing.as_if)),
        }
    }
}

fn unready_nodes(rehearsing: &Rehearsing) -> Vec<UnreadyNode> {
    let parts = rehearsing.parts.iter();
    parts
        .filter_map(|(node, part)| match &part.word {
            Word::Answered {
                serving,
                unready: Some(unready),
                ..
            } => Some(UnreadyNode {
                node: node.clone(),
                serving: *serving,
                missing: unready.missing,
                why: unready.why.clone(),
            }),
            Word::Answered { unready: None, .. }
            | Word::Absent
            | Word::TooOld { .. }
            | Word::Asked(_)
            | Word::Lost => None,
        })
        .collect()
}

/// When the last node would have answered or be fenced; `None` when one never would.
fn expected_ms(rehearsing: &Rehearsing) -> Option<f64> {
    let mut expected = rehearsing.began_at;
    for part in rehearsing.parts.values() {
        let until = match part.word {
            Word::Answered {
                at, unready: None, ..
            } => at,
            Word::Answered { .. }
            | Word::Absent
            | Word::TooOld { .. }
            | Word::Asked(_)
            | Word::Lost => part.fenced_at?,
        };
        expected = expected.max(until);
    }
    Some(millis(expected.since(rehearsing.began_at)))
}
