//! The command line of `rollcall-agent`.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 usage, 3 unreachable.

mod cache;
mod enroll;
mod run;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{CONFIG_FILE, Config};

/// Something that the user asked for and did not get.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// Not done; what, why and what to do.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    /// Nobody answers at the other end.
    #[error("{0:#}")]
    Unreachable(anyhow::Error),
}

impl CliError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Unreachable(_) => 3,
        }
    }
}

/// Serves machine-learning models on this node, as the fleet's coordinator assigns them.
#[derive(Debug, Parser)]
#[command(name = "rollcall-agent", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a fleet: make this node's key, get its certificate, write its configuration
    Enroll(enroll::Enroll),
    /// Serve until stopped
    Run(run::Run),
    /// Show what the agent on this machine serves, from where, its leases, and how far it is with
    /// versions that it prepares
    Status(status::Status),
    /// Look after the versions on this node's disk
    Cache(cache::Cache),
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
struct OutputArg {
    /// table (default on a terminal) or json
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

impl OutputArg {
    fn get(self) -> Output {
        use std::io::IsTerminal;
        self.output.unwrap_or(if std::io::stdout().is_terminal() {
            Output::Table
        } else {
            Output::Json
        })
    }
}

/// Which agent of this machine.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct WhichAgent {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder that `enroll` made
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl WhichAgent {
    fn read(&self) -> anyhow::Result<Config> {
        let path = match (&self.config, &self.dir) {
            (Some(config), _) => config.clone(),
            (None, Some(dir)) => dir.join(CONFIG_FILE),
            (None, None) => anyhow::bail!("give --config FILE or --dir DIR"),
        };
        Ok(Config::read(&path)?)
    }
}

/// Runs a command line; the first argument is the program's own name.
pub(crate) fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with 0, usage errors to stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.command {
        Command::Enroll(command) => command.run(),
        Command::Run(command) => command.run().map_err(CliError::Failed),
        Command::Status(command) => command.run(),
        Command::Cache(command) => command.run().map_err(CliError::Failed),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rollcall-agent: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// A small runtime for commands that end soon.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// `key=value`, for clap.
fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => {
            Ok((key.to_owned(), value.to_owned()))
        }
        Some(_) | None => Err("write it as key=value, e.g. zone=eu-1".to_owned()),
    }
}
