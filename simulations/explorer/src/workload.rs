//! An operator who pushes versions, starts rollouts and meddles with them: sometimes
//! wisely, often at the wrong moment, and never waiting for an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_coordinator_core::effect::{Done, Refusal};
use rollcall_coordinator_core::input::{Actor, Command, Input, Role, Ticket, TokenKind};
use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::histogram::Histogram;
use rollcall_shared::ids::{ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{
    DataType, EngineKind, FilePath, MODEL_FILE, Manifest, ManifestFile, Metadata, ModelSignature,
    SignedManifest, TensorSpec,
};
use rollcall_shared::plan::Plan;
use rollcall_shared::report::{Counts, Role as ServingRole};
use rollcall_shared::signing::SigningKey;
use rollcall_shared::version::Version;

use crate::faults::{Knob, Options, Setup};
use crate::schedule::Event;
use crate::seed::Draws;
use crate::world::{START, World};

/// How a version behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quality {
    Good,
    Failing,
    Slow,
    Disagreeing,
}

/// The operator, and what she remembers.
#[derive(Debug)]
pub struct Operator {
    pub(crate) models: Vec<ModelName>,
    draws: Draws,
    /// For what she took up later than the rest.
    whims: Draws,
    key: SigningKey,
    next_ticket: u64,
    asked: BTreeMap<Ticket, Command>,
    pushed: BTreeMap<ModelName, Vec<Version>>,
    pushes: u64,
    /// How often she pushed a number again with other content.
    repushed: u64,
    qualities: BTreeMap<VersionRef, Quality>,
    rollouts: Vec<RolloutId>,
    nodes: Vec<NodeId>,
    fast: Histogram,
    slow: Histogram,
    /// The answer to the last command of phase 2.
    pub(crate) last_answer: Option<(Ticket, Result<Done, Refusal>)>,
}

/// A histogram of latencies around a median, in milliseconds.
fn latencies(median_ms: u64) -> Histogram {
    let mut histogram = Histogram::default();
    for percent in 60..160 {
        histogram.record(Duration::from_micros(median_ms * 10 * percent));
    }
    histogram
}

fn everything() -> BTreeSet<Role> {
    let approver = Role::Approver("ml-engineering".to_owned());
    BTreeSet::from([
        Role::Viewer,
        Role::Operator,
        Role::Promoter,
        Role::Admin,
        approver,
    ])
}

fn person(name: &str) -> Actor {
    Actor::Operator {
        name: name.to_owned(),
        roles: everything(),
    }
}

impl Operator {
    /// Somebody with every role.
    #[must_use]
    pub fn new(seed: u64, options: &Options, setup: &Setup) -> Self {
        let models = ["digits", "fraud"].iter().take(options.models);
        let nodes = (0..setup.agents).map(|node| format!("node-{node}"));
        Self {
            models: models
                .map(|name| ModelName::new(*name).expect("a good name"))
                .collect(),
            draws: Draws::child(seed, "operator"),
            whims: Draws::child(seed, "operator/whims"),
            key: SigningKey::from_seed(&[7; 32]),
            next_ticket: 0,
            asked: BTreeMap::new(),
            pushed: BTreeMap::new(),
            pushes: 0,
            repushed: 0,
            qualities: BTreeMap::new(),
            rollouts: vec![],
            nodes: nodes
                .map(|name| NodeId::new(name).expect("a good name"))
                .collect(),
            fast: latencies(5),
            slow: latencies(50),
            last_answer: None,
        }
    }

    /// The coordinator answers; gives the command that it answers.
    pub(crate) fn answered(
        &mut self,
        ticket: Ticket,
        result: &Result<Done, Refusal>,
    ) -> Option<Command> {
        if let Ok(Done::Started(rollout)) = result {
            self.rollouts.push(*rollout);
        }
        self.last_answer = Some((ticket, result.clone()));
        self.asked.remove(&ticket)
    }

    /// Nobody answers what was asked.
    pub(crate) fn coordinator_is_gone(&mut self) {
        self.asked.clear();
    }

