//! `rollcall audit`: the journal, read and checked on this side.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use rollcall_coordinator_core::record::Record;
use rollcall_shared::digest::Digest;
use rollcall_shared::time::{Timestamp, parse_duration};
use rollcall_transport::clock::Clock;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::contexts::connect;
use super::output::{Output, table};
use super::{CliError, Global, explain};
use crate::journal::ChainVerifier;

/// Records shown when no `--since` is given.
const LAST: u64 = 50;

/// Characters of a record's detail in a table.
const DETAIL_CHARS: usize = 100;

/// The audit log.
#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Show records: who did what, when.
    Log {
        /// From this time on (2026-01-15T16:00:00Z), or for so long back (2h). Without it the
        /// last 50.
        #[arg(long)]
        since: Option<String>,
    },
    /// Check the hash chain on this machine, from the coordinator or from an exported file.
    Verify {
        /// What `audit export` wrote.
        file: Option<PathBuf>,
    },
    /// Write all records, byte for byte, one a line.
    Export {
        /// Where.
        file: PathBuf,
    },
}

#[derive(Deserialize)]
struct HeadView {
    seq: u64,
    hash: Digest,
}

impl Audit {
    pub(super) async fn run(self, global: &Global, output: &Output) -> Result<(), CliError> {
        match self {
            Self::Log { since } => log(&connect(global)?, output, since.as_deref()).await,
            Self::Verify { file: Some(file) } => verify_file(output, &file),
            Self::Verify { file: None } => verify(&connect(global)?, output).await,
            Self::Export { file } => export(&connect(global)?, output, &file).await,
        }
    }
}

/// Records from number `from` on, a page; empty at the end.
async fn page(client: &Client, from: u64) -> Result<Vec<String>, CliError> {
    let request = client.request(Method::GET, &format!("/audit/records?from={from}"));
    let response = client.send(request).await?;
    let text = response.text().await.map_err(CliError::failed)?;
    Ok(text.lines().map(str::to_owned).collect())
}

async fn log(client: &Client, output: &Output, since: Option<&str>) -> Result<(), CliError> {
    let (mut from, begin) = match since {
        Some(since) => (1, begin(since)?),
        None => {
            let head: HeadView = client.get("/audit/head").await?;
            (head.seq.saturating_sub(LAST - 1).max(1), Timestamp::ZERO)
        }
    };
    let mut records = Vec::new();
    loop {
        let lines = page(client, from).await?;
        if lines.is_empty() {
            break;
        }
        from += lines.len() as u64;
        for line in lines {
            let record: Record = serde_json::from_str(&line).map_err(CliError::failed)?;
            if record.at >= begin {
                records.push(record);
            }
        }
    }
    output.show(&records, |records| {
        table(
            ["record", "at", "by", "what", "detail"],
            records.iter().map(row),
        )
    })
}

fn begin(since: &str) -> Result<Timestamp, CliError> {
    if let Ok(at) = since.parse() {
        return Ok(at);
    }
    let back = parse_duration(since).map_err(|_| {
        CliError::Usage(format!(
            "{since:?} is neither a time (2026-01-15T16:00:00Z) nor a duration (2h)"
        ))
    })?;
    Ok(Clock::start(Timestamp::ZERO).now() - back)
}

fn row(record: &Record) -> [String; 5] {
    let event = serde_json::to_value(&record.event).unwrap_or(Value::Null);
    let (what, detail) = match event {
        Value::Object(event) => event
            .into_iter()
            .next()
            .map(|(what, detail)| (what, detail.to_string()))
            .unwrap_or_default(),
        Value::String(what) => (what, String::new()),
        other => (String::new(), other.to_string()),
    };
    [
        record.seq.to_string(),
        record.at.to_string(),
        explain::actor(&record.actor),
        what,
        detail.chars().take(DETAIL_CHARS).collect(),
    ]
}

async fn verify(client: &Client, output: &Output) -> Result<(), CliError> {
    let head: HeadView = client.get("/audit/head").await?;
    let mut verifier = ChainVerifier::from_start();
    let mut at_head = None;
    loop {
        let lines = page(client, verifier.head().seq + 1).await?;
        if lines.is_empty() {
            break;
        }
        for line in lines {
            verifier.check(&line).map_err(CliError::failed)?;
            if verifier.head().seq == head.seq {
                at_head = Some(verifier.head().hash);
            }
        }
    }
    // The log may have grown since; what the coordinator called its head must be in it.
    if at_head != Some(head.hash) {
        return Err(CliError::Failed(format!(
            "the coordinator's head is record {} with hash {}, but the records do not lead to it",
            head.seq,
            head.hash.short()
        )));
    }
    report(output, &verifier)
}

fn verify_file(output: &Output, file: &Path) -> Result<(), CliError> {
    let io = |error: std::io::Error| CliError::Failed(format!("{}: {error}", file.display()));
    let reader = BufReader::new(std::fs::File::open(file).map_err(io)?);
    let mut verifier = ChainVerifier::from_start();
    for line in reader.lines() {
        verifier
            .check(&line.map_err(io)?)
            .map_err(CliError::failed)?;
    }
    report(output, &verifier)
}

fn report(output: &Output, verifier: &ChainVerifier) -> Result<(), CliError> {
    let head = verifier.head();
    output.show(
        &json!({ "verified": true, "records": head.seq, "head": head.hash }),
        |_| {
            format!(
                "{} records, one unbroken chain; head {}",
                head.seq, head.hash
            )
        },
    )
}

async fn export(client: &Client, output: &Output, file: &Path) -> Result<(), CliError> {
    let io = |error: std::io::Error| CliError::Failed(format!("{}: {error}", file.display()));
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut temporary =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(io)?;
    let mut next = 1;
    loop {
        let lines = page(client, next).await?;
        if lines.is_empty() {
            break;
        }
        next += lines.len() as u64;
        for line in lines {
            writeln!(temporary, "{line}").map_err(io)?;
        }
    }
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(file).map_err(|error| io(error.error))?;
    let records = next - 1;
    output.show(&json!({ "records": records, "file": file }), |_| {
        format!(
            "{records} records written to {}; check them: rollcall audit verify {}",
            file.display(),
            file.display()
        )
    })
}
