//! What this process knows of a live rollout's current stage: memory only, and empty after a
//! restart.

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_shared::ids::NodeId;
use rollcall_shared::report::Series;
use rollcall_shared::time::Timestamp;
use rollcall_shared::verdict::Verdict;

use crate::judge::watch::{Arm, Watch};

/// What is reported within so long happened at the same time. Windows of reports are about as
/// long; and the judge's looks end an interval too.
const INTERVAL: Duration = Duration::from_secs(1);

/// Evidence and clocks of one stage.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// Since the stage began, or this process.
    pub(crate) watch: Watch,
    /// Nodes whose breaker opened.
    pub(crate) breakers: BTreeSet<NodeId>,
    interval_began: Timestamp,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) stepped_at: Timestamp,
    pub(crate) wake_at: Timestamp,
}

impl Trial {
    /// To be looked at at once.
    pub(crate) const fn new(watch: Watch, now: Timestamp) -> Self {
        Self {
            watch,
            breakers: BTreeSet::new(),
            interval_began: now,
            verdict: None,
            stepped_at: now,
            wake_at: now,
        }
    }

    pub(crate) fn see(&mut self, node: &NodeId, arm: Arm, series: &Series, now: Timestamp) {
        if now >= self.interval_began + INTERVAL {
            self.end_interval(now);
        }
        self.watch.see(node, arm, &series.counts, &series.segments);
    }

    /// By the clock only: see [`crate::judge::watch`].
    pub(crate) fn end_interval(&mut self, now: Timestamp) {
        self.watch.close();
        self.interval_began = now;
    }
}
