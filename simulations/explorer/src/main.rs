//! `rollcall-explorer`: explores seeds and prints one line of JSON. `rollcall-sim mutants`
//! builds it over and over, each time with another fault in a core; people use `rollcall-sim`.

use std::process::ExitCode;

use clap::Parser;
use rollcall_explorer::arguments::RunArguments;
use rollcall_explorer::explore::{Summary, explore};

/// Explores seeds, prints JSON.
#[derive(Parser)]
#[command(name = "rollcall-explorer")]
struct Arguments {
    /// How many seeds at most
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stop when so many runs broke a promise
    #[arg(long, default_value_t = 1)]
    enough: usize,
    /// Make the first broken run smaller
    #[arg(long)]
    shrink: bool,
    #[command(flatten)]
    run: RunArguments,
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the exploration itself took; no run sees it"
)]
fn main() -> Result<ExitCode, serde_json::Error> {
    let Arguments {
        seeds,
        from,
        enough,
        shrink,
        run,
    } = Arguments::parse();
    let began = std::time::Instant::now();
    // A core's panic is a finding, told in the JSON.
    std::panic::set_hook(Box::new(|_| {}));
    let setup = run.setup(false);
    let explored = explore(from, seeds, &setup, enough, |_| {});
    let mut summary = Summary::of(&explored, from, began.elapsed());
    if shrink {
        summary.shrunk = explored.shrunk(&setup);
    }
    println!("{}", serde_json::to_string(&summary)?);
    Ok(if explored.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
