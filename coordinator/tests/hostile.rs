//! Enrolled nodes that mean harm: each is cut off or slowed down, and the node beside it
//! still gets its heartbeats answered and hears of a withdrawal.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fixture::{Fleet, Running, push, token, upload};
use quinn::{Connection, TransportConfig, VarInt};
use rollcall_coordinator::cli::client::Client;
use rollcall_coordinator::http::tokens::NewTokenKind;
use rollcall_coordinator_core::view::{RollbackView, RolloutView};
use rollcall_shared::codec;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::report::Receipt;
use rollcall_shared::wire::{
    ArtifactRequest, EnrollAnswer, EnrollRequest, FromAgent, Heartbeat, Hello, PROTOCOL,
    PROTOCOL_MIN, ToAgent,
};
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::channel::{FrameReader, FrameWriter, priority, send_datagram};
use rollcall_transport::close::{CloseCode, Closed};
use rollcall_transport::endpoint::{
    ARTIFACT_STREAMS_MAX, REPORT_STREAMS_MAX, TwoWays, agent_config, agent_endpoint, connect,
};
use rollcall_transport::enroll::enroll;
use rollcall_transport::identity::{Identity, new_agent_key};
use rollcall_transport::token::EnrolmentToken;

/// For what should happen; some bounds are 10 s.
const PATIENCE: Duration = Duration::from_secs(40);

const PLAN: &str = "model = \"digits\"\ncandidate = \"1.0.0\"\nstrategy = \"direct\"\nlease = \"4s\"\n\
    [[stage]]\nname = \"full\"\nmode = \"full\"\nwatch = \"1h\"\n";

/// A node's way in.
struct Node {
    endpoint: TwoWays,
    identity: Identity,
    ca: CaCertificate,
}

/// A welcomed connection.
struct Session {
    connection: Connection,
    reader: FrameReader,
    writer: FrameWriter,
}

/// A coordinator with a candidate on its way, a good node and a bad one.
struct Street {
    running: Running,
    client: Client,
    good: Session,
    bad: Node,
    _fleet: Fleet,
    _good: Node,
}

fn hello() -> Hello {
    Hello {
        protocol_min: PROTOCOL_MIN,
        protocol: PROTOCOL,
        software: "test".to_owned(),
        labels: BTreeMap::new(),
        models: vec![],
        held: vec![],
        withdrawals: vec![],
        receipts: vec![],
        ready: vec![],
    }
}

fn digits() -> ModelName {
    "digits".parse().unwrap()
}

fn heartbeat(seq: u64, generation: u64) -> FromAgent {
    let held = vec![(digits(), Generation(generation))];
    FromAgent::Heartbeat(Heartbeat { seq, held })
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("nothing happened")
}

impl Node {
    async fn enroll(running: &Running, client: &Client, name: &str) -> Self {
        let token = token(client, NewTokenKind::Agent, &[], None).await.token;
        let endpoint = agent_endpoint("127.0.0.1:0".parse().unwrap()).unwrap();
        let pin = token.parse::<EnrolmentToken>().unwrap().pin;
        let key = new_agent_key().unwrap();
        let request = EnrollRequest {
            token,
            node: name.to_owned(),
            labels: BTreeMap::new(),
            csr: key.csr,
        };
        let answer = enroll(&endpoint.quic, running.quic, pin, &request, None).await;
        let EnrollAnswer::Enrolled {
            certificate, ca, ..
        } = answer.unwrap()
        else {
            panic!("not enrolled");
        };
        Self {
            endpoint,
            identity: Identity::from_pem(&certificate, &key.key_pem).unwrap(),
            ca: CaCertificate::from_pem(&ca).unwrap(),
        }
    }

    fn config(&self) -> quinn::ClientConfig {
        agent_config(&self.identity, &self.ca).unwrap()
    }

    async fn dial(&self, running: &Running, config: quinn::ClientConfig) -> Connection {
        within(connect(&self.endpoint.quic, config, running.quic))
            .await
            .unwrap()
    }

    async fn welcomed(&self, running: &Running, config: quinn::ClientConfig) -> Session {
        let mut session = self.said(running, config, hello()).await;
        let Ok(Some(ToAgent::Welcome(_))) = within(session.reader.next()).await else {
            panic!("not welcome");
        };
        session
    }

