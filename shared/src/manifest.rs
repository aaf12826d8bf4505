//! What a version is: its files, its signature, its story, signed once by the
//! coordinator's registry key and never changed.

mod drift;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use self::drift::DriftFeature;

use crate::assignment::VersionRef;
use crate::digest::Digest;
use crate::ids::ModelName;
use crate::limits::{
    FILES_PER_VERSION_MAX, LABELS_MAX, MANIFEST_BYTES_MAX, TENSORS_MAX, TEXT_BYTES_MAX,
};
use crate::signing::{PublicKey, Signature, SigningKey};
use crate::time::Timestamp;
use crate::version::Version;

/// The file that the engine loads.
pub const MODEL_FILE: &str = "model.onnx";
/// The smoke cases that every agent runs at load.
pub const SMOKE_FILE: &str = "smoke.json";
/// The labelled set that `validate` uses.
pub const VALIDATION_FILE: &str = "validation.json";

/// What runs a version's model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// An ONNX graph.
    Onnx,
}

/// Element types, by their Open Inference Protocol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    Bytes,
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_uppercase())
    }
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// Its shape; -1 where any length goes (the batch).
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// Whether its first dimension is the batch: rows that are answered one by one.
    #[must_use]
    pub fn is_batched(&self) -> bool {
        self.shape.first() == Some(&-1)
    }
}

/// Inputs and outputs of a model, in the graph's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSignature {
    /// What a request must carry.
    pub inputs: Vec<TensorSpec>,
    /// What an answer carries.
    pub outputs: Vec<TensorSpec>,
}

/// A path inside a version: relative, forward slashes, no `.` or `..`, no hidden files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath(String);

/// The text is not a path inside a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot name a file of a version: use relative names of a-z A-Z 0-9 - _ . joined by /"
)]
pub struct FilePathError {
    text: String,
}

impl FilePath {
    /// Checks `text` and makes the path.
    ///
    /// # Errors
    /// When `text` could leave the version's folder or hide in it.
    pub fn new(text: impl Into<String>) -> Result<Self, FilePathError> {
        let text = text.into();
        let part_is_good = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if text.len() <= 255 && text.split('/').all(part_is_good) {
            Ok(Self(text))
        } else {
            Err(FilePathError {
                text: text.chars().take(80).collect(),
            })
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for FilePath {
    type Err = FilePathError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl Serialize for FilePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Where it lies in the version.
    pub path: FilePath,
    /// Its size in bytes.
    pub size: u64,
    /// Its BLAKE3 digest.
    pub digest: Digest,
}

/// What people say about a version. All optional; shown, compared, and but for `drift`
/// never interpreted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metadata {
    /// E.g. `"gradient boosting"`.
    pub algorithm: Option<String>,
    /// Version of the training data.
    pub training_data_version: Option<String>,
    /// Snapshot that can be restored to train again.
    pub training_snapshot: Option<String>,
    /// Names of the features, in input order.
    pub features: Vec<String>,
    /// Version of the feature pipeline.
    pub feature_version: Option<String>,
    /// Measured by the trainer, e.g. `accuracy = 0.97`.
    pub metrics: BTreeMap<String, f64>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The code that trained it.
    pub git_commit: Option<String>,
    /// What it is for, and not for.
    pub model_card: Option<String>,
    /// What its users will notice.
    pub expected_changes: Option<String>,
    /// Anything else.
    pub labels: BTreeMap<String, String>,
    /// What inputs were like in training, by feature: agents count theirs in the same bins.
    /// Agents of an older release refuse a manifest that has any: update them first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub drift: BTreeMap<String, DriftFeature>,
}

/// What a version is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// When the coordinator registered it.
    pub registered_at: Timestamp,
    /// What runs it.
    pub engine: EngineKind,
    /// Its inputs and outputs.
    pub signature: ModelSignature,
    /// Its files, in order of path.
    pub files: Vec<ManifestFile>,
    /// Its story.
    pub metadata: Metadata,
}

/// A manifest that breaks a rule.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the form of a signed manifest.
    #[error("not a signed manifest: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Signed by someone else, or changed since.
    #[error(
        "the manifest's signature does not fit this fleet's registry key: it was changed, or comes from another fleet"
    )]
    BadSignature,
    /// Breaks a bound or contradicts itself.
    #[error("the manifest of {model}@{version} is refused: {why}")]
    Invalid {
        /// The model it names.
        model: ModelName,
        /// The version it names.
        version: Version,
        /// Which rule it breaks.
        why: String,
    },
    /// Over the size bound.
    #[error("a manifest of {bytes} bytes is over the bound of {MANIFEST_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl Manifest {
    /// Checks bounds and consistency.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with the first rule that is broken.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let paths: BTreeSet<_> = self.files.iter().map(|file| &file.path).collect();
        let signature = &self.signature;
        let broken = if self.files.len() > FILES_PER_VERSION_MAX {
            Some(format!("it has more than {FILES_PER_VERSION_MAX} files"))
        } else if paths.len() != self.files.len() {
            Some("it names a file twice".to_owned())
        } else if self.file(MODEL_FILE).is_none() {
            Some(format!("it has no {MODEL_FILE}"))
        } else if signature.inputs.is_empty() || signature.outputs.is_empty() {
            Some("the model must have inputs and outputs".to_owned())
        } else if signature.inputs.len() > TENSORS_MAX || signature.outputs.len() > TENSORS_MAX {
            Some(format!("it has more than {TENSORS_MAX} inputs or outputs"))
        } else if self.metadata.labels.len() > LABELS_MAX {
            Some(format!("it has more than {LABELS_MAX} labels"))
        } else if self
            .metadata
            .labels
            .iter()
            .any(|(k, v)| k.len().max(v.len()) > TEXT_BYTES_MAX)
        {
            Some(format!("a label is longer than {TEXT_BYTES_MAX} bytes"))
        } else {
            drift::broken(&self.metadata.drift, signature)
        };
        match broken {
            None => Ok(()),
            Some(why) => Err(ManifestError::Invalid {
                model: self.model.clone(),
                version: self.version,
                why,
            }),
        }
    }

    /// The file at `path`, if the version has it.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.path.as_str() == path)
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// A manifest's exact bytes and the registry's signature over them. Its own
/// encoding is content-addressed: assignments name the digest of [`Self::encode`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedManifest {
    /// The manifest as JSON text, byte for byte as it was signed.
    manifest: String,
    /// Over the bytes of `manifest`.
    signature: Signature,
}

