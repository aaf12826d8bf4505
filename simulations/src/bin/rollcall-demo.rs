//! One machine, the whole story: see `rollcall_simulations::demo`.

use std::process::ExitCode;

use clap::Parser;
use rollcall_simulations::{demo, multicall};

/// A coordinator, agents, models and traffic on this machine: a good version is
/// promoted, bad ones are taken back. Exits with 0 only if every step was seen to hold.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many agents.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=50))]
    agents: u16,
    /// Leave everything running at the end and print commands to play with.
    #[arg(long)]
    keep: bool,
    /// First of a block of loopback ports to use; free ones otherwise.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    port: Option<u16>,
}

fn main() -> ExitCode {
    if let Some(exit) = multicall::dispatch() {
        return exit;
    }
    let Arguments { agents, keep, port } = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("rollcall-demo: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(demo::run(demo::Options { agents, keep, port })) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nrollcall-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
