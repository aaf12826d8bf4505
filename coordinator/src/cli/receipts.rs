//! How a rollback or a rehearsal spread, for people: figures, the nodes that need a look, the
//! slowest of the others, and the histogram of all.

use rollcall_coordinator_core::view::{
    HistogramBin, PropagationMs, RollbackNode, RollbackNodeState, RollbackSummary, RollbackView,
};

use super::output::{fields, joined, ms, or_dash, table};
use super::{explain, rollback};

/// Nodes with receipts that are shown unless all are asked for: those that took longest.
const SLOWEST_SHOWN: usize = 10;

/// Names in one line of an error.
const NAMES_SHOWN: usize = 10;

/// Rows of a histogram, and characters of its longest bar.
const ROWS_MAX: usize = 12;
const BAR_CHARS: u64 = 40;

/// A rollback.
pub(super) fn text(view: &RollbackView, all: bool) -> String {
    let receipts = &view.receipts;
    let head = fields([
        (
            "Withdrawn",
            format!(
                "{}@{} ({}, generation {})",
                view.model, view.withdrawn, view.rollout, view.generation
            ),
        ),
        ("Serving", rollback::serving(view.serving)),
        ("Cause", explain::cause(&view.cause)),
        ("Decided", view.decided_at.to_string()),
        (
            "Receipts",
            format!("{} of {} nodes", receipts.received, receipts.expected),
        ),
        ("Propagation", propagation(&view.propagation_ms)),
        ("Last node", or_dash(view.last_node.as_ref())),
        ("Fenced", count(receipts.fenced.len())),
        ("Silent", count(receipts.silent.len())),
    ]);
    format!("{head}{}{}", nodes(view, all), histogram(&view.histogram))
}

/// A rollback in one line and a histogram, beneath its rollout.
pub(super) fn summary(rollback: &RollbackSummary) -> String {
    let open = if rollback.settled {
        ""
    } else {
        ", not settled"
    };
    let head = fields([
        (
            "Rollback",
            format!(
                "{} of {} nodes sent receipts, {} fenced, {} silent{open}",
                rollback.received, rollback.expected, rollback.fenced, rollback.silent
            ),
        ),
        ("Propagation", propagation(&rollback.propagation_ms)),
        ("Last node", or_dash(rollback.last_node.as_ref())),
    ]);
    format!("{head}{}", histogram(&rollback.histogram))
}

pub(super) fn propagation(times: &PropagationMs) -> String {
    format!(
        "p50 {}, p99 {}, max {}",
        ms(times.p50),
        ms(times.p99),
        ms(times.max)
    )
}

fn count(nodes: usize) -> String {
    match nodes {
        0 => "-".to_owned(),
        1 => "1 node".to_owned(),
        nodes => format!("{nodes} nodes"),
    }
}

/// Some names, and how many more there are.
pub(super) fn some_names<T: ToString>(nodes: &[T]) -> String {
    let more = nodes.len().saturating_sub(NAMES_SHOWN);
    let names = joined(nodes.iter().take(NAMES_SHOWN).map(ToString::to_string));
    if more == 0 {
        names
    } else {
        format!("{names} and {more} more")
    }
}

/// Every node without a receipt, what stops nobody first; then the slowest receipts, or all.
pub(super) fn nodes(view: &RollbackView, all: bool) -> String {
    let mut nodes: Vec<&RollbackNode> = view.nodes.iter().collect();
    nodes.sort_by(|a, b| {
        urgency(a.state)
            .cmp(&urgency(b.state))
            .then_with(|| slower(a, b))
    });
    let is_receipt = |node: &&&RollbackNode| node.state == RollbackNodeState::Receipt;
    let receipts = nodes.iter().filter(is_receipt).count();
    let left_out = if all {
        0
    } else {
        receipts.saturating_sub(SLOWEST_SHOWN)
    };
    nodes.truncate(nodes.len() - left_out);
    if nodes.is_empty() {
        return String::new();
    }
    let rows = table(
        ["node", "state", "after", "serving", "lease until", "known"],
        nodes.iter().map(|node| {
            [
                node.node.to_string(),
                state(node.state).to_owned(),
                ms(node.after_ms),
                or_dash(node.serving),
                or_dash(node.until),
                or_dash(node.why.as_ref()),
            ]
        }),
    );
    let faster = match left_out {
        0 => String::new(),
        more => format!("{more} more nodes were faster: --all shows them\n"),
    };
    let unlisted = match view.nodes_unlisted {
        0 => String::new(),
        more => format!("{more} more nodes were faster; the journal keeps the slowest by name\n"),
    };
    format!("\n{rows}{faster}{unlisted}")
}

const fn urgency(state: RollbackNodeState) -> u8 {
    match state {
        RollbackNodeState::Silent => 0,
        RollbackNodeState::Waiting => 1,
        RollbackNodeState::Fenced => 2,
        RollbackNodeState::Receipt => 3,
    }
}

