use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rollcall_agent_core::tensor::TensorData;
use rollcall_shared::manifest::{ModelSignature, SignedManifest};

use super::*;
use crate::engine::InferError;
use crate::engine::fixture::{BUNDLES, Bundle, key, public_key, signature};
use crate::engine::tract::Tract;

const NOW: Timestamp = Timestamp::from_nanos(1);

struct Disk {
    cache: Cache,
    _dir: tempfile::TempDir,
}

fn disk() -> Disk {
    let dir = tempfile::tempdir().unwrap();
    Disk {
        cache: Cache::open(dir.path(), 1 << 30, public_key()).unwrap(),
        _dir: dir,
    }
}

impl Disk {
    fn hold(&self, bundle: &Bundle) -> VersionRef {
        let version = self.cache.add_version(&bundle.signed(), NOW).unwrap();
        for (file, bytes) in bundle.manifest.files.iter().zip(&bundle.files) {
            let mut blob = self.cache.begin_blob(file.digest, file.size).unwrap();
            let from = usize::try_from(blob.offset()).unwrap();
            blob.write(&bytes[from..]).unwrap();
            blob.finish().unwrap();
        }
        version
    }

    fn prepare(&self, bundle: &Bundle) -> Result<PreparedModel, PrepareError> {
        let version = self.hold(bundle);
        prepare(
            &self.cache,
            &Tract::new(),
            &bundle.manifest.model,
            version,
            NOW,
            |_| {},
        )
    }

    fn failure(&self, bundle: &Bundle) -> PrepareFailure {
        match self.prepare(bundle) {
            Ok(_) => panic!("it was prepared"),
            Err(error) => error.into(),
        }
    }
}

/// digits 1.0.0 with another smoke file.
fn with_smoke(smoke: &str) -> Bundle {
    let good = Bundle::real("digits", "1.0.0");
    let files = [
        ("model.onnx", good.files[0].clone()),
        ("smoke.json", smoke.into()),
    ];
    Bundle::of("digits", Version::new(1, 0, 0), signature(64, 10), &files)
}

fn without_smoke() -> Bundle {
    let good = Bundle::real("digits", "1.0.0");
    let files = [("model.onnx", good.files[0].clone())];
    Bundle::of("digits", Version::new(1, 0, 0), signature(64, 10), &files)
}

fn good_smoke() -> String {
    String::from_utf8(Bundle::real("digits", "1.0.0").files[1].clone()).unwrap()
}

#[test]
fn a_version_that_would_fill_the_memory_waits_for_room() {
    let disk = disk();
    let version = disk.hold(&Bundle::real("digits", "1.0.0"));
    assert!(check_room(&disk.cache, &Tract::new(), version, 0).is_ok());
    let refused = check_room(&disk.cache, &Tract::new(), version, u64::MAX);
    let failure = PrepareFailure::from(refused.unwrap_err());
    assert!(failure.retryable);
    assert!(
        failure.reason.contains("must stay so"),
        "{}",
        failure.reason
    );
}

#[test]
fn every_bundle_is_prepared_and_answers() {
    let disk = disk();
    for (model, version, ..) in BUNDLES {
        let bundle = Bundle::real(model, version);
        let prepared = disk.prepare(&bundle).unwrap();
        assert_eq!(prepared.manifest, bundle.manifest);
        assert_eq!(
            prepared.version,
            bundle.signed().version_ref(bundle.manifest.version)
        );
        assert_eq!(prepared.bytes, bundle.manifest.bytes());
    }
}

/// Computes for a second.
struct Busy;

impl LoadedModel for Busy {
    fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
        let until = cpu() + 2;
        while cpu() < until {}
        Ok(Vec::new())
    }
}

#[test]
fn what_a_version_costs_is_known_before_it_answers_anyone() {
    let (busy, cost) = Cost::of(Arc::new(Busy));
    busy.infer(&[]).unwrap();
    for bundle in [Bundle::real("digits", "1.0.0"), without_smoke()] {
        let prepared = disk().prepare(&bundle).unwrap();
        // To what is not known nothing is out of proportion.
        assert!(cost.is_out_of_proportion_to(&prepared.cost));
    }
}

