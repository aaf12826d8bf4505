//! What is seen of a candidate and of stable in one stage, and the tests over it.
//!
//! Counts come in node by node, as reports do, and make up intervals: what was seen at about
//! the same time. At the end of an interval the tests take it in; they never see what is still
//! under way. Whoever calls decides when that is, by the clock and not by the counts: otherwise
//! he would choose what the tests see, and they would not be valid.
//!
//! Nodes that had the candidate are dealt to [`GROUPS`] groups in the order in which they first
//! reported of it; see [`super::history`].

use std::collections::BTreeMap;

use rollcall_shared::ids::NodeId;
use rollcall_shared::limits::SEGMENTS_MAX;
use rollcall_shared::plan::Policy;
use rollcall_shared::report::{Counts, OTHER_SEGMENT, Quality, Segment};
use serde::{Deserialize, Serialize};

use super::battery::Battery;
use super::count;
use super::history::{GROUPS, History, Interval, Pair, Sample};
use super::rules::Rule;

/// After so many intervals the older half of what is known of a single node is forgotten.
const INTERVALS_OF_NODES: u64 = 64;

/// Whose counts they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The version on trial, or its shadow.
    Candidate,
    /// What it is compared with.
    Stable,
}

/// Requests of the candidate and of stable in the same time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Of the version on trial.
    pub candidate: Counts,
    /// Of what it is compared with.
    pub stable: Counts,
}

impl Seen {
    fn add(&mut self, arm: Arm, counts: &Counts) {
        match arm {
            Arm::Candidate => self.candidate.merge(counts),
            Arm::Stable => self.stable.merge(counts),
        }
    }
}

/// All requests of a stage, or those of one segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Since the stage began, or this process.
    pub seen: Seen,
    /// The tests.
    pub battery: Battery,
    /// What they saw.
    pub history: History,
    #[serde(skip)]
    under_way: Interval,
}

impl Line {
    fn new(policy: &Policy, rules: &[Rule]) -> Self {
        Self {
            seen: Seen::default(),
            battery: Battery::new(policy, rules),
            history: History::default(),
            under_way: Interval::default(),
        }
    }

    fn add(&mut self, arm: Arm, group: Option<usize>, counts: &Counts) {
        self.seen.add(arm, counts);
        let sample = Sample::of(counts);
        let place = match (group, arm) {
            (Some(group), Arm::Candidate) => &mut self.under_way.groups[group].candidate,
            (Some(group), Arm::Stable) => &mut self.under_way.groups[group].stable,
            (None, _) => &mut self.under_way.others,
        };
        place.merge(&sample);
    }

    fn close(&mut self) {
        if self.under_way == Interval::default() {
            return;
        }
        let interval = std::mem::take(&mut self.under_way);
        self.battery.see(&interval.pair(None));
        self.history.push(interval);
    }

    /// The least evidence against rule number `rule` when one group of nodes is left out, and
    /// which; `None` where only one group had the candidate.
    pub(super) fn without_worst(
        &self,
        policy: &Policy,
        rules: &[Rule],
        rule: usize,
    ) -> Option<(f64, usize)> {
        let groups: Vec<usize> = self.history.groups().collect();
        if groups.len() < 2 {
            return None;
        }
        let without = |group| {
            let mut test = Battery::only(policy, rules, rule);
            for interval in self.history.intervals() {
                test.see(&interval.pair(Some(group)));
            }
            (test.log_e(0), group)
        };
        groups
            .into_iter()
            .map(without)
            .min_by(|a, b| a.0.total_cmp(&b.0))
    }
}

/// One node with the candidate.
#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    group: usize,
    older: Pair,
    newer: Pair,
}

/// One stage, watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// What the candidate is held to.
    pub rules: Vec<Rule>,
    /// Whether it only shadows.
    pub shadow: bool,
    /// Inputs in training, by feature, in the bins that the manifest gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trained_on: BTreeMap<String, Vec<u64>>,
    /// All requests.
    pub all: Line,
    /// Those of each segment.
    pub segments: BTreeMap<String, Line>,
    #[serde(skip)]
    policy: Option<Policy>,
    #[serde(skip)]
    nodes: BTreeMap<NodeId, Node>,
    #[serde(skip)]
    intervals: u64,
}

