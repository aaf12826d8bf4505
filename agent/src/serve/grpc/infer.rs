//! `ModelInfer`: a message to tensors, and an answer to a message.
//!
//! Elements come as raw buffers, as stock clients send them, or in typed fields; answers
//! carry raw buffers. Buffers of a message are parts of it, and are copied once: into
//! vectors of their type.

use axum::http::{HeaderMap, Response};
use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use rollcall_agent_core::oip::json::RANK_MAX;
use rollcall_agent_core::oip::raw::{self, RawError};
use rollcall_agent_core::oip::request::{check_input, check_output, check_segment};
use rollcall_agent_core::tensor::{Tensor, TensorData, element_count};
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{TENSORS_MAX, TEXT_BYTES_MAX};
use rollcall_shared::manifest::DataType;
use rollcall_shared::version::Version;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NameError, StrDeserializer};
use tonic::Status;

use super::message::{Received, Reply, reply};
use super::wire::{
    InferInputTensor, InferOutputTensor, InferParameter, InferRequestedOutputTensor,
    InferTensorContents, ModelInferRequest, ModelInferResponse, ParameterChoice, ParameterName,
};
use crate::serve::App;
use crate::serve::headers;
use crate::serve::infer::{InferAnswer, InferRefusal, InferRequest};
use crate::serve::room::INLINE_BYTES_MAX;

impl From<InferRefusal> for Status {
    fn from(refusal: InferRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            InferRefusal::UnknownModel { .. } | InferRefusal::UnknownVersion { .. } => {
                Self::not_found(message)
            }
            InferRefusal::BadInput(_) | InferRefusal::UnknownOutput { .. } => {
                Self::invalid_argument(message)
            }
            InferRefusal::NotReady { .. } | InferRefusal::Overloaded => Self::unavailable(message),
            // Not UNAVAILABLE, which tells clients that nothing was done and to come again
            // at once: the model still runs.
            InferRefusal::TimedOut { .. } => Self::deadline_exceeded(message),
            InferRefusal::Failed { .. } => Self::internal(message),
        }
    }
}

pub(super) async fn infer(
    app: &App,
    headers: &HeaderMap,
    received: Received,
) -> Result<Response<Reply>, Status> {
    let Received { bytes, room: _room } = received;
    let asked = read(bytes).await?;
    let not_found = |error: &dyn std::error::Error| Status::not_found(error.to_string());
    let model: ModelName = asked.model.parse().map_err(|e| not_found(&e))?;
    let version: Option<Version> = (!asked.version.is_empty())
        .then(|| asked.version.parse())
        .transpose()
        .map_err(|e| not_found(&e))?;
    let segment = match asked.segment {
        Some(segment) => Some(segment),
        None => headers::segment(headers).map_err(bad)?,
    };
    let id = Some(asked.id)
        .filter(|id| !id.is_empty())
        .or_else(|| headers::request_id(headers))
        .unwrap_or_else(|| app.ids.make());
    let request = InferRequest {
        model: model.clone(),
        version,
        id: id.clone(),
        sticky_key: headers::sticky_key(headers),
        segment,
        inputs: asked.inputs,
        outputs: asked.outputs.clone(),
    };
    let answer = app.inference.infer(request).await?;
    let message = response(model, &id, &asked.outputs, &answer)?;
    let mut response = reply(&message)?;
    headers::tell(response.headers_mut(), &id, &answer);
    Ok(response)
}

/// What a message asks for.
struct Asked {
    model: String,
    version: String,
    id: String,
    segment: Option<String>,
    inputs: Vec<Tensor>,
    outputs: Vec<String>,
}

fn bad(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn read(message: Bytes) -> Result<Asked, Status> {
    if message.len() <= INLINE_BYTES_MAX {
        return parse(message);
    }
    tokio::task::spawn_blocking(move || parse(message))
        .await
        .unwrap_or_else(|_| Err(Status::internal("reading the request broke off")))
}

fn parse(message: Bytes) -> Result<Asked, Status> {
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

fn response(
    model: ModelName,
    id: &str,
    wanted: &[String],
    answer: &InferAnswer,
) -> Result<ModelInferResponse, Status> {
    let all = answer.outputs.iter();
    let outputs: Vec<&Tensor> = if wanted.is_empty() {
        all.collect()
    } else {
        let find = |name: &String| all.clone().find(|output| output.name == *name);
        wanted.iter().filter_map(find).collect()
    };
    let mut raw_output_contents = Vec::with_capacity(outputs.len());
    for output in &outputs {
        let mut buffer = Vec::new();
        raw::write(&output.data, &mut buffer)
            .map_err(|error| Status::internal(format!("output {:?}: {error}", output.name)))?;
        raw_output_contents.push(buffer.into());
    }
    let outputs = outputs.into_iter().map(|output| InferOutputTensor {
        name: output.name.clone(),
        datatype: output.data.datatype().to_string(),
        // A dimension of what is in memory.
        shape: output
            .shape
            .iter()
            .map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX))
            .collect(),
    });
    Ok(ModelInferResponse {
        model_name: model.to_string(),
        model_version: answer.version.version.to_string(),
        id: id.to_owned(),
        outputs: outputs.collect(),
        raw_output_contents,
    })
}
