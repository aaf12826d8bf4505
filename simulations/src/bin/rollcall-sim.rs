//! `rollcall-sim`: deterministic exploration of a simulated fleet, and measurements of a real one.

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use rollcall_simulations::arguments::RunArguments;
use rollcall_simulations::explore::{Summary, describe, describe_shrunk, explore};
use rollcall_simulations::faults::Knob;
use rollcall_simulations::fleet::versus::{Broker, Contest};
use rollcall_simulations::{
    chaos, fleet, hostile, isolation, judge, multicall, mutants, storm, world,
};
use serde::Serialize;

/// Simulates a whole fleet.
#[derive(Parser)]
#[command(name = "rollcall-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds and look for broken promises
    Explore {
        /// How many seeds
        #[arg(long, default_value_t = 1_000)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Make the first broken run smaller: shorter, fewer agents, fewer hazards
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        run: RunArguments,
        /// How to print; the default is a table
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Run one seed again, and show how it went
    Replay {
        /// The seed
        seed: u64,
        /// Write the whole trace here
        #[arg(long)]
        trace: Option<PathBuf>,
        /// Search for a smaller run that breaks the same promise
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        run: RunArguments,
    },
    /// Real processes under kill -9, pauses, lossy and cut links, full and damaged disks
    Chaos(chaos::Arguments),
    /// Plant known faults in the source that ships, and see whether they are noticed
    Mutants {
        /// This one and no other
        #[arg(long)]
        only: Option<String>,
        /// Show for each how the smallest run that notices it goes
        #[arg(long)]
        shrink: bool,
        /// How to print; the default is a table
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Measure how fast a rollback spreads, over real QUIC on loopback
    Fleet {
        /// How many agents
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
        agents: u32,
        /// How many rollbacks
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        rounds: u32,
        /// Packets lost each way, in percent
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=90))]
        loss: u8,
        /// How many milliseconds every packet takes, one way
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000))]
        delay: u64,
        /// Cut the network for so many milliseconds when the rollback is decided
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=30_000))]
        outage: u64,
        #[command(flatten)]
        versus: VersusArguments,
        /// How to print; the default is a table
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Kill the coordinator under a whole fleet and measure how it comes back
    Storm(storm::Arguments),
    /// Measure how fast a rollback spreads among bad neighbours
    Hostile(hostile::Arguments),
    /// Measure what candidates that misbehave in their engine cost stable's clients
    Isolation(isolation::Arguments),
    /// Draw rollouts whose truth is known, and compare the judge with the tests of others
    Judge(judge::Arguments),
}

#[derive(clap::Args)]
struct VersusArguments {
    /// Send as much through these brokers too, in the same run, and compare
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["loss", "delay", "outage"])]
    versus: Vec<Broker>,
    /// Measure the brokers alone
    #[arg(long, requires = "versus")]
    only_versus: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(exit) = multicall::dispatch() {
        return Ok(exit);
    }
    match Arguments::parse().command {
        Command::Explore {
            seeds,
            from,
            shrink,
            run,
            output,
        } => explore_seeds(seeds, from, shrink, &run, output),
        Command::Replay {
            seed,
            trace,
            shrink,
            run,
        } => replay(seed, trace, shrink, &run),
        Command::Mutants {
            only,
            shrink,
            output,
        } => plant_mutants(only.as_deref(), shrink, output),
        Command::Chaos(arguments) => chaos::run(&arguments),
        Command::Hostile(arguments) => hostile::main(&arguments),
        Command::Isolation(arguments) => isolation::main(&arguments),
        Command::Judge(arguments) => judge::main(&arguments),
        Command::Storm(arguments) => storm::main(&arguments),
        Command::Fleet {
            agents,
            rounds,
            loss,
            delay,
            outage,
            versus,
            output,
        } => {
            let (loss_percent, outage) = (f64::from(loss), Duration::from_millis(outage));
            measure_fleet(
                &fleet::Options {
                    agents,
                    rounds,
                    loss_percent,
                    delay: Duration::from_millis(delay),
                    outage,
                },
                &versus,
                output,
            )
        }
    }
}

/// Shown on a terminal, silent in a pipe.
fn progress(length: u64) -> ProgressBar {
    if std::io::stderr().is_terminal() {
        ProgressBar::new(length)
    } else {
        ProgressBar::hidden()
    }
}

