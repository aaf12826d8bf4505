//! The promises, checked on what was seen from outside. Pure: a history in, violations out.
//!
//! | promise | what is looked for |
//! | --- | --- |
//! | 1 | a request to a node that nobody had touched stays without an answer; a process ends by itself |
//! | 2 | a version answers after its node had shown the generation that withdrew it |
//! | 3 | a candidate answers after its withdrawal and lease; or on a node cut off for longer than its lease; or after the coordinator reported the node's receipt or fence; a receipt of a node that could not be reached |
//! | 5 | a digest that was not approved |
//! | 6 | something acknowledged that a later view lacks; a withdrawal that a restored coordinator did not hear of again |
//! | 7 | a node's or the coordinator's generation goes back |
//!
//! Promise 4 shows in 3 and 6: what is withdrawn stops in time, and what is acknowledged is kept.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rollcall_shared::limits::lease_bound;

use super::history::{
    AbsenceKind, Acknowledged, At, Deed, History, Isolation, NodeHistory, NodeReport, Rank,
    Restore, View,
};

/// What packets that lie in a relay, and our own reading of the clock before and after
/// an act, may add to a bound.
const SLACK: Duration = Duration::from_millis(500);
/// A started agent answers by then: it reads its disk and loads its stable version.
const START_MAX: Duration = Duration::from_secs(15);
/// A process that goes on after a stop works off what waited for it.
const CATCH_UP: Duration = Duration::from_secs(1);
/// After all nodes are connected to a restored coordinator, their withdrawals are there.
const HAND_BACK_MAX: Duration = Duration::from_secs(3);

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which promise, as ARCHITECTURE.md counts them.
    pub promise: u8,
    /// Who broke it, with what: the same breach seen twice is told once.
    pub subject: String,
    /// When it was seen.
    pub at: At,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            promise,
            subject,
            at,
            what,
        } = self;
        write!(
            f,
            "promise {promise} broken at {:.2} s: {subject}: {what}",
            at.as_secs_f64()
        )
    }
}

/// All violations, the first of each subject and promise.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, node) in history.nodes.iter().enumerate() {
        let mut note = |promise, what: &str, at, detail| {
            found.push(Violation {
                promise,
                subject: format!("node-{}, {what}", index + 1),
                at,
                what: detail,
            });
        };
        stable_answers(node, &mut note);
        withdrawn_stays_withdrawn(history, node, &mut note);
        rollback_is_bounded(history, node, &mut note);
        isolated_nodes_fence_themselves(history, node, &mut note);
        reports_hold(history, index, node, &mut note);
        only_approved_serves(history, node, &mut note);
        generations_only_grow(node, &mut note);
    }
    let mut note = |promise, what: &str, at, detail| {
        found.push(Violation {
            promise,
            subject: what.to_owned(),
            at,
            what: detail,
        });
    };
    acknowledged_is_kept(history, &mut note);
    withdrawals_come_back(history, &mut note);
    views_only_grow(history, &mut note);
    for incident in &history.incidents {
        let seen = "seen while it happened".to_owned();
        note(incident.promise, &incident.what, incident.at, seen);
    }
    found.sort();
    let mut told = BTreeSet::new();
    found.retain(|violation| told.insert((violation.promise, violation.subject.clone())));
    found.sort_by_key(|violation| violation.at);
    found
}

/// Whether something was done to the node that excuses a silence from `sent` to `got`.
#[must_use]
pub fn excused(node: &NodeHistory, sent: At, got: At) -> bool {
    node.absences.iter().any(|absence| {
        let Some(until) = absence.span.until else {
            return got >= absence.span.from;
        };
        let end = match absence.kind {
            AbsenceKind::Stopped => until + CATCH_UP,
            AbsenceKind::Killed => {
                let first = node
                    .answers
                    .iter()
                    .find(|answer| answer.sent >= until && answer.version.is_some());
                let bound = until + START_MAX;
                first.map_or(bound, |answer| answer.got.min(bound))
            }
        };
        got >= absence.span.from && sent <= end
    })
}

fn stable_answers(node: &NodeHistory, note: &mut impl FnMut(u8, &str, At, String)) {
    for answer in &node.answers {
        if answer.version.is_none() && !excused(node, answer.sent, answer.got) {
            let waited = answer.got.saturating_sub(answer.sent).as_secs_f64();
            let what = format!("no answer to a request after {waited:.2} s");
            note(1, "answers", answer.sent, what);
        }
    }
}

