//! The body of an inference request.
//!
//! JSON, and after it, where the client says how long the JSON is (binary tensor
//! extension), a buffer for each input that announces one, in the order of the inputs.
//! The body is read where it lies: each element is copied once, into the vector that
//! the engine gets. Parameters that we do not know are passed over; those that ask for
//! something that we do not do are refused, since passing them over would answer
//! another question.

use rollcall_shared::feedback::{TAG, is_tag};
use rollcall_shared::limits::{TENSORS_MAX, TEXT_BYTES_MAX};
use serde::{Deserialize, Deserializer};

use super::json::{JsonTensor, JsonTensorError, TensorParameters};
use super::raw::{self, RawError};
use crate::tensor::Tensor;

/// The header that says how many bytes of the body are JSON.
pub const JSON_LENGTH_HEADER: &str = "Inference-Header-Content-Length";

/// What a request says, before anyone asks whether a model takes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferBody {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// The segment that it is counted under, if it names one.
    pub segment: Option<String>,
    /// Its tensors, in its order.
    pub inputs: Vec<Tensor>,
    /// The outputs that it wants, in order; empty: all.
    pub outputs: Vec<WantedOutput>,
    /// Whether outputs come as buffers that do not say themselves how.
    pub binary_outputs: bool,
}

/// An output that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedOutput {
    /// Its name.
    pub name: String,
    /// Whether it comes as a buffer; `None`: as the request says for all.
    pub binary: Option<bool>,
}