    async fn said(&self, running: &Running, config: quinn::ClientConfig, hello: Hello) -> Session {
        let connection = self.dial(running, config).await;
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send, priority::CONTROL);
        writer.send(&FromAgent::Hello(hello)).await.unwrap();
        Session {
            connection,
            reader: FrameReader::new(receive),
            writer,
        }
    }
}

async fn ending(connection: &Connection) -> Closed {
    within(connection.closed()).await.into()
}

fn code(closed: &Closed) -> CloseCode {
    match closed {
        Closed::ByPeer { code, .. } => *code,
        other => panic!("{other}"),
    }
}

impl Street {
    async fn new() -> Self {
        let fleet = Fleet::new();
        let running = fleet.start();
        let client = fleet.client(&running);
        push(&client, "digits", "digits/1.0.0", "1.0.0")
            .await
            .unwrap();
        let good = Node::enroll(&running, &client, "good").await;
        let bad = Node::enroll(&running, &client, "bad").await;
        let start = client
            .request(reqwest::Method::POST, "/rollouts")
            .body(PLAN);
        let _: RolloutView = client.json(start).await.unwrap();
        let session = good.welcomed(&running, good.config()).await;
        Self {
            running,
            client,
            good: session,
            bad,
            _fleet: fleet,
            _good: good,
        }
    }

    async fn enter(&self) -> Session {
        self.bad.welcomed(&self.running, self.bad.config()).await
    }

