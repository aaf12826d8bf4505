//! What an ONNX file says of itself, and whether it is what its manifest says.
//!
//! The same for every engine: an engine brings what it found out of a graph's tensors,
//! and the sentences that an operator reads are made here.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};
use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto};
use tract_onnx::prelude::Framework;

use super::EngineError;
use super::panics::cut;

/// A model file as it was parsed: with a graph that computes something.
pub(super) struct ModelFile {
    pub(super) proto: ModelProto,
}

impl ModelFile {
    /// Reads and parses the file.
    ///
    /// # Errors
    /// When it cannot be read or is no ONNX model.
    pub(super) fn read(onnx: &Onnx, path: &Path) -> Result<Self, EngineError> {
        let bytes = std::fs::read(path).map_err(|source| EngineError::Io {
            path: path.to_owned(),
            source,
        })?;
        if bytes.is_empty() {
            return Err(not_onnx("it is empty"));
        }
        let proto = onnx
            .proto_model_for_read(&mut bytes.as_slice())
            .map_err(|error| not_onnx(format!("{error:#}")))?;
        let computes = |graph: &GraphProto| !graph.node.is_empty() || !graph.output.is_empty();
        if proto.graph.as_ref().is_some_and(computes) {
            Ok(Self { proto })
        } else {
            Err(not_onnx("it holds no graph"))
        }
    }

    /// Its graph; [`Self::read`] saw that there is one.
    pub(super) fn graph(&self) -> Result<&GraphProto, EngineError> {
        let graph = self.proto.graph.as_ref();
        graph.ok_or_else(|| not_onnx("it holds no graph"))
    }
}

fn not_onnx(why: impl Into<String>) -> EngineError {
    let why = cut(why.into());
    EngineError::NotOnnx { why }
}

pub(super) fn mismatch(why: impl Into<String>) -> EngineError {
    let why = cut(why.into());
    EngineError::SignatureMismatch { why }
}

/// The graph's inputs must be those of the signature; of its outputs the signature
/// may leave some out, and they are then not computed.
pub(super) fn check_names(
    graph: &GraphProto,
    signature: &ModelSignature,
) -> Result<(), EngineError> {
    let constants: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let outputs = graph.output.iter().map(|output| output.name.as_str());
    compare_names(
        inputs.filter(|name| !constants.contains(name)).collect(),
        outputs.collect(),
        signature,
    )
}

/// As [`check_names`], of names that somebody else found.
pub(super) fn compare_names(
    inputs: BTreeSet<&str>,
    outputs: BTreeSet<&str>,
    signature: &ModelSignature,
) -> Result<(), EngineError> {
    let names = |specs: &[TensorSpec]| -> BTreeSet<String> {
        specs.iter().map(|spec| spec.name.clone()).collect()
    };
    let (declared, wanted) = (names(&signature.inputs), names(&signature.outputs));
    if declared.len() != signature.inputs.len() || wanted.len() != signature.outputs.len() {
        return Err(mismatch("it names a tensor twice"));
    }
    if inputs.len() != declared.len() || !declared.iter().all(|name| inputs.contains(&**name)) {
        return Err(mismatch(format!(
            "the graph's inputs are {inputs:?}, the signature's {declared:?}"
        )));
    }
    match wanted.iter().find(|name| !outputs.contains(&***name)) {
        Some(name) => Err(mismatch(format!(
            "the graph has no output {name:?}, it has {outputs:?}"
        ))),
        None => Ok(()),
    }
}

/// Which end of a model a tensor is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Input,
    Output,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

/// The element type that an engine found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FoundType {
    /// The graph leaves it open.
    Open,
    /// One that requests can carry.
    Known(DataType),
    /// Another one, by the engine's name.
    Other(String),
}

/// What an engine found of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundTensor {
    pub(super) datatype: FoundType,
    /// Its dimensions; -1: any length. `None`: any rank.
    pub(super) dims: Option<Vec<i64>>,
}

impl FoundTensor {
    /// What was found must not contradict the signature.
    pub(super) fn check(&self, side: Side, spec: &TensorSpec) -> Result<(), EngineError> {
        let name = &spec.name;
        let other_type = match &self.datatype {
            FoundType::Open => None,
            FoundType::Known(found) if *found == spec.datatype => None,
            FoundType::Known(found) => Some(found.to_string()),
            FoundType::Other(found) => Some(found.clone()),
        };
        if let Some(found) = other_type {
            let declared = spec.datatype;
            return Err(mismatch(format!(
                "{side} {name:?} is {found} in the graph and {declared} in the signature"
            )));
        }
        let Some(dims) = &self.dims else {
            return Ok(());
        };
        let contradicts =
            |(want, found): (&i64, &i64)| *found >= 0 && *want >= 0 && *want != *found;
        if dims.len() != spec.shape.len() || spec.shape.iter().zip(dims).any(contradicts) {
            return Err(mismatch(format!(
                "{side} {name:?} has the shape {dims:?} in the graph and {:?} in the signature",
                spec.shape
            )));
        }
        Ok(())
    }
}

/// Refuses half precision, which no tensor of a request can carry.
///
/// # Errors
/// With the first tensor that has it.
pub(super) fn check_datatypes(signature: &ModelSignature) -> Result<(), EngineError> {
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    match specs.find(|spec| spec.datatype == DataType::Fp16) {
        Some(spec) => Err(EngineError::UnsupportedDataType {
            name: spec.name.clone(),
            datatype: spec.datatype,
        }),
        None => Ok(()),
    }
}