fn plant_mutants(only: Option<&str>, shrink: bool, output: Output) -> anyhow::Result<ExitCode> {
    let checkout = mutants::checkout_of(&std::env::current_dir()?)?;
    let bar = progress(0).with_style(ProgressStyle::with_template(
        "[{elapsed_precise}] {pos}/{len} {wide_bar} {msg}",
    )?);
    let report = mutants::run(&checkout, only, shrink, &bar)?;
    bar.finish_and_clear();
    match output {
        Output::Json => println!("{}", serde_json::to_string(&report)?),
        Output::Table => print!("{report}"),
    }
    Ok(if report.survivors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure_fleet(
    options: &fleet::Options,
    versus: &VersusArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let contest = Contest::prepare(&versus.versus, options.agents, options.rounds)?;
    let bar = progress(0);
    if versus.only_versus {
        let alone = contest.measure_alone(&bar)?;
        bar.finish_and_clear();
        return print(&alone, output);
    }
    // One thread for all agents, as for the brokers' receivers: what they would do on
    // machines of their own must not take the coordinator's cores.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut figures = runtime.block_on(fleet::run(options, multicall::Programs::here()?, &bar))?;
    // The agents end here: brokers are measured with the machine to themselves.
    drop(runtime);
    figures.compare(contest.measure(&bar)?);
    bar.finish_and_clear();
    print(&figures, output)
}

fn print(figures: &(impl Display + Serialize), output: Output) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => println!("{}", serde_json::to_string(figures)?),
        Output::Table => print!("{figures}"),
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the exploration itself took; no run sees it"
)]
fn explore_seeds(
    seeds: u64,
    from: u64,
    shrink: bool,
    run: &RunArguments,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let setup = run.setup(false);
    let began = std::time::Instant::now();
    let bar = progress(seeds);
    let explored = explore(from, seeds, &setup, usize::MAX, |_| bar.inc(1));
    bar.finish_and_clear();
    let mut summary = Summary::of(&explored, from, began.elapsed());
    if shrink {
        summary.shrunk = explored.shrunk(&setup);
    }
    match output {
        Output::Json => println!("{}", serde_json::to_string(&summary)?),
        Output::Table => {
            for outcome in &explored.broken {
                println!("{}", describe(outcome, &setup));
            }
            if let Some(shrunk) = &summary.shrunk {
                println!("{}", describe_shrunk(shrunk));
            }
            for (knob, count) in explored.fired.counts() {
                println!("{count:>12} {knob:?}");
            }
            println!(
                "{} seeds from {from}: {} broken, {} events, {:.0} s simulated in {:.1} s",
                summary.seeds,
                explored.broken.len(),
                summary.events,
                summary.simulated_s,
                summary.wall_s
            );
        }
    }
    Ok(if explored.broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Lines of the trace that are shown.
const TAIL: usize = 60;

fn replay(
    seed: u64,
    trace: Option<PathBuf>,
    shrink: bool,
    run: &RunArguments,
) -> anyhow::Result<ExitCode> {
    let setup = run.setup(true);
    let outcome = world::run(seed, &setup);
    if shrink && let Some(shrunk) = rollcall_simulations::shrink::shrink(&outcome, &setup) {
        println!("{}", describe_shrunk(&shrunk));
        return Ok(ExitCode::FAILURE);
    }
    if let Some(path) = trace {
        std::fs::write(&path, outcome.trace.join("\n") + "\n")
            .with_context(|| format!("the trace cannot be written to {}", path.display()))?;
        println!(
            "{} lines written to {}",
            outcome.trace.len(),
            path.display()
        );
    } else {
        let skipped = outcome.trace.len().saturating_sub(TAIL);
        outcome.trace[skipped..]
            .iter()
            .for_each(|line| println!("{line}"));
    }
    println!("{}", describe(&outcome, &setup));
    println!(
        "{} events in {:.1} s simulated, trace {}",
        outcome.events,
        outcome.simulated.as_secs_f64(),
        outcome.trace_hash.short()
    );
    let quiet: Vec<_> = outcome
        .fired
        .counts()
        .filter(|(_, count)| *count == 0)
        .map(|(knob, _)| knob)
        .collect::<Vec<Knob>>();
    println!("never fired: {quiet:?}");
    Ok(if outcome.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
