//! A small fleet for tests: a coordinator, its clock, and the journal that its appends make.
//! Every `handle` is checked against the order of effects that the promises need.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{ConnectionId, Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{
    DataType, EngineKind, FilePath, MODEL_FILE, Manifest, ManifestFile, Metadata, ModelSignature,
    SignedManifest, TensorSpec,
};
use rollcall_shared::plan::Plan;
use rollcall_shared::report::{
    Counts, Readiness, ReadyState, Receipt, Report, Resources, Role as ServingRole, Series, Serving,
};
use rollcall_shared::signing::SigningKey;
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;
use rollcall_shared::wire::{FromAgent, Heartbeat, Hello, PROTOCOL, PROTOCOL_MIN, Rehearsal};

use crate::{
    Actor, Command, Coordinator, CoreConfig, Done, Effect, Input, Record, Refusal, Role, State,
    Ticket, TokenKind, Urgent,
};

mod words;

pub(crate) use self::words::{CANARY, DIRECT, counts, good};

pub(crate) const TICKET: Ticket = Ticket(7);

pub(crate) struct World {
    pub(crate) core: Coordinator,
    pub(crate) now: Timestamp,
    pub(crate) journal: Vec<Record>,
    connections: u64,
}

pub(crate) fn seconds(s: u64) -> Timestamp {
    Timestamp::from_nanos(s * 1_000_000_000)
}

pub(crate) fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

pub(crate) fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

pub(crate) fn person(name: &str, roles: impl IntoIterator<Item = Role>) -> Actor {
    Actor::Operator {
        name: name.to_owned(),
        roles: roles.into_iter().collect(),
    }
}

pub(crate) fn admin() -> Actor {
    person("ana", [Role::Admin])
}

pub(crate) fn security(name: &str) -> Actor {
    person(name, [Role::Approver("security".to_owned())])
}

/// The version `9.0.0` has the files of 1.0.0.
pub(crate) const COPY: u64 = 9;

pub(crate) fn signed(version: Version) -> (SignedManifest, Manifest) {
    let content = if version.major == COPY {
        1
    } else {
        version.major
    };
    let content = Version {
        major: content,
        ..version
    };
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, 64],
    };
    let manifest = Manifest {
        model: digits(),
        version,
        registered_at: seconds(1),
        engine: EngineKind::Onnx,
        signature: ModelSignature {
            inputs: vec![tensor("input")],
            outputs: vec![tensor("output")],
        },
        files: vec![ManifestFile {
            path: FilePath::new(MODEL_FILE).unwrap(),
            size: 3,
            digest: Digest::of(content.to_string().as_bytes()),
        }],
        metadata: Metadata {
            metrics: BTreeMap::from([("accuracy".to_owned(), 0.1 + 0.2)]),
            ..Metadata::default()
        },
    };
    let signed = SignedManifest::sign(&manifest, &SigningKey::from_seed(&[7; 32])).unwrap();
    (signed, manifest)
}

/// The fixture's version `major.0.0`.
pub(crate) fn version(major: u64) -> VersionRef {
    let version = Version::new(major, 0, 0);
    signed(version).0.version_ref(version)
}

pub(crate) fn config() -> CoreConfig {
    CoreConfig {
        software: "rollcall test".to_owned(),
        heartbeat_every: Duration::from_secs(1),
        report_every: Duration::from_secs(1),
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        software: "agent test".to_owned(),
        ..Hello::default()
    }
}

impl World {
    /// A coordinator without nodes or versions, at second 100.
    pub(crate) fn empty() -> Self {
        Self::from_state(State::default(), Vec::new(), seconds(100))
    }

    fn from_state(state: State, mut journal: Vec<Record>, now: Timestamp) -> Self {
        let (core, effects) = Coordinator::restore(state, config(), now);
        let [Effect::Append(records)] = effects.as_slice() else {
            panic!("a restart appends: {effects:?}");
        };
        journal.extend(records.clone());
        Self {
            core,
            now,
            journal,
            connections: 100,
        }
    }

    /// `nodes` enrolled and connected nodes, and versions 1.0.0 to 3.0.0 registered.
    pub(crate) fn with_nodes(nodes: u64) -> Self {
        let mut world = Self::empty();
        for n in 1..=nodes {
            world.enroll(n);
            world.connect(n, hello());
        }
        for major in 1..=3 {
            let (signed, manifest) = signed(Version::new(major, 0, 0));
            world.done(admin(), Command::RegisterVersion { signed, manifest });
        }
        world
    }

    /// As [`Self::with_nodes`], with 1.0.0 stable by rollout r-1.
    pub(crate) fn with_stable(nodes: u64) -> Self {
        let mut world = Self::with_nodes(nodes);
        world.start(DIRECT);
        world.everybody_ready(nodes, 1);
        world.pass(5);
        assert_eq!(
            world.core.model(&digits()).unwrap().stable,
            Some(Version::new(1, 0, 0))
        );
        world
    }

    /// As [`Self::with_stable`], with 2.0.0 in the shadow stage of rollout r-2.
    pub(crate) fn in_shadow(nodes: u64) -> Self {
        let mut world = Self::with_stable(nodes);
        world.start(CANARY);
        world.everybody_ready(nodes, 2);
        world
    }