fn withdrawn_stays_withdrawn(
    history: &History,
    node: &NodeHistory,
    note: &mut impl FnMut(u8, &str, At, String),
) {
    for (version, withdrawal) in &history.withdrawals {
        let knew = node
            .statuses
            .iter()
            .find(|status| status.generation >= withdrawal.generation);
        let Some(knew) = knew.map(|status| status.got) else {
            continue;
        };
        let late = answers_of(node, version).find(|answer| node.taken_up(answer) > knew);
        if let Some(answer) = late {
            let what = format!(
                "answered with it after it had shown generation {} at {:.2} s",
                withdrawal.generation,
                knew.as_secs_f64()
            );
            note(2, version, answer.sent, what);
        }
    }
}

fn rollback_is_bounded(
    history: &History,
    node: &NodeHistory,
    note: &mut impl FnMut(u8, &str, At, String),
) {
    for (version, withdrawal) in &history.withdrawals {
        if history.ever_stable.contains(version) {
            // It serves by right until the node hears of the withdrawal.
            continue;
        }
        let bound = withdrawal.known + lease_bound(history.lease) + SLACK;
        let late = answers_of(node, version).find(|answer| {
            let taken_up = node.taken_up(answer);
            taken_up > bound && !being_told_again(history, withdrawal.known, taken_up)
        });
        if let Some(answer) = late {
            let what = format!(
                "answered with it though it was withdrawn by {:.2} s",
                withdrawal.known.as_secs_f64()
            );
            note(3, version, answer.sent, what);
        }
    }
}

/// Whether at `at` a coordinator that was put back to before `known` had not yet heard from
/// all nodes what it forgot: until then it renews what it believes to be on trial.
fn being_told_again(history: &History, known: At, at: At) -> bool {
    history.restores.iter().any(|restore| {
        let told_by = restore.heard.unwrap_or(At::MAX);
        let until = told_by.saturating_add(HAND_BACK_MAX + lease_bound(history.lease));
        restore.backup < known && known <= restore.at && restore.at <= at && at <= until
    })
}

fn isolated_nodes_fence_themselves(
    history: &History,
    node: &NodeHistory,
    note: &mut impl FnMut(u8, &str, At, String),
) {
    for Isolation {
        span: isolation,
        deaf,
    } in &node.isolations
    {
        // What it held once nothing could come any more, it holds as a candidate until the end.
        let held = node
            .statuses
            .iter()
            .filter(|status| isolation.covers(status.asked, status.got))
            .find(|status| status.asked >= deaf_since(node, isolation.from) + SLACK)
            .and_then(|status| status.candidate.as_deref());
        let stable_by_now = |version: &&str| !deaf && history.ever_stable.contains(*version);
        let Some(version) = held.filter(|version| !stable_by_now(version)) else {
            continue;
        };
        let bound = isolation.from + lease_bound(history.lease) + SLACK;
        let late = answers_of(node, version).find(|answer| {
            let taken_up = node.taken_up(answer);
            taken_up > bound && isolation.covers(taken_up, answer.got)
        });
        if let Some(answer) = late {
            let what = format!(
                "answered with a candidate though cut off since {:.2} s",
                isolation.from.as_secs_f64()
            );
            note(3, version, answer.sent, what);
        }
    }
}

/// Since when a node that was cut off at `from` hears nothing: what had reached a stopped
/// process before, it hears when it goes on.
fn deaf_since(node: &NodeHistory, from: At) -> At {
    let stopped = node.absences.iter().filter(|absence| {
        absence.kind == AbsenceKind::Stopped
            && absence.span.from <= from
            && absence.span.until.is_none_or(|until| from <= until)
    });
    stopped
        .map(|absence| {
            absence
                .span
                .until
                .map_or(At::MAX - SLACK, |until| until + CATCH_UP)
        })
        .fold(from, At::max)
}

fn reports_hold(
    history: &History,
    index: usize,
    node: &NodeHistory,
    note: &mut impl FnMut(u8, &str, At, String),
) {
    for report in &history.reports {
        let word = match report.nodes.get(&index) {
            Some(NodeReport::Receipt) => "a receipt",
            Some(NodeReport::Fenced) => "a fence",
            Some(NodeReport::Open) | None => continue,
        };
        let version = &report.version;
        let late = answers_of(node, version).find(|answer| {
            let taken_up = node.taken_up(answer);
            taken_up > report.got && !being_told_again(history, report.got, taken_up)
        });
        if let Some(answer) = late {
            let what = format!("answered with it after {word} was reported");
            note(3, version, answer.sent, what);
        }
        let asked = history
            .withdrawals
            .get(version)
            .and_then(|withdrawal| withdrawal.asked);
        let Some(asked) = asked.filter(|_| word == "a receipt") else {
            continue;
        };
        let unreachable = node.isolations.iter().any(|isolation| {
            isolation
                .span
                .covers(asked.saturating_sub(SLACK), report.got)
        });
        if unreachable {
            let what = "a receipt was reported of a node that could not be reached".to_owned();
            note(3, version, report.got, what);
        }
    }
}

