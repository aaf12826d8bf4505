//! A serving path in this process, with routes set by hand and real test models.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use rollcall_agent::batch::Batcher;
use rollcall_agent::config::{Batching, Serving};
use rollcall_agent::driver::RouteTable;
use rollcall_agent::engine::cost::Cost;
use rollcall_agent::engine::tract::Tract;
use rollcall_agent::engine::{Engine, LoadFiles, LoadedModel};
use rollcall_agent::metrics::Metrics;
use rollcall_agent::models::Models;
use rollcall_agent::prepare::PreparedModel;
use rollcall_agent::progress::Progress;
use rollcall_agent::recorder::Recorder;
use rollcall_agent::routes::Routes;
use rollcall_agent::serve::infer::Inference;
use rollcall_agent::serve::pages::Pages;
use rollcall_agent::serve::status::{CacheStatus, StatusBoard};
use rollcall_agent::serve::threads::Listeners;
use rollcall_agent::serve::{App, Ids};
use rollcall_agent_core::input::Input;
use rollcall_agent_core::route::{CandidateRoute, CandidateUsage, Route};
use rollcall_shared::assignment::{Share, VersionRef};
use rollcall_shared::digest::Digest;
use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::{Generation, ModelName, NodeId, RolloutId};
use rollcall_shared::manifest::{
    DataType, EngineKind, FilePath, MODEL_FILE, Manifest, ManifestFile, Metadata, ModelSignature,
    TensorSpec,
};
use rollcall_shared::report::{Counts, Role};
use rollcall_shared::time::Timestamp;
use rollcall_transport::clock::Clock;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

pub fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

pub fn bundle(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models/digits")
        .join(version)
}

pub fn signature() -> ModelSignature {
    let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    };
    ModelSignature {
        inputs: vec![spec("input", DataType::Fp32, &[-1, 64])],
        outputs: vec![
            spec("label", DataType::Int64, &[-1]),
            spec("probabilities", DataType::Fp32, &[-1, 10]),
        ],
    }
}

pub fn manifest(version: &str, model: &[u8]) -> Manifest {
    Manifest {
        model: digits(),
        version: version.parse().unwrap(),
        registered_at: Timestamp::from_nanos(1),
        engine: EngineKind::Onnx,
        signature: signature(),
        files: vec![ManifestFile {
            path: FilePath::new(MODEL_FILE).unwrap(),
            size: model.len() as u64,
            digest: Digest::of(model),
        }],
        metadata: Metadata::default(),
    }
}

/// The held-out rows: 200 of 64 numbers.
pub fn rows() -> Vec<Vec<f64>> {
    let text = std::fs::read(bundle("1.0.0").join("validation.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let data = json["inputs"][0]["data"].as_array().unwrap();
    let numbers: Vec<f64> = data.iter().map(|x| x.as_f64().unwrap()).collect();
    numbers.chunks(64).map(<[f64]>::to_vec).collect()
}

pub fn body(row: &[f64]) -> Value {
    json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64], "data": row}]})
}

pub struct Bench {
    pub url: String,
    pub client: reqwest::Client,
    pub clock: Clock,
    pub models: Arc<Models>,
    pub routes: Arc<Routes>,
    pub recorder: Arc<Recorder>,
    pub app: Arc<App>,
    pub events: mpsc::Receiver<Input>,
    _stop: DropGuard,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub json: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn arm(&self) -> &str {
        self.header("x-rollcall-arm")
    }

    pub fn label(&self) -> i64 {
        let outputs = self.json["outputs"].as_array().unwrap();
        let label = outputs
            .iter()
            .find(|output| output["name"] == "label")
            .unwrap();
        label["data"][0].as_i64().unwrap()
    }
}

impl Bench {
    pub async fn start(settings: Serving) -> Self {
        Self::with_cache(settings, CacheStatus::default).await
    }

