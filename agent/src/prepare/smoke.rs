//! Smoke cases: inputs with the outputs that the version's makers recorded for them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};
use serde::Deserialize;

use crate::engine::check::{BATCH_MAX, BadInput, check_inputs, element_count};
use crate::engine::json::WholeTensor;
use crate::engine::{InferError, LoadedModel};

/// A smoke file. Larger: refused; it is read whole at every load, and a few cases do.
const SMOKE_BYTES_MAX: u64 = 16 << 20;

/// `smoke.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SmokeFile {
    /// Its cases.
    pub cases: Vec<SmokeCase>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SmokeCase {
    /// What people call it.
    pub name: String,
    /// All inputs of the model.
    pub inputs: Vec<WholeTensor>,
    /// Outputs that are compared; others are not.
    pub outputs: Vec<WholeTensor>,
    /// How far a float may be off: absolutely for values up to 1, relatively above.
    pub tolerance: f64,
}

/// Why a version failed its smoke cases.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// The disk.
    #[error("cannot read the smoke cases at {path}")]
    Io {
        /// Where they lie.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not of the form.
    #[error("smoke.json cannot be read: {why}; correct it and push a new version")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// A case's inputs are not those of the signature.
    #[error("smoke case {case:?} does not fit the model's signature")]
    Input {
        /// Which case.
        case: String,
        /// What does not fit.
        #[source]
        source: BadInput,
    },
    /// The model fails on a case.
    #[error("smoke case {case:?} failed")]
    Failed {
        /// Which case.
        case: String,
        /// How.
        #[source]
        source: InferError,
    },
    /// A case expects an output that is not there.
    #[error("smoke case {case:?} expects an output {output:?}, which the model does not have")]
    NoOutput {
        /// Which case.
        case: String,
        /// Which output.
        output: String,
    },
    /// An output is of another type or shape.
    #[error("smoke case {case:?}: output {output:?} is {got}, expected {expected}")]
    Form {
        /// Which case.
        case: String,
        /// Which output.
        output: String,
        /// Type and shape that were recorded.
        expected: String,
        /// Type and shape that came.
        got: String,
    },
    /// An output has another value.
    #[error(
        "smoke case {case:?}: output {output:?} at position {position} is {got}, expected {expected} (tolerance {tolerance})"
    )]
    Value {
        /// Which case.
        case: String,
        /// Which output.
        output: String,
        /// Which element, row-major.
        position: usize,
        /// What was recorded.
        expected: String,
        /// What came.
        got: String,
        /// How far it might have been off.
        tolerance: f64,
    },
}

