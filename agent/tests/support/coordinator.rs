//! A coordinator in this process: real QUIC and mTLS, scripted by the test.

#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "as the support beside it"
)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use quinn::{Connection, Endpoint};
use rollcall_shared::assignment::{Assignment, Snapshot, VersionRef, Withdrawal};
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::{FleetName, Generation, ModelName, NodeId};
use rollcall_shared::manifest::{FilePath, Manifest, ManifestFile, SignedManifest};
use rollcall_shared::report::Report;
use rollcall_shared::signing::SigningKey;
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::{
    ArtifactAnswer, ArtifactRequest, EnrollAnswer, EnrollRequest, FromAgent, FromAgentReport,
    HeartbeatAnswer, PROTOCOL, PROTOCOL_QUALITY, ToAgent, Welcome,
};
use rollcall_transport::admission::{Admission, Admitted, RevokedCertificates};
use rollcall_transport::ca::{CaCertificate, FleetCa};
use rollcall_transport::channel::{
    FrameReader, FrameWriter, priority, read_datagram, send_datagram,
};
use rollcall_transport::clock::Clock;
use rollcall_transport::endpoint::coordinator_endpoint;
use rollcall_transport::enroll::serve_enrolment;
use rollcall_transport::identity::new_agent_key;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::support::{bundle, manifest};

/// The secret of the one token that is good.
pub const TOKEN_SECRET: &str = "0123456789abcdef0123456789abcdef";

pub fn registry() -> SigningKey {
    SigningKey::from_seed(&[9; 32])
}

#[derive(Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    endpoint: Endpoint,
}

struct Shared {
    ca: FleetCa,
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    snapshot: Mutex<Snapshot>,
    current: Mutex<BTreeMap<ModelName, Generation>>,
    live: Mutex<Option<(Connection, mpsc::Sender<ToAgent>)>>,
    seen: mpsc::Sender<FromAgent>,
    reports: mpsc::Sender<Report>,
    asked: Mutex<Vec<(Digest, u64)>>,
    cut_next: AtomicBool,
    hold_next: Mutex<Option<CancellationToken>>,
    spoil_next: AtomicBool,
    answers_heartbeats: AtomicBool,
    protocol: AtomicU16,
    report_every_ms: AtomicU64,
}

pub struct Heard {
    pub messages: mpsc::Receiver<FromAgent>,
    pub reports: mpsc::Receiver<Report>,
}

impl Heard {
    /// The next message that `wanted` picks; others are passed over.
    pub async fn next<T>(&mut self, mut wanted: impl FnMut(FromAgent) -> Option<T>) -> T {
        loop {
            let message =
                tokio::time::timeout(std::time::Duration::from_secs(20), self.messages.recv());
            if let Some(found) = wanted(message.await.expect("a message in time").unwrap()) {
                return found;
            }
        }
    }
}

