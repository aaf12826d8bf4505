use std::sync::Arc;

use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, FilePath, ModelSignature, TensorSpec};
use serde::Deserialize;

use super::fixture::onnx::{external_floats, one_node};
use super::fixture::{BUNDLES, load_files, models, signature};
use super::json::WholeTensor;
use super::onnxruntime::OnnxRuntime;
use super::tract::Tract;
use super::{Engine, EngineError, InferError, LoadFiles, LoadedModel};
use crate::config::engine::{Device, OnnxRuntime as Settings};

macro_rules! promise_of {
    (tract, $test:ident) => {
        #[test]
        fn $test() {
            super::$test(&Tract::new());
        }
    };
    (onnxruntime, $test:ident) => {
        #[test]
        #[ignore = "needs the onnxruntime library: tests/engines/run.sh"]
        fn $test() {
            let dir = tempfile::tempdir().unwrap();
            super::$test(&installed_onnxruntime(dir.path()));
        }
    };
}

/// What every engine promises, as tests of each.
macro_rules! promises {
    ($($test:ident)*) => {
        mod tract {
            use super::*;
            $(promise_of!(tract, $test);)*
        }
        mod onnxruntime {
            use super::*;
            $(promise_of!(onnxruntime, $test);)*
        }
    };
}

promises! {
    every_version_answers_its_smoke_cases_alone_and_in_a_batch
    a_batch_of_eight_gives_the_labels_of_its_rows
    a_model_that_breaks_on_some_rows_answers_the_others_from_many_threads
    what_is_no_model_is_refused_with_a_way_out
    every_cut_and_many_bit_flips_of_a_model_are_an_error_or_a_model_and_never_a_panic
    a_signature_that_the_graph_does_not_have_is_refused
    a_signature_may_leave_outputs_out_and_have_them_in_its_own_order
    wrong_tensors_are_errors_even_where_nobody_checked_them
    every_type_goes_in_and_comes_out_as_it_was
    weights_in_files_of_their_own_are_used_and_no_other_file_is_opened
    an_operator_that_nobody_has_is_refused_with_its_name
}

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

