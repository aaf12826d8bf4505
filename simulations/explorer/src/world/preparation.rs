//! What an agent's shell does by itself: preparing versions, and counting requests.

use std::time::Duration;

use rollcall_agent_core::input::{Input, PrepareFailure};
use rollcall_agent_core::route::CandidateUsage;
use rollcall_shared::assignment::{Share, VersionRef};
use rollcall_shared::ids::ModelName;
use rollcall_shared::report::{Report, Resources, Role, Series};
use rollcall_shared::wire::FromAgentReport;

use crate::faults::Knob;
use crate::schedule::Event;
use crate::seed::Draws;
use crate::world::World;
use crate::world::agent_process::REPORT_EVERY;

/// How long an engine may fail: now and then beyond a breaker's first probe.
const TROUBLE: Duration = Duration::from_secs(75);

impl World {
    pub(super) fn prepare(&mut self, node: usize, model: ModelName, version: VersionRef) {
        let agent = &mut self.agents[node];
        agent.prepare_attempts += 1;
        let attempt = agent.prepare_attempts;
        agent.preparing.insert(version, attempt);
        let takes = agent
            .draws
            .between(Duration::from_millis(20), self.options.prepare_max);
        let epoch = agent.epoch;
        self.schedule.after(
            takes,
            Event::Prepared {
                node,
                epoch,
                model,
                version,
                attempt,
            },
        );
    }

    pub(crate) fn prepared(
        &mut self,
        node: usize,
        epoch: u64,
        model: ModelName,
        version: VersionRef,
        attempt: u64,
    ) {
        let agent = &mut self.agents[node];
        if agent.epoch != epoch || agent.preparing.get(&version) != Some(&attempt) {
            return;
        }
        agent.preparing.remove(&version);
        let label = format!("refusal/{}/{}", agent.name, version.digest);
        let failure = |reason: &str, retryable| {
            Err(PrepareFailure {
                reason: reason.to_owned(),
                retryable,
            })
        };
        let result = if Draws::child(self.seed, &label).chance(self.options.prepare_refusals) {
            self.fired.hit(Knob::PrepareRefused);
            agent.refused = true;
            failure("the engine refuses it", false)
        } else if agent.draws.chance(self.options.prepare_failures) {
            self.fired.hit(Knob::PrepareFailed);
            failure("the disk is busy", true)
        } else if !agent.cached.contains(&version) && agent.link.is_none() {
            failure("the coordinator cannot be reached", true)
        } else {
            agent.cached.insert(version);
            agent.loaded.insert(version);
            let label = format!("engine/{}/{}", agent.name, version.digest);
            let mut draws = Draws::child(self.seed, &label);
            if draws.chance(self.options.engine_troubles) {
                let from = self.schedule.now() + draws.between(Duration::ZERO, TROUBLE / 30);
                let until = from + draws.between(TROUBLE / 30, TROUBLE);
                agent.troubles.insert(version, (from, until));
            }
            Ok(())
        };
        self.tell_agent(
            node,
            Input::Prepared {
                model,
                version,
                result,
            },
        );
    }

    pub(crate) fn report_due(&mut self, node: usize, epoch: u64) {
        let now = self.schedule.now();
        let agent = &mut self.agents[node];
        if agent.epoch != epoch {
            return;
        }
        self.schedule
            .after(REPORT_EVERY, Event::ReportDue { node, epoch });
        let Some(link) = agent.link.filter(|_| agent.is_awake()) else {
            return;
        };
        agent.window += 1;
        let local = agent.clock.local(now);
        let requests = self.options.requests_per_second * REPORT_EVERY.as_secs_f64();
        let mut series = vec![];
        for (route, _) in agent.routes.values() {
            let candidate = route.candidate.as_ref().filter(|c| local < c.lease_until);
            let (role, share) = match candidate.map(|c| c.usage) {
                Some(CandidateUsage::Canary(share)) => (Role::Candidate, share),
                Some(CandidateUsage::Shadow(share)) => (Role::Shadow, share),
                None => (Role::Candidate, Share::NONE),
            };
            let tried = candidate.map(|c| (c.version, role, requests * share.percent() / 100.0));
            let by_right = route
                .stable
                .map(|version| (version, Role::Stable, requests));
            for (version, role, requests) in by_right.into_iter().chain(tried) {
                let counts = self
                    .operator
                    .counts(version, role, requests, &mut agent.draws);
                let (model, generation) = (route.model.clone(), route.generation);
                series.push(Series {
                    model,
                    version,
                    role,
                    generation,
                    counts,
                    segments: Vec::new(),
                });
            }
        }
        let report = Report {
            window: agent.window,
            duration_ms: 2_000,
            series,
            series_dropped: 0,
            resources: Resources::default(),
        };
        let world = (&self.options, &mut self.schedule, &mut self.fired);
        self.network
            .send_report(link, &FromAgentReport::Report(report), world);
    }
}
