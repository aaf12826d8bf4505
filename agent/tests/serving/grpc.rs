//! Promises of the serving path, over gRPC, with routes set by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rollcall_agent::config::Serving;
use rollcall_agent::engine::LoadedModel;
use rollcall_agent::serve::grpc::wire::{
    DataType, HealthCheckRequest, HealthCheckResponse, InferInputTensor, InferParameter,
    InferRequestedOutputTensor, InferTensorContents, ModelConfigRequest, ModelConfigResponse,
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ParameterChoice, ParameterName, RepositoryIndexRequest,
    RepositoryIndexResponse, RepositoryModelLoadRequest, ServerLiveResponse,
    ServerMetadataResponse, ServerReadyResponse, ServingStatus,
};
use rollcall_agent_core::route::CandidateUsage::{Canary, Shadow};
use rollcall_shared::assignment::Share;
use rollcall_shared::report::Role;
use tokio::task::JoinSet;
use tonic::Code;

use crate::engines::Hanging;
use crate::port::{Client, Port, header, labels, open_port, request};
use crate::support::{Bench, eventually, percent, rows};

pub(super) async fn start(settings: Serving) -> (Bench, Port, Client) {
    let bench = Bench::start(settings).await;
    let port = open_port(&bench).await;
    let client = Client::connect(port.address).await;
    (bench, port, client)
}

pub(super) fn all_room() -> usize {
    Serving::default().bodies_mib_max << 10
}

#[tokio::test]
async fn raw_and_typed_inputs_get_the_answer_that_rest_gives() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    for row in rows().iter().take(10) {
        let by_rest = bench.infer("", row).await.label();
        let raw = request(std::slice::from_ref(row));
        let mut typed = raw.clone();
        let numbers = typed.raw_input_contents.pop().unwrap();
        let (numbers, _) = numbers.as_chunks();
        typed.inputs[0].contents = Some(InferTensorContents {
            fp32_contents: numbers.iter().map(|n| f32::from_le_bytes(*n)).collect(),
            ..InferTensorContents::default()
        });
        for request in [raw, typed] {
            let answer = client.infer(request).await.unwrap().into_inner();
            assert_eq!(labels(&answer), [by_rest]);
            assert_eq!(
                (&*answer.model_name, &*answer.model_version),
                ("digits", "1.0.0")
            );
            let probabilities = &answer.outputs[1];
            assert_eq!(
                (&*probabilities.datatype, &*probabilities.shape),
                ("FP32", &[1, 10][..])
            );
            assert_eq!(answer.raw_output_contents[1].len(), 40);
        }
    }
    assert_eq!(bench.counts(Role::Stable).requests, 30);
    assert_eq!(
        bench.app.bodies.available_permits(),
        all_room(),
        "the room is given back"
    );
}

#[tokio::test]
async fn an_answer_carries_the_id_the_arm_and_the_version_and_the_outputs_that_were_wanted() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let mut named = request(&rows()[..1]);
    named.id = "order-7".to_owned();
    named.outputs = vec![wanted("probabilities"), wanted("label")];
    let answer = client.infer(named.clone()).await.unwrap();
    assert_eq!(header(&answer, "x-rollcall-version"), "1.0.0");
    assert_eq!(header(&answer, "x-rollcall-arm"), "stable");
    assert_eq!(header(&answer, "x-request-id"), "order-7");
    let answer = answer.into_inner();
    assert_eq!(answer.id, "order-7");
    let names: Vec<_> = answer.outputs.iter().map(|output| &*output.name).collect();
    assert_eq!(names, ["probabilities", "label"]);
    assert_eq!(answer.raw_output_contents.len(), 2);
    // Without an id of its own it has the one of its metadata, and else one of ours.
    named.id.clear();
    let mut by_metadata = tonic::Request::new(named.clone());
    by_metadata
        .metadata_mut()
        .insert("x-request-id", "order-8".parse().unwrap());
    let answer = client.call("ModelInfer", by_metadata).await.unwrap();
    let answer: ModelInferResponse = answer.into_inner();
    assert_eq!(answer.id, "order-8");
    let ours = client.infer(named).await.unwrap();
    assert!(!ours.get_ref().id.is_empty());
    assert_eq!(header(&ours, "x-request-id"), ours.get_ref().id);
}