fn load(engine: &dyn Engine, model: &str, version: &str) -> Arc<dyn LoadedModel> {
    let bundle = BUNDLES
        .iter()
        .find(|bundle| (bundle.0, bundle.1) == (model, version))
        .unwrap();
    let signature = signature(bundle.2, bundle.3);
    engine
        .load(&load_files(model, version), &signature)
        .unwrap()
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

fn every_version_answers_its_smoke_cases_alone_and_in_a_batch(engine: &dyn Engine) {
    for (model, version, ..) in BUNDLES {
        let loaded = load(engine, model, version);
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

fn a_batch_of_eight_gives_the_labels_of_its_rows(engine: &dyn Engine) {
    let loaded = load(engine, "digits", "2.0.0");
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

fn a_model_that_breaks_on_some_rows_answers_the_others_from_many_threads(engine: &dyn Engine) {
    let loaded = load(engine, "digits", "5.0.0");
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
                            Err(InferError::Panicked(text) | InferError::Failed(text)) => {
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

fn what_is_no_model_is_refused_with_a_way_out(engine: &dyn Engine) {
    let malformed = models().join("malformed");
    for name in ["truncated.onnx", "not-onnx.onnx", "empty.onnx"] {
        let files = LoadFiles {
            name: "digits@1.0.0".to_owned(),
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
        name: "digits@1.0.0".to_owned(),
        model: malformed.join("absent"),
        others: Default::default(),
    };
    assert!(matches!(
        engine.load(&files, &signature(64, 10)),
        Err(EngineError::Io { .. })
    ));
}

fn every_cut_and_many_bit_flips_of_a_model_are_an_error_or_a_model_and_never_a_panic(
    engine: &dyn Engine,
) {
    let good = std::fs::read(models().join("digits/1.0.0/model.onnx")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let files = LoadFiles {
        name: "digits@1.0.0".to_owned(),
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

fn a_signature_that_the_graph_does_not_have_is_refused(engine: &dyn Engine) {
    let files = load_files("digits", "1.0.0");
    let refusal = |change: &dyn Fn(&mut ModelSignature)| {
        let mut signature = signature(64, 10);
        change(&mut signature);
        match engine.load(&files, &signature) {
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

fn a_signature_may_leave_outputs_out_and_have_them_in_its_own_order(engine: &dyn Engine) {
    let files = load_files("digits", "1.0.0");
    let mut reversed = signature(64, 10);
    reversed.outputs.reverse();
    let loaded = engine.load(&files, &reversed).unwrap();
    let outputs = loaded
        .infer(&[smoke("digits", "1.0.0")[0].inputs[0].0.clone()])
        .unwrap();
    assert_eq!(outputs[0].name, "probabilities");
    reversed.outputs.truncate(1);
    let loaded = engine.load(&files, &reversed).unwrap();
    let outputs = loaded
        .infer(&[smoke("digits", "1.0.0")[0].inputs[0].0.clone()])
        .unwrap();
    assert_eq!(outputs.len(), 1);
}

fn wrong_tensors_are_errors_even_where_nobody_checked_them(engine: &dyn Engine) {
    let loaded = load(engine, "digits", "1.0.0");
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

fn files_in(folder: &std::path::Path, files: &[(&str, &[u8])]) -> LoadFiles {
    let mut others = std::collections::BTreeMap::new();
    for (at, (name, bytes)) in files.iter().enumerate() {
        let path = folder.join(format!("blob-{at}"));
        std::fs::write(&path, bytes).unwrap();
        others.insert(FilePath::new(*name).unwrap(), path);
    }
    let model = FilePath::new("model.onnx").unwrap();
    LoadFiles {
        name: "made@1.0.0".to_owned(),
        model: others.remove(&model).unwrap(),
        others,
    }
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    }
}

fn every_type_goes_in_and_comes_out_as_it_was(engine: &dyn Engine) {
    let folder = tempfile::tempdir().unwrap();
    for data in [
        TensorData::Bool(vec![true, false]),
        TensorData::Uint8(vec![0, u8::MAX]),
        TensorData::Uint16(vec![0, u16::MAX]),
        TensorData::Uint32(vec![0, u32::MAX]),
        TensorData::Uint64(vec![0, u64::MAX]),
        TensorData::Int8(vec![i8::MIN, i8::MAX]),
        TensorData::Int16(vec![i16::MIN, i16::MAX]),
        TensorData::Int32(vec![i32::MIN, i32::MAX]),
        TensorData::Int64(vec![i64::MIN, i64::MAX]),
        TensorData::Fp32(vec![0.5, -1e30]),
        TensorData::Fp64(vec![0.5, -1e300]),
        TensorData::Bytes(vec![b"a".to_vec(), "ü".as_bytes().to_vec()]),
    ] {
        let datatype = data.datatype();
        let (x, y) = (spec("x", datatype, &[-1, 1]), spec("y", datatype, &[-1, 1]));
        let model = one_node("Identity", &x, vec![], &y);
        let files = files_in(folder.path(), &[("model.onnx", &model)]);
        let signature = ModelSignature {
            inputs: vec![x],
            outputs: vec![y],
        };
        let loaded = engine.load(&files, &signature).unwrap();
        let input = Tensor {
            name: "x".to_owned(),
            shape: vec![2, 1],
            data: data.clone(),
        };
        let outputs = loaded.infer(&[input]).unwrap();
        assert_eq!((&outputs[0].data, &outputs[0].shape), (&data, &vec![2, 1]));
        if datatype == DataType::Bytes {
            let no_text = Tensor {
                name: "x".to_owned(),
                shape: vec![1, 1],
                data: TensorData::Bytes(vec![vec![0xff]]),
            };
            let refusal = loaded.infer(&[no_text]).unwrap_err();
            assert!(matches!(refusal, InferError::Input { .. }), "{refusal}");
        }
    }
}

fn weights_in_files_of_their_own_are_used_and_no_other_file_is_opened(engine: &dyn Engine) {
    let folder = tempfile::tempdir().unwrap();
    let (x, y) = (
        spec("x", DataType::Fp32, &[-1, 2]),
        spec("y", DataType::Fp32, &[-1, 2]),
    );
    let signature = ModelSignature {
        inputs: vec![x.clone()],
        outputs: vec![y.clone()],
    };
    let bytes =
        |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let weights = bytes(&[9.0, 2.0, -3.0]);
    // Beside the blobs, where a graph might look for it.
    std::fs::write(folder.path().join("other.bin"), &weights).unwrap();
    let load = |location: &str| {
        let entries = [("location", location), ("offset", "4"), ("length", "8")];
        let w = external_floats("w", &[2], &entries);
        let model = one_node("Mul", &x, vec![w], &y);
        let files = [("model.onnx", &*model), ("w/weights.bin", &*weights)];
        engine.load(&files_in(folder.path(), &files), &signature)
    };
    let loaded = load("w/weights.bin").unwrap();
    let input = Tensor {
        name: "x".to_owned(),
        shape: vec![1, 2],
        data: TensorData::Fp32(vec![1.0, 2.0]),
    };
    // More at a time than there are sessions at first.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let outputs = loaded.infer(std::slice::from_ref(&input)).unwrap();
                assert_eq!(outputs[0].data, TensorData::Fp32(vec![2.0, -6.0]));
            });
        }
    });
    for bad in ["other.bin", "../other.bin", "/etc/passwd"] {
        let Err(refusal) = load(bad) else {
            panic!("{bad} was opened")
        };
        assert!(
            matches!(refusal, EngineError::ExternalData { .. }),
            "{refusal}"
        );
    }
}

fn an_operator_that_nobody_has_is_refused_with_its_name(engine: &dyn Engine) {
    let folder = tempfile::tempdir().unwrap();
    let (x, y) = (
        spec("x", DataType::Fp32, &[-1]),
        spec("y", DataType::Fp32, &[-1]),
    );
    let model = one_node("Frobnicate", &x, vec![], &y);
    let files = files_in(folder.path(), &[("model.onnx", &model)]);
    let signature = ModelSignature {
        inputs: vec![x],
        outputs: vec![y],
    };
    let Err(refusal) = engine.load(&files, &signature) else {
        panic!("it loaded")
    };
    assert!(refusal.to_string().contains("Frobnicate"), "{refusal}");
}

/// The library that `tests/engines/run.sh` installed.
#[expect(clippy::disallowed_methods, reason = "how the script tells its tests")]
fn installed_onnxruntime(dir: &std::path::Path) -> OnnxRuntime {
    let library = std::env::var("ROLLCALL_ONNXRUNTIME")
        .expect("ROLLCALL_ONNXRUNTIME must name libonnxruntime.so: run tests/engines/run.sh");
    let settings = Settings {
        library: library.into(),
        device: Device::Cpu,
        threads: 1,
        sessions: 4,
    };
    OnnxRuntime::open(&settings, dir).unwrap()
}

/// tract and onnxruntime are different programs: where they agree, neither is wrong by
/// itself.
#[test]
#[ignore = "needs the onnxruntime library: tests/engines/run.sh"]
fn two_engines_give_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (tract, onnxruntime) = (Tract::new(), installed_onnxruntime(dir.path()));
    for (model, version, ..) in BUNDLES {
        if (model, version) == ("digits", "5.0.0") {
            continue; // It breaks on some rows.
        }
        let all = validation(model, version);
        let one = load(&tract, model, version).infer(std::slice::from_ref(&all));
        let other = load(&onnxruntime, model, version).infer(&[all]);
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(one[0], other[0], "{model} {version}");
        assert_close(&one[1], floats(&other[1]), 1e-5);
    }
}

#[test]
fn a_library_that_is_none_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libonnxruntime.so");
    std::fs::write(&text, "no library").unwrap();
    for library in [text, "/nowhere/libonnxruntime.so".into()] {
        let settings = Settings {
            library: library.clone(),
            device: Device::Cpu,
            threads: 1,
            sessions: 0,
        };
        let Err(error) = OnnxRuntime::open(&settings, dir.path()) else {
            panic!("{library:?} was loaded")
        };
        let text = error.to_string();
        assert!(text.contains(library.to_str().unwrap()), "{text}");
        assert!(text.contains("PyPI wheel"), "{text}");
    }
}
