//! Promise 6: a command that was answered with success is in the journal from then on,
//! whatever crashes.

use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::record::{Event, Record};

use super::Verdicts;

/// Records that acknowledged commands rest on.
#[derive(Debug, Default)]
pub struct AcknowledgedIsKept {
    kept: Vec<(u64, String)>,
}

impl AcknowledgedIsKept {
    /// The shell answers a command.
    pub fn replied(
        &mut self,
        command: &Command,
        done: &Done,
        journal: &[Record],
        verdicts: &mut Verdicts,
    ) {
        if matches!(command, Command::StartRollout { dry_run: true, .. }) {
            return;
        }
        let name = name_of(command);
        let concerns = |event: &Event| carries_out(command, done, event) || undoes(command, event);
        match journal.iter().rev().find(|record| concerns(&record.event)) {
            Some(record) if !undoes(command, &record.event) => self.kept.push((record.seq, name)),
            // What was never paused is resumed already.
            None if is_an_undoing(command) => {}
            Some(_) | None => verdicts.broken(
                6,
                None,
                format!("{name} is answered with success and not in the journal"),
            ),
        }
    }

    /// A process reads the journal after a crash.
    pub fn journal_read(&self, journal: &[Record], verdicts: &mut Verdicts) {
        let last = journal.last().map_or(0, |record| record.seq);
        if let Some((seq, name)) = self.kept.iter().find(|(seq, _)| *seq > last) {
            let what =
                format!("{name} was acknowledged (record {seq}), and the journal ends at {last}");
            verdicts.broken(6, None, what);
        }
    }

    pub(super) fn backup_restored(&mut self, journal: &[Record]) {
        let last = journal.last().map_or(0, |record| record.seq);
        self.kept.retain(|(seq, _)| *seq <= last);
    }
}

fn is_an_undoing(command: &Command) -> bool {
    matches!(
        command,
        Command::Resume { .. } | Command::Release { .. } | Command::Restore { .. }
    )
}

/// Whether after this event the command would have something to do.
fn undoes(command: &Command, event: &Event) -> bool {
    match (command, event) {
        (Command::Pause { rollout }, Event::RolloutResumed { rollout: r })
        | (Command::Resume { rollout }, Event::RolloutPaused { rollout: r }) => rollout == r,
        (Command::Quarantine { node }, Event::NodeReleased { node: n })
        | (Command::Release { node }, Event::NodeQuarantined { node: n }) => node == n,
        (
            Command::Archive { model, version },
            Event::VersionRestored {
                model: m,
                version: v,
            },
        )
        | (
            Command::Restore { model, version },
            Event::VersionArchived {
                model: m,
                version: v,
            },
        ) => model == m && version == v,
        _ => false,
    }
}

fn name_of(command: &Command) -> String {
    let text = format!("{command:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

fn carries_out(command: &Command, done: &Done, event: &Event) -> bool {
    match (command, event) {
        (
            Command::RegisterVersion { manifest, .. },
            Event::VersionRegistered { model, version, .. },
        ) => *model == manifest.model && version.version == manifest.version,
        (Command::StartRollout { .. }, Event::RolloutStarted { rollout, .. }) => {
            *done == Done::Started(*rollout)
        }
        (Command::Pause { rollout }, Event::RolloutPaused { rollout: r })
        | (Command::Resume { rollout }, Event::RolloutResumed { rollout: r })
        | (
            Command::Advance { rollout },
            Event::StageEntered { rollout: r, .. }
            | Event::Promoted { rollout: r, .. }
            | Event::RolloutFinished { rollout: r, .. },
        ) => rollout == r,
        (
            Command::Approve { rollout, gate, .. },
            Event::GateApproved {
                rollout: r,
                gate: g,
                ..
            },
        ) => rollout == r && gate == g,
        (Command::Reject { rollout, .. }, Event::Withdrawn { withdrawal, .. }) => {
            *rollout == withdrawal.rollout
        }
        (Command::Rollback { model, .. }, Event::Withdrawn { withdrawal, .. }) => {
            let (rollout, generation) = (withdrawal.rollout, withdrawal.generation);
            *model == withdrawal.model
                && *done
                    == Done::Withdrawn {
                        rollout,
                        generation,
                    }
        }
        (Command::Rehearse { model, .. }, Event::RehearsalBegan { as_if, .. }) => {
            *model == as_if.model
        }
        (Command::CreateToken { id, .. }, Event::TokenCreated { id: i, .. })
        | (Command::RevokeToken { id }, Event::TokenRevoked { id: i }) => id == i,
        (Command::Enroll { node, .. }, Event::NodeEnrolled { node: n, .. })
        | (Command::RevokeNode { node }, Event::NodeRevoked { node: n })
        | (Command::Quarantine { node }, Event::NodeQuarantined { node: n })
        | (Command::Release { node }, Event::NodeReleased { node: n }) => node == n,
        (
            Command::Archive { model, version },
            Event::VersionArchived {
                model: m,
                version: v,
            },
        )
        | (
            Command::Restore { model, version },
            Event::VersionRestored {
                model: m,
                version: v,
            },
        ) => model == m && version == v,
        _ => false,
    }
}
