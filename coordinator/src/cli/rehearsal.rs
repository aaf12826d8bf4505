//! What a rehearsal of a rollback found, for people and for exit codes.

use std::time::Duration;

use rollcall_coordinator_core::view::{RehearsalView, UnreadyNode};
use rollcall_shared::ids::NodeId;
use rollcall_shared::time::display_duration;

use super::output::{fields, ms, or_dash, table};
use super::{CliError, explain, receipts, rollback};

pub(super) fn text(view: &RehearsalView, all: bool) -> String {
    let spread = &view.as_if;
    let head = fields([
        (
            "Rehearsed",
            format!(
                "the rollback of {}@{} ({}); nothing was changed",
                spread.model, spread.withdrawn, spread.rollout
            ),
        ),
        ("Would serve", rollback::serving(spread.serving)),
        ("Cause", explain::cause(&spread.cause)),
        (
            "Began",
            format!("{}, record {}", spread.decided_at, view.number),
        ),
        (
            "Answers",
            format!(
                "{} of {} nodes, {} not ready",
                spread.receipts.received,
                spread.receipts.expected,
                view.unready.len()
            ),
        ),
        ("Propagation", receipts::propagation(&spread.propagation_ms)),
        ("Last node", or_dash(spread.last_node.as_ref())),
        ("Rollback", expected(view)),
    ]);
    format!(
        "{head}{}{}{}",
        unready(&view.unready),
        receipts::nodes(spread, all),
        receipts::histogram(&spread.histogram)
    )
}

fn expected(view: &RehearsalView) -> String {
    let everybody = view.unready.is_empty() && view.as_if.receipts.silent.is_empty();
    match view.expected_ms {
        Some(answered) if everybody => {
            format!("would be settled within {}", ms(Some(answered)))
        }
        Some(fenced) => {
            let longest = Duration::from_secs_f64((fenced / 1e3).max(0.0));
            let longest =
                Duration::from_millis(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX));
            format!(
                "would be settled within {}, when the last lease is over",
                display_duration(longest)
            )
        }
        None => "would not be settled by itself: a node may go on by right until it answers or is \
                 revoked"
            .to_owned(),
    }
}

fn unready(nodes: &[UnreadyNode]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let rows = nodes.iter().map(|node| {
        [
            node.node.to_string(),
            or_dash(node.serving),
            or_dash(node.missing),
            node.why.clone(),
        ]
    });
    format!(
        "\n{}",
        table(["not ready", "would serve", "lacks", "why"], rows)
    )
}

/// Whether a rollback now would be done by every node at once.
pub(super) fn verdict(view: &RehearsalView) -> Result<(), CliError> {
    let unready: Vec<&NodeId> = view.unready.iter().map(|node| &node.node).collect();
    if !unready.is_empty() {
        return Err(CliError::Failed(format!(
            "not ready for a rollback: {}. See why above, or `rollcall agent show NODE`",
            receipts::some_names(&unready)
        )));
    }
    let silent = &view.as_if.receipts.silent;
    if silent.is_empty() {
        return Ok(());
    }
    Err(CliError::Waiting(format!(
        "not every node answered the rehearsal: {}. In a rollback each would be waited for until \
         its lease is over",
        receipts::some_names(silent)
    )))
}
