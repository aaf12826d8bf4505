//! The calls by name, and what is answered beside inference.

use axum::http::{Request, Response};
use hyper::body::Incoming;
use prost::Message;
use rollcall_shared::manifest::{DataType, TensorSpec};
use rollcall_shared::version::Version;
use tonic::Status;

use super::infer::infer;
use super::message::{Received, is_grpc, receive};
use super::reply::{Reply, not_grpc, reply};
use super::wire::{
    DataType as ConfigType, HealthCheckRequest, HealthCheckResponse, ModelConfig,
    ModelConfigRequest, ModelConfigResponse, ModelIndex, ModelInput, ModelMetadataRequest,
    ModelMetadataResponse, ModelOutput, ModelReadyRequest, ModelReadyResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest, ServerLiveResponse, ServerMetadataResponse, ServerReadyResponse,
    ServingStatus, TensorMetadata,
};
use crate::serve::App;
use crate::serve::catalog::{self, Answering, CatalogRefusal};

/// What can be called.
#[derive(Clone, Copy, Debug)]
enum Method {
    ServerLive,
    ServerReady,
    ModelReady,
    ServerMetadata,
    ModelMetadata,
    ModelInfer,
    ModelConfig,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
    /// Of `grpc.health.v1.Health`, which orchestrators ask.
    HealthCheck,
}

impl Method {
    fn of(path: &str) -> Option<Self> {
        let Some(name) = path.strip_prefix("/inference.GRPCInferenceService/") else {
            return (path == "/grpc.health.v1.Health/Check").then_some(Self::HealthCheck);
        };
        Some(match name {
            "ServerLive" => Self::ServerLive,
            "ServerReady" => Self::ServerReady,
            "ModelReady" => Self::ModelReady,
            "ServerMetadata" => Self::ServerMetadata,
            "ModelMetadata" => Self::ModelMetadata,
            "ModelInfer" => Self::ModelInfer,
            "ModelConfig" => Self::ModelConfig,
            "RepositoryIndex" => Self::RepositoryIndex,
            "RepositoryModelLoad" => Self::RepositoryModelLoad,
            "RepositoryModelUnload" => Self::RepositoryModelUnload,
            _ => return None,
        })
    }
}

/// Answers a call. A refusal is an answer too.
pub(super) async fn answer(app: &App, request: Request<Incoming>) -> Response<Reply> {
    if !is_grpc(request.headers()) {
        return not_grpc();
    }
    call(app, request).await.unwrap_or_else(Status::into_http)
}

async fn call(app: &App, request: Request<Incoming>) -> Result<Response<Reply>, Status> {
    let (head, body) = request.into_parts();
    let Some(method) = Method::of(head.uri.path()) else {
        return Err(Status::unimplemented(format!(
            "there is no {} here: the service is inference.GRPCInferenceService",
            head.uri.path()
        )));
    };
    let received = receive(app, &head.headers, body).await?;
    match method {
        Method::ServerLive => reply(&ServerLiveResponse { live: true }),
        Method::ServerReady => reply(&ServerReadyResponse {
            ready: catalog::is_ready(&app.inference),
        }),
        Method::ModelReady => reply(&model_ready(app, &read(received)?)),
        Method::ServerMetadata => reply(&ServerMetadataResponse {
            name: catalog::SERVER.to_owned(),
            version: catalog::SERVER_VERSION.to_owned(),
            extensions: vec![catalog::INDEX_EXTENSION.to_owned()],
        }),
        Method::ModelMetadata => reply(&metadata(app, &read(received)?)?),
        Method::ModelInfer => infer(app, &head.headers, received).await,
        Method::ModelConfig => reply(&config(app, &read(received)?)?),
        Method::RepositoryIndex => reply(&index(app, &read(received)?)),
        Method::RepositoryModelLoad => {
            let RepositoryModelLoadRequest { model_name: model } = read(received)?;
            Err(CatalogRefusal::ByRolloutOnly { model }.into())
        }
        Method::RepositoryModelUnload => {
            let RepositoryModelUnloadRequest { model_name: model } = read(received)?;
            Err(CatalogRefusal::ByRolloutOnly { model }.into())
        }
        Method::HealthCheck => reply(&health(app, &read(received)?)?),
    }
}

fn read<M: Message + Default>(received: Received) -> Result<M, Status> {
    M::decode(received.bytes).map_err(|error| {
        Status::invalid_argument(format!("the message is not what this call takes: {error}"))
    })
}