impl Coordinator {
    pub fn start() -> (Self, Heard) {
        let now = Clock::start(Timestamp::ZERO).now();
        let ca = FleetCa::generate(&FleetName::new("tests").unwrap(), now).unwrap();
        let identity = ca.issue_server(&[], now).unwrap();
        let certificate = CaCertificate::from_pem(ca.certificate_pem()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let endpoint = coordinator_endpoint(socket, &identity, &certificate)
            .unwrap()
            .quic;
        let (seen, messages) = mpsc::channel(1_024);
        let (reports, report_receiver) = mpsc::channel(1_024);
        let shared = Arc::new(Shared {
            ca,
            blobs: Mutex::default(),
            snapshot: Mutex::default(),
            current: Mutex::default(),
            live: Mutex::default(),
            seen,
            reports,
            asked: Mutex::default(),
            cut_next: AtomicBool::new(false),
            hold_next: Mutex::default(),
            spoil_next: AtomicBool::new(false),
            answers_heartbeats: AtomicBool::new(true),
            protocol: AtomicU16::new(PROTOCOL),
            report_every_ms: AtomicU64::new(100),
        });
        let coordinator = Self {
            shared,
            address,
            endpoint,
        };
        let accepting = coordinator.clone();
        tokio::spawn(async move { accepting.accept().await });
        (
            coordinator,
            Heard {
                messages,
                reports: report_receiver,
            },
        )
    }

    /// Be a coordinator of an older protocol.
    pub fn speak(&self, protocol: u16) {
        self.shared.protocol.store(protocol, Ordering::SeqCst);
    }

    /// Ask for reports of windows this long.
    pub fn report_every(&self, window: std::time::Duration) {
        let millis = u64::try_from(window.as_millis()).unwrap();
        self.shared.report_every_ms.store(millis, Ordering::SeqCst);
    }

    pub fn token(&self, secret: &str) -> String {
        format!("rollcall1.k7.{secret}.{}", self.shared.ca.fingerprint())
    }

    /// What `enroll` leaves behind, in `dir`.
    pub fn enrol(&self, dir: &Path, node: &str) {
        let now = Clock::start(Timestamp::ZERO).now();
        let key = new_agent_key().unwrap();
        let node = NodeId::new(node).unwrap();
        let issued = self
            .shared
            .ca
            .issue_agent_from_csr(&key.csr, &node, now)
            .unwrap();
        std::fs::write(dir.join("node.key"), key.key_pem).unwrap();
        std::fs::write(dir.join("node.pem"), issued.pem).unwrap();
        std::fs::write(dir.join("ca.pem"), self.shared.ca.certificate_pem()).unwrap();
        let text = format!(
            "dir = \".\"\ncoordinators = [\"{}\"]\nregistry_key = \"{}\"\n",
            self.address,
            registry().public()
        );
        std::fs::write(dir.join("agent.toml"), text).unwrap();
    }

    /// Registers a bundle of the test models.
    pub fn publish(&self, version: &str) -> VersionRef {
        let model = std::fs::read(bundle(version).join("model.onnx")).unwrap();
        let smoke = std::fs::read(bundle(version).join("smoke.json")).unwrap();
        let mut described: Manifest = manifest(version, &model);
        described.files.push(ManifestFile {
            path: FilePath::new("smoke.json").unwrap(),
            size: smoke.len() as u64,
            digest: Digest::of(&smoke),
        });
        let signed = SignedManifest::sign(&described, &registry()).unwrap();
        let mut blobs = self.shared.blobs.lock().unwrap();
        for bytes in [model, smoke, signed.encode()] {
            blobs.insert(Digest::of(&bytes), bytes);
        }
        signed.version_ref(described.version)
    }

    pub fn model_blob(&self, version: &str) -> Digest {
        Digest::of(&std::fs::read(bundle(version).join("model.onnx")).unwrap())
    }

    /// Sent to whoever connects from now on, and to who is connected.
    pub async fn assign(&self, assignment: Assignment) {
        self.shared
            .current
            .lock()
            .unwrap()
            .insert(assignment.model.clone(), assignment.generation);
        self.shared.snapshot.lock().unwrap().assignments = vec![assignment.clone()];
        self.send(ToAgent::Assign(assignment)).await;
    }

    pub async fn withdraw(&self, withdrawal: Withdrawal) {
        let generation = withdrawal.generation;
        self.shared
            .current
            .lock()
            .unwrap()
            .insert(withdrawal.model.clone(), generation);
        let live = self.shared.live.lock().unwrap().clone();
        let message = ToAgent::Withdraw(withdrawal);
        if let Some((connection, _)) = &live {
            send_datagram(connection, &message).unwrap();
        }
        self.send(message).await;
    }

    pub async fn send(&self, message: ToAgent) {
        let sender = self
            .shared
            .live
            .lock()
            .unwrap()
            .as_ref()
            .map(|(_, sender)| sender.clone());
        if let Some(sender) = sender {
            let _ = sender.send(message).await;
        }
    }

    /// The next artifact stream ends in the middle.
    pub fn cut_next_artifact(&self) {
        self.shared.cut_next.store(true, Ordering::SeqCst);
    }

    /// The next artifact stops in the middle, until the token is cancelled.
    pub fn hold_next_artifact(&self) -> CancellationToken {
        let release = CancellationToken::new();
        *self.shared.hold_next.lock().unwrap() = Some(release.clone());
        release
    }

    /// The next artifact has a wrong byte.
    pub fn spoil_next_artifact(&self) {
        self.shared.spoil_next.store(true, Ordering::SeqCst);
    }

    pub fn stop_answering_heartbeats(&self) {
        self.shared
            .answers_heartbeats
            .store(false, Ordering::SeqCst);
    }

    pub fn asked(&self) -> Vec<(Digest, u64)> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub fn disconnect(&self) {
        if let Some((connection, _)) = self.shared.live.lock().unwrap().take() {
            connection.close(0u8.into(), b"test");
        }
    }

    pub fn die(&self) {
        self.endpoint.close(0u8.into(), b"test");
    }

    async fn accept(self) {
        let fleet = FleetName::new("tests").unwrap();
        while let Some(incoming) = self.endpoint.accept().await {
            let shared = Arc::clone(&self.shared);
            let door = Admission::new(fleet.clone(), RevokedCertificates::default());
            tokio::spawn(async move {
                match door.admit(incoming).await {
                    Ok(Admitted::Agent { connection, .. }) => {
                        shared.converse(connection).await;
                    }
                    Ok(Admitted::Enrolment { connection, .. }) => {
                        let decide = async |request| shared.decide(request);
                        let _ = serve_enrolment(&connection, decide).await;
                    }
                    Err(_) => {}
                }
            });
        }
    }
}

impl Shared {
    fn decide(&self, request: EnrollRequest) -> EnrollAnswer {
        if !request.token.contains(TOKEN_SECRET) {
            return EnrollAnswer::Refused {
                reason: "the token is spent; make another".to_owned(),
            };
        }
        let now = Clock::start(Timestamp::ZERO).now();
        let node = NodeId::new(request.node).unwrap();
        let issued = self
            .ca
            .issue_agent_from_csr(&request.csr, &node, now)
            .unwrap();
        EnrollAnswer::Enrolled {
            node: node.to_string(),
            fleet: "tests".to_owned(),
            certificate: issued.pem,
            ca: self.ca.certificate_pem().to_owned(),
            registry_key: registry().public().to_string(),
        }
    }

