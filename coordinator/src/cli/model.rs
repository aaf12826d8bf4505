//! `rollcall model`: what serves.

use clap::Subcommand;
use rollcall_coordinator_core::view::{ModelView, VersionStage};
use rollcall_shared::ids::ModelName;

use super::CliError;
use super::client::Client;
use super::output::{Output, fields, or_dash, table};

/// Models.
#[derive(Debug, Subcommand)]
pub(super) enum Model {
    /// List them.
    List,
    /// One model with its versions.
    Show {
        /// Its name.
        model: ModelName,
    },
}

impl Model {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let models: Vec<ModelView> = client.get("/models").await?;
                output.show(&models, |models| list_table(models))
            }
            Self::Show { model } => {
                let model: ModelView = client.get(&format!("/models/{model}")).await?;
                output.show(&model, text)
            }
        }
    }
}

pub(super) fn list_table(models: &[ModelView]) -> String {
    table(
        [
            "model",
            "stable",
            "previous",
            "generation",
            "versions",
            "rollout",
        ],
        models.iter().map(|model| {
            [
                model.model.to_string(),
                or_dash(model.stable),
                or_dash(model.previous),
                model.generation.to_string(),
                model.versions.len().to_string(),
                or_dash(model.rollout),
            ]
        }),
    )
}

fn text(model: &ModelView) -> String {
    let head = fields([
        ("Model", model.model.to_string()),
        ("Stable", or_dash(model.stable)),
        ("Previous", or_dash(model.previous)),
        ("Generation", model.generation.to_string()),
        ("Rollout", or_dash(model.rollout)),
    ]);
    let versions = table(
        ["version", "stage"],
        model
            .versions
            .iter()
            .map(|v| [v.version.to_string(), stage_name(v.stage).to_owned()]),
    );
    format!("{head}\n{versions}")
}

/// A stage as JSON has it.
pub(super) const fn stage_name(stage: VersionStage) -> &'static str {
    match stage {
        VersionStage::Registered => "registered",
        VersionStage::Shadow => "shadow",
        VersionStage::Canary => "canary",
        VersionStage::Production => "production",
        VersionStage::Archived => "archived",
        VersionStage::Withdrawn => "withdrawn",
    }
}