impl From<CatalogRefusal> for Status {
    fn from(refusal: CatalogRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            CatalogRefusal::NoModelName(_)
            | CatalogRefusal::NoVersion(_)
            | CatalogRefusal::UnknownModel { .. }
            | CatalogRefusal::UnknownVersion { .. } => Self::not_found(message),
            CatalogRefusal::NotReady { .. } => Self::unavailable(message),
            CatalogRefusal::ByRolloutOnly { .. } => Self::permission_denied(message),
        }
    }
}

/// A version that is not named is any.
fn named(version: &str) -> Option<&str> {
    (!version.is_empty()).then_some(version)
}

/// Whoever waits for a model asks before it is there: then it is not ready, which is no
/// error.
fn model_ready(app: &App, request: &ModelReadyRequest) -> ModelReadyResponse {
    let model = catalog::model(&app.inference, &request.name, named(&request.version));
    ModelReadyResponse {
        ready: model.is_ok(),
    }
}

fn metadata(app: &App, request: &ModelMetadataRequest) -> Result<ModelMetadataResponse, Status> {
    let Answering {
        model,
        versions,
        platform,
        signature,
    } = catalog::model(&app.inference, &request.name, named(&request.version))?;
    let tensor = |spec: TensorSpec| TensorMetadata {
        name: spec.name,
        datatype: spec.datatype.to_string(),
        shape: spec.shape,
    };
    Ok(ModelMetadataResponse {
        name: model.to_string(),
        versions: versions.iter().map(Version::to_string).collect(),
        platform,
        inputs: signature.inputs.into_iter().map(tensor).collect(),
        outputs: signature.outputs.into_iter().map(tensor).collect(),
    })
}

fn config(app: &App, request: &ModelConfigRequest) -> Result<ModelConfigResponse, Status> {
    let Answering {
        model,
        platform,
        signature,
        ..
    } = catalog::model(&app.inference, &request.name, named(&request.version))?;
    let (inputs, outputs) = (signature.inputs.into_iter(), signature.outputs.into_iter());
    let config = ModelConfig {
        name: model.to_string(),
        platform,
        max_batch_size: 0,
        input: inputs
            .map(|spec| ModelInput {
                name: spec.name,
                data_type: config_type(spec.datatype).into(),
                dims: spec.shape,
            })
            .collect(),
        output: outputs
            .map(|spec| ModelOutput {
                name: spec.name,
                data_type: config_type(spec.datatype).into(),
                dims: spec.shape,
            })
            .collect(),
    };
    Ok(ModelConfigResponse {
        config: Some(config),
    })
}

const fn config_type(datatype: DataType) -> ConfigType {
    match datatype {
        DataType::Bool => ConfigType::Bool,
        DataType::Uint8 => ConfigType::Uint8,
        DataType::Uint16 => ConfigType::Uint16,
        DataType::Uint32 => ConfigType::Uint32,
        DataType::Uint64 => ConfigType::Uint64,
        DataType::Int8 => ConfigType::Int8,
        DataType::Int16 => ConfigType::Int16,
        DataType::Int32 => ConfigType::Int32,
        DataType::Int64 => ConfigType::Int64,
        DataType::Fp16 => ConfigType::Fp16,
        DataType::Fp32 => ConfigType::Fp32,
        DataType::Fp64 => ConfigType::Fp64,
        DataType::Bytes => ConfigType::String,
    }
}

fn index(app: &App, request: &RepositoryIndexRequest) -> RepositoryIndexResponse {
    let rows = catalog::index(&app.inference, request.ready).into_iter();
    RepositoryIndexResponse {
        models: rows
            .map(|row| ModelIndex {
                name: row.model.to_string(),
                version: row.version_text(),
                state: row.state().to_owned(),
                reason: row.unavailable.unwrap_or_default().to_owned(),
            })
            .collect(),
    }
}

/// Ready to infer, as orchestrators and balancers ask it.
fn health(app: &App, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    let healthy = match request.service.as_str() {
        "" | "inference.GRPCInferenceService" => catalog::is_ready(&app.inference),
        other => {
            return Err(Status::not_found(format!(
                "there is no service {other:?} here: ask for \"\" or \
                 \"inference.GRPCInferenceService\""
            )));
        }
    };
    let status = if healthy {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    Ok(HealthCheckResponse {
        status: status.into(),
    })
}
