//! How a withdrawal, or a rehearsal of one, spread: exact figures, and a histogram that is kept
//! when the figures of single nodes are not.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::histogram::Histogram;
use rollcall_shared::ids::NodeId;
use rollcall_shared::limits::RECEIPTS_RECORDED_MAX;
use rollcall_shared::version::Version;

use crate::record::Propagation;

/// One node's answer.
pub(crate) struct Arrival<'a> {
    pub(crate) node: &'a NodeId,
    /// From the decision to the answer in hand.
    pub(crate) after: Duration,
    /// What it serves by right.
    pub(crate) serving: Option<Version>,
}

/// What one model's rollbacks came to since this process began: what monitoring adds up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// From the decision to each receipt.
    pub(crate) receipts: Histogram,
    /// Nodes that a lease had fenced when a rollback settled.
    pub(crate) fenced: u64,
    /// Rehearsals that began.
    pub(crate) rehearsals: u64,
    /// From the beginning of a rehearsal to each answer.
    pub(crate) rehearsed: Histogram,
}

impl Propagation {
    /// Of those that answered; `should_serve` is what the withdrawal names.
    pub(crate) fn of<'a>(
        arrivals: impl Iterator<Item = Arrival<'a>>,
        should_serve: Option<Version>,
    ) -> Self {
        let mut propagation = Self::default();
        for Arrival {
            node,
            after,
            serving,
        } in arrivals
        {
            propagation.histogram.record(after);
            propagation.receipts_ms.insert(node.clone(), millis(after));
            if serving != should_serve {
                propagation.serving_otherwise.insert(node.clone(), serving);
            }
        }
        let ordered = slowest_last(&propagation.receipts_ms);
        let last = ordered
            .last()
            .map(|(node, after)| ((*node).clone(), *after));
        propagation.received = ordered.len() as u64;
        propagation.p50_ms = percentile(&ordered, 50);
        propagation.p99_ms = percentile(&ordered, 99);
        (propagation.last_node, propagation.max_ms) = last.unzip();
        propagation
    }

    /// As the journal keeps it: of the receipts only the slowest one by one.
    pub(crate) fn recorded(mut self) -> Self {
        let ordered = slowest_last(&self.receipts_ms);
        let left_out = ordered.len().saturating_sub(RECEIPTS_RECORDED_MAX);
        let left_out: Vec<NodeId> = ordered[..left_out]
            .iter()
            .map(|(node, _)| (*node).clone())
            .collect();
        for node in left_out {
            self.receipts_ms.remove(&node);
            self.serving_otherwise.remove(&node);
        }
        self
    }

    /// Of all receipts. Records of earlier releases have none, but name every receipt.
    pub(crate) fn histogram(&self) -> Histogram {
        if !self.histogram.is_empty() {
            return self.histogram.clone();
        }
        let mut histogram = Histogram::default();
        for after in self.receipts_ms.values() {
            histogram.record(Duration::from_secs_f64((after / 1e3).max(0.0)));
        }
        histogram
    }
}

fn slowest_last(receipts: &BTreeMap<NodeId, f64>) -> Vec<(&NodeId, f64)> {
    let mut ordered: Vec<(&NodeId, f64)> = receipts
        .iter()
        .map(|(node, after)| (node, *after))
        .collect();
    ordered.sort_by(|a, b| a.1.total_cmp(&b.1));
    ordered
}

/// Nearest rank.
fn percentile(ordered: &[(&NodeId, f64)], percent: usize) -> Option<f64> {
    let rank = (ordered.len() * percent).div_ceil(100).max(1);
    ordered.get(rank - 1).map(|(_, after)| *after)
}

/// Milliseconds to a microsecond.
pub(crate) fn millis(duration: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 microseconds")]
    let micros = duration.as_micros() as f64;
    micros / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(nodes: u64) -> Propagation {
        let names: Vec<NodeId> = (0..nodes)
            .map(|n| NodeId::new(format!("node-{n}")).unwrap())
            .collect();
        let arrivals = names.iter().zip(1..).map(|(node, ms)| Arrival {
            node,
            after: Duration::from_millis(ms),
            serving: None,
        });
        Propagation::of(arrivals, None)
    }

    #[test]
    fn the_record_of_a_large_fleet_names_the_slowest_and_counts_all() {
        let all = spread(10_000);
        let recorded = all.clone().recorded();
        assert_eq!(recorded.receipts_ms.len(), RECEIPTS_RECORDED_MAX);
        assert!(recorded.receipts_ms.values().all(|ms| *ms > 9_000.0));
        assert_eq!(recorded.histogram.count(), 10_000);
        assert_eq!(
            (recorded.p50_ms, recorded.max_ms, recorded.received),
            (Some(5_000.0), Some(10_000.0), 10_000)
        );
        let bytes = serde_json::to_vec(&recorded).unwrap().len();
        assert!(bytes < 64 << 10, "{bytes} bytes of journal");
    }

    #[test]
    fn a_small_fleet_is_recorded_whole() {
        assert_eq!(spread(7).recorded(), spread(7));
    }

    #[test]
    fn a_record_of_an_earlier_release_reads_and_keeps_its_bytes() {
        let old = r#"{"p50_ms":3.0,"p99_ms":8.0,"max_ms":8.0,"last_node":"node-2","received":2,"receipts_ms":{"node-1":3.0,"node-2":8.0},"fenced":{},"silent":[]}"#;
        let read: Propagation = serde_json::from_str(old).unwrap();
        assert_eq!(read.histogram().count(), 2);
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            old,
            "the chain of hashes is over these bytes"
        );
    }
}
