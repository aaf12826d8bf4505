use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use rollcall_agent_core::tensor::TensorData;
use rollcall_shared::manifest::DataType;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, block_in_place};

use super::wire::JSON_LENGTH;
use super::*;
use crate::engine::fixture::{self, load_files, models};
use crate::prepare::SmokeFile;

/// How the server answers requests.
#[derive(Clone, Debug)]
enum Mood {
    /// Twice the input, in the form of the request.
    Right,
    /// A status and a body.
    Says(u16, &'static str),
    /// Never, to requests.
    Slow,
    /// Never, to anything.
    Hung,
}

/// A server that holds models as the protocol says, and computes `y = 2 x`.
struct Fake {
    mood: Mutex<Mood>,
    load_mood: Mutex<Mood>,
    loaded: Mutex<BTreeSet<String>>,
    /// Answers "not ready" so often after each load.
    polls: Mutex<u32>,
    shape: Mutex<[i64; 2]>,
    log: Mutex<Vec<String>>,
    repository: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Fake {
    async fn listens(&self) {
        let is_hung = matches!(*lock(&self.mood), Mood::Hung);
        if is_hung {
            std::future::pending::<()>().await;
        }
    }

    fn has(&self, name: &str) -> bool {
        lock(&self.loaded).contains(name)
    }

    fn names(&self) -> Vec<String> {
        lock(&self.loaded).iter().cloned().collect()
    }
}

fn refusal(status: u16, text: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, text.to_owned()).into_response()
}

type Shared = State<Arc<Fake>>;

async fn load(State(fake): Shared, UrlPath(name): UrlPath<String>) -> Response {
    fake.listens().await;
    lock(&fake.log).push(format!("load {name}"));
    if let Mood::Says(status, text) = *lock(&fake.load_mood) {
        return refusal(status, text);
    }
    if !fake.repository.join(&name).join("1/model.onnx").exists() {
        return refusal(400, r#"{"error":"no such model in the repository"}"#);
    }
    lock(&fake.loaded).insert(name);
    *lock(&fake.polls) = 2;
    ().into_response()
}

async fn unload(State(fake): Shared, UrlPath(name): UrlPath<String>) {
    lock(&fake.log).push(format!("unload {name}"));
    lock(&fake.loaded).remove(&name);
}

async fn ready(State(fake): Shared, UrlPath(name): UrlPath<String>) -> Response {
    fake.listens().await;
    let mut polls = lock(&fake.polls);
    let is_ready = fake.has(&name) && *polls == 0;
    *polls = polls.saturating_sub(1);
    refusal(if is_ready { 200 } else { 400 }, "")
}

async fn metadata(State(fake): Shared, UrlPath(name): UrlPath<String>) -> Json<Value> {
    let shape = *lock(&fake.shape);
    let tensor = |name| json!({"name": name, "datatype": "FP32", "shape": shape});
    Json(json!({
        "name": name, "versions": ["1"], "platform": "onnxruntime_onnx",
        "inputs": [tensor("x")], "outputs": [tensor("y")],
    }))
}

async fn infer(
    State(fake): Shared,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    fake.listens().await;
    let mood = lock(&fake.mood).clone();
    match mood {
        Mood::Says(status, text) => return refusal(status, text),
        Mood::Slow | Mood::Hung => std::future::pending().await,
        Mood::Right => {}
    }
    if !fake.has(&name) {
        return refusal(400, r#"{"error":"Request for unknown model"}"#);
    }
    let length = headers.get(JSON_LENGTH);
    let length: Option<usize> = length.map(|length| length.to_str().unwrap().parse().unwrap());
    let (head, buffer) = body.split_at(length.unwrap_or(body.len()));
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["name"], "y");
    let input = &head["inputs"][0];
    assert_eq!(
        (&input["name"], &input["datatype"]),
        (&json!("x"), &json!("FP32"))
    );
    let mut output = json!({"name": "y", "datatype": "FP32", "shape": input["shape"]});
    if length.is_none() {
        let data = input["data"].as_array().unwrap().iter();
        output["data"] = data.map(|x| 2.0 * x.as_f64().unwrap()).collect();
        return Json(json!({"model_name": name, "outputs": [output]})).into_response();
    }
    assert_eq!(input["parameters"]["binary_data_size"], buffer.len());
    let (floats, _) = buffer.as_chunks::<4>();
    let doubled = floats
        .iter()
        .flat_map(|x| (2.0 * f32::from_le_bytes(*x)).to_le_bytes());
    output["parameters"] = json!({"binary_data_size": buffer.len()});
    let head = json!({"model_name": name, "outputs": [output]}).to_string();
    let length = head.len().to_string();
    let body: Vec<u8> = head.into_bytes().into_iter().chain(doubled).collect();
    ([(JSON_LENGTH, length)], body).into_response()
}

/// A server that runs, and what an agent knows of it.
struct Bench {
    fake: Arc<Fake>,
    address: SocketAddr,
    serving: JoinHandle<()>,
    settings: Settings,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("repository");
        std::fs::create_dir(&repository).unwrap();
        let fake = Arc::new(Fake {
            mood: Mutex::new(Mood::Right),
            load_mood: Mutex::new(Mood::Right),
            loaded: Mutex::default(),
            polls: Mutex::default(),
            shape: Mutex::new([-1, 2]),
            log: Mutex::default(),
            repository: repository.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            url: format!("http://{address}/"),
            repository,
            layout: Layout::Triton,
            implementation: None,
            load_timeout: Duration::from_secs(20),
            infer_timeout: Duration::from_secs(20),
        };
        Self {
            serving: serve(&fake, listener),
            fake,
            address,
            settings,
            dir,
        }
    }

    fn open(&self) -> Upstream {
        Upstream::open(&self.settings).unwrap()
    }

    fn load(&self, engine: &Upstream) -> Result<Arc<dyn LoadedModel>, EngineError> {
        let model = self.dir.path().join("blob");
        std::fs::write(&model, "an ONNX file").unwrap();
        let files = LoadFiles {
            name: "double@1.2.3".to_owned(),
            model,
            others: Default::default(),
        };
        block_in_place(|| engine.load(&files, &signature()))
    }

    fn in_mood(&self, mood: Mood) {
        *lock(&self.fake.mood) = mood;
    }

    fn folders(&self) -> usize {
        std::fs::read_dir(&self.settings.repository)
            .unwrap()
            .count()
    }

    async fn stop(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }
}

fn serve(fake: &Arc<Fake>, listener: TcpListener) -> JoinHandle<()> {
    let app = Router::new()
        .route("/v2/repository/models/{name}/load", post(load))
        .route("/v2/repository/models/{name}/unload", post(unload))
        .route("/v2/models/{name}/ready", get(ready))
        .route("/v2/models/{name}", get(metadata))
        .route("/v2/models/{name}/infer", post(infer))
        .with_state(Arc::clone(fake));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}

fn signature() -> ModelSignature {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, 2],
    };
    ModelSignature {
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
    }
}

