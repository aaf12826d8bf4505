//! Holds a request's tensors against a model's signature, before any engine sees them.
//!
//! Peers take a wrong input name or shape and answer with numbers; we refuse, and say
//! which input, what was expected and what came. Not-a-number and infinity are
//! refused too: a model answers them with nonsense that looks like an answer.

pub use rollcall_agent_core::tensor::element_count;
use rollcall_agent_core::tensor::{Tensor, TensorData, needed};
use rollcall_shared::limits::TENSORS_MAX;
use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};

use super::InferError;

/// Rows of one request. More would hold an engine's thread for seconds and need
/// gigabytes inside a convolutional network; callers split such work.
pub const BATCH_MAX: usize = 8_192;

/// Inputs that fit a signature.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedInputs {
    /// One for each input of the signature, in its order.
    pub tensors: Vec<Tensor>,
    /// Rows of the request; 1 where the signature has no batch.
    pub rows: usize,
}

/// Why a request's tensors are refused. The request is at fault, not the model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum BadInput {
    #[error("the request has {count} inputs, more than {TENSORS_MAX}")]
    TooMany { count: usize },
    #[error("input {name:?} is missing: the model wants {datatype} {shape:?}")]
    Missing {
        name: String,
        datatype: DataType,
        shape: Vec<i64>,
    },
    #[error("the model has no input {name:?}: it has {}", known.join(", "))]
    Unknown { name: String, known: Vec<String> },
    #[error("input {name:?} comes twice")]
    Twice { name: String },
    #[error("input {name:?} is {got}: the model wants {expected}")]
    DataType {
        name: String,
        expected: DataType,
        got: DataType,
    },
    #[error(
        "input {name:?} has shape {got:?}: the model wants {expected:?}, where -1 takes any length"
    )]
    Shape {
        name: String,
        expected: Vec<i64>,
        got: Vec<usize>,
    },
    #[error("input {name:?} has shape {shape:?}: no dimension may be 0")]
    Empty { name: String, shape: Vec<usize> },
    #[error("input {name:?} has {got} rows: a request has at most {BATCH_MAX}; split it")]
    Batch { name: String, got: usize },
    #[error("input {name:?} has {got} rows, but input {other:?} has {expected}")]
    UnequalBatch {
        name: String,
        got: usize,
        other: String,
        expected: usize,
    },
    #[error(
        "input {name:?} has {got} elements: its shape {shape:?} needs {}",
        needed(element_count(shape))
    )]
    Elements {
        name: String,
        shape: Vec<usize>,
        got: usize,
    },
    #[error("element {position} of input {name:?} is {value}: only finite numbers are taken")]
    NotFinite {
        name: String,
        position: usize,
        value: f64,
    },
}

/// Checks `inputs` and puts them into the signature's order.
///
/// # Errors
/// The first thing that does not fit.
pub fn check_inputs(
    signature: &ModelSignature,
    mut inputs: Vec<Tensor>,
) -> Result<CheckedInputs, BadInput> {
    if inputs.len() > TENSORS_MAX {
        return Err(BadInput::TooMany {
            count: inputs.len(),
        });
    }
    let mut tensors = Vec::with_capacity(signature.inputs.len());
    let mut batch: Option<(usize, usize)> = None;
    for (index, spec) in signature.inputs.iter().enumerate() {
        let Some(found) = inputs.iter().position(|tensor| tensor.name == spec.name) else {
            return Err(BadInput::Missing {
                name: spec.name.clone(),
                datatype: spec.datatype,
                shape: spec.shape.clone(),
            });
        };
        let tensor = inputs.swap_remove(found);
        check_tensor(spec, &tensor)?;
        if spec.is_batched() {
            let rows = tensor.shape[0];
            let (first, expected) = *batch.get_or_insert((index, rows));
            if rows != expected {
                return Err(BadInput::UnequalBatch {
                    name: tensor.name,
                    got: rows,
                    other: signature.inputs[first].name.clone(),
                    expected,
                });
            }
        }
        tensors.push(tensor);
    }
    match inputs.into_iter().next() {
        None => Ok(CheckedInputs {
            tensors,
            rows: batch.map_or(1, |(_, rows)| rows),
        }),
        Some(extra) if signature.inputs.iter().any(|spec| spec.name == extra.name) => {
            Err(BadInput::Twice { name: extra.name })
        }
        Some(extra) => Err(BadInput::Unknown {
            name: extra.name,
            known: signature
                .inputs
                .iter()
                .map(|spec| spec.name.clone())
                .collect(),
        }),
    }
}