    /// Heartbeats are answered, and a withdrawal comes, as if nothing were.
    async fn all_is_well(mut self) -> RollbackView {
        self.good.writer.send(&heartbeat(7, 0)).await.unwrap();
        loop {
            let datagram = within(self.good.connection.read_datagram()).await.unwrap();
            let answer: ToAgent = codec::decode(&datagram).unwrap();
            if matches!(&answer, ToAgent::HeartbeatAnswer(answer) if answer.seq == 7) {
                break;
            }
        }
        let reason = serde_json::json!({ "reason": "tried" });
        let rollback = "/models/digits/rollback";
        let view: RollbackView = self.client.post(rollback, &reason).await.unwrap();
        loop {
            let message = within(self.good.reader.next()).await.unwrap();
            if let ToAgent::Withdraw(withdrawal) = message.expect("the stream ended") {
                assert_eq!(withdrawal.generation, view.generation);
                break;
            }
        }
        self.running.stop().await;
        view
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off() {
    let street = Street::new().await;
    let mut config = street.bad.config();
    let mut narrow = TransportConfig::default();
    narrow.stream_receive_window(VarInt::from_u32(4_096));
    config.transport_config(Arc::new(narrow));
    let mut deaf = street.bad.welcomed(&street.running, config).await;
    // Each is answered with all that the node seems to have missed.
    let asking = async {
        for seq in 0.. {
            if deaf.writer.send(&heartbeat(seq, 0)).await.is_err() {
                return;
            }
        }
    };
    within(asking).await;
    assert_eq!(code(&ending(&deaf.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_control_messages_is_held_back() {
    let street = Street::new().await;
    let mut flood = street.enter().await;
    let mut sent = 0;
    // Until the stream takes no more: what is not read fills its window.
    while sent < 1_000_000 {
        let message = heartbeat(sent, 0);
        let sending = flood.writer.send(&message);
        if tokio::time::timeout(Duration::from_secs(2), sending)
            .await
            .is_err()
        {
            break;
        }
        sent += 1;
    }
    assert!(sent < 1_000_000, "nothing held it back");
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_datagrams_ends_the_connection() {
    let street = Street::new().await;
    let flood = street.enter().await;
    let flooding = async {
        while send_datagram(&flood.connection, &heartbeat(1, 0)).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within(flooding).await;
    assert_eq!(code(&ending(&flood.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_generations_do_not_last() {
    let street = Street::new().await;
    let mut liar = street.enter().await;
    for step in 0..100 {
        let generation = Generation(u64::MAX - step);
        let receipt = Receipt {
            model: digits(),
            generation,
            serving: vec![],
        };
        liar.writer
            .send(&FromAgent::Receipt(receipt))
            .await
            .unwrap();
        liar.writer
            .send(&heartbeat(step, generation.0))
            .await
            .unwrap();
    }
    let mut lie = hello();
    lie.held = vec![(digits(), Generation(u64::MAX))];
    let config = street.bad.config();
    let liar = street.bad.said(&street.running, config, lie).await;
    assert_eq!(code(&ending(&liar.connection).await), CloseCode::Refused);
    let view = street.all_is_well().await;
    assert!(view.generation < Generation(100), "{}", view.generation);
    assert_eq!(view.receipts.received, 0, "nobody answered yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_left_half_written_are_given_up_and_then_their_owner() {
    let street = Street::new().await;
    let lazy = street.enter().await;
    let mut kept = Vec::new();
    for _ in 0..ARTIFACT_STREAMS_MAX {
        let (mut send, receive) = within(lazy.connection.open_bi()).await.unwrap();
        send.write_all(&[0, 0, 0, 40, 1]).await.unwrap();
        kept.push((send, Some(receive)));
    }
    for _ in 0..REPORT_STREAMS_MAX {
        let mut send = within(lazy.connection.open_uni()).await.unwrap();
        send.write_all(&[0, 0, 0, 40, 1]).await.unwrap();
        kept.push((send, None));
    }
    assert_eq!(code(&ending(&lazy.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_frames_are_refused_by_their_headers() {
    let street = Street::new().await;
    let header = Bytes::copy_from_slice(&(4u32 << 20).to_be_bytes());
    let mut control = street.enter().await;
    control.writer.write(header.clone()).await.unwrap();
    let closed = ending(&control.connection).await;
    assert_eq!(code(&closed), CloseCode::ProtocolError);

    let reports = street.enter().await;
    let mut stream = within(reports.connection.open_uni()).await.unwrap();
    stream.write_chunk(header).await.unwrap();
    let closed = ending(&reports.connection).await;
    assert_eq!(code(&closed), CloseCode::ProtocolError);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_a_tight_loop_is_sent_away() {
    let street = Street::new().await;
    let looping = async {
        loop {
            let config = street.bad.config();
            let connection = street.bad.dial(&street.running, config).await;
            let ours = tokio::time::timeout(Duration::from_millis(20), connection.closed());
            match ours.await.map(Closed::from) {
                Ok(closed) => return closed,
                Err(_) => connection.close(0u32.into(), b""),
            }
        }
    };
    assert_eq!(code(&within(looping).await), CloseCode::Slow);
    let metrics = format!("https://{}/metrics", street.running.https);
    let text = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .build()
        .unwrap()
        .get(metrics)
        .send();
    let text = text.await.unwrap().text().await.unwrap();
    let throttled = "rollcall_handshakes_total{outcome=\"throttled\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(throttled));
    assert!(line.unwrap().parse::<u64>().unwrap() >= 1);
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_frames_cut_short_end_the_connection() {
    let street = Street::new().await;
    for bytes in [&[0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 9, 1]] {
        let mut bad = street.enter().await;
        let bytes = Bytes::copy_from_slice(bytes);
        bad.writer.write(bytes).await.unwrap();
        bad.writer.finish();
        let closed = ending(&bad.connection).await;
        assert_eq!(code(&closed), CloseCode::ProtocolError);
    }
    let bad = street.enter().await;
    let garbage = Bytes::from_static(&[0xff; 64]);
    bad.connection.send_datagram(garbage).unwrap();
    assert_eq!(
        code(&ending(&bad.connection).await),
        CloseCode::ProtocolError
    );
    street.all_is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_asked_for_and_not_taken_are_given_up() {
    let street = Street::new().await;
    let digest = upload(&street.client, vec![7; 16 << 20]).await;
    let greedy = street.enter().await;
    let mut kept = Vec::new();
    for _ in 0..ARTIFACT_STREAMS_MAX {
        let (send, receive) = within(greedy.connection.open_bi()).await.unwrap();
        let mut writer = FrameWriter::new(send, priority::ARTIFACT);
        let request = ArtifactRequest { digest, offset: 0 };
        writer.send(&request).await.unwrap();
        writer.finish();
        kept.push((writer, receive));
    }
    assert_eq!(code(&ending(&greedy.connection).await), CloseCode::Slow);
    street.all_is_well().await;
}
