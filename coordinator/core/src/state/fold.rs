//! What each record does to the state. Decides nothing: it was decided when the record was made.

use rollcall_shared::assignment::{VersionRef, Withdrawal};
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{Manifest, SignedManifest};
use serde::Deserialize;

use crate::record::{Cause, Event, Record};
use crate::state::{
    ChainError, Model, Node, Phase, RegisteredVersion, Rollback, Rollout, StageNow, State, Token,
};
use crate::view::{HistoryEntry, Step};

/// A withdrawal may have been broadcast and lost before it was durable. Its generation is not
/// always the next one: what came before it in the same turn (a quarantine, a node barred, a
/// stage) took one each and was lost with it. This is far more than a turn can take, and
/// numbers do not run out.
const GENERATIONS_SKIPPED_AT_BOOT: u64 = 1_024;

impl State {
    #[expect(clippy::too_many_lines, reason = "a flat match, one arm an event")]
    pub(super) fn fold(&mut self, record: &Record) -> Result<(), ChainError> {
        match &record.event {
            Event::Booted { software: _ } => self.skip_generations(),
            // For the audit log: a rehearsal changes nothing.
            Event::RehearsalBegan { .. } | Event::RehearsalEnded { .. } => {}
            Event::TokenCreated {
                id,
                secret_hash,
                kind,
                name,
                expires_at,
            } => {
                let token = Token {
                    secret_hash: *secret_hash,
                    kind: kind.clone(),
                    name: name.clone(),
                    created_at: record.at,
                    expires_at: *expires_at,
                    revoked_at: None,
                    used_by: None,
                };
                self.tokens.insert(id.clone(), token);
            }
            Event::TokenRevoked { id } => {
                let token = self.tokens.get_mut(id);
                known(record, "a token", token)?.revoked_at = Some(record.at);
            }
            Event::NodeEnrolled {
                node,
                labels,
                key,
                token,
            } => {
                let used = known(record, "a token", self.tokens.get_mut(token))?;
                used.used_by = Some(node.clone());
                let entry = Node {
                    labels: labels.clone(),
                    key: *key,
                    token: token.clone(),
                    enrolled_seq: record.seq,
                    enrolled_at: record.at,
                    quarantined: false,
                    revoked: false,
                };
                self.nodes.insert(node.clone(), entry);
            }
            Event::NodeRevoked { node } => self.node(record, node)?.revoked = true,
            Event::NodeQuarantined { node } => {
                self.node(record, node)?.quarantined = true;
                self.bump_live_models();
            }
            Event::NodeReleased { node } => {
                self.node(record, node)?.quarantined = false;
                self.bump_live_models();
            }
            Event::VersionRegistered {
                model,
                version,
                signed,
            } => self.register(record, model, *version, signed)?,
            Event::VersionArchived { model, version } => {
                self.version(record, model, *version)?.archived = true;
            }
            Event::VersionRestored { model, version } => {
                self.version(record, model, *version)?.archived = false;
            }
            Event::RolloutStarted { .. } => self.start(record)?,
            Event::StageEntered { .. } => self.enter(record)?,
            // What was decided stands in the record behind it.
            Event::Judged { rollout, .. } => {
                self.rollout(record, *rollout)?;
            }
            Event::CandidateBarred {
                rollout,
                node,
                generation,
                verdict,
            } => {
                let entry = self.rollout(record, *rollout)?;
                entry.barred.insert(node.clone());
                let model = entry.model.clone();
                self.models.entry(model).or_default().generation = *generation;
                let step = Step::Barred {
                    node: node.clone(),
                    verdict: verdict.clone(),
                };
                self.note(record, *rollout, step)?;
            }
            Event::RolloutPaused { rollout } => {
                self.rollout(record, *rollout)?.phase = Phase::Live { paused: true };
                self.note(record, *rollout, Step::Paused)?;
            }
            Event::RolloutResumed { rollout } => {
                self.rollout(record, *rollout)?.phase = Phase::Live { paused: false };
                self.note(record, *rollout, Step::Resumed)?;
            }
            Event::GateApproved {
                rollout,
                gate,
                note,
            } => {
                let approvals = &mut self.rollout(record, *rollout)?.approvals;
                approvals.insert(gate.clone(), record.actor.clone());
                let step = Step::Approved {
                    gate: gate.clone(),
                    note: note.clone(),
                };
                self.note(record, *rollout, step)?;
            }
            Event::Withdrawn { withdrawal, cause } => self.withdraw(record, withdrawal, cause)?,
            Event::KnowledgeAdopted {
                withdrawals,
                generations,
                node: _,
            } => self.adopt(withdrawals, generations),
            Event::RollbackSettled {
                rollout,
                propagation,
            } => {
                if let Phase::Withdrawn(rollback) = &mut self.rollout(record, *rollout)?.phase {
                    rollback.propagation = Some(propagation.clone());
                }
                self.note(record, *rollout, Step::Settled)?;
            }
            Event::Promoted {
                rollout,
                generation,
                verdict,
            } => {
                let verdict = verdict.clone();
                let (model, candidate) = self.end(
                    record,
                    *rollout,
                    Phase::Promoted,
                    Step::Promoted { verdict },
                )?;
                let entry = self.models.entry(model.clone()).or_default();
                entry.generation = *generation;
                if entry.stable != Some(candidate) {
                    entry.previous = entry.stable.replace(candidate);
                }
                self.note_rights(&model);
            }
            Event::RolloutFinished {
                rollout,
                generation,
                verdict,
            } => {
                let verdict = verdict.clone();
                let (model, _) = self.end(
                    record,
                    *rollout,
                    Phase::Finished,
                    Step::Finished { verdict },
                )?;
                self.models.entry(model.clone()).or_default().generation = *generation;
                self.note_rights(&model);
            }
        }
        Ok(())
    }