fn slower(a: &RollbackNode, b: &RollbackNode) -> std::cmp::Ordering {
    let after = |node: &RollbackNode| node.after_ms.unwrap_or_default();
    let by_time = after(b).total_cmp(&after(a));
    by_time
        .then_with(|| b.until.cmp(&a.until))
        .then_with(|| a.node.cmp(&b.node))
}

const fn state(state: RollbackNodeState) -> &'static str {
    match state {
        RollbackNodeState::Receipt => "answered",
        RollbackNodeState::Fenced => "fenced by its lease",
        RollbackNodeState::Waiting => "silent until its lease ends",
        RollbackNodeState::Silent => "silent, no lease stops it",
    }
}

/// A few rows, each with a bar; nothing when nobody answered.
pub(super) fn histogram(bins: &[HistogramBin]) -> String {
    let rows: Vec<(f64, u64)> = bins
        .chunks(bins.len().div_ceil(ROWS_MAX).max(1))
        .filter_map(|chunk| {
            let nodes = chunk.iter().map(|bin| bin.count).sum();
            Some((chunk.last()?.le_ms, nodes))
        })
        .collect();
    let Some(most) = rows.iter().map(|(_, nodes)| *nodes).max() else {
        return String::new();
    };
    let bar = |nodes: u64| {
        let chars = (nodes * BAR_CHARS).div_ceil(most.max(1));
        "#".repeat(usize::try_from(chars).unwrap_or_default())
    };
    let table = table(
        ["within", "nodes", ""],
        rows.iter()
            .map(|(le_ms, nodes)| [ms(Some(*le_ms)), nodes.to_string(), bar(*nodes)]),
    );
    format!("\n{table}")
}

#[cfg(test)]
mod tests {
    use rollcall_coordinator_core::record::Cause;
    use rollcall_coordinator_core::view::ReceiptCounts;
    use rollcall_shared::ids::{Generation, NodeId, RolloutId};
    use rollcall_shared::time::Timestamp;
    use rollcall_shared::version::Version;

    use super::*;

    fn node(n: u32, state: RollbackNodeState) -> RollbackNode {
        let is_receipt = state == RollbackNodeState::Receipt;
        RollbackNode {
            node: NodeId::new(format!("node-{n}")).unwrap(),
            state,
            after_ms: is_receipt.then(|| f64::from(n)),
            serving: None,
            until: None,
            why: None,
        }
    }

    fn fleet(receipts: u32) -> RollbackView {
        let mut nodes: Vec<_> = (1..=receipts)
            .map(|n| node(n, RollbackNodeState::Receipt))
            .collect();
        nodes.push(node(20_001, RollbackNodeState::Fenced));
        nodes.push(node(20_002, RollbackNodeState::Silent));
        nodes.push(node(20_003, RollbackNodeState::Waiting));
        RollbackView {
            model: "digits".parse().unwrap(),
            rollout: RolloutId(7),
            generation: Generation(12),
            withdrawn: Version::new(2, 0, 0),
            serving: None,
            cause: Cause::Operator {
                actor: "ana".to_owned(),
                reason: "bad".to_owned(),
            },
            decided_at: Timestamp::ZERO,
            receipts: ReceiptCounts::default(),
            propagation_ms: PropagationMs::default(),
            last_node: None,
            settled: false,
            histogram: vec![],
            nodes,
            nodes_unlisted: 0,
        }
    }

    #[test]
    fn ten_thousand_nodes_are_a_screen_with_those_that_need_a_look_first() {
        let text = nodes(&fleet(10_000), false);
        let first: Vec<&str> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let expected = [
            "node-20002",
            "node-20003",
            "node-20001",
            "node-10000",
            "node-9999",
        ];
        assert_eq!(first[..5], expected);
        assert_eq!(text.lines().count(), 2 + 3 + SLOWEST_SHOWN + 1, "{text}");
        assert!(text.contains("9990 more nodes were faster"));
        let all = nodes(&fleet(10_000), true);
        assert_eq!(all.lines().count(), 2 + 10_003);
    }

    #[test]
    fn a_histogram_has_a_few_rows_and_loses_nobody() {
        let bins: Vec<HistogramBin> = (1..=100)
            .map(|n| HistogramBin {
                le_ms: f64::from(n),
                count: 3,
            })
            .collect();
        let text = histogram(&bins);
        let counts = text.lines().skip(2).map(|line| {
            let mut words = line.split_whitespace().skip(2);
            words.next().unwrap().parse::<u64>().unwrap()
        });
        let counts: Vec<u64> = counts.collect();
        assert!(counts.len() <= ROWS_MAX);
        assert_eq!(counts.iter().sum::<u64>(), 300);
        assert!(text.contains(&"#".repeat(40)) && !text.contains(&"#".repeat(41)));
        assert_eq!(histogram(&[]), "");
    }

    #[test]
    fn a_long_list_of_names_is_cut() {
        let names: Vec<u32> = (1..=12).collect();
        assert!(some_names(&names).ends_with("10 and 2 more"));
        assert_eq!(some_names(&names[..2]), "1, 2");
    }
}
