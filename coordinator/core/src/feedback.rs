//! Labels and outcomes that an operator pushes: handed on to the agents, which know which
//! version answered what.
//!
//! Best effort, and deliberately not in the journal: what agents join to their answers comes
//! back in their reports, like everything else that they count.

use rollcall_shared::feedback::{Feedback, FeedbackItem, check_items};
use rollcall_shared::ids::ModelName;
use rollcall_shared::wire::{PROTOCOL_QUALITY, ToAgent};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Effect, Refusal};

/// Bytes of items in one message, about: a withdrawal that takes the stream waits for what is
/// being written at most.
const MESSAGE_BYTES: usize = 32 << 10;

/// Names of nodes in an answer; the rest is a number.
const NAMES_MAX: usize = 100;

impl Coordinator {
    /// Hands feedback to every connected node that hosts the model and can read it.
    pub(crate) fn on_feedback(
        &self,
        turn: &mut Turn,
        model: ModelName,
        items: Vec<FeedbackItem>,
    ) -> Result<Done, Refusal> {
        if !self.state.models.contains_key(&model) {
            return Err(Refusal::NotFound(format!("there is no model {model}")));
        }
        check_items(&items).map_err(Refusal::Invalid)?;
        let (mut to, mut too_old) = (Vec::new(), Vec::new());
        for (node, connection) in self.fleet.connected_hosting(&model) {
            let protocol = self.fleet.nodes.get(&node).map(|p| p.protocol);
            if protocol >= Some(PROTOCOL_QUALITY) {
                to.push(connection);
            } else {
                too_old.push(node);
            }
        }
        let done = Done::FeedbackSent {
            nodes: to.len(),
            too_old: too_old.len(),
            too_old_nodes: too_old.into_iter().take(NAMES_MAX).collect(),
        };
        if !to.is_empty() {
            for items in in_parts(items) {
                let model = model.clone();
                turn.then(Effect::Offer {
                    to: to.clone(),
                    message: ToAgent::Feedback(Feedback { model, items }),
                });
            }
        }
        Ok(done)
    }
}

fn in_parts(items: Vec<FeedbackItem>) -> Vec<Vec<FeedbackItem>> {
    let mut parts: Vec<Vec<FeedbackItem>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let names = item.kpis.keys().map(|name| name.len() + size_of::<f64>());
        let label = item.label.as_ref().map_or(0, String::len);
        let more = item.id.len() + label + names.sum::<usize>();
        bytes += more;
        match parts.last_mut() {
            Some(part) if bytes <= MESSAGE_BYTES => part.push(item),
            Some(_) | None => {
                bytes = more;
                parts.push(vec![item]);
            }
        }
    }
    parts
}

#[cfg(test)]
#[path = "feedback/tests.rs"]
mod tests;
