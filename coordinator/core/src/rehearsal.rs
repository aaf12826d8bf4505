//! Rehearsals: what would a rollback come to, now?
//!
//! A rehearsal has the target of the rollback that the same words would decide, is refused when
//! that would be, and is pushed to the fleet in the very way of a withdrawal. Agents answer what
//! they would serve and whether it is ready; they and this coordinator change nothing. So its
//! propagation is that of a rollback, except for the write to disk that a receipt waits for.
//!
//! It waits for the nodes that would owe a receipt and can be asked. Who is not connected, loses
//! its connection, or speaks too old a protocol is named silent, with the moment at which its
//! lease would fence it. It ends when nobody is waited for, or after [`REHEARSAL_MAX`].
//!
//! Answers are memory; the journal keeps that it was run, by whom, and what came of it. The last
//! rehearsal of each model is kept. A restart forgets one that is under way.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::assignment::Withdrawal;
use rollcall_shared::ids::{ConnectionId, ModelName, NodeId};
use rollcall_shared::limits::REHEARSAL_MAX;
use rollcall_shared::report::ReadyState;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_shared::wire::{Missing, PROTOCOL_REHEARSE, Rehearsal, Rehearsed};

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal, Urgent};
use crate::input::Actor;
use crate::record::{Cause, Event, Propagation};
use crate::registry::cut;
use crate::roles::actor_name;
use crate::rollback::Arrival;

/// One rehearsal, under way or over.
#[derive(Clone, Debug)]
pub(crate) struct Rehearsing {
    /// The record that began it.
    pub(crate) number: u64,
    pub(crate) as_if: Withdrawal,
    pub(crate) cause: Cause,
    pub(crate) began_at: Timestamp,
    /// The nodes that would owe a receipt.
    pub(crate) parts: BTreeMap<NodeId, Part>,
    /// How many of them are asked and have not answered.
    waiting: usize,
    pub(crate) ended: bool,
}

/// One node in a rehearsal.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// By when its lease would fence it; `None`: no lease would.
    pub(crate) fenced_at: Option<Timestamp>,
    pub(crate) word: Word,
}

/// What is known of one node.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    /// It was not connected.
    Absent,
    /// It cannot read the question.
    TooOld { software: String },
    /// It was asked on this connection.
    Asked(ConnectionId),
    /// Its connection ended before it answered.
    Lost,
    /// It answered.
    Answered {
        at: Timestamp,
        /// What would answer requests there.
        serving: Option<Version>,
        unready: Option<Unready>,
    },
}

/// Why a node is not ready for the rollback.
#[derive(Clone, Debug)]
pub(crate) struct Unready {
    /// What it would have to load first.
    pub(crate) missing: Option<Version>,
    /// In words.
    pub(crate) why: String,
}

impl Rehearsing {
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        (!self.ended).then_some(self.began_at + REHEARSAL_MAX)
    }

    fn may_end(&self, now: Timestamp) -> bool {
        !self.ended && (self.waiting == 0 || self.began_at + REHEARSAL_MAX <= now)
    }

    /// The node's part, as long as an answer on this connection is waited for.
    fn asked(&mut self, connection: ConnectionId, node: &NodeId) -> Option<&mut Part> {
        let part = self.parts.get_mut(node).filter(|_| !self.ended)?;
        matches!(part.word, Word::Asked(asked) if asked == connection).then_some(part)
    }

    /// How far it has spread. Nobody is fenced by a rehearsal: who did not answer is silent.
    pub(crate) fn propagation(&self) -> Propagation {
        let arrivals = self
            .parts
            .iter()
            .filter_map(|(node, part)| match part.word {
                Word::Answered { at, serving, .. } => Some(Arrival {
                    node,
                    after: at.since(self.began_at),
                    serving,
                }),
                Word::Absent | Word::TooOld { .. } | Word::Asked(_) | Word::Lost => None,
            });
        let mut propagation = Propagation::of(arrivals, self.as_if.serving.map(|v| v.version));
        let silent = self
            .parts
            .iter()
            .filter(|(_, part)| !matches!(part.word, Word::Answered { .. }));
        propagation.silent = silent.map(|(node, _)| node.clone()).collect();
        propagation
    }

    fn unready(&self) -> BTreeSet<NodeId> {
        let unready = self.parts.iter().filter(|(_, part)| {
            matches!(
                part.word,
                Word::Answered {
                    unready: Some(_),
                    ..
                }
            )
        });
        unready.map(|(node, _)| node.clone()).collect()
    }

    /// What an answer lacks, if anything.
    fn find_unready(&self, answer: &Rehearsed) -> Option<Unready> {
        let withdrawn = self.as_if.withdrawn;
        let why = match (&answer.missing, answer.serving) {
            (_, Some(serving)) if serving == withdrawn => {
                format!("says that it would go on with {}", withdrawn.version)
            }
            (Some(missing), serving) => {
                let meanwhile = serving.map_or_else(
                    || "nothing".to_owned(),
                    |serving| serving.version.to_string(),
                );
                format!(
                    "would have to load {} first ({}); meanwhile {meanwhile} would answer",
                    missing.version.version,
                    how_far(missing)
                )
            }
            (None, None) => "nothing would be left to serve".to_owned(),
            (None, Some(serving)) => {
                let expected = self.as_if.serving.filter(|expected| *expected != serving)?;
                format!(
                    "would serve {} ({}), not {} ({})",
                    serving.version,
                    serving.digest.short(),
                    expected.version,
                    expected.digest.short()
                )
            }
        };
        Some(Unready {
            missing: answer.missing.as_ref().map(|m| m.version.version),
            why: cut(why),
        })
    }
}