    fn skip_generations(&mut self) {
        for model in self.models.values_mut() {
            model.known = model.known.max(model.generation);
            model.generation.0 += GENERATIONS_SKIPPED_AT_BOOT;
        }
    }

    /// A node's quarantine changes what it should do for every model on trial.
    fn bump_live_models(&mut self) {
        for model in self.models.values_mut().filter(|m| m.rollout.is_some()) {
            model.generation = model.generation.next();
        }
    }

    fn register(
        &mut self,
        record: &Record,
        model: &ModelName,
        version: VersionRef,
        signed: &SignedManifest,
    ) -> Result<(), ChainError> {
        let manifest = read(signed).map_err(|error| ChainError::Nonsense {
            seq: record.seq,
            why: format!("its manifest cannot be read: {error}"),
        })?;
        let entry = RegisteredVersion {
            version,
            signed: signed.clone(),
            manifest,
            archived: false,
        };
        let versions = &mut self.models.entry(model.clone()).or_default().versions;
        versions.insert(version.version, entry);
        Ok(())
    }

    fn start(&mut self, record: &Record) -> Result<(), ChainError> {
        let Event::RolloutStarted {
            rollout,
            model,
            candidate,
            stable,
            plan,
            generation,
        } = &record.event
        else {
            return Ok(());
        };
        let entry = self.models.entry(model.clone()).or_default();
        entry.rollout = Some(*rollout);
        entry.generation = *generation;
        self.next_rollout = self.next_rollout.max(rollout.0 + 1);
        let started = Rollout {
            id: *rollout,
            model: model.clone(),
            candidate: *candidate,
            stable: *stable,
            plan: plan.clone(),
            started_by: record.actor.clone(),
            started_at: record.at,
            begun: *generation,
            phase: Phase::Live { paused: false },
            stage: None,
            approvals: std::collections::BTreeMap::new(),
            barred: std::collections::BTreeSet::new(),
            history: Vec::new(),
        };
        self.rollouts.insert(*rollout, started);
        self.note_rights(model);
        self.note(record, *rollout, Step::Started)
    }

    fn enter(&mut self, record: &Record) -> Result<(), ChainError> {
        let Event::StageEntered {
            rollout,
            stage,
            cohort,
            generation,
            verdict,
            forced,
        } = &record.event
        else {
            return Ok(());
        };
        let entry = self.rollout(record, *rollout)?;
        entry.approvals.clear();
        entry.stage = Some(StageNow {
            index: *stage,
            since: record.at,
            cohort: cohort.clone(),
            generation: *generation,
        });
        let name = entry.plan.stages.get(*stage).map(|s| s.name.clone());
        let model = entry.model.clone();
        self.models.entry(model).or_default().generation = *generation;
        let step = Step::StageEntered {
            stage: *stage,
            name: name.unwrap_or_default(),
            forced: *forced,
            verdict: verdict.clone(),
        };
        self.note(record, *rollout, step)
    }

    /// The rollout may be unknown: it was lost with a journal and handed back by an agent.
    fn withdraw(
        &mut self,
        record: &Record,
        withdrawal: &Withdrawal,
        cause: &Cause,
    ) -> Result<(), ChainError> {
        let model = self.models.entry(withdrawal.model.clone()).or_default();
        model.generation = model.generation.max(withdrawal.generation);
        if model.stable == Some(withdrawal.withdrawn) {
            model.stable = withdrawal.serving;
            model.previous = None;
        }
        model.previous = model.previous.filter(|p| *p != withdrawal.withdrawn);
        if model.rollout == Some(withdrawal.rollout) {
            model.rollout = None;
        }
        model.withdrawals.insert(withdrawal.clone());
        self.next_rollout = self.next_rollout.max(withdrawal.rollout.0 + 1);
        if self.rollouts.contains_key(&withdrawal.rollout) {
            let rollback = Rollback {
                withdrawal: withdrawal.clone(),
                cause: cause.clone(),
                seq: record.seq,
                decided_at: record.at,
                propagation: None,
            };
            let step = Step::Withdrawn {
                generation: withdrawal.generation,
                cause: cause.clone(),
            };
            let phase = Phase::Withdrawn(Box::new(rollback));
            self.end(record, withdrawal.rollout, phase, step)?;
        }
        self.note_rights(&withdrawal.model);
        Ok(())
    }

