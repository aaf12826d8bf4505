//! What a candidate that misbehaves inside its engine costs the clients of stable: nothing that
//! they could measure, is the claim.
//!
//! The agent's serving half runs as it ships in a process of its own (`ground`), a fresh one
//! for each candidate, with the digits model on the built-in engine as stable: it computes for
//! some microseconds, so that nothing hides behind the model. Clients send at a rate that
//! leaves cores free (`load`); what is compared is the latency of answers that stable gives by
//! right, which a canary's failures and time-outs are no part of. Calm spells and trials take
//! turns, in changing order, so that both see the same machine. The first line, without any
//! candidate, says how far that goes: no ratio can be told from 1 that lies within its quartiles.
//!
//! Clients share the machine with the agent. What the candidate's threads take from the clients
//! themselves is part of the ratio; on machines of their own they would not notice.
//!
//! Not measured: a version that is being loaded. The engine that a node loads with is chosen by
//! its configuration, and the digits model loads in a moment.

pub(crate) mod behaviour;
mod figures;
pub(crate) mod ground;
mod load;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use behaviour::Behaviour;
use figures::{Figures, Finding, Round, Spread};
use ground::{Order, Totals};
use load::{Answers, Clients};

use crate::cluster::Process;
use crate::fleet::{STABLE, figures as process};
use crate::multicall::Programs;
use crate::storm::Output;
use crate::traffic::Rows;

/// How long a new agent is warmed up: connections, threads, pages.
const WARM_UP: Duration = Duration::from_millis(300);

/// `rollcall-sim isolation`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many trials of each candidate, and as many calm spells
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// How many milliseconds each lasts
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    lasting: u64,
    /// How many requests a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rate: u32,
    /// These candidates; the default is all
    #[arg(long, value_delimiter = ',')]
    behaviours: Vec<Behaviour>,
    /// Used so; the default is both
    #[arg(long, value_delimiter = ',')]
    usages: Vec<Usage>,
    /// How to print; the default is a table
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// What a candidate gets to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Usage {
    /// A copy of every request.
    Shadow,
    /// One request in ten, to answer it.
    Canary,
}

/// One candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What it does.
    pub behaviour: Behaviour,
    /// To what.
    pub usage: Usage,
}

/// Measures and prints.
///
/// # Errors
/// When an agent does not start, or ends too early.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let figures = run(arguments, &Programs::here()?)?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string(&figures)?),
        Output::Table => print!("{figures}"),
    }
    Ok(if figures.all_answered() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments, programs: &Programs) -> Result<Figures> {
    let rows = Rows::read(&bundle().join("validation.json"))?;
    let mut findings = Vec::new();
    for trial in arguments.trials() {
        findings.push(find(arguments, programs, &rows, trial)?);
    }
    Ok(Figures {
        rounds: arguments.rounds,
        seconds: arguments.lasting().as_secs_f64(),
        rate: arguments.rate,
        findings,
    })
}

impl Arguments {
    const fn lasting(&self) -> Duration {
        Duration::from_millis(self.lasting)
    }

    /// No candidate first.
    fn trials(&self) -> Vec<Option<Trial>> {
        let behaviours = match self.behaviours.as_slice() {
            [] => &Behaviour::ALL,
            some => some,
        };
        let usages = match self.usages.as_slice() {
            [] => &[Usage::Shadow, Usage::Canary],
            some => some,
        };
        let of_usage = |usage: Usage| {
            behaviours
                .iter()
                .map(move |&behaviour| Some(Trial { behaviour, usage }))
        };
        std::iter::once(None)
            .chain(usages.iter().copied().flat_map(of_usage))
            .collect()
    }
}

/// The digits model that is stable.
pub(crate) fn bundle() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models/digits")
        .join(STABLE)
}

/// Trials and calm spells in turn, on an agent of their own.
fn find(
    arguments: &Arguments,
    programs: &Programs,
    rows: &Rows,
    trial: Option<Trial>,
) -> Result<Finding> {
    let mut agent = Agent::start(programs, rows, arguments, trial)?;
    agent.spell(Order::Calm, WARM_UP)?;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds {
        let lasting = arguments.lasting();
        rounds.push(if round % 2 == 0 {
            let calm = agent.spell(Order::Calm, lasting)?;
            let tried = agent.spell(Order::Try, lasting)?;
            Round { calm, tried }
        } else {
            let tried = agent.spell(Order::Try, lasting)?;
            let calm = agent.spell(Order::Calm, lasting)?;
            Round { calm, tried }
        });
    }
    let peak_bytes = process::peak_bytes(agent.process.pid())?;
    let totals = agent.order(Order::Calm)?;
    Ok(Finding::of(
        trial,
        &rounds,
        agent.answers,
        totals,
        peak_bytes,
    ))
}

/// A line from the process under test.
fn hear(told: &mut BufReader<ChildStdout>, log: &Path) -> Result<String> {
    let mut line = String::new();
    if told.read_line(&mut line)? == 0 {
        let log = std::fs::read_to_string(log)?;
        let last: Vec<_> = log.lines().rev().take(5).collect();
        anyhow::bail!("the agent under test ended; its log, last line first: {last:#?}");
    }
    Ok(line)
}

/// The process under test, and its clients.
struct Agent {
    process: Process,
    orders: ChildStdin,
    told: BufReader<ChildStdout>,
    clients: Clients,
    answers: Answers,
    /// What it logs; also why it broke off.
    log: tempfile::NamedTempFile,
}

impl Agent {
    fn start(
        programs: &Programs,
        rows: &Rows,
        arguments: &Arguments,
        trial: Option<Trial>,
    ) -> Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let mut child = programs
            .agent_under_test()
            // Services run without; a trace of the stack at each panic costs milliseconds.
            .env_remove("RUST_BACKTRACE")
            .arg(serde_json::to_string(&trial)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen()?)
            .spawn()?;
        let (orders, told) = (child.stdin.take(), child.stdout.take());
        let process = Process::of(child);
        let mut told = BufReader::new(told.context("no pipe")?);
        let address = hear(&mut told, log.path())?;
        Ok(Self {
            process,
            orders: orders.context("no pipe")?,
            told,
            clients: Clients::new(address.trim(), rows, arguments.rate)?,
            answers: Answers::default(),
            log,
        })
    }

    fn order(&mut self, order: Order) -> Result<Totals> {
        writeln!(self.orders, "{}", serde_json::to_string(&order)?)?;
        Ok(serde_json::from_str(&hear(
            &mut self.told,
            self.log.path(),
        )?)?)
    }

    /// Stable's answers for so long, in calm or under trial.
    fn spell(&mut self, order: Order, lasting: Duration) -> Result<Spread> {
        self.order(order)?;
        let pid = self.process.pid();
        let (began, cpu_before) = (tokio::time::Instant::now(), process::cpu(pid)?);
        let seen = self.clients.send(lasting)?;
        let cpu = process::cpu(pid)?.saturating_sub(cpu_before);
        self.answers.add(&seen.answers);
        let cpu_share = cpu.as_secs_f64() / began.elapsed().as_secs_f64();
        Ok(Spread::of(&seen, cpu_share))
    }
}