#[test]
fn each_phase_is_told_as_it_begins() {
    let (disk, bundle) = (disk(), Bundle::real("digits", "1.0.0"));
    let version = disk.hold(&bundle);
    let told = RefCell::new(Vec::new());
    let tell = |phase| told.borrow_mut().push(phase);
    let model = &bundle.manifest.model;
    prepare(&disk.cache, &Tract::new(), model, version, NOW, tell).unwrap();
    let all = [Phase::Verifying, Phase::Loading, Phase::WarmingUp];
    assert_eq!(told.into_inner(), all);
}

#[test]
fn a_version_whose_answers_are_not_those_recorded_is_refused_for_good() {
    let smoke = good_smoke().replacen("0.9976324", "0.9986324", 1);
    let failure = disk().failure(&with_smoke(&smoke));
    assert!(!failure.retryable);
    assert!(
        failure.reason.starts_with(
            "smoke case \"held-out-row-22-class-0\": output \"probabilities\" at position 0 is 0.99763"
        ) && failure.reason.ends_with("expected 0.9986324 (tolerance 0.0001)"),
        "{}",
        failure.reason
    );
}

#[test]
fn the_smoke_cases_of_one_version_refuse_another() {
    let other = Bundle::real("digits", "3.0.0");
    let files = [
        ("model.onnx", other.files[0].clone()),
        ("smoke.json", good_smoke().into_bytes()),
    ];
    let swapped = Bundle::of("digits", Version::new(1, 0, 0), signature(64, 10), &files);
    let failure = disk().failure(&swapped);
    assert!(failure.reason.contains("at position"), "{}", failure.reason);
    assert!(!failure.retryable);
}

#[test]
fn smoke_files_that_make_no_sense_are_refused_with_the_place() {
    let disk = disk();
    for (smoke, wanted) in [
        ("not json".to_owned(), "smoke.json cannot be read"),
        (
            r#"{"cases":[{"name":"a"}]}"#.to_owned(),
            "missing field `inputs`",
        ),
        (good_smoke().replacen("0.0001}", "-1}", 1), "tolerance -1"),
        (
            good_smoke().replacen("\"input\"", "\"other\"", 1),
            "input \"input\" is missing",
        ),
        (
            good_smoke().replacen("probabilities", "logits", 1),
            "expects an output \"logits\"",
        ),
        (
            good_smoke().replacen("[1,10]", "[10,1]", 1),
            "is FP32 [1, 10], expected FP32 [10, 1]",
        ),
        (
            good_smoke().replacen("[1,64]", "[1,65]", 1),
            "has 64 elements",
        ),
    ] {
        let failure = disk.failure(&with_smoke(&smoke));
        assert!(failure.reason.contains(wanted), "{}", failure.reason);
        assert!(!failure.retryable);
    }
}

#[test]
fn a_version_without_smoke_cases_is_warmed_with_zeros() {
    disk().prepare(&without_smoke()).unwrap();
}

#[test]
fn what_the_engine_refuses_is_refused_for_good() {
    let malformed = crate::engine::fixture::models().join("malformed");
    let disk = disk();
    for name in ["truncated.onnx", "not-onnx.onnx", "empty.onnx"] {
        let files = [("model.onnx", std::fs::read(malformed.join(name)).unwrap())];
        let bundle = Bundle::of("bad", Version::new(1, 0, 0), signature(64, 10), &files);
        let failure = disk.failure(&bundle);
        assert!(!failure.retryable);
        assert!(failure.reason.contains("is not ONNX"), "{}", failure.reason);
    }
}

#[test]
fn missing_and_damaged_files_are_named_and_may_be_fetched_again() {
    let disk = disk();
    let bundle = Bundle::real("digits", "1.0.0");
    let version = disk.cache.add_version(&bundle.signed(), NOW).unwrap();
    let Err(error) = prepare(
        &disk.cache,
        &Tract::new(),
        &bundle.manifest.model,
        version,
        NOW,
        |_| {},
    ) else {
        panic!("prepared from nothing")
    };
    let failure = PrepareFailure::from(error);
    assert!(failure.retryable);
    assert!(failure.reason.contains("model.onnx") && failure.reason.contains("smoke.json"));

    disk.hold(&bundle);
    let path = disk
        .cache
        .path_of(&bundle.manifest.files[0].digest)
        .unwrap();
    std::fs::write(&path, b"something else").unwrap();
    let again = prepare(
        &disk.cache,
        &Tract::new(),
        &bundle.manifest.model,
        version,
        NOW,
        |_| {},
    );
    let failure = PrepareFailure::from(again.err().unwrap());
    assert!(failure.retryable);
    assert_eq!(disk.cache.missing(&bundle.manifest).len(), 1);
    disk.prepare(&bundle).unwrap();
}

