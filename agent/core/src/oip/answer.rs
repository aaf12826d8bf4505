//! The body of an answer, in one buffer.
//!
//! Outputs come as JSON, or, where the client asked for it, as buffers after the JSON in
//! the order of the outputs (binary tensor extension).

use rollcall_shared::version::Version;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::json::ElementsJson;
use super::raw::{self, RawError};
use crate::tensor::{Tensor, TensorData};

/// What an answer says beside its outputs.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHead<'a> {
    /// The model.
    pub model_name: &'a str,
    /// The version that answered.
    pub model_version: Version,
    /// The request's id.
    pub id: &'a str,
}

/// An output, and how it travels.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// The output.
    pub tensor: &'a Tensor,
    /// Whether its elements are a buffer.
    pub binary: bool,
}

/// An answer as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerBody {
    /// JSON, and the buffers after it.
    pub bytes: Vec<u8>,
    /// How many of the bytes are JSON, where buffers follow; `None`: all, and the client
    /// is told nothing.
    pub json_length: Option<usize>,
}

/// Why an answer has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is no JSON for it.
    #[error("no JSON for the answer")]
    Json(#[from] serde_json::Error),
    /// An output has no buffer.
    #[error("no buffer for the answer")]
    Raw(#[from] RawError),
}

/// JSON of one element, about: to make room once.
const JSON_BYTES_PER_ELEMENT: usize = 12;
/// JSON of one output's head, about.
const JSON_BYTES_PER_OUTPUT: usize = 112;
/// JSON of an answer's head, about.
const JSON_BYTES: usize = 160;

/// Writes an answer.
///
/// # Errors
/// When an output has elements that neither JSON nor a buffer can say.
pub fn write(head: AnswerHead<'_>, outputs: &[Output<'_>]) -> Result<AnswerBody, AnswerError> {
    let mut bytes = Vec::with_capacity(size_about(outputs));
    let AnswerHead {
        model_name,
        model_version,
        id,
    } = head;
    let json = AnswerJson {
        model_name,
        model_version,
        id,
        outputs,
    };
    serde_json::to_writer(&mut bytes, &json)?;
    let json = bytes.len();
    let mut json_length = None;
    for output in outputs.iter().filter(|output| output.binary) {
        json_length = Some(json);
        raw::write(&output.tensor.data, &mut bytes)?;
    }
    Ok(AnswerBody { bytes, json_length })
}

/// How many bytes [`write()`] will make, about.
#[must_use]
pub fn size_about(outputs: &[Output<'_>]) -> usize {
    let elements = |output: &Output<'_>| match &output.tensor.data {
        data @ TensorData::Bytes(_) => raw::byte_len(data),
        data if output.binary => raw::byte_len(data),
        data => data.len() * JSON_BYTES_PER_ELEMENT,
    };
    let outputs = outputs.iter();
    outputs.fold(JSON_BYTES, |sum, output| {
        sum + JSON_BYTES_PER_OUTPUT + elements(output)
    })
}

#[derive(Serialize)]
struct AnswerJson<'a> {
    model_name: &'a str,
    model_version: Version,
    id: &'a str,
    outputs: &'a [Output<'a>],
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Tensor { name, shape, data } = self.tensor;
        let mut output = serializer.serialize_struct("Output", 4)?;
        output.serialize_field("name", name)?;
        output.serialize_field("datatype", &data.datatype())?;
        output.serialize_field("shape", shape)?;
        if self.binary {
            let binary_data_size = raw::byte_len(data);
            output.serialize_field("parameters", &BufferParameters { binary_data_size })?;
        } else {
            output.serialize_field("data", &ElementsJson(data))?;
        }
        output.end()
    }
}

#[derive(Serialize)]
struct BufferParameters {
    binary_data_size: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs() -> Vec<Tensor> {
        let tensor = |name: &str, shape: &[usize], data| Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            data,
        };
        vec![
            tensor("label", &[2], TensorData::Int64(vec![1, 258])),
            tensor("text", &[1], TensorData::Bytes(vec![b"hi".to_vec()])),
            tensor("score", &[2], TensorData::Fp32(vec![0.5, f32::NAN])),
        ]
    }

    fn answer(binary: [bool; 3]) -> AnswerBody {
        let tensors = outputs();
        let outputs: Vec<_> = tensors
            .iter()
            .zip(binary)
            .map(|(tensor, binary)| Output { tensor, binary })
            .collect();
        let head = AnswerHead {
            model_name: "m",
            model_version: "1.2.3".parse().unwrap(),
            id: "order-7",
        };
        let body = write(head, &outputs).unwrap();
        assert!(body.bytes.len() <= size_about(&outputs), "room was made");
        body
    }

    #[test]
    fn json_alone_has_flat_data_and_no_word_for_what_is_not_finite() {
        let body = answer([false; 3]);
        assert_eq!(body.json_length, None);
        assert_eq!(
            String::from_utf8(body.bytes).unwrap(),
            r#"{"model_name":"m","model_version":"1.2.3","id":"order-7","outputs":[{"name":"label","datatype":"INT64","shape":[2],"data":[1,258]},{"name":"text","datatype":"BYTES","shape":[1],"data":["hi"]},{"name":"score","datatype":"FP32","shape":[2],"data":[0.5,null]}]}"#
        );
    }

    #[test]
    fn buffers_follow_the_json_in_the_outputs_order_beside_outputs_in_json() {
        let body = answer([true, false, true]);
        let (json, buffers) = body.bytes.split_at(body.json_length.unwrap());
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 16);
        assert_eq!(json["outputs"][0].get("data"), None);
        assert_eq!(json["outputs"][1]["data"][0], "hi");
        let score = [0.5_f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat();
        let mut wanted = [1_i64.to_le_bytes(), 258_i64.to_le_bytes()].concat();
        wanted.extend(score);
        assert_eq!(buffers, wanted);
    }
}
