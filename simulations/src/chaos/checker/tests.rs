//! Forged histories: for each promise one that breaks it, next to one that does not.

use std::collections::{BTreeMap, BTreeSet};

use super::super::history::{
    Absence, Answered, Incident, Isolation, Report, Span, Status, Withdrawal,
};
use super::*;

const fn s(seconds: u64) -> At {
    Duration::from_secs(seconds)
}

fn answer(sent: u64, version: &str) -> Answered {
    Answered {
        sent: s(sent),
        got: s(sent) + Duration::from_millis(5),
        version: Some(version.to_owned()),
    }
}

fn silence(sent: u64) -> Answered {
    Answered {
        sent: s(sent),
        got: s(sent + 5),
        version: None,
    }
}

fn status(at: u64, generation: u64, candidate: Option<&str>) -> Status {
    Status {
        asked: s(at),
        got: s(at),
        generation,
        candidate: candidate.map(str::to_owned),
        serving: vec![("1".to_owned(), "one".to_owned())],
    }
}

fn span(from: u64, until: u64) -> Span {
    Span {
        from: s(from),
        until: Some(s(until)),
    }
}

fn deaf(from: u64, until: u64) -> Isolation {
    Isolation {
        span: span(from, until),
        deaf: true,
    }
}

/// One node, a lease of 3 s; 1 is stable, 2 was withdrawn at 10 s with generation 7.
fn history() -> History {
    let approved = [("1", "one"), ("2", "two")];
    let withdrawal = Withdrawal {
        rollout: "r-2".to_owned(),
        generation: 7,
        asked: Some(s(10)),
        known: s(10),
    };
    History {
        lease: s(3),
        nodes: vec![NodeHistory::default()],
        approved: approved
            .map(|(version, digest)| (version.to_owned(), digest.to_owned()))
            .into(),
        ever_stable: BTreeSet::from(["1".to_owned()]),
        withdrawals: BTreeMap::from([("2".to_owned(), withdrawal)]),
        ..History::default()
    }
}

fn with(change: impl FnOnce(&mut History, &mut NodeHistory)) -> Vec<(u8, String)> {
    let (mut history, mut node) = (history(), NodeHistory::default());
    change(&mut history, &mut node);
    history.nodes = vec![node];
    let broken = check(&history).into_iter();
    broken.map(|v| (v.promise, v.subject)).collect()
}

fn broken(promise: u8, subject: &str) -> Vec<(u8, String)> {
    vec![(promise, subject.to_owned())]
}

#[test]
fn a_silence_that_nobody_caused_breaks_promise_1() {
    let silent = with(|_, node| node.answers = vec![answer(1, "1"), silence(2)]);
    assert_eq!(silent, broken(1, "node-1, answers"));
}

#[test]
fn a_silence_of_a_killed_or_stopped_node_is_excused_until_it_is_back() {
    for kind in [AbsenceKind::Killed, AbsenceKind::Stopped] {
        let absent = |late: u64| {
            with(|_, node| {
                let span = span(20, 25);
                node.absences = vec![Absence { kind, span }];
                node.answers = vec![silence(18), silence(22), answer(26, "1"), silence(late)];
            })
        };
        assert_eq!(absent(30), broken(1, "node-1, answers"), "{kind:?}");
        assert_eq!(absent(24), [], "{kind:?}");
    }
}

#[test]
fn a_process_that_ends_by_itself_breaks_promise_1() {
    let ended = with(|history, _| {
        history.incidents = vec![Incident {
            promise: 1,
            at: s(3),
            what: "node-1 ended".to_owned(),
        }];
    });
    assert_eq!(ended, broken(1, "node-1 ended"));
}

#[test]
fn a_withdrawn_version_that_answers_where_it_was_known_breaks_promise_2() {
    let served_at = |sent| {
        with(|_, node| {
            node.statuses = vec![status(10, 6, Some("2")), status(11, 7, None)];
            node.answers = vec![answer(sent, "2")];
        })
    };
    assert_eq!(served_at(10), []);
    assert_eq!(served_at(12), broken(2, "node-1, 2"));
}