/// Of `inputs`, those of the signature, in its order: for an engine, where nobody may
/// have checked them.
pub(super) fn in_order<'a>(
    signature: &ModelSignature,
    inputs: &'a [Tensor],
) -> Result<Vec<&'a Tensor>, InferError> {
    let find = |spec: &TensorSpec| {
        let found = inputs.iter().find(|tensor| tensor.name == spec.name);
        found.ok_or_else(|| InferError::Input {
            name: spec.name.clone(),
            why: "it is missing".to_owned(),
        })
    };
    signature.inputs.iter().map(find).collect()
}

/// Holds an output against what the signature promises.
pub(super) fn check_output(spec: &TensorSpec, output: &Tensor) -> Result<(), InferError> {
    let got = output.data.datatype();
    if got == spec.datatype
        && fits(&spec.shape, &output.shape)
        && element_count(&output.shape) == Some(output.data.len())
    {
        return Ok(());
    }
    Err(InferError::Output {
        name: spec.name.clone(),
        why: format!(
            "it is {got} {:?}, and the signature says {} {:?}",
            output.shape, spec.datatype, spec.shape
        ),
    })
}

fn check_tensor(spec: &TensorSpec, tensor: &Tensor) -> Result<(), BadInput> {
    let name = || spec.name.clone();
    let got = tensor.data.datatype();
    if got != spec.datatype {
        return Err(BadInput::DataType {
            name: name(),
            expected: spec.datatype,
            got,
        });
    }
    if !fits(&spec.shape, &tensor.shape) {
        return Err(BadInput::Shape {
            name: name(),
            expected: spec.shape.clone(),
            got: tensor.shape.clone(),
        });
    }
    if tensor.shape.contains(&0) {
        return Err(BadInput::Empty {
            name: name(),
            shape: tensor.shape.clone(),
        });
    }
    if spec.is_batched() && tensor.shape[0] > BATCH_MAX {
        return Err(BadInput::Batch {
            name: name(),
            got: tensor.shape[0],
        });
    }
    if element_count(&tensor.shape) != Some(tensor.data.len()) {
        return Err(BadInput::Elements {
            name: name(),
            shape: tensor.shape.clone(),
            got: tensor.data.len(),
        });
    }
    match first_not_finite(&tensor.data) {
        None => Ok(()),
        Some((position, value)) => Err(BadInput::NotFinite {
            name: name(),
            position,
            value,
        }),
    }
}

/// Whether a concrete shape is one of those that a signature's shape allows.
#[must_use]
pub fn fits(spec: &[i64], shape: &[usize]) -> bool {
    let one = |(want, got): (&i64, &usize)| *want < 0 || i64::try_from(*got) == Ok(*want);
    spec.len() == shape.len() && spec.iter().zip(shape).all(one)
}