fn how_far(missing: &Missing) -> String {
    match &missing.state {
        None => "it does not have it".to_owned(),
        Some(ReadyState::Fetching) => "being fetched and loaded".to_owned(),
        // It says so, and yet does not route it; at the next look it will.
        Some(ReadyState::Ready) => "just loaded".to_owned(),
        Some(ReadyState::Failed { reason, retrying }) => {
            let again = if *retrying {
                "trying again"
            } else {
                "given up"
            };
            format!("failed, {again}: {reason}")
        }
    }
}

impl Coordinator {
    /// Asks the fleet. Nothing in here but the journal's records outlives the answer.
    pub(crate) fn on_rehearse(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        model: &ModelName,
        version: Option<Version>,
        reason: String,
    ) -> Result<Done, Refusal> {
        let target = self.target(model, version)?;
        if let Some(running) = self.rehearsals.get(model).filter(|r| !r.ended) {
            return Err(Refusal::Conflict(format!(
                "a rehearsal of {model} is under way since {}: try again in {} seconds",
                running.began_at,
                REHEARSAL_MAX.as_secs()
            )));
        }
        let as_if = self.withdrawal_of(target);
        let rehearsal = self.state.seq() + 1;
        turn.broadcast(Urgent::Rehearse(Rehearsal {
            rehearsal,
            as_if: as_if.clone(),
        }));
        let reason = cut(reason);
        let event = Event::RehearsalBegan {
            as_if: as_if.clone(),
            reason: reason.clone(),
        };
        self.record(turn, actor.clone(), event);
        let cause = Cause::Operator {
            actor: actor_name(actor),
            reason,
        };
        let parts: BTreeMap<NodeId, Part> = self
            .owing(&as_if, rehearsal, turn.now)
            .into_iter()
            .map(|(node, fenced_at)| {
                let word = self.word_of(&node);
                (node, Part { fenced_at, word })
            })
            .collect();
        let asked = |part: &&Part| matches!(part.word, Word::Asked(_));
        let rehearsing = Rehearsing {
            number: rehearsal,
            as_if,
            cause,
            began_at: turn.now,
            waiting: parts.values().filter(asked).count(),
            parts,
            ended: false,
        };
        self.rehearsals.insert(model.clone(), rehearsing);
        self.tallies.entry(model.clone()).or_default().rehearsals += 1;
        self.end_rehearsals(turn);
        let model = model.clone();
        Ok(Done::Rehearsing { model, rehearsal })
    }

    /// Whether a node can be asked now.
    fn word_of(&self, node: &NodeId) -> Word {
        let presence = self.fleet.nodes.get(node);
        match presence.and_then(|p| Some((p, p.connection?))) {
            None => Word::Absent,
            Some((presence, _)) if presence.protocol < PROTOCOL_REHEARSE => Word::TooOld {
                software: presence.software.clone(),
            },
            Some((_, connection)) => Word::Asked(connection),
        }
    }

    /// Counts the first answer on the connection that was asked; anything else is ignored.
    pub(crate) fn on_rehearsed(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
        answer: Rehearsed,
    ) {
        let running = self.rehearsals.get_mut(&answer.model);
        let Some(running) = running.filter(|r| r.number == answer.rehearsal) else {
            return;
        };
        let unready = running.find_unready(&answer);
        let Some(part) = running.asked(connection, node) else {
            return;
        };
        part.word = Word::Answered {
            at: turn.now,
            serving: answer.serving.map(|serving| serving.version),
            unready,
        };
        running.waiting -= 1;
        let after = turn.now.since(running.began_at);
        let tally = self.tallies.entry(answer.model).or_default();
        tally.rehearsed.record(after);
        self.end_rehearsals(turn);
    }

    /// A connection is over: its node cannot answer any more what it was asked there.
    pub(crate) fn note_lost_rehearsals(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionId,
        node: &NodeId,
    ) {
        for running in self.rehearsals.values_mut() {
            if let Some(part) = running.asked(connection, node) {
                part.word = Word::Lost;
                running.waiting -= 1;
            }
        }
        self.end_rehearsals(turn);
    }

    /// The node left the fleet: it would owe nothing.
    pub(crate) fn forget_in_rehearsals(&mut self, turn: &mut Turn, node: &NodeId) {
        for running in self.rehearsals.values_mut().filter(|r| !r.ended) {
            let part = running.parts.remove(node);
            if part.is_some_and(|part| matches!(part.word, Word::Asked(_))) {
                running.waiting -= 1;
            }
        }
        self.end_rehearsals(turn);
    }

    /// Records every rehearsal in which nobody is waited for any longer.
    pub(crate) fn end_rehearsals(&mut self, turn: &mut Turn) {
        let now = turn.now;
        let due = self.rehearsals.values_mut().filter(|r| r.may_end(now));
        let ended: Vec<Event> = due
            .map(|running| {
                running.ended = true;
                Event::RehearsalEnded {
                    rehearsal: running.number,
                    model: running.as_if.model.clone(),
                    propagation: running.propagation().recorded(),
                    unready: running.unready(),
                }
            })
            .collect();
        for event in ended {
            self.record(turn, Actor::System, event);
        }
    }
}

#[cfg(test)]
mod tests;
