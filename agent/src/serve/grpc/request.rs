//! A `ModelInferRequest` to tensors: a pure function of its bytes.
//!
//! Elements come as raw buffers, as stock clients send them, or in typed fields. Buffers of a
//! message are parts of it, and are copied once: into vectors of their type.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use rollcall_agent_core::oip::json::RANK_MAX;
use rollcall_agent_core::oip::raw::{self, RawError};
use rollcall_agent_core::oip::request::{check_input, check_output, check_segment};
use rollcall_agent_core::tensor::{Tensor, TensorData, element_count};
use rollcall_shared::limits::{TENSORS_MAX, TEXT_BYTES_MAX};
use rollcall_shared::manifest::DataType;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NameError, StrDeserializer};
use tonic::Status;

use super::wire::{
    InferInputTensor, InferParameter, InferRequestedOutputTensor, InferTensorContents,
    ModelInferRequest, ParameterChoice, ParameterName,
};

/// What a message asks for.
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) id: String,
    pub(super) segment: Option<String>,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<String>,
}

/// Reads a message.
///
/// # Errors
/// Of code `INVALID_ARGUMENT`, with what is wrong and what to write instead.
pub(super) fn parse(message: Bytes) -> Result<Asked, Status> {
    count_fields(message.clone())?;
    let request = ModelInferRequest::decode(message)
        .map_err(|error| bad(format!("the message is not an inference request: {error}")))?;
    if request.id.len() > TEXT_BYTES_MAX {
        return Err(bad(format!("an id has at most {TEXT_BYTES_MAX} bytes")));
    }
    let segment = match request.parameters.get("segment") {
        Some(InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam(segment)),
        }) => Some(segment.clone()),
        Some(_) => return Err(bad("the parameter \"segment\" is a string_param")),
        None => None,
    };
    segment
        .as_deref()
        .map_or(Ok(()), check_segment)
        .map_err(bad)?;
    for InferInputTensor {
        name, parameters, ..
    } in &request.inputs
    {
        check_input(name, |known| has(parameters, known)).map_err(bad)?;
    }
    for InferRequestedOutputTensor { name, parameters } in &request.outputs {
        check_output(name, |known| has(parameters, known)).map_err(bad)?;
    }
    Ok(Asked {
        inputs: tensors(request.inputs, &request.raw_input_contents)?,
        outputs: request
            .outputs
            .into_iter()
            .map(|output| output.name)
            .collect(),
        model: request.model_name,
        version: request.model_version,
        id: request.id,
        segment,
    })
}

fn has(parameters: &[ParameterName], name: &str) -> bool {
    parameters.iter().any(|parameter| parameter.key == name)
}

/// Bounds what a message may make of itself: an empty tensor is two bytes of a message
/// and hundreds of memory.
fn count_fields(mut message: Bytes) -> Result<(), Status> {
    let mut counts = [0_usize; 8];
    let not_a_message = |error| bad(format!("the message is not an inference request: {error}"));
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).map_err(not_a_message)?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default())
            .map_err(not_a_message)?;
        let Some(count) = usize::try_from(tag)
            .ok()
            .and_then(|tag| counts.get_mut(tag))
        else {
            continue;
        };
        *count += 1;
        if *count > TENSORS_MAX {
            return Err(bad(format!(
                "field {tag} of the message comes more than {TENSORS_MAX} times"
            )));
        }
    }
    Ok(())
}

fn tensors(inputs: Vec<InferInputTensor>, raw: &[Bytes]) -> Result<Vec<Tensor>, Status> {
    if raw.is_empty() {
        return inputs.into_iter().map(typed_tensor).collect();
    }
    if let Some(input) = inputs.iter().find(|input| input.contents.is_some()) {
        return Err(bad(format!(
            "input {:?} has contents, but the message has raw_input_contents: give all inputs \
             one way or the other",
            input.name
        )));
    }
    if raw.len() != inputs.len() {
        return Err(bad(format!(
            "there are {} raw_input_contents for {} inputs: give one for each",
            raw.len(),
            inputs.len()
        )));
    }
    let pairs = inputs.into_iter().zip(raw);
    pairs
        .map(|(input, bytes)| {
            let (datatype, shape) = (datatype(&input)?, shape(&input)?);
            let data = raw::read(&input.name, datatype, &shape, bytes).map_err(bad)?;
            Ok(Tensor {
                name: input.name,
                shape,
                data,
            })
        })
        .collect()
}

fn datatype(input: &InferInputTensor) -> Result<DataType, Status> {
    let name: StrDeserializer<'_, NameError> = input.datatype.as_str().into_deserializer();
    DataType::deserialize(name).map_err(|_| {
        let shown: String = input.datatype.chars().take(60).collect();
        bad(format!(
            "input {:?} has datatype {shown:?}: write FP32, INT64, BYTES or the like",
            input.name
        ))
    })
}

fn shape(input: &InferInputTensor) -> Result<Vec<usize>, Status> {
    if input.shape.len() > RANK_MAX {
        return Err(bad(format!(
            "input {:?} has {} dimensions, more than {RANK_MAX}",
            input.name,
            input.shape.len()
        )));
    }
    let dims = input.shape.iter();
    dims.map(|dim| {
        usize::try_from(*dim).map_err(|_| {
            bad(format!(
                "input {:?} has shape {:?}: a request says how long each dimension is",
                input.name, input.shape
            ))
        })
    })
    .collect()
}

