//! What a push must know of an ONNX file: that it is whole, and its inputs and outputs.
//!
//! Only the fields that answer this are declared (from `onnx.proto`, IR version 3 and
//! later); everything else is skipped unread. It does not judge operators or weights:
//! the agents' engines do, with the smoke cases, at load.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use rollcall_shared::limits::TENSORS_MAX;
use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};

/// A protobuf message cannot be larger than this; nor, so, an ONNX file.
pub const ONNX_BYTES_MAX: u64 = i32::MAX as u64;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, tag = "7")]
    domain: String,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct DimensionProto {
    /// Absent where the length is symbolic.
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
}

/// Why a file is refused as a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// No bytes.
    #[error("the model file is empty: export the model again")]
    Empty,
    /// Not the form of an ONNX file.
    #[error("the model file is not ONNX ({0}): export the model with opset 21 or so")]
    NotOnnx(&'static str),
    /// It ends too early.
    #[error("the model file is cut off: {missing} bytes are missing; copy it again")]
    Truncated {
        /// How many bytes it announces but does not have.
        missing: u64,
    },
    /// The frame is whole but not what is inside.
    #[error("the model file is damaged: {0}; copy or export it again")]
    Damaged(String),
    /// A tensor that no client could send or read.
    #[error("{role} {name:?} has {what}, which cannot be served: export tensors of plain numbers")]
    Unsupported {
        /// Input or output.
        role: &'static str,
        /// Its name.
        name: String,
        /// What it has.
        what: String,
    },
    /// Weights in a file that was not pushed.
    #[error("the model keeps weights in {file:?}, which is not in the bundle: push it too")]
    ExternalMissing {
        /// The file's name, as the model gives it.
        file: String,
    },
}

/// What a push needs of a model file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxModel {
    /// Its inputs (initializers left out) and outputs.
    pub signature: ModelSignature,
    /// Other files in which it keeps weights.
    pub external_files: BTreeSet<String>,
}

impl OnnxModel {
    /// Reads a whole model file.
    ///
    /// # Errors
    /// When it is not a whole ONNX file, or has a tensor that cannot be served.
    pub fn read(bytes: Bytes) -> Result<Self, OnnxError> {
        check_frame(&bytes)?;
        let model =
            ModelProto::decode(bytes).map_err(|error| OnnxError::Damaged(error.to_string()))?;
        if model.ir_version < 1 || model.opset_import.iter().all(|opset| opset.version < 1) {
            return Err(OnnxError::NotOnnx("it names no operator set"));
        }
        let graph = model.graph.ok_or(OnnxError::NotOnnx("it has no graph"))?;
        if graph.node.is_empty() || graph.output.is_empty() {
            return Err(OnnxError::NotOnnx("its graph computes nothing"));
        }
        // Operator sets come last in the file: one that is missing was cut off.
        let sets: BTreeSet<_> = model
            .opset_import
            .iter()
            .map(|set| domain(&set.domain))
            .collect();
        if let Some(node) = graph
            .node
            .iter()
            .find(|node| !sets.contains(domain(&node.domain)))
        {
            return Err(OnnxError::Damaged(format!(
                "it uses operators of {:?}, but names no version of that set",
                node.domain
            )));
        }
        let constants: BTreeSet<_> = graph
            .initializer
            .iter()
            .map(|tensor| &tensor.name)
            .collect();
        let inputs = graph
            .input
            .iter()
            .filter(|input| !constants.contains(&input.name))
            .map(|input| tensor("input", input))
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = graph
            .output
            .iter()
            .map(|output| tensor("output", output))
            .collect::<Result<Vec<_>, _>>()?;
        if inputs.is_empty() {
            return Err(OnnxError::NotOnnx("its graph has no inputs"));
        }
        if inputs.len().max(outputs.len()) > TENSORS_MAX {
            return Err(OnnxError::Damaged(format!(
                "it has more than {TENSORS_MAX} inputs or outputs"
            )));
        }
        let external_files = graph
            .initializer
            .iter()
            .flat_map(|tensor| &tensor.external_data)
            .filter(|entry| entry.key == "location")
            .map(|entry| entry.value.clone())
            .collect();
        Ok(Self {
            signature: ModelSignature { inputs, outputs },
            external_files,
        })
    }
}

/// The default operator set has two names.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn tensor(role: &'static str, value: &ValueInfoProto) -> Result<TensorSpec, OnnxError> {
    let unsupported = |what: String| OnnxError::Unsupported {
        role,
        name: value.name.clone(),
        what,
    };
    let tensor = value
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref())
        .ok_or_else(|| unsupported("a type that is not a tensor (a sequence or a map?)".into()))?;
    let datatype = datatype(tensor.elem_type)
        .ok_or_else(|| unsupported(format!("ONNX element type {}", tensor.elem_type)))?;
    let shape = match (&tensor.shape, role) {
        (Some(shape), _) => shape
            .dim
            .iter()
            .map(|dim| dim.dim_value.filter(|&n| n >= 0).unwrap_or(-1))
            .collect(),
        // An output's shape is only shown; an input's is enforced.
        (None, "output") => vec![-1],
        (None, _) => return Err(unsupported("no declared shape".into())),
    };
    Ok(TensorSpec {
        name: value.name.clone(),
        datatype,
        shape,
    })
}

