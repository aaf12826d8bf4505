//! Agents at the door: enrolment, `Hello`, files, withdrawals, receipts, revocation.
//! The agent here is a few lines of protocol, without an engine.
#![allow(clippy::unwrap_used, clippy::too_many_lines, reason = "tests")]

mod fixture;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use fixture::{Fleet, push, token};
use quinn::Connection;
use reqwest::Method;
use rollcall_coordinator::http::outcomes::FeedbackSent;
use rollcall_coordinator::http::tokens::NewTokenKind;
use rollcall_coordinator_core::view::{NodeView, RehearsalView, RollbackView, RolloutView};
use rollcall_shared::assignment::{Assignment, CandidateMode, Share, Withdrawal};
use rollcall_shared::codec;
use rollcall_shared::ids::{Generation, ModelName, NodeId};
use rollcall_shared::manifest::SignedManifest;
use rollcall_shared::report::{Readiness, ReadyState, Receipt, Report, Resources, Role, Serving};
use rollcall_shared::wire::{
    ArtifactAnswer, ArtifactRequest, Beacon, EnrollAnswer, EnrollRequest, FromAgent,
    FromAgentReport, Heartbeat, Hello, PROTOCOL, PROTOCOL_MIN, Rehearsed, ToAgent, Welcome,
};
use rollcall_transport::beacon::{End, Listening};
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::channel::{FrameReader, FrameWriter, priority};
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::{TwoWays, agent_config, agent_endpoint, connect};
use rollcall_transport::enroll::enroll;
use rollcall_transport::identity::{Identity, new_agent_key};
use rollcall_transport::token::EnrolmentToken;
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(5);

/// Beacons that are kept for a look.
const FAST_MAX: usize = 256;

const DIRECT: &str = r#"
model = "digits"
candidate = "VERSION"
strategy = "direct"
lease = "4s"
[[stage]]
name = "full"
mode = "full"
watch = "1h"
"#;

struct Agent {
    endpoint: TwoWays,
    identity: Identity,
    ca: CaCertificate,
}

struct Session {
    connection: Connection,
    reader: FrameReader,
    writer: FrameWriter,
    welcome: Welcome,
    /// What came beside QUIC.
    fast: mpsc::Receiver<ToAgent>,
    _listening: Listening,
}

fn request(token: &str, node: &str) -> (EnrollRequest, String) {
    let key = new_agent_key().unwrap();
    let request = EnrollRequest {
        token: token.to_owned(),
        node: node.to_owned(),
        labels: BTreeMap::from([("zone".to_owned(), "eu-1".to_owned())]),
        csr: key.csr,
    };
    (request, key.key_pem)
}

impl Agent {
    async fn enroll(at: SocketAddr, token: &str, node: &str) -> Result<Self, String> {
        let endpoint = agent_endpoint("127.0.0.1:0".parse().unwrap()).unwrap();
        let pin = token.parse::<EnrolmentToken>().unwrap().pin;
        let (request, key) = request(token, node);
        match enroll(&endpoint.quic, at, pin, &request, None)
            .await
            .unwrap()
        {
            EnrollAnswer::Enrolled {
                certificate, ca, ..
            } => Ok(Self {
                endpoint,
                identity: Identity::from_pem(&certificate, &key).unwrap(),
                ca: CaCertificate::from_pem(&ca).unwrap(),
            }),
            EnrollAnswer::Refused { reason } => Err(reason),
        }
    }

    async fn dial(&self, at: SocketAddr) -> Connection {
        let config = agent_config(&self.identity, &self.ca).unwrap();
        connect(&self.endpoint.quic, config, at).await.unwrap()
    }

    async fn connect(&self, at: SocketAddr) -> Session {
        self.connect_as(at, PROTOCOL).await
    }

