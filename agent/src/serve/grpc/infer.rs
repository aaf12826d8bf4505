//! `ModelInfer`: who answers a request, and an answer to a message with raw buffers.

use axum::http::{HeaderMap, Response};
use bytes::Bytes;
use rollcall_agent_core::oip::raw;
use rollcall_agent_core::tensor::Tensor;
use rollcall_shared::ids::ModelName;
use rollcall_shared::version::Version;
use tonic::Status;

use super::message::Received;
use super::reply::{Reply, reply_packed};
use super::request::{Asked, bad, parse};
use super::wire::{InferOutputTensor, ModelInferResponse};
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
    let Received {
        bytes,
        room: _room,
        coding,
    } = received;
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
    let outputs = answer.outputs.iter();
    let size: usize = outputs.map(|output| raw::byte_len(&output.data)).sum();
    let write = move || {
        let message = message(model, &id, &asked.outputs, &answer)?;
        let mut response = reply_packed(&message, coding)?;
        headers::tell(response.headers_mut(), &id, &answer);
        Ok(response)
    };
    if size <= coding.inline_answer_bytes_max() {
        return write();
    }
    tokio::task::spawn_blocking(write)
        .await
        .unwrap_or_else(|_| Err(Status::internal("writing the answer broke off")))
}

async fn read(message: Bytes) -> Result<Asked, Status> {
    if message.len() <= INLINE_BYTES_MAX {
        return parse(message);
    }
    tokio::task::spawn_blocking(move || parse(message))
        .await
        .unwrap_or_else(|_| Err(Status::internal("reading the request broke off")))
}

fn message(
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
        let mut buffer = Vec::with_capacity(raw::byte_len(&output.data));
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