/// `TensorProto.DataType` of `onnx.proto`.
const fn datatype(elem_type: i32) -> Option<DataType> {
    Some(match elem_type {
        1 => DataType::Fp32,
        2 => DataType::Uint8,
        3 => DataType::Int8,
        4 => DataType::Uint16,
        5 => DataType::Int16,
        6 => DataType::Int32,
        7 => DataType::Int64,
        8 => DataType::Bytes,
        9 => DataType::Bool,
        10 => DataType::Fp16,
        11 => DataType::Fp64,
        12 => DataType::Uint32,
        13 => DataType::Uint64,
        _ => return None,
    })
}

/// Walks the top-level fields of a `ModelProto`, so that a file that is cut off can be
/// told from one that was never ONNX.
fn check_frame(bytes: &[u8]) -> Result<(), OnnxError> {
    const VARINT: u64 = 0;
    const LENGTH_DELIMITED: u64 = 2;
    if bytes.is_empty() {
        return Err(OnnxError::Empty);
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match (key >> 3, key & 7) {
            // ir_version, model_version
            (1 | 5, VARINT) => {
                varint(&mut rest)?;
            }
            // producer, domain, doc, graph, opsets, metadata, training, functions, configuration
            (2..=4 | 6..=8 | 14 | 20 | 25 | 26, LENGTH_DELIMITED) => {
                let length = varint(&mut rest)?;
                let have = rest.len() as u64;
                if length > ONNX_BYTES_MAX {
                    return Err(OnnxError::NotOnnx("a field is longer than any ONNX file"));
                }
                if length > have {
                    return Err(OnnxError::Truncated {
                        missing: length - have,
                    });
                }
                rest = &rest[usize::try_from(length).unwrap_or(rest.len())..];
            }
            _ => {
                return Err(OnnxError::NotOnnx(
                    "it does not begin with fields of a model",
                ));
            }
        }
    }
    Ok(())
}

fn varint(rest: &mut &[u8]) -> Result<u64, OnnxError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest
            .split_first()
            .ok_or(OnnxError::Truncated { missing: 1 })?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(OnnxError::NotOnnx("a number in it has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Bytes {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/");
        std::fs::read(format!("{path}{name}")).unwrap().into()
    }

    fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn the_signature_has_inputs_that_are_not_initializers_and_symbolic_lengths_are_minus_one() {
        let model = OnnxModel::read(fixture("digits/1.0.0/model.onnx")).unwrap();
        assert_eq!(
            model.signature.inputs,
            [spec("input", DataType::Fp32, &[-1, 64])]
        );
        assert_eq!(
            model.signature.outputs,
            [
                spec("label", DataType::Int64, &[-1]),
                spec("probabilities", DataType::Fp32, &[-1, 10])
            ]
        );
        assert!(model.external_files.is_empty());
    }

    #[test]
    fn every_test_model_is_read() {
        for name in [
            "digits/2.0.0",
            "digits/3.0.0",
            "digits/4.0.0",
            "digits/5.0.0",
            "wine/1.0.0",
        ] {
            OnnxModel::read(fixture(&format!("{name}/model.onnx"))).unwrap();
        }
    }

    #[test]
    fn an_empty_a_foreign_and_a_cut_file_are_told_apart() {
        let read = |name| OnnxModel::read(fixture(name)).unwrap_err();
        assert_eq!(read("malformed/empty.onnx"), OnnxError::Empty);
        assert!(matches!(
            read("malformed/not-onnx.onnx"),
            OnnxError::NotOnnx(_)
        ));
        assert!(matches!(
            read("malformed/truncated.onnx"),
            OnnxError::Truncated { .. }
        ));
    }

    #[test]
    fn no_prefix_of_a_model_is_taken_for_a_whole_one() {
        let whole = fixture("breast-cancer/1.0.0/model.onnx");
        for length in 0..whole.len() {
            assert!(
                OnnxModel::read(whole.slice(..length)).is_err(),
                "{length} bytes were accepted"
            );
        }
    }

    #[test]
    fn an_element_type_that_clients_cannot_send_is_named() {
        let value = |elem_type| ValueInfoProto {
            name: "x".to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type,
                    shape: Some(TensorShapeProto::default()),
                }),
            }),
        };
        assert!(tensor("input", &value(1)).is_ok());
        let error = tensor("input", &value(14)).unwrap_err().to_string();
        assert!(
            error.contains("\"x\"") && error.contains("element type 14"),
            "{error}"
        );
        let map = ValueInfoProto {
            name: "y".to_owned(),
            r#type: Some(TypeProto::default()),
        };
        assert!(
            tensor("output", &map)
                .unwrap_err()
                .to_string()
                .contains("not a tensor")
        );
    }
}