    /// As [`Self::in_shadow`], with shadow and canary passed but for the approval.
    pub(crate) fn awaiting_approval(nodes: u64) -> Self {
        let mut world = Self::in_shadow(nodes);
        for role in [ServingRole::Shadow, ServingRole::Candidate] {
            world.report(1, role, 2, good(1_000));
            world.report(1, ServingRole::Stable, 1, good(1_000));
            world.pass(10);
        }
        world
    }

    /// As [`Self::awaiting_approval`], with 2.0.0 stable and 1.0.0 the version before it.
    pub(crate) fn promoted(nodes: u64) -> Self {
        let mut world = Self::awaiting_approval(nodes);
        world.promote();
        world
    }

    /// Approves, watches and promotes r-2 from where [`Self::awaiting_approval`] is.
    pub(crate) fn promote(&mut self) {
        let approve = Command::Approve {
            rollout: RolloutId(2),
            gate: "security".to_owned(),
            note: None,
        };
        self.done(security("sven"), approve);
        self.report(1, ServingRole::Candidate, 2, good(1_000));
        self.pass(10);
        let model = self.core.model(&digits()).unwrap();
        assert_eq!(model.stable, Some(Version::new(2, 0, 0)));
        assert_eq!(model.previous, Some(Version::new(1, 0, 0)));
    }

    /// kill -9 and a restart from the journal.
    pub(crate) fn restart(self) -> Self {
        let now = self.now + Duration::from_secs(1);
        Self::from_journal(self.journal, now)
    }

    /// A coordinator that holds this journal and nothing else.
    pub(crate) fn from_journal(journal: Vec<Record>, now: Timestamp) -> Self {
        let state = State::from_records(journal.clone()).unwrap();
        Self::from_state(state, journal, now)
    }

    /// Hands in `input`, and time once more after a broadcast, as a driver does.
    pub(crate) fn handle(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = self.handle_one(input);
        let is_broadcast = |effect: &Effect| matches!(effect, Effect::Broadcast(_));
        if effects.iter().any(is_broadcast) {
            effects.extend(self.handle_one(Input::TimePassed));
        }
        effects
    }

    fn handle_one(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.core.handle(input, self.now);
        assert_order(&effects);
        for effect in &effects {
            if let Effect::Append(records) = effect {
                self.journal.extend(records.clone());
            }
            if let Effect::Broadcast(Urgent::Withdraw(withdrawal)) = effect {
                let gone = &self.core.state().models[&withdrawal.model].withdrawals;
                let is_gone = |v| gone.iter().any(|w| w.withdrawn == v);
                assert!(!withdrawal.serving.is_some_and(is_gone), "{withdrawal:?}");
            }
        }
        effects
    }

    pub(crate) fn command(&mut self, actor: Actor, command: Command) -> Vec<Effect> {
        self.handle(Input::Command {
            ticket: TICKET,
            actor,
            command,
        })
    }

    pub(crate) fn result(&mut self, actor: Actor, command: Command) -> Result<Done, Refusal> {
        let effects = self.command(actor, command);
        let Some(Effect::Reply { ticket, result }) = effects.last() else {
            panic!("a command is answered last: {effects:?}");
        };
        assert_eq!(*ticket, TICKET);
        result.clone()
    }

    pub(crate) fn done(&mut self, actor: Actor, command: Command) -> Done {
        self.result(actor, command).unwrap()
    }