#[test]
fn a_candidate_that_outlives_withdrawal_and_lease_breaks_promise_3() {
    let served_at = |sent| with(|_, node| node.answers = vec![answer(sent, "2")]);
    assert_eq!(served_at(13), []);
    assert_eq!(served_at(14), broken(3, "node-1, 2"));
}

#[test]
fn a_version_that_was_stable_may_linger_where_nobody_could_be_told() {
    let lingering = with(|history, node| {
        history.ever_stable.insert("2".to_owned());
        node.answers = vec![answer(60, "2")];
    });
    assert_eq!(lingering, []);
}

#[test]
fn the_first_answer_after_a_stop_must_not_come_from_an_expired_candidate() {
    let resumed_at = |until| {
        with(|_, node| {
            let span = span(11, until);
            let kind = AbsenceKind::Stopped;
            node.absences = vec![Absence { kind, span }];
            // Sent while it was stopped, taken up when it went on.
            let mut first = answer(12, "2");
            first.got = s(until + 1);
            node.answers = vec![first];
        })
    };
    assert_eq!(resumed_at(13), []);
    assert_eq!(resumed_at(20), broken(3, "node-1, 2"));
}

#[test]
fn a_cut_off_node_that_goes_on_with_its_candidate_breaks_promise_3() {
    let served_at = |sent| {
        with(|history, node| {
            history.withdrawals.clear();
            node.isolations = vec![deaf(20, 40)];
            node.statuses = vec![status(22, 6, Some("2"))];
            node.answers = vec![answer(sent, "2")];
        })
    };
    assert_eq!(served_at(23), []);
    assert_eq!(served_at(30), broken(3, "node-1, 2"));
    assert_eq!(served_at(41), [], "healed");
}

#[test]
fn a_node_that_is_only_mute_may_hear_of_a_promotion() {
    let served = |promoted: bool| {
        with(|history, node| {
            history.withdrawals.clear();
            if promoted {
                history.ever_stable.insert("2".to_owned());
            }
            node.isolations = vec![Isolation {
                deaf: false,
                ..deaf(20, 40)
            }];
            node.statuses = vec![status(22, 6, Some("2"))];
            node.answers = vec![answer(30, "2")];
        })
    };
    assert_eq!(served(true), []);
    assert_eq!(served(false), broken(3, "node-1, 2"));
}

#[test]
fn a_stopped_node_may_have_the_news_in_its_socket_when_it_is_cut_off() {
    let shown_at = |shown| {
        with(|history, node| {
            history.withdrawals.clear();
            node.isolations = vec![deaf(20, 40)];
            let span = span(18, 25);
            let kind = AbsenceKind::Stopped;
            node.absences = vec![Absence { kind, span }];
            node.statuses = vec![status(shown, 6, Some("2"))];
            node.answers = vec![answer(30, "2")];
        })
    };
    assert_eq!(shown_at(24), [], "it may hear of a promotion yet");
    assert_eq!(shown_at(27), broken(3, "node-1, 2"));
}

fn report(got: u64, word: NodeReport) -> Report {
    Report {
        got: s(got),
        version: "2".to_owned(),
        nodes: BTreeMap::from([(0, word)]),
        ..Report::default()
    }
}

#[test]
fn a_node_that_still_serves_what_was_reported_as_gone_breaks_promise_3() {
    for (word, expected) in [
        (NodeReport::Receipt, broken(3, "node-1, 2")),
        (NodeReport::Fenced, broken(3, "node-1, 2")),
        (NodeReport::Open, vec![]),
    ] {
        let reported = with(|history, node| {
            history.reports = vec![report(11, word)];
            node.answers = vec![answer(12, "2")];
        });
        assert_eq!(reported, expected, "{word:?}");
    }
}

