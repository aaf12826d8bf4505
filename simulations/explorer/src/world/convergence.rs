//! Phase 2: everything is healed, and the fleet must come together: every agent
//! connected and at the current generation, leases valid, a new version served by
//! everybody, and its rollback receipted by everybody.

use std::time::Duration;

use rollcall_coordinator_core::effect::Done;
use rollcall_coordinator_core::input::{Command, Ticket};
use rollcall_coordinator_core::record::Event as Recorded;
use rollcall_shared::ids::{ModelName, RolloutId};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use crate::checkers::LIVENESS;
use crate::faults::Options;
use crate::network::Direction;
use crate::schedule::Event;
use crate::seed::Draws;
use crate::workload::Operator;
use crate::world::World;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

/// How long each step may take: two idle time-outs and the longest reconnect delay, with room.
const PATIENCE: Duration = Duration::from_secs(90);

/// The steps.
#[derive(Clone, Debug)]
enum Step {
    Raging,
    Gathering,
    ClearingTheWay {
        model: ModelName,
        asked: Option<Ticket>,
    },
    Pushing {
        model: ModelName,
        version: Version,
        ticket: Ticket,
    },
    Starting {
        model: ModelName,
        version: Version,
        ticket: Ticket,
    },
    Serving {
        model: ModelName,
        version: Version,
    },
    /// One node's engine fails for a while; its breaker opens and must close again.
    Recovering(Recovery),
    Withdrawing {
        model: ModelName,
        version: Version,
        ticket: Ticket,
    },
    Settling {
        model: ModelName,
        version: Version,
        rollout: RolloutId,
    },
    Done,
}

/// A candidate that fails on one node, and recovers.
#[derive(Clone, Debug)]
struct Recovery {
    model: ModelName,
    version: Version,
    node: usize,
    opened: bool,
}

/// Where phase 2 is.
#[derive(Debug)]
pub(crate) struct Convergence {
    step: Step,
    since: Timestamp,
    draws: Draws,
    /// Whether an engine fails once more.
    troubles: bool,
}

impl Convergence {
    /// Phase 1 is on.
    #[must_use]
    pub(crate) fn new(seed: u64, options: &Options) -> Self {
        Self {
            step: Step::Raging,
            since: Timestamp::ZERO,
            draws: Draws::child(seed, "convergence"),
            troubles: options.engine_troubles > 0.0,
        }
    }

    /// Whether the run is over.
    #[must_use]
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.step, Step::Done)
    }
}

/// What a step came to.
enum Progress {
    Next(Step),
    Waits(String),
    Refused(String),
}

impl World {
    /// One look; the step goes on, waits, or has waited too long.
    pub(crate) fn converge(&mut self) {
        let now = self.schedule.now();
        let progress = match self.convergence.step.clone() {
            Step::Raging => {
                self.trace.line(now, "world", format_args!("heals"));
                self.heal();
                Progress::Next(Step::Gathering)
            }
            Step::Gathering => self.gather(),
            Step::ClearingTheWay { model, asked } => self.clear_the_way(model, asked),
            Step::Pushing {
                model,
                version,
                ticket,
            } => self.push(model, version, ticket),
            Step::Starting {
                model,
                version,
                ticket,
            } => match self.answer(ticket) {
                Ok(_) => Progress::Next(Step::Serving { model, version }),
                Err(progress) => progress,
            },
            Step::Serving { model, version } => self.serve(model, version),
            Step::Recovering(recovery) => self.recover(recovery),
            Step::Withdrawing {
                model,
                version,
                ticket,
            } => match self.answer(ticket) {
                Ok(Done::Withdrawn { rollout, .. }) => Progress::Next(Step::Settling {
                    model,
                    version,
                    rollout,
                }),
                Ok(other) => Progress::Refused(format!("a rollback was answered with {other:?}")),
                Err(progress) => progress,
            },
            Step::Settling {
                model,
                version,
                rollout,
            } => self.settle(&model, version, rollout),
            Step::Done => return,
        };
        match progress {
            Progress::Next(step) => {
                self.trace.line(now, "world", format_args!("{step:?}"));
                self.convergence.step = step;
                self.convergence.since = now;
            }
            Progress::Waits(why) if now.since(self.convergence.since) > PATIENCE => {
                let what = format!(
                    "after everything healed, {why} (step {:?})",
                    self.convergence.step
                );
                self.checkers.verdicts.broken(LIVENESS, None, what);
            }
            Progress::Waits(_) => {}
            Progress::Refused(why) => {
                let what = format!(
                    "after everything healed, {why} (step {:?})",
                    self.convergence.step
                );
                self.checkers.verdicts.broken(LIVENESS, None, what);
            }
        }
        self.schedule.after(EVERY, Event::Convergence);
    }