#[tokio::test]
async fn a_batch_of_many_frames_is_answered_row_by_row() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let few = rows();
    let many: Vec<_> = few.iter().cycle().take(2_000).cloned().collect();
    let first = client.infer(request(&few)).await.unwrap().into_inner();
    let all = client.infer(request(&many)).await.unwrap().into_inner();
    let repeated: Vec<_> = labels(&first).into_iter().cycle().take(2_000).collect();
    assert_eq!(labels(&all), repeated);
}

#[tokio::test]
async fn a_sticky_key_and_a_segment_mean_what_they_mean_to_rest() {
    let (bench, _port, client) = start(Serving::default()).await;
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(percent(50.0)))));
    let row = &rows()[..1];
    let mut arms = BTreeMap::new();
    for key in 0..40 {
        let key = format!("user-{key}");
        let mut keyed = tonic::Request::new(request(row));
        keyed
            .metadata_mut()
            .insert("x-rollcall-key", key.parse().unwrap());
        keyed
            .metadata_mut()
            .insert("rollcall-segment", "eu".parse().unwrap());
        let answer: tonic::Response<ModelInferResponse> =
            client.call("ModelInfer", keyed).await.unwrap();
        let arm = header(&answer, "x-rollcall-arm");
        assert_eq!(arm, bench.infer(&key, &row[0]).await.arm());
        *arms.entry(arm.to_owned()).or_insert(0) += 1;
    }
    assert_eq!(arms.len(), 2, "{arms:?}");
    let mut us = request(row);
    let us_parameter = ParameterChoice::StringParam("us".to_owned());
    us.parameters
        .insert("segment".to_owned(), parameter(us_parameter));
    client.infer(us).await.unwrap();
    let mut counted = BTreeMap::new();
    for segment in bench
        .recorder
        .take_window()
        .series
        .iter()
        .flat_map(|one| &one.segments)
    {
        *counted.entry(segment.name.to_string()).or_insert(0) += segment.counts.requests;
    }
    assert_eq!(
        counted,
        BTreeMap::from([("eu".to_owned(), 40), ("us".to_owned(), 1)])
    );
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(choice),
    }
}

fn wanted(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor {
        name: name.to_owned(),
        ..InferRequestedOutputTensor::default()
    }
}

fn asking(parameter: &str) -> ParameterName {
    ParameterName {
        key: parameter.to_owned(),
    }
}

type Change = Box<dyn Fn(&mut ModelInferRequest)>;

fn change(change: impl Fn(&mut ModelInferRequest) + 'static) -> Change {
    Box::new(change)
}

/// What may be wrong with a request's tensors, and a part of what is said to it.
fn faults_of_tensors() -> Vec<(Change, &'static str)> {
    let input = |change: fn(&mut InferInputTensor)| -> Change {
        Box::new(move |request| change(&mut request.inputs[0]))
    };
    vec![
        (
            input(|x| x.contents = Some(InferTensorContents::default())),
            "one way",
        ),
        (
            change(|r| r.raw_input_contents.push(Bytes::new())),
            "give one for each",
        ),
        (
            change(|r| r.raw_input_contents.clear()),
            "give raw_input_contents or contents",
        ),
        (change(|r| r.inputs.clear()), "give one for each"),
        (input(|x| x.name = "x".to_owned()), "missing"),
        (input(|x| x.datatype = "FP99".to_owned()), "write FP32"),
        (input(|x| x.datatype = "FP16".to_owned()), "send FP32"),
        (input(|x| x.datatype = "INT32".to_owned()), "wants FP32"),
        (input(|x| x.shape = vec![1, 63]), "needs 252"),
        (input(|x| x.shape = vec![64]), "wants [-1, 64]"),
        (
            input(|x| x.shape = vec![-1, 64]),
            "how long each dimension is",
        ),
        (input(|x| x.shape = vec![1; 17]), "more than 16"),
        (
            input(|x| x.parameters = vec![asking("shared_memory_region")]),
            "does not do",
        ),
    ]
}

