//! `rollcall context`: which coordinator commands speak to.

use clap::Subcommand;
use serde_json::json;

use super::contexts::{load, store};
use super::output::{Output, table};
use super::{CliError, Global};

/// Remembered coordinators.
#[derive(Debug, Subcommand)]
pub(super) enum Context {
    /// List them.
    List,
    /// Choose the one to speak to.
    Use {
        /// Its name.
        name: String,
    },
}

impl Context {
    pub(super) fn run(self, global: &Global, output: &Output) -> Result<(), CliError> {
        let mut contexts = load(global)?;
        match self {
            Self::List => {
                let rows: Vec<_> = contexts
                    .context
                    .iter()
                    .map(|(name, saved)| {
                        (name, &saved.url, contexts.current.as_ref() == Some(name))
                    })
                    .collect();
                let json: Vec<_> = rows
                    .iter()
                    .map(|(name, url, current)| json!({ "name": name, "url": url, "current": current }))
                    .collect();
                output.show(&json, |_| {
                    table(
                        ["", "name", "url"],
                        rows.iter().map(|(name, url, current)| {
                            let mark = if *current { "*" } else { "" };
                            [mark.to_owned(), (*name).clone(), (*url).clone()]
                        }),
                    )
                })
            }
            Self::Use { name } => {
                if !contexts.context.contains_key(&name) {
                    return Err(CliError::Failed(format!(
                        "there is no context {name:?}; `rollcall context list`"
                    )));
                }
                contexts.current = Some(name.clone());
                store(global, &contexts)?;
                output.show(&json!({ "current": name }), |_| {
                    format!("Now speaking to {name}.")
                })
            }
        }
    }
}