/// A tensor whose elements are in the field of their type.
fn typed_tensor(mut input: InferInputTensor) -> Result<Tensor, Status> {
    let (datatype, shape) = (datatype(&input)?, shape(&input)?);
    let name = input.name;
    let Some(contents) = input.contents.take() else {
        return Err(bad(format!(
            "input {name:?} has no elements: give raw_input_contents or contents"
        )));
    };
    let (field, data) = elements(&name, datatype, contents)?;
    if element_count(&shape) != Some(data.len()) {
        return Err(bad(format!(
            "input {name:?} is {datatype} {shape:?}, but {field} has {} elements",
            data.len()
        )));
    }
    Ok(Tensor { name, shape, data })
}

/// The elements, and the name of their field.
fn elements(
    name: &str,
    datatype: DataType,
    contents: InferTensorContents,
) -> Result<(&'static str, TensorData), Status> {
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let (ints, uints) = ("int_contents", "uint_contents");
    Ok(match datatype {
        DataType::Bool => ("bool_contents", TensorData::Bool(bool_contents)),
        DataType::Uint8 => (uints, TensorData::Uint8(narrow(name, uint_contents)?)),
        DataType::Uint16 => (uints, TensorData::Uint16(narrow(name, uint_contents)?)),
        DataType::Uint32 => (uints, TensorData::Uint32(uint_contents)),
        DataType::Uint64 => ("uint64_contents", TensorData::Uint64(uint64_contents)),
        DataType::Int8 => (ints, TensorData::Int8(narrow(name, int_contents)?)),
        DataType::Int16 => (ints, TensorData::Int16(narrow(name, int_contents)?)),
        DataType::Int32 => (ints, TensorData::Int32(int_contents)),
        DataType::Int64 => ("int64_contents", TensorData::Int64(int64_contents)),
        DataType::Fp32 => ("fp32_contents", TensorData::Fp32(fp32_contents)),
        DataType::Fp64 => ("fp64_contents", TensorData::Fp64(fp64_contents)),
        DataType::Bytes => ("bytes_contents", TensorData::Bytes(bytes_contents)),
        DataType::Fp16 => {
            let name = name.to_owned();
            return Err(bad(RawError::Half { name }));
        }
    })
}

/// Elements that travel in a wider type than theirs.
fn narrow<Wide: Copy + ToString, Narrow: TryFrom<Wide>>(
    name: &str,
    elements: Vec<Wide>,
) -> Result<Vec<Narrow>, Status> {
    let elements = elements.into_iter().enumerate();
    elements
        .map(|(position, element)| {
            Narrow::try_from(element).map_err(|_| {
                bad(format!(
                    "element {position} of input {name:?} is {}, which its datatype cannot hold",
                    element.to_string()
                ))
            })
        })
        .collect()
}

pub(super) fn bad(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    /// Messages of both forms that are read, for mutations to begin with.
    fn seeds() -> [Vec<u8>; 2] {
        let input = |name: &str, datatype: &str, shape: &[i64]| InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        };
        let segment = InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam("de".to_owned())),
        };
        let raw = ModelInferRequest {
            model_name: "digits".to_owned(),
            id: "a".to_owned(),
            parameters: BTreeMap::from([("segment".to_owned(), segment)]),
            inputs: vec![
                input("x", "FP32", &[1, 2]),
                input("y", "BYTES", &[2]),
                input("z", "UINT16", &[1]),
            ],
            raw_input_contents: vec![
                Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64]),
                Bytes::from_static(b"\x02\0\0\0hi\x01\0\0\0!"),
                Bytes::from_static(&[1, 2]),
            ],
            ..ModelInferRequest::default()
        };
        let contents = InferTensorContents {
            uint_contents: vec![1, 255],
            ..InferTensorContents::default()
        };
        let typed = ModelInferRequest {
            inputs: vec![InferInputTensor {
                contents: Some(contents),
                ..input("x", "UINT8", &[2, 1])
            }],
            ..ModelInferRequest::default()
        };
        let seeds = [raw.encode_to_vec(), typed.encode_to_vec()];
        for seed in &seeds {
            parse(seed.clone().into()).unwrap();
        }
        seeds
    }

    /// What a mutation puts where it falls: keys, lengths and numbers that readers trip over.
    const TOKENS: &[&[u8]] = &[
        b"",
        b"\0",
        b"\x01",
        b"\x2a",
        b"\x3a\0",
        b"\x2a\x02\x18\x00",
        b"\x2b",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff\xff\xff\xff\x07",
        b"\x7f",
        b"\x80",
        b"FP16",
        b"BYTES",
    ];

    proptest! {
        /// Any message gives a request whose tensors hold what their shapes say, or a reason.
        #[test]
        fn mutated_messages_are_read_or_refused(
            seed in 0..2_usize,
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..9_usize, 0..TOKENS.len()), 1..6),
        ) {
            let mut message = seeds()[seed].clone();
            for (at, gone, token) in cuts {
                let at = at.index(message.len() + 1);
                let end = (at + gone).min(message.len());
                message.splice(at..end, TOKENS[token].iter().copied());
            }
            match parse(message.into()) {
                Ok(asked) => {
                    for tensor in asked.inputs {
                        prop_assert_eq!(element_count(&tensor.shape), Some(tensor.data.len()));
                    }
                }
                Err(status) => {
                    prop_assert_eq!(status.code(), Code::InvalidArgument);
                    prop_assert!(!status.message().is_empty());
                }
            }
        }
    }
}