    /// Gives every quarantined node back; false when there was none.
    fn release_everybody(&mut self) -> bool {
        let nodes = self.coordinator.core.iter().flat_map(|core| core.nodes());
        let quarantined: Vec<_> = nodes.filter(|node| node.quarantined).collect();
        for node in &quarantined {
            let node = node.node.clone();
            self.ana_asks(Command::Release { node });
        }
        !quarantined.is_empty()
    }

    fn answer(&self, ticket: Ticket) -> Result<Done, Progress> {
        match &self.operator.last_answer {
            Some((answered, Ok(done))) if *answered == ticket => Ok(done.clone()),
            Some((answered, Err(refusal))) if *answered == ticket => Err(Progress::Refused(
                format!("a command was refused: {refusal}"),
            )),
            Some(_) | None => Err(Progress::Waits("a command is not answered".to_owned())),
        }
    }

    /// Everybody is connected and holds what is current.
    fn gather(&mut self) -> Progress {
        if self.release_everybody() {
            return Progress::Waits("a node is quarantined".to_owned());
        }
        if let Some(missing) = self.what_is_missing() {
            return Progress::Waits(missing);
        }
        if let Some(forgotten) = self.forgotten_withdrawal() {
            return Progress::Waits(forgotten);
        }
        let model = self.convergence.draws.one_of(&self.operator.models).clone();
        Progress::Next(Step::ClearingTheWay { model, asked: None })
    }

    /// What keeps the fleet from being in step; `None`: nothing.
    fn what_is_missing(&self) -> Option<String> {
        let now = self.schedule.now();
        let Some(core) = &self.coordinator.core else {
            return Some("the coordinator is down".to_owned());
        };
        let connected = core
            .nodes()
            .into_iter()
            .filter(|node| node.connected)
            .count();
        if connected < self.agents.len() {
            return Some(format!(
                "the coordinator sees {connected} of {} nodes",
                self.agents.len()
            ));
        }
        for (node, agent) in self.agents.iter().enumerate() {
            if self.network.link_of(node, Direction::Up).is_none() {
                return Some(format!("{} is not connected", agent.name));
            }
            for view in core
                .models()
                .into_iter()
                .filter(|view| view.generation.0 > 0)
            {
                let held = agent
                    .disk
                    .synced()
                    .assignments
                    .get(&view.model)
                    .map(|a| a.generation);
                let assigned = view.stable.is_some() || view.rollout.is_some();
                if assigned && held != Some(view.generation) {
                    return Some(format!(
                        "{} holds {held:?} of {}, not {}",
                        agent.name, view.model, view.generation
                    ));
                }
                let Some((route, _)) = agent.routes.get(&view.model) else {
                    if view.stable.is_some() {
                        return Some(format!("{} has no route of {}", agent.name, view.model));
                    }
                    continue;
                };
                // A coordinator that forgot what is stable must not stop it.
                let stable = route.stable.map(|stable| stable.version);
                if view.stable.is_some() && stable != view.stable {
                    let (name, model, asked) = (&agent.name, &view.model, view.stable);
                    return Some(format!(
                        "{name} serves {stable:?} of {model}, not {asked:?}"
                    ));
                }
                let local = agent.clock.local(now);
                if route
                    .candidate
                    .as_ref()
                    .is_some_and(|candidate| candidate.lease_until <= local)
                {
                    return Some(format!(
                        "the lease of {} on {} is over",
                        view.model, agent.name
                    ));
                }
            }
        }
        None
    }

    /// Withdrawals that an agent keeps must have come back to the coordinator.
    fn forgotten_withdrawal(&self) -> Option<String> {
        let records = self.coordinator.journal.synced();
        let known: std::collections::BTreeSet<_> = records
            .iter()
            .flat_map(|record| match &record.event {
                Recorded::Withdrawn { withdrawal, .. } => std::slice::from_ref(withdrawal),
                Recorded::KnowledgeAdopted { withdrawals, .. } => withdrawals,
                _ => &[],
            })
            .map(|withdrawal| withdrawal.withdrawn)
            .collect();
        self.agents.iter().find_map(|agent| {
            let kept = agent.disk.synced().withdrawals.iter();
            let forgotten = kept
                .into_iter()
                .find(|withdrawal| !known.contains(&withdrawal.withdrawn))?;
            Some(format!(
                "the coordinator never learned what {} knows: {forgotten:?}",
                agent.name
            ))
        })
    }

    fn clear_the_way(&mut self, model: ModelName, asked: Option<Ticket>) -> Progress {
        if let Some(ticket) = asked
            && let Err(progress) = self.answer(ticket)
        {
            return progress;
        }
        let Some(core) = &self.coordinator.core else {
            return Progress::Waits("the coordinator is down".to_owned());
        };
        let busy = core.model(&model).and_then(|view| view.rollout).is_some();
        if busy {
            let reason = "phase 2".to_owned();
            let asked = Some(self.ana_asks(Command::Rollback {
                version: None,
                model: model.clone(),
                reason,
            }));
            return Progress::Next(Step::ClearingTheWay { model, asked });
        }
        let (version, command) = self.operator.new_version(&model, 0.0);
        let ticket = self.ana_asks(command);
        Progress::Next(Step::Pushing {
            model,
            version,
            ticket,
        })
    }