    pub(crate) fn start(&mut self, plan: &str) -> RolloutId {
        let plan = Plan::from_toml(plan).unwrap();
        let dry_run = false;
        match self.done(admin(), Command::StartRollout { plan, dry_run }) {
            Done::Started(rollout) => rollout,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn rollback(&mut self) -> Vec<Effect> {
        let command = Command::Rollback {
            model: digits(),
            version: None,
            reason: "it is bad".to_owned(),
        };
        self.command(admin(), command)
    }

    pub(crate) fn enroll(&mut self, n: u64) {
        let token = format!("t-{n}");
        self.done(
            admin(),
            Command::CreateToken {
                id: token.clone(),
                secret_hash: Digest::of(b"secret"),
                kind: TokenKind::Agent,
                name: String::new(),
                expires_at: Some(self.now + Duration::from_secs(60)),
            },
        );
        let enroll = Command::Enroll {
            token,
            secret_hash: Digest::of(b"secret"),
            node: node(n),
            labels: BTreeMap::new(),
            key: Digest::of(b"key"),
        };
        self.done(Actor::Agent { node: node(n) }, enroll);
    }

    pub(crate) fn connect(&mut self, n: u64, hello: Hello) -> Vec<Effect> {
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        let node = node(n);
        self.handle(Input::AgentConnected {
            connection,
            node,
            hello,
        })
    }

    pub(crate) fn connection(&self, n: u64) -> ConnectionId {
        let presence = &self.core.fleet.nodes[&node(n)];
        presence.connection.unwrap()
    }

    pub(crate) fn disconnect(&mut self, n: u64) {
        let connection = self.connection(n);
        let node = node(n);
        self.handle(Input::AgentDisconnected { connection, node });
    }

    pub(crate) fn say(&mut self, n: u64, message: FromAgent) -> Vec<Effect> {
        let connection = self.connection(n);
        let node = node(n);
        self.handle(Input::FromAgent {
            connection,
            node,
            message,
        })
    }

    pub(crate) fn heartbeat(&mut self, n: u64, held: u64) -> Vec<Effect> {
        let held = vec![(digits(), Generation(held))];
        self.say(n, FromAgent::Heartbeat(Heartbeat { seq: 1, held }))
    }

    pub(crate) fn readiness(&mut self, n: u64, major: u64, state: ReadyState) -> Vec<Effect> {
        let readiness = Readiness {
            model: digits(),
            version: version(major),
            state,
        };
        self.say(n, FromAgent::Readiness(readiness))
    }

    /// Nodes 1 to `nodes` have loaded a version; whatever was nudged is looked at.
    pub(crate) fn everybody_ready(&mut self, nodes: u64, major: u64) {
        for n in 1..=nodes {
            self.readiness(n, major, ReadyState::Ready);
        }
        self.now = self.now + Duration::from_millis(10);
        self.handle(Input::TimePassed);
    }

    /// A receipt of the given generation: `major` serves as stable.
    pub(crate) fn receipt(&mut self, n: u64, generation: u64, major: u64) -> Vec<Effect> {
        let receipt = Receipt {
            model: digits(),
            generation: Generation(generation),
            serving: vec![Serving {
                role: ServingRole::Stable,
                version: version(major),
            }],
        };
        self.say(n, FromAgent::Receipt(receipt))
    }

    /// A window in which node `n` saw these counts under the current generation.
    pub(crate) fn report(&mut self, n: u64, role: ServingRole, major: u64, counts: Counts) {
        self.report_of(self.generation(), n, role, major, counts);
    }

    pub(crate) fn report_of(
        &mut self,
        generation: Generation,
        n: u64,
        role: ServingRole,
        major: u64,
        counts: Counts,
    ) {
        let series = Series {
            model: digits(),
            version: version(major),
            role,
            generation,
            counts,
            segments: Vec::new(),
        };
        let input = Input::Reported {
            connection: self.connection(n),
            node: node(n),
            report: Report {
                window: 1,
                duration_ms: 1_000,
                series: vec![series],
                series_dropped: 0,
                resources: Resources::default(),
            },
        };
        assert_eq!(self.handle(input), vec![]);
    }

    /// Lets seconds pass, with every wake-up on the way.
    pub(crate) fn pass(&mut self, s: u64) -> Vec<Effect> {
        let end = self.now + Duration::from_secs(s);
        let mut effects = Vec::new();
        while let Some(wake) = self.core.next_wakeup().filter(|wake| *wake <= end) {
            self.now = self.now.max(wake);
            effects.extend(self.handle(Input::TimePassed));
        }
        self.now = end;
        effects
    }

    pub(crate) fn generation(&self) -> Generation {
        self.core.model(&digits()).unwrap().generation
    }

    /// The live rollout r-2.
    pub(crate) fn trip(&self) -> crate::view::RolloutView {
        self.core.rollout(RolloutId(2), self.now).unwrap()
    }
}

/// Promise 4 and 6, for every `handle` of every test: withdrawals before the append, one
/// append, everything else after it.
fn assert_order(effects: &[Effect]) {
    let rank = |effect: &Effect| match effect {
        Effect::Broadcast(_) => 0,
        Effect::Append(_) => 1,
        Effect::Send { .. } | Effect::Offer { .. } | Effect::Disconnect { .. } => 2,
        Effect::Reply { .. } => 3,
    };
    let ranks: Vec<u8> = effects.iter().map(rank).collect();
    assert!(ranks.is_sorted(), "out of order: {effects:?}");
    assert!(ranks.iter().filter(|rank| **rank == 1).count() <= 1);
    // What is broadcast is recorded, and the other way round.
    let recorded = effects.iter().filter_map(|effect| match effect {
        Effect::Append(records) => Some(records),
        _ => None,
    });
    let mut recorded: Vec<Urgent> = recorded.flatten().filter_map(urgent).collect();
    let broadcast = effects.iter().filter_map(|effect| match effect {
        Effect::Broadcast(urgent) => Some(urgent.clone()),
        _ => None,
    });
    for urgent in broadcast {
        let at = recorded.iter().position(|recorded| *recorded == urgent);
        recorded.remove(at.expect("a broadcast without a record"));
    }
    assert_eq!(recorded, vec![]);
}

/// What a record says that was broadcast.
fn urgent(record: &Record) -> Option<Urgent> {
    match &record.event {
        crate::Event::Withdrawn { withdrawal, .. } => Some(Urgent::Withdraw(withdrawal.clone())),
        crate::Event::RehearsalBegan { as_if, .. } => Some(Urgent::Rehearse(Rehearsal {
            rehearsal: record.seq,
            as_if: as_if.clone(),
        })),
        _ => None,
    }
}
