//! Versions: files first, each by its digest, then one registration that signs them.

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::IntoResponse;
use bytes::Bytes;
use futures_util::stream;
use rollcall_coordinator_core::input::Command;
use rollcall_coordinator_core::view::VersionView;
use rollcall_shared::digest::Digest;
use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::FILES_PER_VERSION_MAX;
use rollcall_shared::manifest::{
    EngineKind, FilePath, MODEL_FILE, Manifest, ManifestFile, Metadata, SignedManifest,
};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Body, Caller, Params, drain, named};
use super::{Api, Shared};
use crate::onnx::{ONNX_BYTES_MAX, OnnxModel};

/// What `POST /api/v1/versions` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The model.
    pub model: ModelName,
    /// The new version.
    pub version: Version,
    /// Its files; they must be uploaded already.
    pub files: Vec<UploadedFile>,
    /// Its story.
    #[serde(default)]
    pub metadata: Metadata,
}

/// One file of a registration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadedFile {
    /// Where it lies in the version.
    pub path: FilePath,
    /// Which blob it is.
    pub digest: Digest,
}

#[derive(Deserialize)]
pub(super) struct OfModel {
    model: Option<ModelName>,
}

pub(super) async fn uploaded(
    State(api): State<Shared>,
    _: Caller,
    Path(digest): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    match api.artifacts.size(&named(&digest)?).await {
        Some(size) => Ok(([(CONTENT_LENGTH, size.to_string())], RawBody::empty())),
        None => Err(ApiError::NotFound("the file is not there".to_owned())),
    }
}

pub(super) async fn upload(
    State(api): State<Shared>,
    caller: Caller,
    Path(digest): Path<String>,
    body: RawBody,
) -> Result<StatusCode, ApiError> {
    let digest = named(&digest)?;
    let mut stream = body.into_data_stream();
    let put = async {
        caller.may_push()?;
        api.artifacts
            .put(digest, &mut stream)
            .await
            .map_err(ApiError::from)
    };
    let put = put.await;
    if put.is_err() {
        drain(&mut stream).await;
    }
    put.map(|_| StatusCode::CREATED)
}

pub(super) async fn register(
    State(api): State<Shared>,
    caller: Caller,
    Body(registration): Body<Registration>,
) -> Result<(StatusCode, Json<VersionView>), ApiError> {
    caller.may_push()?;
    let (model, version) = (registration.model.clone(), registration.version);
    let manifest = draw_up(&api, registration).await?;
    let signed = SignedManifest::sign(&manifest, &api.registry_key)
        .map_err(|error| ApiError::Invalid(error.to_string()))?;
    // Agents fetch the manifest as a blob, by the digest that assignments name.
    let encoded = Bytes::from(signed.encode());
    let whole = stream::iter([Ok::<_, std::convert::Infallible>(encoded)]);
    api.artifacts.put(signed.digest(), whole).await?;
    api.command(caller.0, Command::RegisterVersion { signed, manifest })
        .await?;
    view(&api, model, version)
        .await
        .map(|view| (StatusCode::CREATED, view))
}

/// The manifest of uploaded files, with the signature that the model file declares.
async fn draw_up(api: &Api, registration: Registration) -> Result<Manifest, ApiError> {
    let Registration {
        model,
        version,
        files,
        metadata,
    } = registration;
    if files.len() > FILES_PER_VERSION_MAX {
        return Err(ApiError::Invalid(format!(
            "a version has at most {FILES_PER_VERSION_MAX} files"
        )));
    }
    let mut listed = Vec::with_capacity(files.len());
    for UploadedFile { path, digest } in files {
        let size = api.artifacts.size(&digest).await.ok_or_else(|| {
            ApiError::Invalid(format!(
                "{path} is not uploaded: PUT /api/v1/blobs/{digest} first"
            ))
        })?;
        listed.push(ManifestFile { path, size, digest });
    }
    listed.sort_by(|a, b| a.path.cmp(&b.path));
    let onnx = read_model(api, &listed).await?;
    let listed_as = |name: &str| listed.iter().any(|file| file.path.as_str() == name);
    if let Some(file) = onnx.external_files.iter().find(|name| !listed_as(name)) {
        let error = crate::onnx::OnnxError::ExternalMissing { file: file.clone() };
        return Err(ApiError::Invalid(error.to_string()));
    }
    Ok(Manifest {
        model,
        version,
        registered_at: api.core.clock().now(),
        engine: EngineKind::Onnx,
        signature: onnx.signature,
        files: listed,
        metadata,
    })
}

async fn read_model(api: &Api, files: &[ManifestFile]) -> Result<OnnxModel, ApiError> {
    let file = files
        .iter()
        .find(|file| file.path.as_str() == MODEL_FILE)
        .ok_or_else(|| {
            ApiError::Invalid(format!(
                "the bundle has no {MODEL_FILE}: every version needs one"
            ))
        })?;
    let bytes = api
        .artifacts
        .read(&file.digest, ONNX_BYTES_MAX)
        .await?
        .ok_or_else(|| ApiError::Invalid(format!("{MODEL_FILE} is not uploaded")))?;
    tokio::task::spawn_blocking(move || OnnxModel::read(bytes))
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|error| ApiError::Invalid(format!("{MODEL_FILE}: {error}")))
}

async fn view(
    api: &Api,
    model: ModelName,
    version: Version,
) -> Result<Json<VersionView>, ApiError> {
    let missing = ApiError::NotFound(format!(
        "there is no version {model}@{version}; `rollcall version list`"
    ));
    api.core
        .ask(move |core, _| core.version(&model, version))
        .await?
        .map(Json)
        .ok_or(missing)
}

pub(super) async fn list(
    State(api): State<Shared>,
    _: Caller,
    Params(OfModel { model }): Params<OfModel>,
) -> Result<Json<Vec<VersionView>>, ApiError> {
    Ok(Json(
        api.core
            .ask(move |core, _| core.versions(model.as_ref()))
            .await?,
    ))
}

pub(super) async fn show(
    State(api): State<Shared>,
    _: Caller,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<VersionView>, ApiError> {
    view(&api, named(&model)?, named(&version)?).await
}

pub(super) async fn act(
    State(api): State<Shared>,
    Caller(actor): Caller,
    Path((model, version, action)): Path<(String, String, String)>,
) -> Result<Json<VersionView>, ApiError> {
    let (model, version): (ModelName, Version) = (named(&model)?, named(&version)?);
    let command = match action.as_str() {
        "archive" => Command::Archive {
            model: model.clone(),
            version,
        },
        "restore" => Command::Restore {
            model: model.clone(),
            version,
        },
        _ => {
            return Err(ApiError::NotFound(format!(
                "{action:?} is none of archive, restore"
            )));
        }
    };
    api.command(actor, command).await?;
    view(&api, model, version).await
}
