use std::sync::Arc;

use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, ModelSignature};
use serde::Deserialize;

use super::fixture::{BUNDLES, load_files, models, signature};
use super::json::WholeTensor;
use super::tract::Tract;
use super::{Engine, EngineError, InferError, LoadFiles, LoadedModel};

#[derive(Deserialize)]
struct Smoke {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    inputs: Vec<WholeTensor>,
    outputs: Vec<WholeTensor>,
}

#[derive(Deserialize)]
struct Validation {
    inputs: Vec<WholeTensor>,
}

fn load(model: &str, version: &str) -> (Arc<dyn LoadedModel>, ModelSignature) {
    let bundle = BUNDLES
        .iter()
        .find(|bundle| (bundle.0, bundle.1) == (model, version))
        .unwrap();
    let signature = signature(bundle.2, bundle.3);
    (
        Tract::new()
            .load(&load_files(model, version), &signature)
            .unwrap(),
        signature,
    )
}

fn smoke(model: &str, version: &str) -> Vec<Case> {
    let text = std::fs::read(models().join(model).join(version).join("smoke.json")).unwrap();
    serde_json::from_slice::<Smoke>(&text).unwrap().cases
}

fn validation(model: &str, version: &str) -> Tensor {
    let text = std::fs::read(models().join(model).join(version).join("validation.json")).unwrap();
    serde_json::from_slice::<Validation>(&text)
        .unwrap()
        .inputs
        .remove(0)
        .0
}

fn floats(tensor: &Tensor) -> &[f32] {
    let TensorData::Fp32(elements) = &tensor.data else {
        panic!("{tensor:?} is not FP32")
    };
    elements
}

fn rows(tensor: &Tensor, from: usize, count: usize) -> Tensor {
    let width = tensor.shape[1];
    Tensor {
        name: tensor.name.clone(),
        shape: vec![count, width],
        data: TensorData::Fp32(floats(tensor)[from * width..(from + count) * width].to_vec()),
    }
}

fn assert_close(got: &Tensor, wanted: &[f32], tolerance: f32) {
    assert_eq!(floats(got).len(), wanted.len());
    for (got, wanted) in floats(got).iter().zip(wanted) {
        assert!((got - wanted).abs() <= tolerance, "{got} is not {wanted}");
    }
}

#[test]
fn every_version_answers_its_smoke_cases_alone_and_in_a_batch() {
    for (model, version, ..) in BUNDLES {
        let (loaded, _) = load(model, version);
        let cases = smoke(model, version);
        let mut batch = Vec::new();
        let mut wanted = Vec::new();
        for case in &cases {
            let outputs = loaded.infer(&[case.inputs[0].0.clone()]).unwrap();
            assert_eq!(outputs[0].name, "label");
            assert_eq!(outputs[0].shape, [1]);
            assert_eq!(outputs[1].name, "probabilities");
            assert_close(&outputs[1], floats(&case.outputs[0].0), 1e-4);
            assert!(!case.name.is_empty());
            batch.extend_from_slice(floats(&case.inputs[0].0));
            wanted.extend_from_slice(floats(&case.outputs[0].0));
        }
        let width = cases[0].inputs[0].0.shape[1];
        let batch = Tensor {
            name: "input".to_owned(),
            shape: vec![cases.len(), width],
            data: TensorData::Fp32(batch),
        };
        let outputs = loaded.infer(&[batch]).unwrap();
        assert_eq!(outputs[0].shape, [cases.len()]);
        assert_close(&outputs[1], &wanted, 1e-4);
    }
}

#[test]
fn a_batch_of_eight_gives_the_labels_of_its_rows() {
    let (loaded, _) = load("digits", "2.0.0");
    let all = validation("digits", "2.0.0");
    let batch = loaded.infer(&[rows(&all, 0, 8)]).unwrap();
    let singly: Vec<i64> = (0..8)
        .map(
            |row| match &loaded.infer(&[rows(&all, row, 1)]).unwrap()[0].data {
                TensorData::Int64(labels) => labels[0],
                other => panic!("{other:?}"),
            },
        )
        .collect();
    assert_eq!(batch[0].data, TensorData::Int64(singly));
}