impl SmokeFile {
    /// Reads a smoke file.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or a tolerance is no tolerance.
    pub fn read(path: &Path) -> Result<Self, SmokeError> {
        let io = |source| SmokeError::Io {
            path: path.to_owned(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(SMOKE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(io)?;
        let malformed = |why: String| SmokeError::Malformed { why };
        if bytes.len() as u64 > SMOKE_BYTES_MAX {
            return Err(malformed(format!(
                "it has more than {SMOKE_BYTES_MAX} bytes"
            )));
        }
        let file: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let is_bad = |case: &&SmokeCase| !(case.tolerance.is_finite() && case.tolerance >= 0.0);
        match file.cases.iter().find(is_bad) {
            Some(case) => Err(malformed(format!(
                "case {:?} has the tolerance {}, which must be 0 or more",
                case.name, case.tolerance
            ))),
            None => Ok(file),
        }
    }
}

impl SmokeCase {
    /// The case's inputs.
    #[must_use]
    pub fn tensors(&self) -> Vec<Tensor> {
        self.inputs.iter().map(|input| input.0.clone()).collect()
    }

    /// Runs the case.
    ///
    /// # Errors
    /// When the model fails, or answers otherwise than was recorded.
    pub fn check(
        &self,
        loaded: &dyn LoadedModel,
        signature: &ModelSignature,
    ) -> Result<(), SmokeError> {
        let case = || self.name.clone();
        let inputs =
            check_inputs(signature, self.tensors()).map_err(|source| SmokeError::Input {
                case: case(),
                source,
            })?;
        let outputs = loaded
            .infer(&inputs.tensors)
            .map_err(|source| SmokeError::Failed {
                case: case(),
                source,
            })?;
        for WholeTensor(expected) in &self.outputs {
            let output = || expected.name.clone();
            let got = outputs
                .iter()
                .find(|tensor| tensor.name == expected.name)
                .ok_or_else(|| SmokeError::NoOutput {
                    case: case(),
                    output: output(),
                })?;
            let form = |tensor: &Tensor| format!("{} {:?}", tensor.data.datatype(), tensor.shape);
            if form(got) != form(expected) || got.data.len() != expected.data.len() {
                let (expected, got) = (form(expected), form(got));
                return Err(SmokeError::Form {
                    case: case(),
                    output: output(),
                    expected,
                    got,
                });
            }
            if let Some((position, got, expected)) =
                first_difference(&got.data, &expected.data, self.tolerance)
            {
                let (output, tolerance) = (output(), self.tolerance);
                let case = case();
                return Err(SmokeError::Value {
                    case,
                    output,
                    position,
                    expected,
                    got,
                    tolerance,
                });
            }
        }
        Ok(())
    }
}

/// The first element that is off: where, what came and what was expected.
fn first_difference(
    got: &TensorData,
    expected: &TensorData,
    tolerance: f64,
) -> Option<(usize, String, String)> {
    fn first<T: std::fmt::Debug>(
        got: &[T],
        expected: &[T],
        same: impl Fn(&T, &T) -> bool,
    ) -> Option<(usize, String, String)> {
        let mut pairs = got.iter().zip(expected);
        let position = pairs.position(|(got, expected)| !same(got, expected))?;
        Some((
            position,
            format!("{:?}", got[position]),
            format!("{:?}", expected[position]),
        ))
    }
    // Not a number is near nothing.
    let near =
        |got: f64, expected: f64| (got - expected).abs() <= tolerance * expected.abs().max(1.0);
    match (got, expected) {
        (TensorData::Fp32(got), TensorData::Fp32(expected)) => {
            first(got, expected, |g, e| near(f64::from(*g), f64::from(*e)))
        }
        (TensorData::Fp64(got), TensorData::Fp64(expected)) => {
            first(got, expected, |g, e| near(*g, *e))
        }
        (TensorData::Bool(g), TensorData::Bool(e)) => first(g, e, PartialEq::eq),
        (TensorData::Uint8(g), TensorData::Uint8(e)) => first(g, e, PartialEq::eq),
        (TensorData::Uint16(g), TensorData::Uint16(e)) => first(g, e, PartialEq::eq),
        (TensorData::Uint32(g), TensorData::Uint32(e)) => first(g, e, PartialEq::eq),
        (TensorData::Uint64(g), TensorData::Uint64(e)) => first(g, e, PartialEq::eq),
        (TensorData::Int8(g), TensorData::Int8(e)) => first(g, e, PartialEq::eq),
        (TensorData::Int16(g), TensorData::Int16(e)) => first(g, e, PartialEq::eq),
        (TensorData::Int32(g), TensorData::Int32(e)) => first(g, e, PartialEq::eq),
        (TensorData::Int64(g), TensorData::Int64(e)) => first(g, e, PartialEq::eq),
        (TensorData::Bytes(g), TensorData::Bytes(e)) => first(g, e, PartialEq::eq),
        (got, expected) => Some((
            0,
            got.datatype().to_string(),
            expected.datatype().to_string(),
        )),
    }
}

/// All cases as the rows of one (a single one twice). `None` where the model or the cases
/// have no common batch.
pub(super) fn stack(cases: &[SmokeCase], signature: &ModelSignature) -> Option<SmokeCase> {
    let first = cases.first()?;
    if !signature
        .inputs
        .iter()
        .chain(&signature.outputs)
        .all(TensorSpec::is_batched)
    {
        return None;
    }
    let mut all = first.clone();
    "all cases in one batch".clone_into(&mut all.name);
    let rest = if cases.len() == 1 { cases } else { &cases[1..] };
    for case in rest {
        append(&mut all.inputs, &case.inputs)?;
        append(&mut all.outputs, &case.outputs)?;
        all.tolerance = all.tolerance.max(case.tolerance);
    }
    let fits = |tensor: &WholeTensor| tensor.0.shape[0] <= BATCH_MAX;
    all.inputs.iter().all(fits).then_some(all)
}

fn append(all: &mut [WholeTensor], more: &[WholeTensor]) -> Option<()> {
    if all.len() != more.len() {
        return None;
    }
    for WholeTensor(more) in more {
        let WholeTensor(all) = all.iter_mut().find(|tensor| tensor.0.name == more.name)?;
        if !all.append_rows(more) {
            return None;
        }
    }
    Some(())
}

/// An input of zeros with so many rows; `None` where there can be none.
pub(super) fn zeros(spec: &TensorSpec, rows: usize) -> Option<Tensor> {
    const ELEMENTS_MAX: usize = 64 << 20;
    let dim = |(axis, dim): (usize, &i64)| match usize::try_from(*dim) {
        Ok(dim) => dim,
        Err(_) if axis == 0 => rows,
        Err(_) => 1,
    };
    let shape: Vec<usize> = spec.shape.iter().enumerate().map(dim).collect();
    let n = element_count(&shape).filter(|n| *n <= ELEMENTS_MAX)?;
    let data = match spec.datatype {
        DataType::Bool => TensorData::Bool(vec![false; n]),
        DataType::Uint8 => TensorData::Uint8(vec![0; n]),
        DataType::Uint16 => TensorData::Uint16(vec![0; n]),
        DataType::Uint32 => TensorData::Uint32(vec![0; n]),
        DataType::Uint64 => TensorData::Uint64(vec![0; n]),
        DataType::Int8 => TensorData::Int8(vec![0; n]),
        DataType::Int16 => TensorData::Int16(vec![0; n]),
        DataType::Int32 => TensorData::Int32(vec![0; n]),
        DataType::Int64 => TensorData::Int64(vec![0; n]),
        DataType::Fp32 => TensorData::Fp32(vec![0.0; n]),
        DataType::Fp64 => TensorData::Fp64(vec![0.0; n]),
        DataType::Bytes => TensorData::Bytes(vec![Vec::new(); n]),
        DataType::Fp16 => return None,
    };
    Some(Tensor {
        name: spec.name.clone(),
        shape,
        data,
    })
}