    /// Takes over what agents remember of a past that this journal lost.
    ///
    /// Every lost rollout used up at least one generation of its model, so that the number
    /// of lost generations bounds the number of lost rollout ids.
    fn adopt(&mut self, withdrawals: &[Withdrawal], generations: &[(ModelName, Generation)]) {
        for (name, held) in generations {
            let model = self.models.entry(name.clone()).or_default();
            let lost = held.0.saturating_sub(model.known.0);
            self.next_rollout = self.next_rollout.saturating_add(lost);
            model.known = model.known.max(*held);
            model.generation = model.generation.max(*held).next();
        }
        for withdrawal in withdrawals {
            let model = self.models.entry(withdrawal.model.clone()).or_default();
            model.generation = model.generation.max(withdrawal.generation).next();
            model.known = model.known.max(withdrawal.generation);
            model.previous = model.previous.filter(|p| *p != withdrawal.withdrawn);
            model.withdrawals.insert(withdrawal.clone());
            self.next_rollout = self.next_rollout.max(withdrawal.rollout.0 + 1);
        }
        let adopted = withdrawals.iter().map(|w| &w.model);
        for name in adopted.chain(generations.iter().map(|(name, _)| name)) {
            self.note_lost_past(name);
        }
    }

    fn end(
        &mut self,
        record: &Record,
        id: RolloutId,
        phase: Phase,
        step: Step,
    ) -> Result<(ModelName, VersionRef), ChainError> {
        self.note(record, id, step)?;
        let rollout = self.rollout(record, id)?;
        rollout.phase = phase;
        rollout.approvals.clear();
        let (model, candidate) = (rollout.model.clone(), rollout.candidate);
        let live = &mut self.models.entry(model.clone()).or_default().rollout;
        if *live == Some(id) {
            *live = None;
        }
        Ok((model, candidate))
    }

    fn note(&mut self, record: &Record, id: RolloutId, step: Step) -> Result<(), ChainError> {
        let entry = HistoryEntry {
            seq: record.seq,
            at: record.at,
            actor: record.actor.clone(),
            step,
        };
        self.rollout(record, id)?.history.push(entry);
        Ok(())
    }

    fn rollout(&mut self, record: &Record, id: RolloutId) -> Result<&mut Rollout, ChainError> {
        known(record, "a rollout", self.rollouts.get_mut(&id))
    }

    fn node(&mut self, record: &Record, node: &NodeId) -> Result<&mut Node, ChainError> {
        known(record, "a node", self.nodes.get_mut(node))
    }

    fn version(
        &mut self,
        record: &Record,
        model: &ModelName,
        version: rollcall_shared::version::Version,
    ) -> Result<&mut RegisteredVersion, ChainError> {
        let model: Option<&mut Model> = self.models.get_mut(model);
        let entry = model.and_then(|m| m.versions.get_mut(&version));
        known(record, "a version", entry)
    }
}

fn known<'a, T>(
    record: &Record,
    what: &str,
    found: Option<&'a mut T>,
) -> Result<&'a mut T, ChainError> {
    found.ok_or_else(|| ChainError::Nonsense {
        seq: record.seq,
        why: format!("it names {what} that no record made"),
    })
}

/// The manifest inside a signed one. Its signature was checked when it was registered, and
/// the journal's chain guards it since; the core holds no keys.
fn read(signed: &SignedManifest) -> Result<Manifest, serde_json::Error> {
    #[derive(Deserialize)]
    struct Text {
        manifest: String,
    }
    let text: Text = serde_json::from_slice(&signed.encode())?;
    serde_json::from_str(&text.manifest)
}

#[cfg(test)]
mod tests {
    use rollcall_shared::time::Timestamp;

    use super::*;

    #[test]
    fn a_journal_with_a_gap_or_a_changed_record_is_refused() {
        let record = |seq, previous| Record {
            seq,
            at: Timestamp::from_nanos(seq),
            actor: crate::input::Actor::System,
            event: Event::Booted {
                software: "test".to_owned(),
            },
            previous,
        };
        let first = record(1, State::default().hash());
        let second = record(2, first.hash());
        assert!(State::from_records([first.clone(), second.clone()]).is_ok());
        assert_eq!(
            State::from_records([first.clone(), record(3, first.hash())]),
            Err(ChainError::Gap {
                expected: 2,
                found: 3
            })
        );
        let mut changed = first;
        changed.at = Timestamp::from_nanos(7);
        assert_eq!(
            State::from_records([changed, second]),
            Err(ChainError::Broken { seq: 2 })
        );
    }
}