fn answers_of<'a>(
    node: &'a NodeHistory,
    version: &'a str,
) -> impl Iterator<Item = &'a super::history::Answered> {
    node.answers
        .iter()
        .filter(move |answer| answer.version.as_deref() == Some(version))
}

fn only_approved_serves(
    history: &History,
    node: &NodeHistory,
    note: &mut impl FnMut(u8, &str, At, String),
) {
    for status in &node.statuses {
        for (version, digest) in &status.serving {
            if history.approved.get(version) != Some(digest) {
                let what = format!("serves digest {digest}, which nobody approved");
                note(5, version, status.got, what);
            }
        }
    }
    for answer in &node.answers {
        if let Some(version) = &answer.version
            && !history.approved.contains_key(version)
        {
            let what = "answered with a version that nobody registered".to_owned();
            note(5, version, answer.got, what);
        }
    }
}

fn generations_only_grow(node: &NodeHistory, note: &mut impl FnMut(u8, &str, At, String)) {
    for pair in node.statuses.windows(2) {
        let (before, after) = (pair[0].generation, pair[1].generation);
        if after < before {
            let what = format!("from {before} back to {after}");
            note(7, "generation", pair[1].got, what);
        }
    }
}

/// Whether a restore took `at` out of what a view shows.
fn forgotten(history: &History, at: At, view: &View) -> Option<Restore> {
    let lost =
        |restore: &&Restore| restore.backup < at && at <= restore.at && restore.at <= view.asked;
    history.restores.iter().rev().find(lost).copied()
}

fn acknowledged_is_kept(history: &History, note: &mut impl FnMut(u8, &str, At, String)) {
    for Acknowledged { at, what } in &history.acknowledged {
        for view in &history.views {
            if view.asked < *at || forgotten(history, *at, view).is_some() {
                continue;
            }
            let (kept, subject) = match what {
                Deed::Pushed { version } => (view.versions.contains_key(version), version),
                Deed::Rollout { rollout, rank } => {
                    let shown = view.rollouts.get(rollout);
                    (shown.is_some_and(|shown| shown >= rank), rollout)
                }
            };
            if !kept {
                let what = format!(
                    "{what:?} was told at {:.2} s, and is not shown any more",
                    at.as_secs_f64()
                );
                note(6, subject, view.asked, what);
                break;
            }
        }
    }
}

/// What some node knew to be withdrawn is withdrawn again at a coordinator that forgot it.
fn withdrawals_come_back(history: &History, note: &mut impl FnMut(u8, &str, At, String)) {
    for restore in &history.restores {
        let Some(heard) = restore.heard else { continue };
        for (version, withdrawal) in &history.withdrawals {
            let known_by_a_node = history.nodes.iter().any(|node| {
                node.statuses.iter().any(|status| {
                    status.got <= restore.at && status.generation >= withdrawal.generation
                })
            });
            if withdrawal.known > restore.at || !known_by_a_node {
                continue;
            }
            let later = |view: &&View| view.asked >= heard + HAND_BACK_MAX;
            let shown = history.views.iter().filter(later);
            // Only a version that the old state has can be shown as withdrawn.
            let lacks = |view: &&View| view.versions.get(version) == Some(&false);
            if let Some(view) = shown.clone().find(lacks) {
                let what = "its withdrawal did not come back from the nodes".to_owned();
                note(6, version, view.asked, what);
            }
        }
    }
}

fn views_only_grow(history: &History, note: &mut impl FnMut(u8, &str, At, String)) {
    for pair in history.views.windows(2) {
        let restored = history
            .restores
            .iter()
            .any(|restore| pair[0].asked <= restore.at && restore.at <= pair[1].asked);
        let (before, after) = (pair[0].generation, pair[1].generation);
        if after < before && !restored {
            let what = format!("from {before} back to {after}");
            note(7, "the coordinator's generation", pair[1].asked, what);
        }
        for (version, withdrawn) in &pair[0].versions {
            if *withdrawn && pair[1].versions.get(version) == Some(&false) && !restored {
                let what = "shown as withdrawn, and then not any more".to_owned();
                note(6, version, pair[1].asked, what);
            }
        }
    }
}

/// A rollout's rank by the word that the API uses.
#[must_use]
pub fn rank(state: &str) -> Rank {
    match state {
        "withdrawn" => Rank::Withdrawn,
        "promoted" | "finished" => Rank::Over,
        _ => Rank::Live,
    }
}

#[cfg(test)]
mod tests;
