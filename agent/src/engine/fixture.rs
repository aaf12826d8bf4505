//! The real bundles of `tests/models`, for the tests of this crate.

pub(crate) mod onnx;

use std::path::PathBuf;

use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::manifest::{
    DataType, EngineKind, FilePath, Manifest, ManifestFile, Metadata, ModelSignature,
    SignedManifest, TensorSpec,
};
use rollcall_shared::signing::{PublicKey, SigningKey};
use rollcall_shared::time::Timestamp;
use rollcall_shared::version::Version;

use super::LoadFiles;

/// Every bundle: model, version, features, classes.
pub(crate) const BUNDLES: [(&str, &str, i64, i64); 7] = [
    ("digits", "1.0.0", 64, 10),
    ("digits", "2.0.0", 64, 10),
    ("digits", "3.0.0", 64, 10),
    ("digits", "4.0.0", 64, 10),
    ("digits", "5.0.0", 64, 10),
    ("breast-cancer", "1.0.0", 30, 2),
    ("wine", "1.0.0", 13, 3),
];

pub(crate) fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/models")
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32])
}

pub(crate) fn public_key() -> PublicKey {
    key().public()
}

pub(crate) fn signature(features: i64, classes: i64) -> ModelSignature {
    let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    };
    ModelSignature {
        inputs: vec![spec("input", DataType::Fp32, &[-1, features])],
        outputs: vec![
            spec("label", DataType::Int64, &[-1]),
            spec("probabilities", DataType::Fp32, &[-1, classes]),
        ],
    }
}

/// One version with the bytes of its files.
#[derive(Clone)]
pub(crate) struct Bundle {
    pub(crate) manifest: Manifest,
    pub(crate) files: Vec<Vec<u8>>,
}

impl Bundle {
    /// A bundle of `tests/models`: its model and smoke cases.
    pub(crate) fn real(model: &str, version: &str) -> Self {
        let (.., features, classes) = *BUNDLES
            .iter()
            .find(|bundle| (bundle.0, bundle.1) == (model, version))
            .unwrap();
        let folder = models().join(model).join(version);
        let files = ["model.onnx", "smoke.json"]
            .map(|name| (name, std::fs::read(folder.join(name)).unwrap()));
        Self::of(
            model,
            version.parse().unwrap(),
            signature(features, classes),
            &files,
        )
    }

    pub(crate) fn of(
        model: &str,
        version: Version,
        signature: ModelSignature,
        files: &[(&str, Vec<u8>)],
    ) -> Self {
        let manifest = Manifest {
            model: ModelName::new(model).unwrap(),
            version,
            registered_at: Timestamp::from_nanos(1),
            engine: EngineKind::Onnx,
            signature,
            files: files
                .iter()
                .map(|(path, bytes)| ManifestFile {
                    path: FilePath::new(*path).unwrap(),
                    size: bytes.len() as u64,
                    digest: Digest::of(bytes),
                })
                .collect(),
            metadata: Metadata::default(),
        };
        Self {
            manifest,
            files: files.iter().map(|(_, bytes)| bytes.clone()).collect(),
        }
    }

    pub(crate) fn signed(&self) -> SignedManifest {
        SignedManifest::sign(&self.manifest, &key()).unwrap()
    }
}

pub(crate) fn load_files(model: &str, version: &str) -> LoadFiles {
    LoadFiles {
        name: format!("{model}@{version}"),
        model: models().join(model).join(version).join("model.onnx"),
        others: std::collections::BTreeMap::new(),
    }
}
