//! `rollcall version`: the registry.

use std::path::PathBuf;

use clap::Subcommand;
use futures_util::StreamExt;
use indicatif::ProgressBar;
use reqwest::{Body, Method, StatusCode, header::CONTENT_LENGTH};
use rollcall_coordinator_core::view::VersionView;
use rollcall_shared::ids::ModelName;
use rollcall_shared::version::{ModelVersion, Version as Number};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::bundle::{Bundle, BundleFile};
use super::client::Client;
use super::model::stage_name;
use super::output::{Output, bytes, fields, joined, or_dash, table, upload_bar};
use super::{CliError, compare};
use crate::http::versions::{Registration, UploadedFile};

/// Versions of models.
#[derive(Debug, Subcommand)]
pub(super) enum Version {
    /// Upload a bundle and register it as a version; a version is never changed.
    Push {
        /// A folder (model.onnx, smoke.json, validation.json, metadata.toml, other files) or
        /// a single .onnx file.
        path: PathBuf,
        /// The model.
        #[arg(long)]
        model: ModelName,
        /// The version's number, e.g. 2.1.0.
        #[arg(long)]
        version: Number,
        /// Metadata (TOML), instead of the folder's metadata.toml.
        #[arg(long, value_name = "FILE")]
        metadata: Option<PathBuf>,
    },
    /// List versions.
    List {
        /// Of one model only.
        #[arg(long)]
        model: Option<ModelName>,
    },
    /// One version with its files and metadata.
    Show {
        /// E.g. digits@2.1.0.
        version: ModelVersion,
    },
    /// Two versions side by side.
    Compare {
        /// E.g. digits@2.0.0.
        left: ModelVersion,
        /// E.g. digits@2.1.0.
        right: ModelVersion,
    },
    /// Hide a version that nothing uses.
    Archive {
        /// E.g. digits@2.1.0.
        version: ModelVersion,
    },
    /// Bring an archived version back.
    Restore {
        /// E.g. digits@2.1.0.
        version: ModelVersion,
    },
}

impl Version {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Push {
                path,
                model,
                version,
                metadata,
            } => {
                let bundle = Bundle::read(&path, metadata.as_deref()).map_err(CliError::failed)?;
                let pushed = push(client, bundle, model, version).await?;
                output.show(&pushed, |pushed| {
                    format!("Registered {} ({}).", pushed.full_name, bytes(pushed.bytes))
                })
            }
            Self::List { model } => {
                let filter = model
                    .map(|model| format!("?model={model}"))
                    .unwrap_or_default();
                let versions: Vec<VersionView> = client.get(&format!("/versions{filter}")).await?;
                output.show(&versions, |versions| list_table(versions))
            }
            Self::Show { version } => output.show(&fetch(client, &version).await?, text),
            Self::Compare { left, right } => {
                let pair = compare::Comparison {
                    left: fetch(client, &left).await?,
                    right: fetch(client, &right).await?,
                };
                output.show(&pair, compare::text)
            }
            Self::Archive { version } => act(client, output, &version, "archive").await,
            Self::Restore { version } => act(client, output, &version, "restore").await,
        }
    }
}

fn page(of: &ModelVersion) -> String {
    format!("/models/{}/versions/{}", of.model, of.version)
}

async fn fetch(client: &Client, of: &ModelVersion) -> Result<VersionView, CliError> {
    client.get(&page(of)).await
}

async fn act(
    client: &Client,
    output: &Output,
    of: &ModelVersion,
    action: &str,
) -> Result<(), CliError> {
    let path = format!("{}/{action}", page(of));
    let view: VersionView = client.json(client.request(Method::POST, &path)).await?;
    output.show(&view, |view| {
        format!("{of} is {} now.", stage_name(view.stage))
    })
}

async fn push(
    client: &Client,
    bundle: Bundle,
    model: ModelName,
    version: Number,
) -> Result<VersionView, CliError> {
    let bar = upload_bar(bundle.files.iter().map(|file| file.size).sum());
    for file in &bundle.files {
        bar.set_message(file.path.to_string());
        upload(client, file, &bar).await?;
    }
    bar.finish_and_clear();
    let files = bundle
        .files
        .into_iter()
        .map(|file| UploadedFile {
            path: file.path,
            digest: file.digest,
        })
        .collect();
    let registration = Registration {
        model,
        version,
        files,
        metadata: bundle.metadata,
    };
    client.post("/versions", &registration).await
}

/// Uploads a file that the coordinator does not have.
async fn upload(client: &Client, file: &BundleFile, bar: &ProgressBar) -> Result<(), CliError> {
    let path = format!("/blobs/{}", file.digest);
    let there = client.request(Method::HEAD, &path).send().await;
    if there.is_ok_and(|response| response.status() == StatusCode::OK) {
        bar.inc(file.size);
        return Ok(());
    }
    let opened = File::open(&file.source)
        .await
        .map_err(|error| CliError::Failed(format!("{}: {error}", file.source.display())))?;
    let progress = bar.clone();
    let stream = ReaderStream::with_capacity(opened, 256 << 10).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            progress.inc(chunk.len() as u64);
        }
    });
    let request = client
        .upload(Method::PUT, &path)
        .header(CONTENT_LENGTH, file.size)
        .body(Body::wrap_stream(stream));
    client.send(request).await.map(drop)
}

fn list_table(versions: &[VersionView]) -> String {
    table(
        [
            "model",
            "version",
            "stage",
            "size",
            "registered",
            "full name",
        ],
        versions.iter().map(|version| {
            [
                version.model.to_string(),
                version.version.to_string(),
                stage_name(version.stage).to_owned(),
                bytes(version.bytes),
                version.registered_at.to_string(),
                version.full_name.clone(),
            ]
        }),
    )
}

fn text(version: &VersionView) -> String {
    let metadata = &version.metadata;
    let head = fields([
        ("Version", version.full_name.clone()),
        ("Stage", stage_name(version.stage).to_owned()),
        ("Digest", version.digest.to_string()),
        ("Registered", version.registered_at.to_string()),
        (
            "Inputs",
            joined(version.signature.inputs.iter().map(compare::tensor)),
        ),
        (
            "Outputs",
            joined(version.signature.outputs.iter().map(compare::tensor)),
        ),
        ("Algorithm", or_dash(metadata.algorithm.as_ref())),
        ("Owner", or_dash(metadata.owner.as_ref())),
        (
            "Training data",
            or_dash(metadata.training_data_version.as_ref()),
        ),
        ("Snapshot", or_dash(metadata.training_snapshot.as_ref())),
        (
            "Features",
            format!(
                "{} ({})",
                metadata.features.len(),
                or_dash(metadata.feature_version.as_ref())
            ),
        ),
        ("Drift", joined(metadata.drift.keys())),
        ("Commit", or_dash(metadata.git_commit.as_ref())),
        (
            "Metrics",
            joined(
                metadata
                    .metrics
                    .iter()
                    .map(|(name, value)| format!("{name} {value}")),
            ),
        ),
        (
            "Labels",
            joined(
                metadata
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            ),
        ),
        ("Changes", or_dash(metadata.expected_changes.as_ref())),
        ("Card", or_dash(metadata.model_card.as_ref())),
    ]);
    let files = table(
        ["file", "size", "digest"],
        version
            .files
            .iter()
            .map(|file| [file.path.to_string(), bytes(file.size), file.digest.short()]),
    );
    format!("{head}\n{files}")
}