impl SignedManifest {
    /// Signs a valid manifest.
    ///
    /// # Errors
    /// When the manifest breaks a rule or a bound.
    pub fn sign(manifest: &Manifest, key: &SigningKey) -> Result<Self, ManifestError> {
        manifest.validate()?;
        let manifest = serde_json::to_string(manifest).map_err(ManifestError::Malformed)?;
        let signature = key.sign(manifest.as_bytes());
        let signed = Self {
            manifest,
            signature,
        };
        let bytes = signed.encode().len();
        if bytes > MANIFEST_BYTES_MAX {
            Err(ManifestError::TooLarge { bytes })
        } else {
            Ok(signed)
        }
    }

    /// Reads what [`Self::encode`] wrote. The content is not to be trusted before [`Self::open`].
    ///
    /// # Errors
    /// When the bytes are over the bound or not of the form.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: bytes.len() });
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Malformed)
    }

    /// The bytes that travel and are stored.
    ///
    /// # Panics
    /// Never: two strings always encode.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("two strings encode")
    }

    /// Checks the signature and the rules, and gives the manifest.
    ///
    /// # Errors
    /// When the signature does not fit `key`, or the manifest breaks a rule.
    pub fn open(&self, key: &PublicKey) -> Result<Manifest, ManifestError> {
        if !key.verifies(self.manifest.as_bytes(), &self.signature) {
            return Err(ManifestError::BadSignature);
        }
        let manifest: Manifest =
            serde_json::from_str(&self.manifest).map_err(ManifestError::Malformed)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Digest of [`Self::encode`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// How assignments name a version whose manifest this is.
    #[must_use]
    pub fn version_ref(&self, version: Version) -> VersionRef {
        VersionRef {
            version,
            digest: self.digest(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: vec![-1, 4],
        };
        Manifest {
            model: ModelName::new("digits").unwrap(),
            version: Version::new(1, 0, 0),
            registered_at: Timestamp::from_nanos(1_000),
            engine: EngineKind::Onnx,
            signature: ModelSignature {
                inputs: vec![spec("input")],
                outputs: vec![spec("output")],
            },
            files: vec![ManifestFile {
                path: FilePath::new(MODEL_FILE).unwrap(),
                size: 3,
                digest: Digest::of(b"abc"),
            }],
            metadata: Metadata::default(),
        }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_signed_manifest_survives_the_wire_and_opens() {
        let signed = SignedManifest::sign(&manifest(), &key(1)).unwrap();
        let received = SignedManifest::decode(&signed.encode()).unwrap();
        assert_eq!(received.digest(), signed.digest());
        assert_eq!(received.open(&key(1).public()).unwrap(), manifest());
    }

    #[test]
    fn a_changed_manifest_or_a_foreign_key_is_refused() {
        let mut signed = SignedManifest::sign(&manifest(), &key(1)).unwrap();
        assert!(matches!(
            signed.open(&key(2).public()),
            Err(ManifestError::BadSignature)
        ));
        signed.manifest = signed.manifest.replace("1.0.0", "1.0.1");
        assert!(matches!(
            signed.open(&key(1).public()),
            Err(ManifestError::BadSignature)
        ));
    }

    #[test]
    fn a_manifest_without_a_model_file_or_with_one_twice_is_refused() {
        let mut none = manifest();
        none.files.clear();
        assert!(
            none.validate()
                .unwrap_err()
                .to_string()
                .contains("has no model.onnx")
        );
        let mut twice = manifest();
        twice.files.push(twice.files[0].clone());
        assert!(twice.validate().unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn paths_cannot_leave_the_version() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            ".hidden",
            "a\\b",
            "a b",
        ] {
            assert!(FilePath::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(FilePath::new("weights/part-1.bin").is_ok());
    }
}