#[test]
fn only_the_manifest_that_was_assigned_is_served() {
    let disk = disk();
    let bundle = Bundle::real("wine", "1.0.0");
    let version = disk.hold(&bundle);
    let prepare = |model: &str, version| {
        let model = ModelName::new(model).unwrap();
        prepare(&disk.cache, &Tract::new(), &model, version, NOW, |_| {})
            .err()
            .unwrap()
    };
    let error = prepare("digits", version);
    assert!(error.to_string().contains("is of wine@1.0.0"), "{error}");
    assert!(!error.is_retryable());
    // The same content registered again is another manifest.
    let mut later = bundle.manifest.clone();
    later.registered_at = Timestamp::from_nanos(99);
    let later = SignedManifest::sign(&later, &key()).unwrap();
    let error = prepare(
        "wine",
        later.version_ref(later.open(&public_key()).unwrap().version),
    );
    assert!(
        matches!(error, PrepareError::Cache(CacheError::Unknown { .. })),
        "{error}"
    );
    let renumbered = VersionRef {
        version: Version::new(9, 9, 9),
        ..version
    };
    assert!(matches!(
        prepare("wine", renumbered),
        PrepareError::Cache(CacheError::Unknown { .. })
    ));
}

/// Answers single rows rightly; what it does with batches is said by `batch`.
struct Fake {
    calls: AtomicUsize,
    batch: fn(Vec<f32>) -> Result<Vec<f32>, InferError>,
}

impl LoadedModel for Fake {
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let TensorData::Fp32(rows) = inputs[0].data.clone() else {
            panic!("{inputs:?}")
        };
        let rows = if rows.len() > 1 {
            (self.batch)(rows)?
        } else {
            rows
        };
        let shape = vec![rows.len(), 1];
        Ok(vec![Tensor {
            name: "probabilities".to_owned(),
            shape,
            data: TensorData::Fp32(rows),
        }])
    }
}

struct FakeEngine(fn(Vec<f32>) -> Result<Vec<f32>, InferError>);

impl Engine for FakeEngine {
    fn memory_percent(&self) -> u32 {
        100
    }

    fn load(&self, _: &LoadFiles, _: &ModelSignature) -> Result<Arc<dyn LoadedModel>, EngineError> {
        Ok(Arc::new(Fake {
            calls: AtomicUsize::new(0),
            batch: self.0,
        }))
    }
}

#[test]
fn an_engine_that_mixes_up_the_rows_of_a_batch_is_caught_and_one_without_batches_is_let_pass() {
    let case = |n: u32| {
        format!(
            r#"{{"name":"case-{n}","tolerance":0,
                "inputs":[{{"name":"input","datatype":"FP32","shape":[1,1],"data":[{n}]}}],
                "outputs":[{{"name":"probabilities","datatype":"FP32","shape":[1,1],"data":[{n}]}}]}}"#
        )
    };
    let smoke = format!(r#"{{"cases":[{},{}]}}"#, case(1), case(2));
    let files = [
        ("model.onnx", b"fake".to_vec()),
        ("smoke.json", smoke.into_bytes()),
    ];
    let bundle = Bundle::of("fake", Version::new(1, 0, 0), signature(1, 1), &files);
    let disk = disk();
    let version = disk.hold(&bundle);
    let model = &bundle.manifest.model;
    let prepare = |engine| {
        prepare(
            &disk.cache,
            &FakeEngine(engine),
            model,
            version,
            NOW,
            |_| {},
        )
    };
    assert!(prepare(Ok).is_ok());
    assert!(prepare(|_| Err(InferError::Failed("no batches".to_owned()))).is_ok());
    let error = prepare(|mut rows| {
        rows.reverse();
        Ok(rows)
    });
    let text = error.err().unwrap().to_string();
    assert!(
        text.contains("\"all cases in one batch\"") && text.contains("position 0"),
        "{text}"
    );
}