    /// With a cache that the status page asks.
    pub async fn with_cache(
        settings: Serving,
        cache: impl Fn() -> CacheStatus + Send + Sync + 'static,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::start(Timestamp::ZERO);
        let recorder = Arc::new(Recorder::default());
        let models = Arc::new(Models::default());
        let routes = Arc::new(Routes::new(Arc::clone(&models), Arc::clone(&recorder)));
        let (sender, events) = mpsc::channel(16);
        let inference =
            Arc::new(Inference::start(&settings, clock, Arc::clone(&routes), sender).unwrap());
        let node = NodeId::new("node-1").unwrap();
        let app = Arc::new(App {
            inference,
            status: Arc::new(StatusBoard::new(
                node,
                Arc::new(Progress::new(clock)),
                Box::new(cache),
            )),
            metrics: Metrics::new(Arc::clone(&recorder)),
            pages: Pages::new(Handle::current()),
            bodies: Arc::new(Semaphore::new(settings.bodies_mib_max << 10)),
            ids: Ids::new(7),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let listeners = Listeners {
            http: listener,
            grpc: None,
        };
        tokio::spawn(listeners.serve(Arc::clone(&app), 2, stop.clone()));
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        let _stop = stop.drop_guard();
        Self {
            url,
            client,
            clock,
            models,
            routes,
            recorder,
            app,
            events,
            _stop,
        }
    }

    pub fn load(&self, version: &str) -> VersionRef {
        self.load_as(version, Metadata::default())
    }

    pub fn load_as(&self, version: &str, metadata: Metadata) -> VersionRef {
        let path = bundle(version).join(MODEL_FILE);
        let files = LoadFiles {
            name: format!("digits@{version}"),
            model: path.clone(),
            others: Default::default(),
        };
        let loaded = Tract::new().load(&files, &signature()).unwrap();
        let bytes = std::fs::read(path).unwrap();
        let mut manifest = manifest(version, &bytes);
        manifest.metadata = metadata;
        self.install_manifest(manifest, &bytes, loaded)
    }

    pub fn install(&self, version: &str, bytes: &[u8], loaded: Arc<dyn LoadedModel>) -> VersionRef {
        self.install_manifest(manifest(version, bytes), bytes, loaded)
    }

    /// A version whose requests run together where several wait.
    pub fn install_batched(&self, version: &str, loaded: Arc<dyn LoadedModel>) -> VersionRef {
        let bounds = Batching::default();
        let batcher = Arc::new(Batcher::new(Arc::clone(&loaded), bounds));
        let bytes = version.as_bytes();
        self.install_prepared(manifest(version, bytes), bytes, loaded, Some(batcher))
    }

    fn install_manifest(
        &self,
        manifest: Manifest,
        bytes: &[u8],
        loaded: Arc<dyn LoadedModel>,
    ) -> VersionRef {
        self.install_prepared(manifest, bytes, loaded, None)
    }

    fn install_prepared(
        &self,
        manifest: Manifest,
        bytes: &[u8],
        loaded: Arc<dyn LoadedModel>,
        batcher: Option<Arc<Batcher>>,
    ) -> VersionRef {
        let version = VersionRef {
            version: manifest.version,
            digest: Digest::of(bytes),
        };
        let bytes = manifest.bytes();
        let (loaded, cost) = Cost::of(loaded);
        self.models.insert(
            digits(),
            PreparedModel {
                cost,
                takes_batches: batcher.is_some(),
                batcher,
                manifest,
                loaded,
                version,
                bytes,
            },
        );
        version
    }

    pub fn route(
        &self,
        generation: u64,
        stable: Option<VersionRef>,
        candidate: Option<(VersionRef, CandidateUsage)>,
    ) {
        let candidate = candidate.map(|(version, usage)| CandidateRoute {
            rollout: RolloutId(1),
            version,
            usage,
            lease_until: self.clock.now() + Duration::from_secs(600),
            hasher: CohortHasher::new(&digits(), RolloutId(1)),
        });
        let generation = Generation(generation);
        self.routes.swap(Route {
            model: digits(),
            generation,
            stable,
            candidate,
        });
    }

    pub async fn post(&self, path: &str, key: &str, body: impl Into<reqwest::Body>) -> Answer {
        let mut request = self.client.post(format!("{}{path}", self.url)).body(body);
        if !key.is_empty() {
            request = request.header("x-rollcall-key", key);
        }
        read(request.send().await.unwrap()).await
    }

    /// For a client that writes its requests itself.
    pub async fn connect(&self) -> TcpStream {
        let address = self.url.trim_start_matches("http://");
        TcpStream::connect(address).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        read(
            self.client
                .get(format!("{}{path}", self.url))
                .send()
                .await
                .unwrap(),
        )
        .await
    }

    pub async fn infer(&self, key: &str, row: &[f64]) -> Answer {
        self.post("/v2/models/digits/infer", key, body(row).to_string())
            .await
    }

    pub fn counts(&self, role: Role) -> Counts {
        let totals = self.recorder.totals();
        let mut counts = Counts::default();
        for ((_, _, of), total) in &totals {
            if *of == role {
                counts.merge(&total.counts);
            }
        }
        counts
    }
}

async fn read(response: reqwest::Response) -> Answer {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let bytes = response.bytes().await.unwrap();
    let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer {
        status,
        headers,
        json,
    }
}

pub fn percent(share: f64) -> Share {
    Share::from_percent(share).unwrap()
}

/// Waits for a condition that another thread brings about.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
