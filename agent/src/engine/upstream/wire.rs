//! Requests and answers of a server of the Open Inference Protocol, over REST.

use std::collections::BTreeMap;

use rollcall_agent_core::oip::answer::Output;
use rollcall_agent_core::tensor::{Tensor, TensorData};
use rollcall_shared::manifest::{DataType, ModelSignature, TensorSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::check::check_output;
use super::super::graph::{FoundTensor, FoundType};
use super::super::json::{JsonTensor, TensorParameters};
use super::super::panics::cut;
use super::super::{InferError, raw};

/// Says how long the JSON is, where elements follow it as bytes.
pub(super) const JSON_LENGTH: &str = "inference-header-content-length";

/// How elements travel to the server. It may answer in either form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// The protocol's binary tensor extension.
    Binary,
    /// In the JSON: every server knows it.
    Json,
}

/// The body of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Length of the JSON, where something follows it.
    pub(super) json_length: Option<usize>,
}

/// Writes a request for the outputs of `signature`.
pub(super) fn request(
    encoding: Encoding,
    signature: &ModelSignature,
    inputs: &[&Tensor],
) -> Result<Body, InferError> {
    let binary = encoding == Encoding::Binary;
    let mut buffers = Vec::new();
    for tensor in inputs {
        if binary {
            raw::write(&tensor.data, &mut buffers).map_err(|error| unusable(tensor, &error))?;
        } else if let TensorData::Bytes(elements) = &tensor.data {
            let text = |bytes: &Vec<u8>| std::str::from_utf8(bytes).map(drop);
            let all = elements.iter().try_for_each(text);
            all.map_err(|error| unusable(tensor, &error))?;
        }
    }
    let wanted = |output: &'_ TensorSpec| match encoding {
        Encoding::Binary => json!({"name": output.name, "parameters": {"binary_data": true}}),
        Encoding::Json => json!({"name": output.name}),
    };
    let head = Request {
        inputs: inputs
            .iter()
            .map(|tensor| Output { tensor, binary })
            .collect(),
        outputs: signature.outputs.iter().map(wanted).collect(),
    };
    let mut bytes =
        serde_json::to_vec(&head).map_err(|error| InferError::Failed(error.to_string()))?;
    let json_length = binary.then_some(bytes.len());
    bytes.append(&mut buffers);
    Ok(Body { bytes, json_length })
}

#[derive(Serialize)]
struct Request<'a> {
    /// Inputs and outputs are written alike.
    inputs: Vec<Output<'a>>,
    outputs: Vec<Value>,
}

fn unusable(tensor: &Tensor, error: &dyn std::error::Error) -> InferError {
    InferError::Input {
        name: tensor.name.clone(),
        why: error.to_string(),
    }
}

#[derive(Deserialize)]
struct Head {
    outputs: Vec<JsonTensor>,
}

/// Reads an answer: the outputs of `signature`, in its order.
///
/// # Errors
/// When it is not what the signature says; the server answered, so that is the model's fault.
pub(super) fn answer(body: &Body, signature: &ModelSignature) -> Result<Vec<Tensor>, InferError> {
    let no_answer =
        |why: String| InferError::Failed(cut(format!("its answer cannot be read: {why}")));
    let length = body.json_length.unwrap_or(body.bytes.len());
    let (head, mut buffers) = body
        .bytes
        .split_at_checked(length)
        .ok_or_else(|| no_answer("its JSON is cut off".to_owned()))?;
    let head: Head = serde_json::from_slice(head).map_err(|error| no_answer(error.to_string()))?;
    let mut outputs = BTreeMap::new();
    for output in head.outputs {
        let tensor = elements(output, &mut buffers).map_err(no_answer)?;
        outputs.insert(tensor.name.clone(), tensor);
    }
    let take = |spec: &TensorSpec| {
        let tensor = outputs.remove(&spec.name);
        let mut tensor = tensor.ok_or_else(|| InferError::Output {
            name: spec.name.clone(),
            why: "it is missing".to_owned(),
        })?;
        // MLServer's own codec makes a column of a vector.
        if spec.shape.len() + 1 == tensor.shape.len() && tensor.shape.last() == Some(&1) {
            tensor.shape.pop();
        }
        check_output(spec, &tensor)?;
        Ok(tensor)
    };
    signature.outputs.iter().map(take).collect()
}

fn elements(output: JsonTensor, buffers: &mut &[u8]) -> Result<Tensor, String> {
    let TensorParameters {
        binary_data_size, ..
    } = output.parameters;
    let Some(size) = binary_data_size.filter(|_| output.data.is_none()) else {
        return output.into_tensor().map_err(|error| error.to_string());
    };
    let (buffer, rest) = buffers
        .split_at_checked(size)
        .ok_or_else(|| format!("the bytes of {:?} are cut off", output.name))?;
    *buffers = rest;
    let JsonTensor {
        name,
        datatype,
        shape,
        ..
    } = output;
    let data = raw::read(&name, datatype, &shape, buffer).map_err(|error| error.to_string())?;
    Ok(Tensor { name, shape, data })
}

/// What a server says of a model.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) platform: String,
    pub(super) inputs: Vec<MetadataTensor>,
    pub(super) outputs: Vec<MetadataTensor>,
}

/// One tensor of it.
#[derive(Debug, Deserialize)]
pub(super) struct MetadataTensor {
    pub(super) name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl MetadataTensor {
    pub(super) fn found(&self) -> FoundTensor {
        let known: Result<DataType, _> = serde_json::from_value(json!(self.datatype));
        FoundTensor {
            datatype: known.map_or_else(
                |_| FoundType::Other(self.datatype.clone()),
                FoundType::Known,
            ),
            dims: Some(self.shape.clone()),
        }
    }
}