impl Watch {
    /// Nothing seen.
    #[must_use]
    pub fn new(policy: &Policy, rules: Vec<Rule>, shadow: bool) -> Self {
        Self {
            shadow,
            trained_on: BTreeMap::new(),
            all: Line::new(policy, &rules),
            segments: BTreeMap::new(),
            policy: Some(policy.clone()),
            nodes: BTreeMap::new(),
            intervals: 0,
            rules,
        }
    }

    /// Takes in what a node counted of one version, and the same by segment. What only belongs to
    /// what it is compared with, because the node does not have the candidate, counts there.
    pub fn see(&mut self, node: &NodeId, arm: Arm, counts: &Counts, segments: &[Segment]) {
        let dealt = self.nodes.len();
        if arm == Arm::Candidate && counts.requests > 0 && !self.nodes.contains_key(node) {
            let new = Node {
                group: dealt % GROUPS,
                ..Node::default()
            };
            self.nodes.insert(node.clone(), new);
        }
        let group = self.nodes.get_mut(node).map(|known| {
            let place = match arm {
                Arm::Candidate => &mut known.newer.candidate,
                Arm::Stable => &mut known.newer.stable,
            };
            place.merge(&Sample::of(counts));
            known.group
        });
        self.all.add(arm, group, counts);
        for segment in segments {
            self.segment(&segment.name).add(arm, group, &segment.counts);
        }
    }

    /// Takes in what came of answers that were counted before.
    pub fn note_outcomes(&mut self, arm: Arm, quality: &Quality) {
        let outcomes = Quality {
            labelled: quality.labelled.clone(),
            calibration: quality.calibration.clone(),
            kpis: quality.kpis.clone(),
            ..Quality::default()
        };
        let counts = match arm {
            Arm::Candidate => &mut self.all.seen.candidate,
            Arm::Stable => &mut self.all.seen.stable,
        };
        counts.quality.merge(&outcomes);
    }

    /// Ends the interval.
    pub fn close(&mut self) {
        self.all.close();
        self.segments.values_mut().for_each(Line::close);
        self.intervals += 1;
        if self.intervals.is_multiple_of(INTERVALS_OF_NODES) {
            for node in self.nodes.values_mut() {
                node.older = std::mem::take(&mut node.newer);
            }
        }
    }

    /// What a record keeps: all requests, and of the segments those that a verdict can rest on.
    #[must_use]
    pub fn abridged(&self) -> Self {
        let loudest = |rule| {
            let line = |line: &Line| line.battery.log_e(rule);
            let mut all = self.segments.iter();
            let first = all.next()?;
            let loudest = all.fold(first, |most, next| {
                if line(next.1) > line(most.1) {
                    next
                } else {
                    most
                }
            });
            Some(loudest.0.clone())
        };
        let kept: Vec<_> = (0..self.rules.len()).filter_map(loudest).collect();
        let mut short = self.clone();
        short.segments.retain(|name, _| kept.contains(name));
        short
    }

    /// The node of a group that differs most from the other nodes with the candidate, in what
    /// counts against a rule.
    pub(super) fn culprit(&self, line: &Line, rule: usize, group: usize) -> Option<NodeId> {
        let hits = |node: &Node| {
            let of = |pair: &Pair| line.battery.hits(rule, &pair.candidate);
            let (older, newer) = (of(&node.older), of(&node.newer));
            (count(older.n + newer.n), count(older.hits + newer.hits))
        };
        let others = self.nodes.values().filter(|node| node.group != group);
        let (n, x) = others
            .map(hits)
            .fold((1.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        let share = x / n;
        let excess = |node: &Node| {
            let (n, x) = hits(node);
            (x - n * share) / (n * share).sqrt().max(1.0)
        };
        let group = self.nodes.iter().filter(|(_, node)| node.group == group);
        group
            .max_by(|a, b| excess(a.1).total_cmp(&excess(b.1)))
            .map(|(node, _)| node.clone())
    }

    fn segment(&mut self, name: &str) -> &mut Line {
        let known = self.segments.contains_key(name) || self.segments.len() < SEGMENTS_MAX;
        let name = if known { name } else { OTHER_SEGMENT };
        let (policy, rules) = (&self.policy, &self.rules);
        self.segments.entry(name.to_owned()).or_insert_with(|| {
            policy.as_ref().map_or_else(
                || unreachable!("a watch that was read from a record takes in nothing"),
                |policy| Line::new(policy, rules),
            )
        })
    }
}