    async fn converse(self: Arc<Self>, connection: Connection) -> Option<()> {
        let (send, receive) = connection.accept_bi().await.ok()?;
        let mut writer = FrameWriter::new(send, priority::CONTROL);
        let mut reader = FrameReader::new(receive);
        let hello = reader.next::<FromAgent>().await.ok()??;
        assert!(matches!(hello, FromAgent::Hello(_)), "first came {hello:?}");
        self.seen.send(hello).await.ok()?;
        let (sender, mut outbox) = mpsc::channel::<ToAgent>(64);
        *self.live.lock().unwrap() = Some((connection.clone(), sender.clone()));
        let snapshot = self.snapshot.lock().unwrap().clone();
        let welcome = Welcome {
            protocol: self.protocol.load(Ordering::SeqCst),
            heartbeat_every_ms: 100,
            report_every_ms: self.report_every_ms.load(Ordering::SeqCst),
            snapshot,
        };
        writer.send(&ToAgent::Welcome(welcome)).await.ok()?;
        tokio::spawn(async move {
            while let Some(message) = outbox.recv().await {
                if writer.send(&message).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(Arc::clone(&self).serve_artifacts(connection.clone()));
        tokio::spawn(Arc::clone(&self).read_reports(connection.clone()));
        loop {
            let message = tokio::select! {
                message = reader.next::<FromAgent>() => message.ok()??,
                message = read_datagram::<FromAgent>(&connection) => message.ok()?,
            };
            if let FromAgent::Heartbeat(heartbeat) = &message
                && self.answers_heartbeats.load(Ordering::SeqCst)
            {
                let current = self.current.lock().unwrap().clone().into_iter().collect();
                let answer = HeartbeatAnswer {
                    seq: heartbeat.seq,
                    current,
                };
                sender.send(ToAgent::HeartbeatAnswer(answer)).await.ok()?;
            }
            self.seen.send(message).await.ok()?;
        }
    }

    async fn serve_artifacts(self: Arc<Self>, connection: Connection) {
        while let Ok((send, receive)) = connection.accept_bi().await {
            let mut writer = FrameWriter::new(send, priority::ARTIFACT);
            let mut reader = FrameReader::new(receive);
            let Ok(Some(request)) = reader.next::<ArtifactRequest>().await else {
                continue;
            };
            self.asked
                .lock()
                .unwrap()
                .push((request.digest, request.offset));
            let blob = self.blobs.lock().unwrap().get(&request.digest).cloned();
            let Some(mut blob) = blob else {
                let _ = writer.send(&ArtifactAnswer::Missing).await;
                continue;
            };
            let size = blob.len() as u64;
            let _ = writer.send(&ArtifactAnswer::Found { size }).await;
            let offset = usize::try_from(request.offset).unwrap();
            // Manifests are small and JSON; only files are tampered with.
            let is_file = blob.len() > 4_000;
            if is_file && self.spoil_next.swap(false, Ordering::SeqCst) {
                blob[2_000] ^= 1;
            }
            let held = is_file.then(|| self.hold_next.lock().unwrap().take());
            let from = if let Some(release) = held.flatten() {
                let middle = blob.len() / 2;
                let _ = writer.write(blob[offset..middle].to_vec().into()).await;
                release.cancelled().await;
                middle
            } else {
                offset
            };
            let end = if is_file && self.cut_next.swap(false, Ordering::SeqCst) {
                blob.len() / 2
            } else {
                blob.len()
            };
            let _ = writer.write(blob[from..end].to_vec().into()).await;
            writer.finish();
        }
    }

    async fn read_reports(self: Arc<Self>, connection: Connection) {
        while let Ok(receive) = connection.accept_uni().await {
            let mut reader = FrameReader::new(receive);
            let Ok(Some(sent)) = reader.next::<FromAgentReport>().await else {
                continue;
            };
            // A coordinator of an older protocol could not read the newer shape.
            let is_new = matches!(sent, FromAgentReport::Report(_));
            if is_new == (self.protocol.load(Ordering::SeqCst) >= PROTOCOL_QUALITY) {
                let _ = self.reports.try_send(sent.into_report());
            }
        }
    }
}