    async fn connect_as(&self, at: SocketAddr, protocol: u16) -> Session {
        let connection = self.dial(at).await;
        let (beacons, fast) = mpsc::channel(FAST_MAX);
        let deliver = move |body: &[u8], _: f64| {
            // A test that does not look at them lets them go.
            let _ = beacons.try_send(codec::decode::<Beacon>(body).unwrap().message);
        };
        let listening = self
            .endpoint
            .beacons
            .listen(&connection, End::Agent, deliver)
            .unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send, priority::CONTROL);
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol,
            software: "test-agent".to_owned(),
            ..Hello::default()
        };
        writer.send(&FromAgent::Hello(hello)).await.unwrap();
        let mut reader = FrameReader::new(receive);
        let Ok(Some(ToAgent::Welcome(welcome))) = reader.next().await else {
            panic!("not welcome");
        };
        Session {
            connection,
            reader,
            writer,
            welcome,
            fast,
            _listening: listening,
        }
    }
}

impl Session {
    async fn next(&mut self) -> ToAgent {
        let next = tokio::time::timeout(SOON, self.reader.next())
            .await
            .expect("nothing came");
        next.unwrap().expect("the stream ended")
    }

    /// The next assignment that `wanted` accepts; earlier ones are passed over.
    async fn assigned(&mut self, wanted: impl Fn(&Assignment) -> bool) -> Assignment {
        loop {
            match self.next().await {
                ToAgent::Assign(assignment) if wanted(&assignment) => return assignment,
                ToAgent::Assign(_) | ToAgent::HeartbeatAnswer(_) | ToAgent::Sync(_) => {}
                other => panic!("not an assignment: {other:?}"),
            }
        }
    }

    async fn withdrawn(&mut self) -> Withdrawal {
        loop {
            if let ToAgent::Withdraw(withdrawal) = self.next().await {
                return withdrawal;
            }
        }
    }

    async fn say(&mut self, message: FromAgent) {
        self.writer.send(&message).await.unwrap();
    }

    async fn receipt(&mut self, model: &ModelName, generation: Generation, serving: Vec<Serving>) {
        let receipt = Receipt {
            model: model.clone(),
            generation,
            serving,
        };
        self.say(FromAgent::Receipt(receipt)).await;
    }

