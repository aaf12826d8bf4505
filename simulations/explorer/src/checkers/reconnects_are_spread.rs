//! A fleet that lost its coordinator must not trample it when it comes back: nodes that
//! failed to connect again and again do so seldom, and not all at one moment. A part of
//! liveness. Only nodes with some failures behind them count: the first attempts follow the
//! loss at once, which is what makes a short interruption short.

use std::collections::VecDeque;
use std::time::Duration;

use rollcall_shared::time::Timestamp;

use super::{LIVENESS, Verdicts};

/// From so many failures in a row on a node's attempts count.
const FAILURES_MIN: u32 = 6;

/// Windows in which attempts are counted.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

/// Smaller fleets do come together at one moment now and then.
const CROWD: usize = 20;

/// Late attempts of the whole fleet.
#[derive(Debug)]
pub struct ReconnectsAreSpread {
    nodes: usize,
    attempts: VecDeque<Timestamp>,
}

impl ReconnectsAreSpread {
    /// Nobody lost anything yet.
    #[must_use]
    pub const fn new(nodes: usize) -> Self {
        Self {
            nodes,
            attempts: VecDeque::new(),
        }
    }

    /// A node tries to connect after so many failures.
    pub fn attempted(&mut self, failures: u32, verdicts: &mut Verdicts) {
        if failures < FAILURES_MIN {
            return;
        }
        let now = verdicts.now;
        self.attempts.push_back(now);
        while self
            .attempts
            .front()
            .is_some_and(|at| now.since(*at) > LONG)
        {
            self.attempts.pop_front();
        }
        let newest_first = self.attempts.iter().rev();
        let at_once = newest_first
            .take_while(|at| now.since(**at) <= SHORT)
            .count();
        // Three quarters of the nodes in one second: with full jitter over ten seconds one in
        // 10^8. More than .6 a second and node for so long: it is .17 where delays have grown.
        let (nodes, all) = (self.nodes, self.attempts.len());
        if nodes >= CROWD && at_once * 4 >= nodes * 3 {
            let what = format!("{at_once} of {nodes} nodes try to connect within one second");
            verdicts.broken(LIVENESS, None, what);
        }
        if all > nodes * 12 {
            let what = format!("{nodes} nodes tried to connect {all} times within {LONG:?}");
            verdicts.broken(LIVENESS, None, what);
        }
    }
}