/// What else may be.
fn other_faults() -> Vec<(Change, &'static str)> {
    let typed = |contents: InferTensorContents| {
        change(move |request| {
            request.raw_input_contents.clear();
            request.inputs[0].contents = Some(contents.clone());
        })
    };
    let segment = |choice: ParameterChoice| {
        change(move |request| {
            let choice = parameter(choice.clone());
            request.parameters.insert("segment".to_owned(), choice);
        })
    };
    let too_few = InferTensorContents {
        fp32_contents: vec![0.0; 63],
        ..InferTensorContents::default()
    };
    let of_another_type = InferTensorContents {
        int64_contents: vec![1; 64],
        ..InferTensorContents::default()
    };
    vec![
        (typed(too_few), "fp32_contents has 63"),
        (typed(of_another_type), "fp32_contents has 0"),
        (change(|r| r.outputs = vec![wanted("colour")]), "no output"),
        (
            change(|r| {
                r.outputs = vec![wanted("label")];
                r.outputs[0].parameters = vec![asking("classification")];
            }),
            "take its largest",
        ),
        (change(|r| r.id = "x".repeat(1_025)), "at most 1024"),
        (
            change(|r| r.inputs = vec![InferInputTensor::default(); 65]),
            "more than 64 times",
        ),
        (segment(ParameterChoice::Int64Param(7)), "string_param"),
        (
            segment(ParameterChoice::StringParam("a\nb".to_owned())),
            "no segment",
        ),
    ]
}