#[test]
fn a_receipt_of_a_node_that_could_not_be_reached_breaks_promise_3() {
    let reported = |from| {
        with(|history, node| {
            history.reports = vec![report(15, NodeReport::Receipt)];
            node.isolations = vec![deaf(from, 16)];
        })
    };
    assert_eq!(reported(9), broken(3, "node-1, 2"));
    assert_eq!(reported(11), [], "the withdrawal was there first");
}

#[test]
fn a_digest_or_a_version_that_nobody_approved_breaks_promise_5() {
    let foreign = with(|_, node| {
        let mut status = status(1, 1, None);
        status.serving[0].1 = "another".to_owned();
        node.statuses = vec![status];
    });
    assert_eq!(foreign, broken(5, "node-1, 1"));
    let unknown = with(|_, node| node.answers = vec![answer(1, "9")]);
    assert_eq!(unknown, broken(5, "node-1, 9"));
}

fn view(asked: u64, generation: u64, rollout: Option<Rank>) -> View {
    View {
        asked: s(asked),
        generation,
        versions: BTreeMap::from([("1".to_owned(), false)]),
        rollouts: rollout
            .map(|rank| ("r-1".to_owned(), rank))
            .into_iter()
            .collect(),
    }
}

fn told(history: &mut History, rank: Rank) {
    let rollout = "r-1".to_owned();
    history.acknowledged = vec![Acknowledged {
        at: s(5),
        what: Deed::Rollout { rollout, rank },
    }];
}

#[test]
fn an_acknowledged_command_that_is_gone_breaks_promise_6() {
    let shown = |rollout: Option<Rank>| {
        with(|history, _| {
            told(history, Rank::Over);
            history.views = vec![view(4, 1, None), view(6, 1, rollout)];
        })
    };
    assert_eq!(shown(Some(Rank::Over)), []);
    assert_eq!(shown(Some(Rank::Withdrawn)), []);
    assert_eq!(shown(Some(Rank::Live)), broken(6, "r-1"));
    assert_eq!(shown(None), broken(6, "r-1"));
    let pushed = with(|history, _| {
        let version = "2".to_owned();
        history.acknowledged = vec![Acknowledged {
            at: s(5),
            what: Deed::Pushed { version },
        }];
        history.views = vec![view(6, 1, None)];
    });
    assert_eq!(pushed, broken(6, "2"));
}

#[test]
fn an_old_backup_may_forget_what_came_after_it_and_nothing_else() {
    let restored = |backup| {
        with(|history, _| {
            told(history, Rank::Live);
            history.restores = vec![Restore {
                backup: s(backup),
                at: s(8),
                heard: None,
            }];
            history.views = vec![view(9, 1, None)];
        })
    };
    assert_eq!(restored(3), []);
    assert_eq!(restored(6), broken(6, "r-1"));
}

#[test]
fn a_withdrawal_that_does_not_come_back_from_the_nodes_breaks_promise_6() {
    let shown = |withdrawn, generation| {
        with(|history, node| {
            node.statuses = vec![status(11, generation, None)];
            history.restores = vec![Restore {
                backup: s(9),
                at: s(12),
                heard: Some(s(13)),
            }];
            let mut late = view(17, 8, None);
            late.versions.insert("2".to_owned(), withdrawn);
            history.views = vec![late];
        })
    };
    assert_eq!(shown(true, 7), []);
    assert_eq!(shown(false, 6), [], "no node knew");
    assert_eq!(shown(false, 7), broken(6, "2"));
}

#[test]
fn a_generation_that_goes_back_breaks_promise_7() {
    let node = with(|_, node| node.statuses = vec![status(1, 5, None), status(2, 4, None)]);
    assert_eq!(node, broken(7, "node-1, generation"));
    let coordinator = with(|history, _| history.views = vec![view(1, 5, None), view(2, 4, None)]);
    assert_eq!(coordinator, broken(7, "the coordinator's generation"));
}