#[test]
fn a_model_that_breaks_on_some_rows_answers_the_others_from_many_threads() {
    let (loaded, _) = load("digits", "5.0.0");
    let all = validation("digits", "5.0.0");
    let failed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (loaded, all) = (&loaded, &all);
                scope.spawn(move || {
                    (thread * 50..thread * 50 + 50)
                        .filter(|row| match loaded.infer(&[rows(all, *row, 1)]) {
                            Ok(outputs) => {
                                assert_eq!(outputs.len(), 2);
                                false
                            }
                            Err(InferError::Panicked(text)) => {
                                assert!(!text.is_empty());
                                true
                            }
                            Err(other) => panic!("{other}"),
                        })
                        .count()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(failed, 49);
    assert!(loaded.infer(&[rows(&all, 0, 200)]).is_err());
    let good: Vec<usize> = (0..200)
        .filter(|row| loaded.infer(&[rows(&all, *row, 1)]).is_ok())
        .take(2)
        .collect();
    assert!(loaded.infer(&[rows(&all, good[0], 1)]).is_ok());
}

#[test]
fn what_is_no_model_is_refused_with_a_way_out() {
    let engine = Tract::new();
    let malformed = models().join("malformed");
    for name in ["truncated.onnx", "not-onnx.onnx", "empty.onnx"] {
        let files = LoadFiles {
            model: malformed.join(name),
            others: Default::default(),
        };
        let Err(error) = engine.load(&files, &signature(64, 10)) else {
            panic!("{name} loaded")
        };
        assert!(
            matches!(error, EngineError::NotOnnx { .. }),
            "{name}: {error}"
        );
        assert!(
            error.to_string().contains("push it as a new version"),
            "{error}"
        );
    }
    let files = LoadFiles {
        model: malformed.join("absent"),
        others: Default::default(),
    };
    assert!(matches!(
        engine.load(&files, &signature(64, 10)),
        Err(EngineError::Io { .. })
    ));
}

#[test]
fn every_cut_and_many_bit_flips_of_a_model_are_an_error_or_a_model_and_never_a_panic() {
    let good = std::fs::read(models().join("digits/1.0.0/model.onnx")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let engine = Tract::new();
    let files = LoadFiles {
        model: path.clone(),
        others: Default::default(),
    };
    let try_load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        engine.load(&files, &signature(64, 10)).is_ok()
    };
    for cut in (0..good.len()).step_by(97) {
        assert!(!try_load(&good[..cut]), "cut at {cut} loaded");
    }
    // Weights are in the middle; the graph is in the rest.
    for at in (0..good.len()).step_by(53) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        try_load(&bad);
    }
    assert!(try_load(&good));
}

#[test]
fn a_signature_that_the_graph_does_not_have_is_refused() {
    let files = load_files("digits", "1.0.0");
    let refusal = |change: &dyn Fn(&mut ModelSignature)| {
        let mut signature = signature(64, 10);
        change(&mut signature);
        match Tract::new().load(&files, &signature) {
            Ok(_) => panic!("{signature:?} was accepted"),
            Err(error) => error,
        }
    };
    type Change<'a> = &'a dyn Fn(&mut ModelSignature);
    let changes: [(&str, Change<'_>); 8] = [
        ("inputs are", &|s| s.inputs[0].name = "other".to_owned()),
        ("inputs are", &|s| {
            s.inputs.push(signature(3, 3).outputs[0].clone())
        }),
        ("no output \"other\"", &|s| {
            s.outputs[1].name = "other".to_owned()
        }),
        ("twice", &|s| s.outputs.push(s.outputs[0].clone())),
        ("input \"input\" is FP32 in the graph and INT64", &|s| {
            s.inputs[0].datatype = DataType::Int64
        }),
        ("input \"input\" has the shape", &|s| {
            s.inputs[0].shape = vec![-1, 63]
        }),
        ("output \"label\" is INT64 in the graph and FP32", &|s| {
            s.outputs[0].datatype = DataType::Fp32
        }),
        ("output \"probabilities\" has the shape", &|s| {
            s.outputs[1].shape = vec![-1, 11]
        }),
    ];
    for (wanted, change) in changes {
        let error = refusal(change);
        assert!(
            matches!(error, EngineError::SignatureMismatch { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let half = refusal(&|s| s.outputs[1].datatype = DataType::Fp16);
    assert!(
        matches!(half, EngineError::UnsupportedDataType { .. }),
        "{half}"
    );
}

#[test]
fn a_signature_may_leave_outputs_out_and_have_them_in_its_own_order() {
    let files = load_files("digits", "1.0.0");
    let mut reversed = signature(64, 10);
    reversed.outputs.reverse();
    let loaded = Tract::new().load(&files, &reversed).unwrap();
    let outputs = loaded
        .infer(&[smoke("digits", "1.0.0")[0].inputs[0].0.clone()])
        .unwrap();
    assert_eq!(outputs[0].name, "probabilities");
    reversed.outputs.truncate(1);
    let loaded = Tract::new().load(&files, &reversed).unwrap();
    let outputs = loaded
        .infer(&[smoke("digits", "1.0.0")[0].inputs[0].0.clone()])
        .unwrap();
    assert_eq!(outputs.len(), 1);
}

#[test]
fn wrong_tensors_are_errors_even_where_nobody_checked_them() {
    let (loaded, _) = load("digits", "1.0.0");
    let good = smoke("digits", "1.0.0").remove(0).inputs.remove(0).0;
    assert!(matches!(loaded.infer(&[]), Err(InferError::Input { .. })));
    let mut wrong = good.clone();
    wrong.name = "other".to_owned();
    assert!(matches!(
        loaded.infer(&[wrong]),
        Err(InferError::Input { .. })
    ));
    let mut wrong = good.clone();
    wrong.shape = vec![2, 64];
    assert!(loaded.infer(&[wrong]).is_err());
    let mut wrong = good.clone();
    wrong.shape = vec![1, 63];
    wrong.data = TensorData::Fp32(vec![0.0; 63]);
    assert!(loaded.infer(&[wrong]).is_err());
    let mut wrong = good.clone();
    wrong.data = TensorData::Fp64(vec![0.0; 64]);
    assert!(loaded.infer(&[wrong]).is_err());
    assert!(loaded.infer(&[good]).is_ok());
}
