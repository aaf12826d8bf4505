//! `rollcall login`: checks a token and remembers the coordinator.

use clap::Args;
use rollcall_coordinator_core::view::FleetStatus;
use serde_json::json;

use super::client::Client;
use super::contexts::{Saved, ca_text, load, store};
use super::output::Output;
use super::{CliError, Global};

/// Remember a coordinator and a token (`--token`, `--ca`).
#[derive(Debug, Args)]
pub(super) struct Login {
    /// The coordinator, e.g. https://rollcall.example:7701.
    #[arg(value_name = "URL")]
    coordinator: String,
    /// What to call it.
    #[arg(long, default_value = "default")]
    name: String,
}

impl Login {
    pub(super) async fn run(self, global: &Global, output: &Output) -> Result<(), CliError> {
        let token = global.token.clone().ok_or_else(|| {
            CliError::Usage("which token? `rollcall login URL --token T --ca FILE`".to_owned())
        })?;
        let ca = ca_text(global)?;
        let client = Client::new(&self.coordinator, &token, ca.as_deref())?;
        let status: FleetStatus = client.get("/status").await?;
        let mut contexts = load(global)?;
        contexts.current = Some(self.name.clone());
        contexts.context.insert(
            self.name.clone(),
            Saved {
                url: self.coordinator.clone(),
                token,
                ca,
            },
        );
        store(global, &contexts)?;
        output.show(
            &json!({ "context": self.name, "url": self.coordinator }),
            |_| {
                format!(
                    "Logged in to {} as context {:?}: {} nodes, {} models.",
                    self.coordinator,
                    self.name,
                    status.nodes.enrolled,
                    status.models.len()
                )
            },
        )
    }
}