#[tokio::test]
async fn a_request_at_fault_is_refused_with_what_to_do_and_counted_for_nobody() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    for (change, says) in faults_of_tensors().into_iter().chain(other_faults()) {
        let mut request = request(&rows()[..1]);
        change(&mut request);
        let refused = client.infer(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{says}: {refused}");
        assert!(refused.message().contains(says), "{says}: {refused}");
    }
    let unknown: [Change; 4] = [
        change(|r| r.model_name = "nobody".to_owned()),
        change(|r| r.model_name = "NO../".to_owned()),
        change(|r| r.model_version = "9.9.9".to_owned()),
        change(|r| r.model_version = "latest".to_owned()),
    ];
    for change in unknown {
        let mut request = request(&rows()[..1]);
        change(&mut request);
        let refused = client.infer(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
    }
    assert_eq!(
        bench.counts(Role::Stable).requests,
        0,
        "bad input is not the version's"
    );
    assert_eq!(bench.app.bodies.available_permits(), all_room());
}

#[tokio::test]
async fn narrow_types_travel_in_wider_ones_and_must_fit() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let mut asked = request(&rows()[..1]);
    asked.raw_input_contents.clear();
    for (datatype, contents) in [
        (
            "INT8",
            InferTensorContents {
                int_contents: vec![128; 64],
                ..Default::default()
            },
        ),
        (
            "UINT16",
            InferTensorContents {
                uint_contents: vec![70_000; 64],
                ..Default::default()
            },
        ),
    ] {
        asked.inputs[0].datatype = datatype.to_owned();
        asked.inputs[0].contents = Some(contents);
        let refused = client.infer(asked.clone()).await.unwrap_err();
        assert!(refused.message().contains("cannot hold"), "{refused}");
    }
    asked.inputs[0].datatype = "INT8".to_owned();
    asked.inputs[0].contents = Some(InferTensorContents {
        int_contents: vec![-128; 64],
        ..InferTensorContents::default()
    });
    let refused = client.infer(asked).await.unwrap_err();
    assert!(
        refused.message().contains("INT8: the model wants FP32"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_node_that_cannot_answer_says_why_in_the_code() {
    let settings = Serving {
        stable_threads: 1,
        stable_queue: 1,
        candidate_timeout: Duration::from_millis(10),
        stable_timeout: Duration::from_millis(50),
        ..Serving::default()
    };
    let (bench, _port, client) = start(settings).await;
    let row = || request(&rows()[..1]);
    bench.route(1, None, None);
    let refused = client.infer(row()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let held = Arc::new(Hanging::default());
    let stable = bench.install("9.0.0", b"held", Arc::clone(&held) as Arc<dyn LoadedModel>);
    bench.route(2, Some(stable), None);
    let mut asked = JoinSet::new();
    for _ in 0..8 {
        let (client, row) = (client.clone(), row());
        asked.spawn(async move { client.infer(row).await.unwrap_err().code() });
    }
    let mut codes = Vec::new();
    while let Some(code) = asked.join_next().await {
        codes.push(code.unwrap());
    }
    codes.sort_by_key(|code| *code as i32);
    codes.dedup();
    // Some waited too long, and for some there was no room to wait.
    assert_eq!(codes, [Code::DeadlineExceeded, Code::Unavailable]);
    held.release();
    // The threads are free again once they have let go.
    for _ in 0..1_000 {
        let refused = client.infer(row()).await.unwrap_err();
        match refused.code() {
            Code::Internal => return assert!(refused.message().contains("released"), "{refused}"),
            Code::Unavailable | Code::DeadlineExceeded => {}
            _ => panic!("{refused}"),
        }
    }
    panic!("the failure was never told");
}

#[tokio::test]
async fn health_metadata_and_index_speak_the_protocol() {
    let (bench, _port, client) = start(Serving::default()).await;
    let live: ServerLiveResponse = client.ask("ServerLive", ()).await.unwrap();
    assert!(live.live);
    let server: ServerMetadataResponse = client.ask("ServerMetadata", ()).await.unwrap();
    assert_eq!(server.name, "rollcall-agent");
    assert_eq!(are_ready(&client).await, [false, false, false, false]);
    let about = |version: &str| ModelMetadataRequest {
        name: "digits".to_owned(),
        version: version.to_owned(),
    };
    let missing = client
        .ask::<_, ModelMetadataResponse>("ModelMetadata", about(""))
        .await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    bench.route(1, None, None);
    let missing = client
        .ask::<_, ModelMetadataResponse>("ModelMetadata", about(""))
        .await;
    assert_eq!(missing.unwrap_err().code(), Code::Unavailable);
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(2, Some(stable), Some((candidate, Canary(percent(10.0)))));
    assert_eq!(are_ready(&client).await, [true, true, true, true]);
    bench.route(3, Some(stable), Some((candidate, Shadow(Share::ALL))));
    assert_eq!(
        are_ready(&client).await,
        [true, true, true, false],
        "a shadow answers nobody"
    );
    let metadata: ModelMetadataResponse = client.ask("ModelMetadata", about("")).await.unwrap();
    assert_eq!((&*metadata.name, &*metadata.platform), ("digits", "onnx"));
    assert_eq!(metadata.versions, ["1.0.0"]);
    assert_eq!(
        (&*metadata.inputs[0].datatype, &*metadata.inputs[0].shape),
        ("FP32", &[-1, 64][..])
    );
    assert_eq!(metadata.outputs.len(), 2);
    let config = ModelConfigRequest {
        name: "digits".to_owned(),
        version: String::new(),
    };
    let config: ModelConfigResponse = client.ask("ModelConfig", config).await.unwrap();
    let config = config.config.unwrap();
    assert_eq!(config.input[0].data_type, DataType::Fp32 as i32);
    assert_eq!(
        (config.max_batch_size, &*config.input[0].dims),
        (0, &[-1, 64][..])
    );
    for (ready, versions) in [
        (false, vec!["1.0.0 READY", "2.0.0 UNAVAILABLE"]),
        (true, vec!["1.0.0 READY"]),
    ] {
        let index = RepositoryIndexRequest { ready };
        let index: RepositoryIndexResponse = client.ask("RepositoryIndex", index).await.unwrap();
        let rows = index
            .models
            .iter()
            .map(|row| format!("{} {}", row.version, row.state));
        assert_eq!(rows.collect::<Vec<_>>(), versions);
    }
}

/// The server, as its own service and as orchestrators ask it, the model, and 2.0.0 of it.
async fn are_ready(client: &Client) -> [bool; 4] {
    let server: ServerReadyResponse = client.ask("ServerReady", ()).await.unwrap();
    let health = HealthCheckRequest::default();
    let health: HealthCheckResponse = client
        .ask("grpc.health.v1.Health/Check", health)
        .await
        .unwrap();
    let mut models = [false; 2];
    for (ready, version) in models.iter_mut().zip(["", "2.0.0"]) {
        let model = ModelReadyRequest {
            name: "digits".to_owned(),
            version: version.to_owned(),
        };
        let answer: ModelReadyResponse = client.ask("ModelReady", model).await.unwrap();
        *ready = answer.ready;
    }
    let health = health.status == ServingStatus::Serving as i32;
    [server.ready, health, models[0], models[1]]
}

#[tokio::test]
async fn what_is_not_offered_is_refused_by_its_code() {
    let (bench, _port, client) = start(Serving::default()).await;
    bench.route(1, Some(bench.load("1.0.0")), None);
    let load = RepositoryModelLoadRequest {
        model_name: "digits".to_owned(),
    };
    for method in ["RepositoryModelLoad", "RepositoryModelUnload"] {
        let refused = client.ask::<_, ()>(method, load.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("rollouts only"), "{refused}");
    }
    for method in ["ModelStreamInfer", "TraceSetting", "other.Service/Method"] {
        let refused = client.ask::<_, ()>(method, ()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn after_a_swap_no_call_of_a_busy_connection_meets_the_withdrawn_version() {
    let (bench, _port, client) = start(Serving::default()).await;
    let (stable, candidate) = (bench.load("1.0.0"), bench.load("2.0.0"));
    bench.route(1, Some(stable), Some((candidate, Canary(Share::ALL))));
    let (withdrawn, over) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut streams = JoinSet::new();
    for _ in 0..32 {
        let (client, withdrawn, over) = (client.clone(), Arc::clone(&withdrawn), Arc::clone(&over));
        let request = request(&rows()[..1]);
        streams.spawn(async move {
            let (mut candidates, mut after) = (0, 0);
            while !over.load(Ordering::SeqCst) {
                // Asked before the call goes: what comes back was answered later.
                let was_withdrawn = withdrawn.load(Ordering::SeqCst);
                let answer = client.infer(request.clone()).await.unwrap();
                let version = header(&answer, "x-rollcall-version").to_owned();
                assert_eq!(version, answer.get_ref().model_version);
                assert!(
                    !was_withdrawn || version == "1.0.0",
                    "{version} after its withdrawal"
                );
                candidates += u64::from(version == "2.0.0");
                after += u64::from(was_withdrawn);
            }
            (candidates, after)
        });
    }
    eventually("the candidate answers", || {
        bench.counts(Role::Candidate).requests > 200
    })
    .await;
    bench.route(2, Some(stable), None);
    withdrawn.store(true, Ordering::SeqCst);
    let stable_then = bench.counts(Role::Stable).requests;
    eventually("stable answers", || {
        bench.counts(Role::Stable).requests > stable_then + 200
    })
    .await;
    over.store(true, Ordering::SeqCst);
    let (mut candidates, mut after) = (0, 0);
    while let Some(stream) = streams.join_next().await {
        let (by_candidate, asked_after) = stream.unwrap();
        candidates += by_candidate;
        after += asked_after;
    }
    assert!(
        candidates > 0 && after > 0,
        "{candidates} before, {after} after"
    );
}

#[tokio::test]
async fn a_stop_lets_calls_under_way_end_and_takes_no_more() {
    let (bench, port, client) = start(Serving::default()).await;
    let held = Arc::new(Hanging::default());
    let stable = bench.install("9.0.0", b"held", Arc::clone(&held) as Arc<dyn LoadedModel>);
    bench.route(1, Some(stable), None);
    let under_way = tokio::spawn({
        let client = client.clone();
        async move { client.infer(request(&rows()[..1])).await.unwrap_err() }
    });
    eventually("the call is under way", || {
        bench.app.bodies.available_permits() < all_room()
    })
    .await;
    let Port {
        address,
        task,
        stop,
    } = port;
    drop(stop);
    eventually("nobody listens", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    held.release();
    assert!(under_way.await.unwrap().message().contains("released"));
    task.await.unwrap();
}
