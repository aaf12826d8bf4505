//! What runs a model: one trait in front of whatever does.
//!
//! There are three: [`tract`], which is built in, [`onnxruntime`], whose library is loaded
//! where it is installed, and [`upstream`], a server on the same node that runs models
//! itself. [`engines`] says which of them runs which model on this node.
//!
//! An engine turns a version's files into a [`LoadedModel`], which many threads use
//! at once. Models are other people's programs: every call into an engine comes back
//! with an error where the engine panics, and whoever calls goes on.
//!
//! An engine does not check requests ([`check`] does) and does not know versions,
//! routes or leases.

pub mod check;
pub mod cost;
pub mod engines;
pub mod external;
mod graph;
pub mod onnxruntime;
pub(crate) mod panics;
mod pool;
pub mod tract;
pub mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use rollcall_agent_core::oip::{json, raw};
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::manifest::{DataType, FilePath, ModelSignature};

/// Where a version's files lie on this disk. Their digests were verified by whoever made this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadFiles {
    /// What people call the version: `MODEL@VERSION`.
    pub name: String,
    /// The model file.
    pub model: PathBuf,
    /// The version's other files, by the path that the model file knows them under
    /// (weights kept outside of the graph).
    pub others: BTreeMap<FilePath, PathBuf>,
}

/// Loads models.
pub trait Engine: Send + Sync {
    /// Loads a model and holds it against the signature that its manifest declares.
    /// Blocking, and may take seconds.
    ///
    /// # Errors
    /// When the file is not a model, this engine cannot run it, or it is not what the
    /// signature says.
    fn load(
        &self,
        files: &LoadFiles,
        signature: &ModelSignature,
    ) -> Result<Arc<dyn LoadedModel>, EngineError>;

    /// Memory that a model takes at most while it is loaded, in percent of its files; 0: it
    /// takes none that anybody here could count.
    fn memory_percent(&self) -> u32;
}

/// A model in memory.
pub trait LoadedModel: Send + Sync {
    /// Runs the model. `inputs` are those of its signature, in any order, checked with
    /// [`check::check_inputs`]. Gives the signature's outputs, in its order. Blocking.
    ///
    /// # Errors
    /// When the model fails on these inputs. The next call is not affected.
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError>;

    /// What metadata call the model's format and framework.
    fn platform(&self) -> &str {
        "onnx"
    }
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of the version cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no model at all.
    #[error(
        "the model file is not ONNX ({why}): it is cut off, empty or of another format; export the model again and push it as a new version"
    )]
    NotOnnx {
        /// What gave it away.
        why: String,
    },
    /// The graph uses operators that the engine does not have.
    #[error(
        "this engine has no operator {}: export the model with other operators, or use an engine that has them",
        operators.join(", ")
    )]
    UnsupportedOperators {
        /// Their ONNX names.
        operators: Vec<String>,
    },
    /// The signature uses an element type that the engine does not take.
    #[error(
        "tensor {name} is {datatype}, which this engine does not take: export the model with FP32 inputs and outputs"
    )]
    UnsupportedDataType {
        /// Which tensor.
        name: String,
        /// Its type.
        datatype: DataType,
    },
    /// The graph is not what the manifest says.
    #[error(
        "the model is not what its signature says: {why}; correct the signature and push a new version"
    )]
    SignatureMismatch {
        /// The first difference.
        why: String,
    },
    /// Weights kept outside of the graph are missing or do not fit.
    #[error("the model's external data cannot be used: {why}; push the version with all its files")]
    ExternalData {
        /// What is wrong.
        why: String,
    },
    /// The engine refuses the graph.
    #[error("the engine cannot prepare this model: {why}")]
    Refused {
        /// In the engine's words.
        why: String,
    },
    /// It would not fit into memory beside what serves.
    #[error(
        "it would take {needs_mib} MiB of memory beside the version that serves, and of the \
         {available_mib} MiB that are free {reserve_mib} MiB must stay so \
         (engine.memory_reserve_mib): free memory on this node, or serve the model elsewhere"
    )]
    NoRoom {
        /// What it would take.
        needs_mib: u64,
        /// What must stay free.
        reserve_mib: u64,
        /// What is free.
        available_mib: u64,
    },
    /// The engine is out of order, whatever the model.
    #[error("this node's engine cannot load it now: {why}")]
    Unavailable {
        /// What is wrong, and what to do.
        why: String,
    },
    /// The engine panicked.
    #[error(
        "the engine broke while it loaded this model ({why}): the model cannot be served with this engine"
    )]
    Panicked {
        /// In the engine's words.
        why: String,
    },
}

/// Why a loaded model gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// An input is absent or cannot be turned into the engine's form.
    #[error("input {name} cannot be used: {why}")]
    Input {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The engine returned an error.
    #[error("the model failed: {0}")]
    Failed(String),
    /// The engine is out of order, whatever the model: not charged to the version.
    #[error("this node's engine does not run: {0}")]
    Unavailable(String),
    /// The engine panicked.
    #[error("the model broke: {0}")]
    Panicked(String),
    /// An output is absent or is not what the signature says.
    #[error("output {name} cannot be used: {why}")]
    Output {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl InferError {
    /// Whether the node is at fault, and neither the version nor the request.
    #[must_use]
    pub const fn is_the_nodes(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