    fn push(&mut self, model: ModelName, version: Version, ticket: Ticket) -> Progress {
        if let Err(progress) = self.answer(ticket) {
            return progress;
        }
        let drawn = *self.convergence.draws.one_of(&[2, 600]);
        // A first version that is promoted has nothing before it to go back to: take it
        // back while it is still on trial.
        let core = self.coordinator.core.as_ref();
        let stable = core
            .and_then(|core| core.model(&model))
            .and_then(|view| view.stable);
        let lasts = stable.is_none() || self.convergence.troubles;
        let watch_s = if lasts { 600 } else { drawn };
        let plan = Operator::direct_plan(&model, version, watch_s);
        let ticket = self.ana_asks(Command::StartRollout {
            plan,
            dry_run: false,
        });
        Progress::Next(Step::Starting {
            model,
            version,
            ticket,
        })
    }

    fn serve(&mut self, model: ModelName, version: Version) -> Progress {
        if let Some(agent) = self.who_does_not(&model, version, true) {
            return Progress::Waits(format!("{agent} does not serve {model}@{version}"));
        }
        let core = self.coordinator.core.as_ref();
        let live = core.is_some_and(|c| c.model(&model).is_some_and(|m| m.rollout.is_some()));
        if live && std::mem::take(&mut self.convergence.troubles) {
            let node = self.convergence.draws.below(self.agents.len());
            self.trouble_candidate(node, &model);
            return Progress::Next(Step::Recovering(Recovery {
                model,
                version,
                node,
                opened: false,
            }));
        }
        self.take_back(model, version)
    }

    /// The candidate on one node fails every request for some seconds.
    fn trouble_candidate(&mut self, node: usize, model: &ModelName) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        let route = agent.routes.get(model).map(|(route, _)| route);
        if let Some(candidate) = route.and_then(|route| route.candidate.as_ref()) {
            let trouble = (now, now + EVERY * 10);
            agent.troubles.insert(candidate.version, trouble);
        }
    }

    fn recover(&mut self, recovery: Recovery) -> Progress {
        let agent = &self.agents[recovery.node];
        let breaker = agent.breakers.get(&recovery.model);
        let closed = breaker.is_none_or(|(_, breaker)| breaker.is_closed());
        match (recovery.opened, closed) {
            (false, false) => Progress::Next(Step::Recovering(Recovery {
                opened: true,
                ..recovery
            })),
            (true, true) => self.take_back(recovery.model, recovery.version),
            (false, true) => Progress::Waits(format!(
                "the breaker of {} does not open, though the candidate fails every request",
                agent.name
            )),
            (true, false) => Progress::Waits(format!(
                "the breaker of {} does not close, though the candidate has recovered",
                agent.name
            )),
        }
    }

    fn take_back(&mut self, model: ModelName, version: Version) -> Progress {
        let reason = "the last one".to_owned();
        let ticket = self.ana_asks(Command::Rollback {
            version: Some(version),
            model: model.clone(),
            reason,
        });
        Progress::Next(Step::Withdrawing {
            model,
            version,
            ticket,
        })
    }

    /// The first agent that does not (or does) answer with this version.
    fn who_does_not(&self, model: &ModelName, version: Version, serves: bool) -> Option<String> {
        let now = self.schedule.now();
        let differs = self.agents.iter().find(|agent| {
            let answers = agent.routes.get(model).is_some_and(|(route, keen)| {
                let pick = route.pick(keen, agent.clock.local(now));
                crate::checkers::uses(route, pick)
                    .next()
                    .is_some_and(|used| used.version.version == version)
            });
            answers != serves
        });
        differs.map(|agent| agent.name.to_string())
    }

    fn settle(&mut self, model: &ModelName, version: Version, rollout: RolloutId) -> Progress {
        if let Some(agent) = self.who_does_not(model, version, false) {
            return Progress::Waits(format!("{agent} still serves {model}@{version}"));
        }
        let settled =
            self.coordinator
                .journal
                .synced()
                .iter()
                .rev()
                .find_map(|record| match &record.event {
                    Recorded::RollbackSettled {
                        rollout: r,
                        propagation,
                    } if *r == rollout => Some(propagation),
                    _ => None,
                });
        match settled {
            None => Progress::Waits(format!("the rollback of {rollout} is not settled")),
            Some(p)
                if p.received == self.agents.len() as u64
                    && p.fenced.is_empty()
                    && p.silent.is_empty() =>
            {
                match self.what_is_missing() {
                    None => Progress::Next(Step::Done),
                    Some(missing) => Progress::Waits(missing),
                }
            }
            Some(p) => Progress::Refused(format!(
                "the rollback of {rollout} settled without everybody: {p:?}"
            )),
        }
    }
}