    /// What a node counts in one window.
    pub(crate) fn counts(
        &self,
        version: VersionRef,
        role: ServingRole,
        requests: f64,
        draws: &mut Draws,
    ) -> Counts {
        let quality = self
            .qualities
            .get(&version)
            .copied()
            .unwrap_or(Quality::Good);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some thousands"
        )]
        let whole = |x: f64| (x + draws.unit()) as u64;
        let mut whole = whole;
        let requests = whole(requests);
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let share = |share: f64| requests as f64 * share;
        let errors = if quality == Quality::Failing {
            whole(share(0.2))
        } else {
            whole(share(0.000_1))
        };
        let shadow = role == ServingRole::Shadow;
        let compared = if shadow { requests } else { 0 };
        let disagreed = if quality == Quality::Disagreeing {
            whole(share(0.3))
        } else {
            whole(share(0.001))
        };
        let latency = match (requests, quality) {
            (0, _) => Histogram::default(),
            (_, Quality::Slow) => self.slow.clone(),
            (_, Quality::Good | Quality::Failing | Quality::Disagreeing) => self.fast.clone(),
        };
        Counts {
            requests,
            errors: errors.min(requests),
            failed_keys: errors.min(requests),
            fallbacks: if role == ServingRole::Candidate {
                errors.min(requests)
            } else {
                0
            },
            latency,
            compared,
            agreed: compared - disagreed.min(compared),
            ..Counts::default()
        }
    }

    /// A version with a number and content of its own, really signed.
    pub(crate) fn new_version(&mut self, model: &ModelName, bad: f64) -> (Version, Command) {
        let pushed = self.pushed.entry(model.clone()).or_default();
        let version = Version::new(1, pushed.len() as u64, 0);
        pushed.push(version);
        (version, self.push(model, version, bad))
    }

    /// A version as she pushes it: with content that nobody has seen before.
    fn push(&mut self, model: &ModelName, version: Version, bad: f64) -> Command {
        self.pushes += 1;
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: vec![-1, 4],
        };
        let manifest = Manifest {
            model: model.clone(),
            version,
            registered_at: rollcall_shared::time::Timestamp::from_nanos(1_000_000_000),
            engine: EngineKind::Onnx,
            signature: ModelSignature {
                inputs: vec![spec("input")],
                outputs: vec![spec("output")],
            },
            files: vec![ManifestFile {
                path: FilePath::new(MODEL_FILE).expect("a good path"),
                size: 8,
                digest: Digest::of(&self.pushes.to_le_bytes()),
            }],
            metadata: Metadata::default(),
        };
        let signed = SignedManifest::sign(&manifest, &self.key).expect("a valid manifest");
        let quality = if self.draws.chance(bad) {
            *self
                .draws
                .one_of(&[Quality::Failing, Quality::Slow, Quality::Disagreeing])
        } else {
            Quality::Good
        };
        self.qualities.insert(signed.version_ref(version), quality);
        Command::RegisterVersion { signed, manifest }
    }

    fn some_version(&mut self, model: &ModelName) -> Option<Version> {
        let versions = self
            .pushed
            .get(model)
            .filter(|versions| !versions.is_empty())?;
        // Mostly the newest.
        let newest = versions.last().copied();
        if self.draws.chance(0.6) {
            newest
        } else {
            Some(*self.draws.one_of(versions))
        }
    }

    /// Mostly the newest that she knows of.
    fn some_rollout(&mut self) -> RolloutId {
        match self.rollouts.last() {
            Some(last) if self.draws.chance(0.7) => *last,
            Some(_) => *self.draws.one_of(&self.rollouts),
            None => RolloutId(1),
        }
    }

    fn some_plan(&mut self, model: &ModelName, candidate: Version, longer: f64) -> Plan {
        let longer = self.whims.chance(longer);
        let draws = &mut self.draws;
        let strategy = *draws.one_of(&["direct", "direct", "canary", "canary", "canary", "shadow"]);
        let lease = 2 + draws.below(9);
        let check = 1 + draws.below(3);
        let samples = *draws.one_of(&[1, 50, 200]);
        let mut hold = || 1 + draws.below(6);
        let stage = |name: &str, rest: String| format!("[[stage]]\nname = \"{name}\"\n{rest}\n");
        let shadow = stage(
            "shadow",
            format!("mode = \"shadow\"\nhold = \"{}s\"", hold()),
        );
        let canary = |name: &str, share: &str, hold: usize| {
            let rest = format!("mode = \"canary\"\n{share}\nhold = \"{hold}s\"");
            stage(name, rest)
        };
        let by_request = canary("canary", "by = \"request\"\nshare_percent = 30", hold());
        let by_node = canary("nodes", "by = \"node\"\npercent = 50", hold());
        let (requests, nodes) = if longer {
            // Some last long enough for an engine to fail and to recover.
            let last = hold() + 20 * self.whims.below(5);
            let grown = canary("more", "by = \"request\"\nshare_percent = 70", last);
            let fewer = canary("few-nodes", "by = \"node\"\npercent = 20", hold());
            (by_request + &grown, fewer + &by_node)
        } else {
            (by_request, by_node)
        };
        let full = stage("full", format!("mode = \"full\"\nwatch = \"{}s\"", hold()));
        let approvals = if draws.chance(0.2) {
            "approvals = [\"ml-engineering\"]\n"
        } else {
            ""
        };
        let stages = match (strategy, draws.below(3)) {
            ("direct", _) => full,
            ("shadow", _) => shadow,
            (_, 0) => shadow + &requests + &full + approvals,
            (_, 1) => shadow + &nodes + &full + approvals,
            (_, _) => shadow + &requests + &nodes + approvals + &full,
        };
        let text = format!(
            "model = \"{model}\"\ncandidate = \"{candidate}\"\nstrategy = \"{strategy}\"\nlease = \"{lease}s\"\n\
             [policy]\ncheck_every = \"{check}s\"\nmin_requests = {samples}\n{stages}"
        );
        Plan::from_toml(&text).expect("the workload's plans are valid")
    }

    /// What comes to her mind.
    fn next_command(&mut self, options: &Options) -> Command {
        let model = self.draws.one_of(&self.models).clone();
        let reason = "because".to_owned();
        let kind = self.draws.below(100);
        let rollout = self.some_rollout();
        let Some(version) = self.some_version(&model) else {
            return self.new_version(&model, 0.0).1;
        };
        let node = self.draws.one_of(&self.nodes).clone();
        match kind {
            0..16 if self.whims.chance(options.repushes) => {
                self.repushed += 1;
                self.push(&model, version, 0.0)
            }
            0..16 => self.new_version(&model, options.bad_versions).1,
            16..52 => Command::StartRollout {
                plan: self.some_plan(&model, version, options.longer_plans),
                dry_run: kind == 16,
            },
            52..57 => Command::Pause { rollout },
            57..65 => Command::Resume { rollout },
            65..72 => Command::Advance { rollout },
            72..78 => Command::Approve {
                rollout,
                gate: "ml-engineering".to_owned(),
                note: None,
            },
            78..80 => Command::Reject {
                rollout,
                note: None,
            },
            80..91 if self.whims.chance(options.rehearsals) => Command::Rehearse {
                model,
                version: (kind < 84).then_some(version),
                reason,
            },
            80..91 => Command::Rollback {
                model,
                version: (kind < 84).then_some(version),
                reason,
            },
            91..94 => Command::Quarantine { node },
            94..98 => Command::Release { node },
            98 => Command::Archive { model, version },
            _ => Command::Restore { model, version },
        }
    }

    /// A plan straight to every node.
    pub(crate) fn direct_plan(model: &ModelName, candidate: Version, watch_s: usize) -> Plan {
        let text = format!(
            "model = \"{model}\"\ncandidate = \"{candidate}\"\nstrategy = \"direct\"\nlease = \"5s\"\n\
             [policy]\ncheck_every = \"1s\"\nmin_requests = 1\n\
             [[stage]]\nname = \"full\"\nmode = \"full\"\nwatch = \"{watch_s}s\"\n"
        );
        Plan::from_toml(&text).expect("the workload's plans are valid")
    }
}

