//! Every `rollcall` command: a file each, thin over the HTTP API.
//!
//! What a command prints goes to standard output (`-o table` or `-o json`); progress
//! and errors go to standard error. The exit code says how it ended: see [`CliError`].

mod agent;
mod audit;
mod bundle;
pub mod client;
mod compare;
mod context;
pub mod contexts;
mod explain;
mod init;
mod kpi;
mod label;
mod login;
mod model;
mod output;
mod receipts;
mod rehearsal;
mod rollback;
mod rollout;
mod serve;
mod status;
mod token;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use output::{Format, Output};

/// Why a command did not do what it was asked for. One line: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Refused or failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The command line makes no sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// No answer from the coordinator: exit code 3.
    #[error(
        "the coordinator at {url} does not answer ({why}): check that it runs and that the URL is right"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the network says.
        why: String,
    },
    /// Not decided yet: exit code 4.
    #[error("{0}")]
    Waiting(String),
}

impl CliError {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::Waiting(_) => 4,
        }
    }
}

/// Rollcall moves model versions across a fleet of serving nodes, and takes them back
/// at once when they misbehave.
#[derive(Debug, Parser)]
#[command(
    name = "rollcall",
    version,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 usage, 3 coordinator unreachable, 4 not decided yet."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
struct Global {
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// The coordinator, instead of the context's, e.g. https://rollcall.example:7701.
    #[arg(long, global = true, env = "ROLLCALL_URL")]
    url: Option<String>,
    /// The operator token, instead of the context's.
    #[arg(long, global = true, env = "ROLLCALL_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The fleet's CA certificate (PEM file), instead of the context's.
    #[arg(long, global = true, env = "ROLLCALL_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where contexts are kept.
    #[arg(long, global = true, env = "ROLLCALL_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// The XDG base folder, from the environment only.
    #[arg(long, global = true, env = "XDG_CONFIG_HOME", hide = true)]
    xdg_config_home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a fleet: CA, coordinator identity, configuration, first admin token.
    Init(init::Init),
    /// Run the coordinator.
    Serve(serve::Serve),
    /// Make, list and revoke tokens of nodes and operators.
    #[command(subcommand)]
    Token(token::Token),
    /// Remember a coordinator and a token.
    Login(login::Login),
    /// Remembered coordinators.
    #[command(subcommand)]
    Context(context::Context),
    /// The fleet, its models, running rollouts and alerts, on one screen.
    Status,
    /// Models.
    #[command(subcommand)]
    Model(model::Model),
    /// Versions of models.
    #[command(subcommand)]
    Version(version::Version),
    /// Rollouts of versions.
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Take a model's candidate (or its newest stable version) back from every node, now.
    Rollback(rollback::Rollback),
    /// Labels and outcomes of requests.
    #[command(subcommand)]
    Label(label::Label),
    /// Outcomes of versions on trial.
    #[command(subcommand)]
    Kpi(kpi::Kpi),
    /// Serving nodes.
    #[command(subcommand)]
    Agent(agent::Agent),
    /// The audit log.
    #[command(subcommand)]
    Audit(audit::Audit),
}

/// Runs one command line, the program's name first.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help is no error: clap knows the stream and the code.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let output = Output::new(cli.global.output);
    if let Command::Serve(serve) = cli.command {
        return serve.run();
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::failed)?
        .block_on(dispatch(cli.command, &cli.global, &output))
}

async fn dispatch(command: Command, global: &Global, output: &Output) -> Result<(), CliError> {
    match command {
        Command::Serve(serve) => serve.run(),
        Command::Init(init) => init.run(output),
        Command::Login(login) => login.run(global, output).await,
        Command::Context(context) => context.run(global, output),
        Command::Audit(audit) => audit.run(global, output).await,
        Command::Token(token) => token.run(&contexts::connect(global)?, output).await,
        Command::Status => status::run(&contexts::connect(global)?, output).await,
        Command::Model(model) => model.run(&contexts::connect(global)?, output).await,
        Command::Version(version) => version.run(&contexts::connect(global)?, output).await,
        Command::Rollout(rollout) => rollout.run(&contexts::connect(global)?, output).await,
        Command::Rollback(rollback) => rollback.run(&contexts::connect(global)?, output).await,
        Command::Label(label) => label.run(&contexts::connect(global)?, output).await,
        Command::Kpi(kpi) => kpi.run(&contexts::connect(global)?, output).await,
        Command::Agent(agent) => agent.run(&contexts::connect(global)?, output).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_contract_parses() {
        for line in [
            "init --dir d --fleet f --host h --host i",
            "serve --config c.toml",
            "token create --kind agent --ttl 1h",
            "token create --kind operator --role promoter --role ml-engineering --name ana",
            "token list",
            "token revoke ab12",
            "login https://h:1 --token t --ca ca.pem",
            "context list",
            "context use prod",
            "status -o json",
            "model list",
            "model show digits",
            "version push p --model digits --version 1.0.0 --metadata m.toml",
            "version list",
            "version show digits@1.0.0",
            "version compare digits@1.0.0 digits@2.0.0",
            "version archive digits@1.0.0",
            "version restore digits@1.0.0",
            "rollout start p.toml --dry-run",
            "rollout list",
            "rollout show r-1",
            "rollout watch r-1",
            "rollout pause r-1",
            "rollout resume r-1",
            "rollout advance r-1",
            "rollout approve r-1 --gate g --note n",
            "rollout reject r-1",
            "rollout explain r-1",
            "rollback digits --reason r",
            "label push f.csv --model digits",
            "kpi record --model digits --version 1.0.0 --name spend --value -1.5 --count 3",
            "agent list",
            "agent show n",
            "agent quarantine n",
            "agent release n",
            "agent revoke n",
            "audit log --since 2026-01-15T16:00:00Z",
            "audit verify",
            "audit verify f",
            "audit export f",
        ] {
            let args = std::iter::once("rollcall").chain(line.split(' '));
            assert!(Cli::try_parse_from(args).is_ok(), "{line:?} was refused");
        }
    }
}
