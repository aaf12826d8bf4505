//! The judge that ships, fed as the coordinator feeds it.

use std::time::Duration;

use rollcall_coordinator_core::judge::{Baseline, Evidence, Loads, Recent, judge};
use rollcall_shared::plan::{Policy, Preset};
use rollcall_shared::report::Counts;
use rollcall_shared::verdict::Outcome;

use super::draws::Interval;
use super::scenario::NODES;
use super::{Judge, Setting, Word};

/// See the module.
#[derive(Debug)]
pub(super) struct Rollcall {
    policy: Policy,
    shadow: bool,
    candidate: Counts,
    stable: Counts,
}

impl Rollcall {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            policy: Policy {
                agreement_min: setting.agreement_min,
                check_every: Duration::from_secs(1),
                ..Preset::Balanced.policy()
            },
            shadow: setting.agreement_min.is_some(),
            candidate: Counts::default(),
            stable: Counts::default(),
        }
    }
}

impl Judge for Rollcall {
    fn see(&mut self, interval: &Interval) {
        self.candidate.merge(&interval.fleet.candidate.counts);
        self.stable.merge(&interval.fleet.stable.counts);
    }

    fn verdict(&mut self) -> Word {
        let verdict = judge(
            &self.policy,
            &Evidence {
                candidate: Some(&self.candidate),
                recent: Recent {
                    candidate: &self.candidate,
                    stable: &self.stable,
                },
                shadow: self.shadow,
                baseline: Baseline::Concurrent(&self.stable),
                loads: Loads {
                    nodes: NODES as u64,
                    failed: 0,
                },
            },
        );
        match verdict.outcome {
            Outcome::Pass => Word::Pass,
            Outcome::Insufficient => Word::Hold,
            Outcome::Fail => Word::Fail,
        }
    }
}