impl World {
    /// Somebody asks the coordinator, if it is there to be asked.
    pub(crate) fn ask(&mut self, actor: Actor, command: Command) -> Ticket {
        self.operator.next_ticket += 1;
        let ticket = Ticket(self.operator.next_ticket);
        if self.coordinator.core.is_some() {
            self.operator.asked.insert(ticket, command.clone());
            self.tell_coordinator(Input::Command {
                ticket,
                actor,
                command,
            });
        }
        ticket
    }

    /// Ana asks.
    pub(crate) fn ana_asks(&mut self, command: Command) -> Ticket {
        self.ask(person("ana"), command)
    }

    /// Every node gets a token and uses it.
    pub(crate) fn enroll_everybody(&mut self) {
        for node in self.operator.nodes.clone() {
            let (token, secret_hash) = (
                format!("token-of-{node}"),
                Digest::of(node.as_str().as_bytes()),
            );
            let zone = if node.as_str().ends_with(['0', '2', '4', '6', '8']) {
                "eu-1"
            } else {
                "eu-2"
            };
            let labels = BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
            let name = node.to_string();
            let (kind, id) = (TokenKind::Agent, token.clone());
            let expires_at = Some(START + Duration::from_secs(3_600));
            self.ana_asks(Command::CreateToken {
                id,
                secret_hash,
                kind,
                name,
                expires_at,
            });
            let key = Digest::of(token.as_bytes());
            let enroll = Command::Enroll {
                token,
                secret_hash,
                node: node.clone(),
                labels,
                key,
            };
            self.ask(Actor::Agent { node }, enroll);
        }
    }

    /// The operator does something, sometimes several things at once.
    pub(crate) fn operator_acts(&mut self) {
        if self.is_healed() {
            return;
        }
        let at_once =
            1 + usize::from(self.operator.draws.chance(0.2)) * self.operator.draws.below(4);
        for _ in 0..at_once {
            let repushed = self.operator.repushed;
            let command = self.operator.next_command(&self.options);
            if self.operator.repushed > repushed {
                self.fired.hit(Knob::Repushed);
            }
            let who = if self.operator.draws.chance(0.7) {
                "ana"
            } else {
                "bo"
            };
            self.ask(person(who), command);
        }
        let next = self
            .operator
            .draws
            .next_of(self.options.operations_per_minute);
        self.schedule.after(next, Event::OperatorActs);
    }
}