/// Position and value of the first element that is no finite number.
#[must_use]
pub fn first_not_finite(data: &TensorData) -> Option<(usize, f64)> {
    match data {
        TensorData::Fp32(v) => v
            .iter()
            .position(|x| !x.is_finite())
            .map(|at| (at, f64::from(v[at]))),
        TensorData::Fp64(v) => v.iter().position(|x| !x.is_finite()).map(|at| (at, v[at])),
        TensorData::Bool(_)
        | TensorData::Uint8(_)
        | TensorData::Uint16(_)
        | TensorData::Uint32(_)
        | TensorData::Uint64(_)
        | TensorData::Int8(_)
        | TensorData::Int16(_)
        | TensorData::Int32(_)
        | TensorData::Int64(_)
        | TensorData::Bytes(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
        }
    }

    fn signature() -> ModelSignature {
        ModelSignature {
            inputs: vec![spec("a", &[-1, 2]), spec("b", &[-1])],
            outputs: vec![],
        }
    }

    fn tensor(name: &str, shape: &[usize]) -> Tensor {
        let count = element_count(shape).unwrap_or(0);
        let data = TensorData::Fp32(vec![0.5; count.min(1 << 20)]);
        Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        }
    }

    fn refusal(inputs: Vec<Tensor>) -> String {
        check_inputs(&signature(), inputs).unwrap_err().to_string()
    }

    #[test]
    fn good_inputs_come_back_in_the_signatures_order_with_their_rows() {
        let checked =
            check_inputs(&signature(), vec![tensor("b", &[3]), tensor("a", &[3, 2])]).unwrap();
        assert_eq!(checked.rows, 3);
        assert_eq!(checked.tensors[0].name, "a");
        assert_eq!(checked.tensors[1].name, "b");
    }

    #[test]
    fn a_missing_an_unknown_and_a_doubled_input_are_named() {
        let (a, b) = (tensor("a", &[1, 2]), tensor("b", &[1]));
        assert_eq!(
            refusal(vec![a.clone()]),
            "input \"b\" is missing: the model wants FP32 [-1]"
        );
        assert_eq!(
            refusal(vec![a.clone(), b.clone(), tensor("c", &[1])]),
            "the model has no input \"c\": it has a, b"
        );
        assert_eq!(
            refusal(vec![a.clone(), b, a.clone()]),
            "input \"a\" comes twice"
        );
        assert!(refusal(vec![a; TENSORS_MAX + 1]).contains("more than 64"));
    }

    #[test]
    fn wrong_type_rank_and_dimension_say_what_was_expected() {
        let b = tensor("b", &[1]);
        let mut typed = tensor("a", &[1, 2]);
        typed.data = TensorData::Int64(vec![1, 2]);
        assert_eq!(
            refusal(vec![typed, b.clone()]),
            "input \"a\" is INT64: the model wants FP32"
        );
        for shape in [&[2][..], &[1, 3], &[1, 1, 2], &[]] {
            assert_eq!(
                refusal(vec![tensor("a", shape), b.clone()]),
                format!(
                    "input \"a\" has shape {shape:?}: the model wants [-1, 2], where -1 takes any length"
                )
            );
        }
    }

    #[test]
    fn batches_must_be_equal_and_neither_empty_nor_absurd() {
        let (a, b) = (tensor("a", &[2, 2]), tensor("b", &[3]));
        assert_eq!(
            refusal(vec![a, b.clone()]),
            "input \"b\" has 3 rows, but input \"a\" has 2"
        );
        assert!(refusal(vec![tensor("a", &[0, 2]), b.clone()]).contains("no dimension may be 0"));
        assert!(refusal(vec![tensor("a", &[BATCH_MAX + 1, 2]), b.clone()]).contains("split it"));
        assert!(refusal(vec![tensor("a", &[usize::MAX, 2]), b]).contains("split it"));
    }

    #[test]
    fn elements_must_be_as_many_as_the_shape_says_and_finite() {
        let b = tensor("b", &[1]);
        let mut short = tensor("a", &[1, 2]);
        short.data = TensorData::Fp32(vec![1.0]);
        assert_eq!(
            refusal(vec![short.clone(), b.clone()]),
            "input \"a\" has 1 elements: its shape [1, 2] needs 2"
        );
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            short.data = TensorData::Fp32(vec![1.0, value]);
            assert!(
                refusal(vec![short.clone(), b.clone()]).starts_with("element 1 of input \"a\" is")
            );
        }
    }
}
