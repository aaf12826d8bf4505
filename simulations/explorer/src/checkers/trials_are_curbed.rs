//! Promise 1, in the request path: a candidate that fails again and again costs clients its
//! time only a few times, then about once a minute; and one that recovered gets requests
//! again (that half is liveness).

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::time::Timestamp;

use super::{LIVENESS, Verdicts};

/// So many failures in a row may be as near each other as requests are.
const FAILURES_MAX: u32 = 5;

/// How long requests are kept from the candidate after that.
const APART: Duration = Duration::from_secs(60);

/// What clocks may run apart, with room.
const DRIFT: Duration = Duration::from_secs(1);

/// Requests to the candidate of one rollout on one node.
#[derive(Debug)]
struct Trial {
    rollout: RolloutId,
    failures_in_a_row: u32,
    last_run: Timestamp,
}

/// What requests to candidates came to, in each node's present process.
#[derive(Debug)]
pub struct TrialsAreCurbed {
    trials: Vec<BTreeMap<ModelName, Trial>>,
}

impl TrialsAreCurbed {
    /// Nobody tried anything yet.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            trials: std::iter::repeat_with(BTreeMap::new).take(nodes).collect(),
        }
    }

    pub(super) fn process_started(&mut self, node: usize) {
        self.trials[node].clear();
    }

    /// The candidate left the route; a breaker goes with it.
    pub fn ended(&mut self, node: usize, model: &ModelName) {
        self.trials[node].remove(model);
    }

    fn trial(
        &mut self,
        node: usize,
        model: &ModelName,
        rollout: RolloutId,
        now: Timestamp,
    ) -> &mut Trial {
        let fresh = Trial {
            rollout,
            failures_in_a_row: 0,
            last_run: now,
        };
        let trials = &mut self.trials[node];
        if trials.get(model).is_none_or(|held| held.rollout != rollout) {
            trials.insert(model.clone(), fresh);
        }
        trials.get_mut(model).expect("it was just put there")
    }

    /// The candidate ran for a request.
    pub fn ran(
        &mut self,
        node: usize,
        model: &ModelName,
        rollout: RolloutId,
        succeeded: bool,
        verdicts: &mut Verdicts,
    ) {
        let now = verdicts.now;
        let trial = self.trial(node, model, rollout, now);
        let after = now.since(trial.last_run);
        trial.last_run = now;
        if succeeded {
            trial.failures_in_a_row = 0;
            return;
        }
        trial.failures_in_a_row += 1;
        let failures = trial.failures_in_a_row;
        if failures > FAILURES_MAX && after + DRIFT < APART {
            let what = format!(
                "the candidate of {model} failed {failures} requests in a row, the last one only \
                 {after:?} after the one before"
            );
            verdicts.broken(1, Some(node), what);
        }
    }

    /// The breaker kept a request from the candidate.
    pub fn denied(
        &mut self,
        node: usize,
        model: &ModelName,
        rollout: RolloutId,
        verdicts: &mut Verdicts,
    ) {
        let now = verdicts.now;
        let trial = self.trial(node, model, rollout, now);
        let since = now.since(trial.last_run);
        if since > APART + DRIFT {
            let what = format!(
                "the candidate of {model} has got no request for {since:?}, not even to try"
            );
            verdicts.broken(LIVENESS, Some(node), what);
        }
    }
}