fn ask(model: &Arc<dyn LoadedModel>) -> Result<Vec<f32>, InferError> {
    let input = Tensor {
        name: "x".to_owned(),
        shape: vec![2, 2],
        data: TensorData::Fp32(vec![1.0, 2.0, 3.5, -4.0]),
    };
    let mut outputs = block_in_place(|| model.infer(&[input]))?;
    let output = outputs.remove(0);
    assert_eq!((output.name.as_str(), &*output.shape), ("y", &[2, 2][..]));
    match output.data {
        TensorData::Fp32(data) => Ok(data),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vector_that_comes_as_a_column_is_a_vector() {
    let mut signature = signature();
    signature.outputs[0].shape = vec![-1];
    let answer = |shape: &str| {
        let body = r#"{"outputs":[{"name":"y","datatype":"FP32","shape":SHAPE,"data":[1,2]}]}"#;
        let bytes = body.replace("SHAPE", shape).into_bytes();
        let json_length = None;
        wire::answer(&wire::Body { bytes, json_length }, &signature)
    };
    for shape in ["[2]", "[2,1]"] {
        assert_eq!(answer(shape).unwrap()[0].shape, [2]);
    }
    assert!(answer("[1,2]").is_err());
}

const DOUBLED: [f32; 4] = [2.0, 4.0, 7.0, -8.0];

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_laid_out_loaded_asked_and_taken_away() {
    let bench = Bench::start().await;
    let engine = bench.open();
    let model = bench.load(&engine).unwrap();
    assert_eq!(ask(&model).unwrap(), DOUBLED);
    assert_eq!(model.platform(), "onnxruntime_onnx");
    // The same version once more, as after a withdrawal and a new rollout.
    let again = bench.load(&engine).unwrap();
    let names = bench.fake.names();
    assert_eq!((names.len(), bench.folders()), (2, 2));
    assert!(names.iter().all(|name| name.starts_with("double--1.2.3--")));
    drop(model);
    eventually("the first is gone", || bench.folders() == 1).await;
    assert_eq!(bench.fake.names().len(), 1);
    assert_eq!(ask(&again).unwrap(), DOUBLED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_binary_extension_is_asked_in_json() {
    let bench = Bench::start().await;
    let engine = Upstream {
        encoding: Encoding::Json,
        ..bench.open()
    };
    assert_eq!(ask(&bench.load(&engine).unwrap()).unwrap(), DOUBLED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_with_a_ready_model_says_is_the_models_fault_but_for_a_lack_of_room() {
    let mut bench = Bench::start().await;
    bench.settings.infer_timeout = Duration::from_millis(200);
    let model = bench.load(&bench.open()).unwrap();
    for (mood, text) in [
        (
            Mood::Says(400, r#"{"error":"unexpected shape"}"#),
            "unexpected shape",
        ),
        (
            Mood::Says(500, "Internal Server Error"),
            "Internal Server Error",
        ),
        (Mood::Slow, "did not answer within 200ms"),
        (Mood::Says(200, "no JSON"), "cannot be read"),
    ] {
        bench.in_mood(mood.clone());
        let error = ask(&model).unwrap_err();
        assert!(
            matches!(error, InferError::Failed(_)),
            "{mood:?}: {error:?}"
        );
        assert!(error.to_string().contains(text), "{error}");
    }
    for body in [
        r#"{"outputs":[]}"#,
        r#"{"outputs":[{"name":"y","datatype":"FP32","shape":[2,3],"data":[1,2,3,4,5,6]}]}"#,
        r#"{"outputs":[{"name":"y","datatype":"INT64","shape":[1,2],"data":[1,2]}]}"#,
    ] {
        bench.in_mood(Mood::Says(200, body));
        let error = ask(&model).unwrap_err();
        assert!(matches!(error, InferError::Output { .. }), "{error:?}");
    }
    for status in [429, 502, 503, 504] {
        bench.in_mood(Mood::Says(status, "later"));
        assert!(ask(&model).unwrap_err().is_the_nodes(), "{status}");
    }
    bench.in_mood(Mood::Right);
    assert_eq!(ask(&model).unwrap(), DOUBLED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_the_model_is_told_again_and_the_version_is_not_blamed() {
    let bench = Bench::start().await;
    let model = bench.load(&bench.open()).unwrap();
    lock(&bench.fake.loaded).clear();
    assert!(ask(&model).unwrap_err().is_the_nodes());
    eventually("it is back", || ask(&model).is_ok()).await;
    assert_eq!(bench.fake.names().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_or_hangs_is_the_nodes_fault_until_it_is_back() {
    let mut bench = Bench::start().await;
    bench.settings.infer_timeout = Duration::from_millis(200);
    let engine = bench.open();
    let model = bench.load(&engine).unwrap();
    bench.in_mood(Mood::Hung);
    assert!(ask(&model).unwrap_err().is_the_nodes());
    bench.in_mood(Mood::Right);
    eventually("it answers again", || ask(&model).is_ok()).await;

    bench.stop().await;
    eventually("connections are refused", || {
        ask(&model).is_err_and(|error| error.is_the_nodes())
    })
    .await;
    let Err(error) = bench.load(&engine) else {
        panic!("it loaded")
    };
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    // Started anew, it has loaded nothing.
    lock(&bench.fake.loaded).clear();
    let listener = TcpListener::bind(bench.address).await.unwrap();
    bench.serving = serve(&bench.fake, listener);
    eventually("it is back", || ask(&model).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_loaded_is_refused_in_the_servers_words_and_leaves_nothing() {
    let bench = Bench::start().await;
    let engine = bench.open();
    let load_mood = |mood| *lock(&bench.fake.load_mood) = mood;
    load_mood(Mood::Says(400, r#"{"error":"failed to parse the graph"}"#));
    let Err(error) = bench.load(&engine) else {
        panic!("it loaded")
    };
    assert!(matches!(error, EngineError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("failed to parse the graph"));
    load_mood(Mood::Says(503, "starting"));
    let Err(error) = bench.load(&engine) else {
        panic!("it loaded")
    };
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
    load_mood(Mood::Right);
    *lock(&bench.fake.shape) = [-1, 3];
    let Err(error) = bench.load(&engine) else {
        panic!("it loaded")
    };
    let text = error.to_string();
    assert!(text.contains("input \"x\" has the shape [-1, 3]"), "{text}");
    eventually("nothing is left", || bench.folders() == 0).await;
    assert!(bench.fake.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_that_was_killed_left_goes_and_nothing_else() {
    let bench = Bench::start().await;
    let repository = bench.settings.repository.clone();
    let put = |name: &str, file: &str| {
        std::fs::create_dir(repository.join(name)).unwrap();
        std::fs::write(repository.join(name).join(file), "x").unwrap();
        lock(&bench.fake.loaded).insert(name.to_owned());
    };
    put("digits--1.0.0--00000000-0", ".rollcall");
    put("theirs", "config.pbtxt");
    let _engine = bench.open();
    eventually("it is gone", || bench.folders() == 1).await;
    assert_eq!(bench.fake.names(), ["theirs"]);
    let nowhere = Settings {
        repository: Path::new("/nowhere").to_owned(),
        ..bench.settings.clone()
    };
    let Err(error) = Upstream::open(&nowhere) else {
        panic!("it opened")
    };
    assert!(error.to_string().contains("may write to"), "{error}");
}

/// The server that `tests/engines/run.sh` started, with real models.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an MLServer: tests/engines/run.sh"]
#[expect(clippy::disallowed_methods, reason = "how the script tells its tests")]
async fn a_real_mlserver_answers_as_the_versions_makers_recorded() {
    let given =
        |name| std::env::var(name).unwrap_or_else(|_| panic!("{name}: run tests/engines/run.sh"));
    let settings = Settings {
        url: given("ROLLCALL_MLSERVER"),
        repository: given("ROLLCALL_MLSERVER_MODELS").into(),
        layout: Layout::Mlserver,
        implementation: Some("onnx_runtime.OnnxRuntime".to_owned()),
        load_timeout: Duration::from_secs(60),
        infer_timeout: Duration::from_secs(30),
    };
    let engine = Upstream::open(&settings).unwrap();
    let site = Arc::clone(&engine.site);
    let load = |model: &str, version: &str, classes| {
        let files = load_files(model, version);
        block_in_place(|| engine.load(&files, &fixture::signature(64, classes)))
    };
    let smoke = |version: &str| {
        let path = models().join("digits").join(version).join("smoke.json");
        SmokeFile::read(&path).unwrap().cases
    };
    let (one, two) = (load("digits", "1.0.0", 10), load("digits", "2.0.0", 10));
    let (one, two) = (one.unwrap(), two.unwrap());
    let names = || site.repository.leftovers().unwrap();
    let name = names().into_iter().find(|name| name.contains("1.0.0"));
    let name = name.unwrap();
    let signature = fixture::signature(64, 10);
    for (model, version) in [(&one, "1.0.0"), (&two, "2.0.0")] {
        for case in smoke(version) {
            block_in_place(|| case.check(model.as_ref(), &signature)).unwrap();
        }
    }
    // A version that breaks on an input: its own fault, and the server goes on.
    let breaks = load("digits", "5.0.0", 10).unwrap();
    let ink = Tensor {
        name: "input".to_owned(),
        shape: vec![1, 64],
        data: TensorData::Fp32(vec![16.0; 64]),
    };
    let error = block_in_place(|| breaks.infer(&[ink])).unwrap_err();
    assert!(matches!(error, InferError::Failed(_)), "{error:?}");
    // A file that is no model.
    let mut files = load_files("digits", "1.0.0");
    files.model = models().join("malformed/not-onnx.onnx");
    let refused = block_in_place(|| engine.load(&files, &signature));
    let Err(error) = refused else {
        panic!("it loaded")
    };
    assert!(matches!(error, EngineError::Refused { .. }), "{error}");
    // The server loses a version, as in a restart, and gets it back.
    site.server
        .unload(&name, settings.load_timeout)
        .await
        .unwrap();
    let case = &smoke("1.0.0")[0];
    let error = block_in_place(|| one.infer(&case.tensors())).unwrap_err();
    assert!(error.is_the_nodes(), "{error:?}");
    eventually("it is back", || {
        block_in_place(|| case.check(one.as_ref(), &signature)).is_ok()
    })
    .await;
    drop((one, two, breaks));
    eventually("nothing is left", || names().is_empty()).await;
}