    async fn fetch(&self, request: ArtifactRequest) -> Option<Vec<u8>> {
        let (send, receive) = self.connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send, priority::ARTIFACT);
        writer.send(&request).await.unwrap();
        writer.finish();
        let mut reader = FrameReader::new(receive);
        let ArtifactAnswer::Found { size } = reader.next().await.unwrap().unwrap() else {
            return None;
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.next_bytes(1 << 20).await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!(bytes.len() as u64, size - request.offset);
        Some(bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_one_node_and_a_wrong_one_none() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let one = token(&client, NewTokenKind::Agent, &[], None).await;
    let agent = Agent::enroll(running.quic, &one.token, "node-1")
        .await
        .unwrap();
    assert_eq!(
        agent.identity.name().unwrap().to_string(),
        "spiffe://test/agent/node-1"
    );
    let second = Agent::enroll(running.quic, &one.token, "node-2")
        .await
        .err()
        .unwrap();
    assert!(second.contains("token"), "{second}");
    let wrong = one.token.replace(&one.id, "0000000000");
    assert!(Agent::enroll(running.quic, &wrong, "node-3").await.is_err());
    let nodes: Vec<NodeView> = client.get("/agents").await.unwrap();
    assert_eq!(nodes.len(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_reaches_the_agent_and_is_settled_by_its_receipt() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let pushed = push(&client, "digits", "digits/1.0.0", "1.0.0")
        .await
        .unwrap();
    let one = token(&client, NewTokenKind::Agent, &[], None).await;
    let agent = Agent::enroll(running.quic, &one.token, "node-1")
        .await
        .unwrap();
    let mut session = agent.connect(running.quic).await;
    assert_eq!(session.welcome.heartbeat_every_ms, 1_000);

    let start = client
        .request(Method::POST, "/rollouts")
        .body(DIRECT.replace("VERSION", "1.0.0"));
    let rollout: RolloutView = client.json(start).await.unwrap();
    let staged = session
        .assigned(|assignment| assignment.candidate.is_some())
        .await;
    let candidate = staged.candidate.unwrap();

    // The manifest comes by the digest in the assignment; files from any offset.
    let whole = ArtifactRequest {
        digest: candidate.version.digest,
        offset: 0,
    };
    let manifest = SignedManifest::decode(&session.fetch(whole).await.unwrap()).unwrap();
    assert_eq!(manifest.digest(), pushed.digest);
    let file = &pushed.files[0];
    let blob = session
        .fetch(ArtifactRequest {
            digest: file.digest,
            offset: 0,
        })
        .await
        .unwrap();
    let rest = session
        .fetch(ArtifactRequest {
            digest: file.digest,
            offset: 100,
        })
        .await
        .unwrap();
    assert_eq!(blob[100..], rest);
    let beyond = ArtifactRequest {
        digest: file.digest,
        offset: file.size + 1,
    };
    assert_eq!(session.fetch(beyond).await, None);

    let model = staged.model.clone();
    let ready = Readiness {
        model: model.clone(),
        version: candidate.version,
        state: ReadyState::Ready,
    };
    session.receipt(&model, staged.generation, vec![]).await;
    session.say(FromAgent::Readiness(ready)).await;
    let full = session
        .assigned(|a| {
            a.candidate
                .is_some_and(|c| c.mode == CandidateMode::Canary(Share::ALL))
        })
        .await;
    let serving = Serving {
        role: Role::Candidate,
        version: candidate.version,
    };
    session
        .receipt(&model, full.generation, vec![serving])
        .await;
    let held = vec![(model.clone(), full.generation)];
    session
        .say(FromAgent::Heartbeat(Heartbeat { seq: 1, held }))
        .await;

    let reason = serde_json::json!({ "reason": "wrong answers" });
    let view: RollbackView = client
        .post("/models/digits/rollback", &reason)
        .await
        .unwrap();
    assert_eq!(view.rollout, rollout.id);
    assert!(!view.settled, "nobody answered yet");
    let withdrawal = session.withdrawn().await;
    assert_eq!(withdrawal.withdrawn, candidate.version);
    assert_eq!(withdrawal.generation, view.generation);
    // The beacon came first, and comes again as long as nobody answers.
    for _ in 0..2 {
        let beacon = tokio::time::timeout(SOON, session.fast.recv()).await;
        let beacon = beacon.expect("no beacon").expect("nobody listens");
        assert_eq!(beacon, ToAgent::Withdraw(withdrawal.clone()));
    }

    session.receipt(&model, withdrawal.generation, vec![]).await;
    let page = format!("/rollouts/{}/rollback?wait_ms=5000", rollout.id);
    let settled: RollbackView = client.get(&page).await.unwrap();
    assert!(settled.settled, "{settled:?}");
    assert_eq!(
        (settled.receipts.expected, settled.receipts.received),
        (1, 1)
    );
    assert!(settled.propagation_ms.p99.is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_protocol_before_reports_as_it_did_and_gets_no_feedback() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    push(&client, "digits", "digits/1.0.0", "1.0.0")
        .await
        .unwrap();
    let mut sessions = Vec::new();
    for (node, protocol) in [("node-1", PROTOCOL), ("node-2", 2)] {
        let one = token(&client, NewTokenKind::Agent, &[], None).await;
        let agent = Agent::enroll(running.quic, &one.token, node).await.unwrap();
        let session = agent.connect_as(running.quic, protocol).await;
        let report = Report {
            window: 0,
            duration_ms: 1_000,
            series: vec![],
            series_dropped: 0,
            resources: Resources {
                memory_total: u64::from(protocol),
                ..Resources::default()
            },
        };
        let stream = session.connection.open_uni().await.unwrap();
        let mut writer = FrameWriter::new(stream, priority::REPORT);
        let report = FromAgentReport::new(report, protocol);
        writer.send(&report).await.unwrap();
        writer.finish();
        sessions.push((agent, session));
    }
    let told = async {
        loop {
            let nodes: Vec<NodeView> = client.get("/agents").await.unwrap();
            let memory = nodes.iter().filter_map(|node| node.resources.as_ref());
            if memory.map(|r| r.memory_total).collect::<Vec<_>>() == [3, 2] {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, told).await.expect("two reports");

    let items = serde_json::json!({ "items": [{ "id": "order-7", "label": 3 }] });
    let sent: FeedbackSent = client
        .post("/models/digits/feedback", &items)
        .await
        .unwrap();
    let old = NodeId::new("node-2").unwrap();
    assert_eq!(
        (sent.items, sent.nodes, sent.too_old, sent.too_old_nodes),
        (1, 1, 1, vec![old])
    );
    let new = &mut sessions[0].1;
    let ToAgent::Feedback(feedback) = new.next().await else {
        panic!("no feedback");
    };
    assert_eq!(feedback.items[0].label.as_deref(), Some("3"));
    // What the old one gets next is what everybody gets.
    let start = client
        .request(Method::POST, "/rollouts")
        .body(DIRECT.replace("VERSION", "1.0.0"));
    let _: RolloutView = client.json(start).await.unwrap();
    sessions[1].1.assigned(|a| a.candidate.is_some()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_goes_the_way_of_a_withdrawal_and_only_to_who_can_read_it() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    push(&client, "digits", "digits/1.0.0", "1.0.0")
        .await
        .unwrap();
    let mut agents = Vec::new();
    for node in ["node-1", "node-2"] {
        let one = token(&client, NewTokenKind::Agent, &[], None).await;
        let agent = Agent::enroll(running.quic, &one.token, node).await;
        agents.push(agent.unwrap());
    }
    let mut new = agents[0].connect(running.quic).await;
    let mut old = agents[1].connect_as(running.quic, 1).await;
    assert_eq!((new.welcome.protocol, old.welcome.protocol), (PROTOCOL, 1));
    let start = client
        .request(Method::POST, "/rollouts")
        .body(DIRECT.replace("VERSION", "1.0.0"));
    let rollout: RolloutView = client.json(start).await.unwrap();
    let staged = new.assigned(|a| a.candidate.is_some()).await;

    let reason = serde_json::json!({ "reason": "a drill" });
    let began: RehearsalView = client
        .post("/models/digits/rehearsal", &reason)
        .await
        .unwrap();
    assert!(!began.as_if.settled, "nobody answered yet");
    // First beside QUIC, and on the stream for who has not answered.
    let fast = tokio::time::timeout(SOON, new.fast.recv()).await;
    let fast = fast.expect("no beacon").expect("nobody listens");
    let rehearsal = loop {
        if let ToAgent::Rehearse(rehearsal) = new.next().await {
            break rehearsal;
        }
    };
    assert_eq!(fast, ToAgent::Rehearse(rehearsal.clone()));
    assert_eq!(rehearsal.as_if.withdrawn, staged.candidate.unwrap().version);
    new.say(FromAgent::Rehearsed(Rehearsed {
        rehearsal: rehearsal.rehearsal,
        model: rehearsal.as_if.model.clone(),
        held: staged.generation,
        serving: None,
        missing: None,
    }))
    .await;
    let page = "/models/digits/rehearsal?wait_ms=5000";
    let view: RehearsalView = client.get(page).await.unwrap();
    assert!(view.as_if.settled, "{view:?}");
    let counts = &view.as_if.receipts;
    assert_eq!((counts.expected, counts.received), (2, 1));
    let why = view.as_if.nodes[1].why.clone().unwrap();
    assert!(why.contains("software too old"), "{why}");
    assert_eq!(view.unready.len(), 1, "nothing was ever stable");

    // The rehearsal decided nothing; the rollback does, and the old agent hears of nothing else.
    let live: RolloutView = client
        .get(&format!("/rollouts/{}", rollout.id))
        .await
        .unwrap();
    assert!(live.state.is_live());
    let view: RollbackView = client
        .post("/models/digits/rollback", &reason)
        .await
        .unwrap();
    assert_eq!(view.generation, rehearsal.as_if.generation);
    loop {
        match old.next().await {
            ToAgent::Withdraw(withdrawal) => {
                assert_eq!(withdrawal, rehearsal.as_if);
                break;
            }
            ToAgent::Rehearse(_) => panic!("it cannot read this"),
            _ => {}
        }
    }
    while let Ok(fast) = old.fast.try_recv() {
        assert!(!matches!(fast, ToAgent::Rehearse(_)), "it cannot read this");
    }

    new.receipt(&rehearsal.as_if.model, view.generation, vec![])
        .await;
    let page = format!("/rollouts/{}/rollback?brief=true&wait_ms=100", rollout.id);
    let brief: RollbackView = loop {
        let brief: RollbackView = client.get(&page).await.unwrap();
        if brief.receipts.received == 1 {
            break brief;
        }
    };
    assert_eq!((brief.nodes.len(), brief.nodes_unlisted), (0, 1));
    // Out of /api/v1 to what Prometheus reads.
    let scrape = client.request(Method::GET, "/../../metrics");
    let text = client.send(scrape).await.unwrap().text().await.unwrap();
    for line in [
        "rollcall_rollback_propagation_seconds_count{model=\"digits\"} 1",
        "rollcall_rollback_propagation_seconds_bucket{le=\"+Inf\",model=\"digits\"} 1",
        "rollcall_rollback_receipts_total{model=\"digits\"} 1",
        "rollcall_rollback_silent{model=\"digits\"} 1",
        "rollcall_rollback_rehearsals_total{model=\"digits\"} 1",
        "rollcall_rollback_rehearsal_seconds_count{model=\"digits\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off_and_does_not_come_back() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let one = token(&client, NewTokenKind::Agent, &[], None).await;
    let agent = Agent::enroll(running.quic, &one.token, "node-1")
        .await
        .unwrap();
    let session = agent.connect(running.quic).await;
    let node: NodeView = client.get("/agents/node-1").await.unwrap();
    assert!(node.connected);
    let revoked: NodeView = client
        .json(client.request(Method::POST, "/agents/node-1/revoke"))
        .await
        .unwrap();
    assert!(revoked.revoked);
    let closed: Closed = tokio::time::timeout(SOON, session.connection.closed())
        .await
        .unwrap()
        .into();
    assert!(
        matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::Revoked,
                ..
            }
        ),
        "{closed:?}"
    );
    let again = agent.dial(running.quic).await;
    let closed: Closed = tokio::time::timeout(SOON, again.closed())
        .await
        .unwrap()
        .into();
    assert!(
        matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::Refused,
                ..
            }
        ),
        "{closed:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_breaks_the_protocol_is_disconnected_and_others_are_not() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let mut sessions = Vec::new();
    for node in ["node-1", "node-2"] {
        let one = token(&client, NewTokenKind::Agent, &[], None).await;
        let agent = Agent::enroll(running.quic, &one.token, node).await.unwrap();
        sessions.push((agent.connect(running.quic).await, agent));
    }
    let (bad, _) = &mut sessions[0];
    bad.writer
        .write(bytes::Bytes::from_static(&[0xff; 64]))
        .await
        .unwrap();
    let closed: Closed = tokio::time::timeout(SOON, bad.connection.closed())
        .await
        .unwrap()
        .into();
    assert!(
        matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::ProtocolError,
                ..
            }
        ),
        "{closed:?}"
    );
    let heartbeat = FromAgent::Heartbeat(Heartbeat {
        seq: 9,
        held: vec![],
    });
    let (good, _) = &mut sessions[1];
    good.say(heartbeat).await;
    let answer = tokio::time::timeout(SOON, good.connection.read_datagram())
        .await
        .unwrap();
    let answer: ToAgent = codec::decode(&answer.unwrap()).unwrap();
    assert!(matches!(answer, ToAgent::HeartbeatAnswer(answer) if answer.seq == 9));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_coordinator_says_farewell_and_agents_return_to_the_next() {
    let fleet = Fleet::new();
    let running = fleet.start();
    let client = fleet.client(&running);
    let one = token(&client, NewTokenKind::Agent, &[], None).await;
    let agent = Agent::enroll(running.quic, &one.token, "node-1")
        .await
        .unwrap();
    let session = agent.connect(running.quic).await;
    running.stop().await;
    let closed: Closed = tokio::time::timeout(SOON, session.connection.closed())
        .await
        .unwrap()
        .into();
    assert!(
        matches!(
            closed,
            Closed::ByPeer {
                code: CloseCode::Shutdown,
                ..
            }
        ),
        "{closed:?}"
    );
    let running = fleet.start();
    agent.connect(running.quic).await;
    running.stop().await;
}