/// Why a body is no request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the fields are")]
pub enum RequestError {
    #[error(
        "{JSON_LENGTH_HEADER} is {json}, but the body has {body} bytes: \
         give the length of the JSON, which the buffers follow"
    )]
    JsonLength { json: usize, body: usize },
    #[error("the body is not an inference request: {0}")]
    Json(String),
    #[error(
        "there is no JSON: send {{\"inputs\": [{{\"name\", \"datatype\", \"shape\", \"data\"}}]}}"
    )]
    Empty,
    #[error("an id has at most {TEXT_BYTES_MAX} bytes")]
    LongId,
    #[error(
        "{segment:?} is no segment: give a {TAG}, e.g. a country, and let the keys of \
         customers be sticky keys"
    )]
    Segment { segment: String },
    #[error("the request asks for {count} outputs, more than {TENSORS_MAX}")]
    Outputs { count: usize },
    #[error("{what} {name:?} asks for {parameter}, which this server does not do: {instead}")]
    NotDone {
        what: &'static str,
        name: String,
        parameter: &'static str,
        instead: &'static str,
    },
    #[error(
        "input {name:?} announces {bytes} bytes of binary data, but the request does not say \
         where its JSON ends: send the header {JSON_LENGTH_HEADER}, or the elements as \"data\""
    )]
    NoJsonLength { name: String, bytes: usize },
    #[error("input {name:?} has \"data\" and binary data: send one of them")]
    Twice { name: String },
    #[error(
        "input {name:?} announces {announced} bytes of binary data, but {left} are left: \
         send the buffers after the JSON, in the order of the inputs"
    )]
    Short {
        name: String,
        announced: usize,
        left: usize,
    },
    #[error(
        "{left} bytes are left after the last buffer: the inputs' binary_data_size must add up \
         to all that follows the JSON"
    )]
    Long { left: usize },
    #[error(transparent)]
    Elements(#[from] JsonTensorError),
    #[error(transparent)]
    Buffer(#[from] RawError),
}

/// Reads a body. `json_length`: how many of its bytes are JSON, where the client says so;
/// `None`: all.
///
/// # Errors
/// What does not fit, and what to send instead.
pub fn read(body: &[u8], json_length: Option<usize>) -> Result<InferBody, RequestError> {
    let (head, buffers) = match json_length {
        None => (body, None),
        Some(length) => {
            let split = body.split_at_checked(length);
            let (head, buffers) = split.ok_or(RequestError::JsonLength {
                json: length,
                body: body.len(),
            })?;
            (head, Some(buffers))
        }
    };
    let read = json(head)?;
    if read.id.as_ref().is_some_and(|id| id.len() > TEXT_BYTES_MAX) {
        return Err(RequestError::LongId);
    }
    let segment = read.parameters.segment;
    segment.as_deref().map_or(Ok(()), check_segment)?;
    Ok(InferBody {
        id: read.id.filter(|id| !id.is_empty()),
        segment,
        inputs: inputs(read.inputs, buffers)?,
        outputs: outputs(read.outputs)?,
        binary_outputs: read.parameters.binary_data_output.unwrap_or(false),
    })
}

/// Checks a segment's name.
///
/// # Errors
/// When it is none.
pub fn check_segment(segment: &str) -> Result<(), RequestError> {
    if is_tag(segment) {
        return Ok(());
    }
    Err(RequestError::Segment {
        segment: segment.chars().take(60).collect(),
    })
}

/// The parameter that has an output's largest elements come as text.
const CLASSIFICATION: &str = "classification";
/// The parameter that has elements not come, but be read or written where they lie.
const SHARED_MEMORY: &str = "shared_memory_region";

/// Refuses an input with parameters that ask for what we do not do.
///
/// # Errors
/// When it has one.
pub fn check_input(name: &str, has: impl Fn(&str) -> bool) -> Result<(), RequestError> {
    if !has(SHARED_MEMORY) {
        return Ok(());
    }
    Err(RequestError::NotDone {
        what: "input",
        name: name.to_owned(),
        parameter: "shared memory",
        instead: "send the elements with the request",
    })
}

/// The same of an output that is asked for.
///
/// # Errors
/// When it has one.
pub fn check_output(name: &str, has: impl Fn(&str) -> bool) -> Result<(), RequestError> {
    let (parameter, instead) = if has(CLASSIFICATION) {
        ("classification", "ask for the output and take its largest")
    } else if has(SHARED_MEMORY) {
        ("shared memory", "take the elements with the answer")
    } else {
        return Ok(());
    };
    Err(RequestError::NotDone {
        what: "output",
        name: name.to_owned(),
        parameter,
        instead,
    })
}

#[derive(Deserialize)]
struct JsonBody {
    #[serde(default)]
    id: Option<String>,
    inputs: Vec<JsonTensor>,
    #[serde(default, deserialize_with = "or_null")]
    outputs: Vec<JsonOutput>,
    #[serde(default, deserialize_with = "or_null")]
    parameters: RequestParameters,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RequestParameters {
    segment: Option<String>,
    binary_data_output: Option<bool>,
}

#[derive(Deserialize)]
struct JsonOutput {
    name: String,
    #[serde(default, deserialize_with = "or_null")]
    parameters: TensorParameters,
}

/// Some clients write `null` for what they leave out.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn json(json: &[u8]) -> Result<JsonBody, RequestError> {
    match json.trim_ascii_start() {
        [] => Err(RequestError::Empty),
        // An array would be read as the fields in our order, which nobody knows.
        [b'[', ..] => Err(RequestError::Json("it is no JSON object".to_owned())),
        _ => serde_json::from_slice(json).map_err(|why| RequestError::Json(why.to_string())),
    }
}

fn inputs(read: Vec<JsonTensor>, buffers: Option<&[u8]>) -> Result<Vec<Tensor>, RequestError> {
    let mut inputs = Vec::with_capacity(read.len());
    let mut left = buffers.unwrap_or_default();
    for tensor in read {
        let shared = tensor.parameters.shared_memory_region.is_some();
        check_input(&tensor.name, |parameter| {
            parameter == SHARED_MEMORY && shared
        })?;
        let Some(announced) = tensor.parameters.binary_data_size else {
            inputs.push(tensor.into_tensor()?);
            continue;
        };
        let JsonTensor {
            name,
            datatype,
            shape,
            data,
            ..
        } = tensor;
        if data.is_some() {
            return Err(RequestError::Twice { name });
        }
        if buffers.is_none() {
            return Err(RequestError::NoJsonLength {
                name,
                bytes: announced,
            });
        }
        let Some((buffer, rest)) = left.split_at_checked(announced) else {
            let left = left.len();
            return Err(RequestError::Short {
                name,
                announced,
                left,
            });
        };
        left = rest;
        let data = raw::read(&name, datatype, &shape, buffer)?;
        inputs.push(Tensor { name, shape, data });
    }
    match left.len() {
        0 => Ok(inputs),
        left => Err(RequestError::Long { left }),
    }
}

fn outputs(read: Vec<JsonOutput>) -> Result<Vec<WantedOutput>, RequestError> {
    if read.len() > TENSORS_MAX {
        return Err(RequestError::Outputs { count: read.len() });
    }
    let wanted = |output: JsonOutput| {
        let JsonOutput { name, parameters } = output;
        let asked = [
            (CLASSIFICATION, parameters.classification.is_some()),
            (SHARED_MEMORY, parameters.shared_memory_region.is_some()),
        ];
        check_output(&name, |parameter| asked.contains(&(parameter, true)))?;
        Ok(WantedOutput {
            name,
            binary: parameters.binary_data,
        })
    };
    read.into_iter().map(wanted).collect()
}

#[cfg(test)]
mod tests;
