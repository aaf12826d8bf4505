//! Remembered coordinators: `$XDG_CONFIG_HOME/rollcall/contexts.toml`, readable by
//! its owner only, for it holds tokens.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::{CliError, Global};

/// All contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The one that is used unless told otherwise.
    pub(super) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(super) context: BTreeMap<String, Saved>,
}

/// One remembered coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    pub(super) url: String,
    pub(super) token: String,
    /// The CA certificate, PEM.
    pub(super) ca: Option<String>,
}

fn file(global: &Global) -> Result<PathBuf, CliError> {
    let folder = match (
        &global.config_dir,
        &global.xdg_config_home,
        std::env::home_dir(),
    ) {
        (Some(folder), _, _) => folder.clone(),
        (None, Some(xdg), _) => xdg.join("rollcall"),
        (None, None, Some(home)) => home.join(".config/rollcall"),
        (None, None, None) => {
            return Err(CliError::Usage(
                "there is no home folder: set ROLLCALL_CONFIG_DIR".into(),
            ));
        }
    };
    Ok(folder.join("contexts.toml"))
}

/// All contexts; none when nothing was remembered yet.
pub(super) fn load(global: &Global) -> Result<Contexts, CliError> {
    let path = file(global)?;
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| {
            CliError::Failed(format!(
                "{} is damaged ({error}): log in again",
                path.display()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(CliError::Failed(format!("{}: {error}", path.display()))),
    }
}

/// Keeps contexts: a reader sees the old file or the new one, never half.
pub(super) fn store(global: &Global, contexts: &Contexts) -> Result<(), CliError> {
    let path = file(global)?;
    let text = toml::to_string(contexts).map_err(CliError::failed)?;
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        // Temporary files are made with mode 0600.
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(text.as_bytes())?;
        temporary.as_file().sync_all()?;
        temporary.persist(&path)?;
        Ok(())
    };
    write().map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
}

/// The CA certificate that `--ca` names, as PEM text.
pub(super) fn ca_text(global: &Global) -> Result<Option<String>, CliError> {
    let read = |path: &PathBuf| {
        fs::read_to_string(path)
            .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))
    };
    global.ca.as_ref().map(read).transpose()
}

/// A client for the coordinator of the command line, the environment or the context.
pub(super) fn connect(global: &Global) -> Result<Client, CliError> {
    let contexts = load(global)?;
    let saved = contexts
        .current
        .as_ref()
        .and_then(|name| contexts.context.get(name));
    let missing = || {
        CliError::Usage("no coordinator is known: `rollcall login URL --token T --ca FILE`".into())
    };
    let url = global
        .url
        .as_ref()
        .or(saved.map(|saved| &saved.url))
        .ok_or_else(missing)?;
    let token = global
        .token
        .as_ref()
        .or(saved.map(|saved| &saved.token))
        .ok_or_else(missing)?;
    let ca = match ca_text(global)? {
        Some(ca) => Some(ca),
        None => saved.and_then(|saved| saved.ca.clone()),
    };
    Client::new(url, token, ca.as_deref())
}
