//! The judge that ships, fed as the coordinator feeds it: node by node, an interval closed every
//! second and judged at once. A node that is blamed loses the candidate, and the stage begins
//! anew without it; since draws are the same for every judge, its counts are left out from then
//! on.
//!
//! Held to: no worse than stable at all (multiples of 1) in errors, and in latency at any
//! quantile by more than the millisecond that always counts as noise. Absolute limits are left
//! out: they need no test to be compared by. Shadows are held to agreement alone: a multiple of
//! exactly 1 holds the gate for an equal candidate every second time.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rollcall_coordinator_core::judge::rules::{Baseline, rules};
use rollcall_coordinator_core::judge::watch::{Arm, Watch};
use rollcall_coordinator_core::judge::{Breakers, Evidence, Loads, judge};
use rollcall_shared::ids::NodeId;
use rollcall_shared::plan::{Policy, Preset};
use rollcall_shared::verdict::Outcome;

use super::draws::Interval;
use super::scenario::NODES;
use super::{Judge, Setting, Word};

/// See the module.
#[derive(Debug)]
pub(super) struct Rollcall {
    policy: Policy,
    shadow: bool,
    nodes: Vec<NodeId>,
    barred: BTreeSet<NodeId>,
    watch: Watch,
}

impl Rollcall {
    pub(super) fn new(setting: &Setting) -> Self {
        let shadow = setting.agreement_min.is_some();
        let multiple = (!shadow).then_some(1.0);
        let policy = Policy {
            alpha: setting.alpha,
            error_rate_max: None,
            error_multiplier_max: multiple,
            latency_multiplier_max: multiple,
            agreement_min: setting.agreement_min,
            ..Preset::Balanced.policy()
        };
        let nodes = (0..NODES).filter_map(|node| NodeId::new(format!("node-{node}")).ok());
        Self {
            watch: watch(&policy, shadow),
            nodes: nodes.collect(),
            barred: BTreeSet::new(),
            policy,
            shadow,
        }
    }
}

fn watch(policy: &Policy, shadow: bool) -> Watch {
    Watch::new(policy, rules(policy, &Baseline::Concurrent, shadow), shadow)
}

impl Judge for Rollcall {
    fn see(&mut self, interval: &Interval) {
        for (node, arms) in self.nodes.iter().zip(&interval.nodes) {
            if self.barred.contains(node) {
                continue;
            }
            for (arm, observed) in [
                (Arm::Candidate, &arms.candidate),
                (Arm::Stable, &arms.stable),
            ] {
                let (counts, segments) = (&observed.counts, &observed.segments);
                if counts.requests > 0 {
                    self.watch.see(node, arm, counts, segments);
                }
            }
        }
        self.watch.close();
    }

    fn verdict(&mut self) -> Word {
        let nodes = (self.nodes.len() - self.barred.len()) as u64;
        let verdict = judge(
            &self.policy,
            &Evidence {
                loads: Loads { nodes, failed: 0 },
                breakers: Breakers {
                    nodes,
                    opened: BTreeSet::new(),
                },
                watch: Some(Cow::Borrowed(&self.watch)),
            },
        );
        if verdict.outcome == Outcome::Fail {
            return Word::Fail;
        }
        if let Some(node) = verdict.blamed {
            let nth = self.nodes.iter().position(|known| *known == node);
            self.watch = watch(&self.policy, self.shadow);
            self.barred.insert(node);
            return nth.map_or(Word::Hold, Word::Quarantine);
        }
        match verdict.outcome {
            Outcome::Pass => Word::Pass,
            Outcome::Insufficient | Outcome::Fail => Word::Hold,
        }
    }
}
