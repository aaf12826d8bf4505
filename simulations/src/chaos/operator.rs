//! The operator: starts rollouts, takes them back or lets them be promoted, over and over,
//! with the commands that people type. What the commands acknowledge goes into the history.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::ground::{Ground, LEASE, MODEL, Outcome};
use super::history::{Acknowledged, At, Deed, NodeReport, Rank, Report, Withdrawal};
use crate::seed::Draws;

/// How long a rollback is followed.
const FOLLOW_MAX: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(500);

const CANARY: &str = "
[[stage]]
name = \"shadow\"
mode = \"shadow\"
share_percent = 100
hold = \"1s\"
[[stage]]
name = \"canary\"
mode = \"canary\"
by = \"request\"
share_percent = 50
hold = \"1s\"
";

/// One kind of trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trip {
    /// Everywhere at once, and taken back.
    DirectTakenBack,
    /// Everywhere at once, and promoted.
    DirectPromoted,
    /// Shadow, canary, full, promoted.
    CanaryPromoted,
    /// Taken back somewhere on the way.
    CanaryTakenBack,
    /// It fails on some inputs: the judge's affair.
    Failing,
    /// Promoted, and taken back as stable.
    StableTakenBack,
}

/// See the module.
pub(super) struct Operator {
    ground: Arc<Ground>,
    draws: Draws,
    next: u32,
}

impl Operator {
    pub(super) fn new(ground: Arc<Ground>, seed: u64) -> Self {
        Self {
            ground,
            draws: Draws::child(seed, "operator"),
            next: 0,
        }
    }

    /// Makes a first version stable everywhere; nothing goes wrong yet.
    pub(super) async fn first_version(&mut self) -> Result<()> {
        let version = self.push("1.0.0").await.context("the first push failed")?;
        let id = self.start(&version, false, "500ms").await;
        let id = id.context("the first rollout did not start")?;
        for _ in 0..200 {
            let rollout = self.ground.ask(&["rollout", "show", &id]).await;
            if rollout.is_some_and(|rollout| rollout["state"] == "promoted") {
                return Ok(());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        bail!("the first version was not promoted")
    }

    /// Works until `stop`, and then to the end of the trip.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            self.end_what_is_live().await;
            let trip = match self.draws.below(8) {
                0 | 1 => Trip::DirectTakenBack,
                2 => Trip::DirectPromoted,
                3 => Trip::CanaryPromoted,
                4 | 5 => Trip::CanaryTakenBack,
                6 => Trip::Failing,
                _ => Trip::StableTakenBack,
            };
            let pause = self.draws.real(0.2, 5.0);
            if self.trip(trip, pause).await.is_none() {
                // Refused, or nobody there: wait a moment.
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
        self
    }

    async fn trip(&mut self, trip: Trip, pause: f64) -> Option<()> {
        let good = if self.draws.chance(0.5) {
            "1.0.0"
        } else {
            "2.0.0"
        };
        let model = if trip == Trip::Failing { "5.0.0" } else { good };
        let version = self.push(model).await?;
        let canary = matches!(trip, Trip::CanaryPromoted | Trip::CanaryTakenBack);
        let watch = match trip {
            Trip::DirectPromoted | Trip::CanaryPromoted | Trip::StableTakenBack => "1s",
            Trip::DirectTakenBack | Trip::CanaryTakenBack | Trip::Failing => "1h",
        };
        let id = self.start(&version, canary, watch).await?;
        match trip {
            Trip::DirectTakenBack | Trip::CanaryTakenBack => {
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
                self.rollback(&version).await
            }
            Trip::DirectPromoted | Trip::CanaryPromoted => self.until_over(&id, &version).await,
            Trip::StableTakenBack => {
                self.until_over(&id, &version).await?;
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
                self.rollback(&version).await
            }
            Trip::Failing => self.until_over(&id, &version).await,
        }
    }

    /// Waits for the end of a rollout; takes it back if it does not come.
    async fn until_over(&mut self, id: &str, version: &str) -> Option<()> {
        for _ in 0..40 {
            let rollout = self.ground.ask(&["rollout", "show", id]).await;
            let state = rollout
                .as_ref()
                .and_then(|rollout| rollout["state"].as_str());
            match state.map(super::checker::rank) {
                Some(Rank::Over) => {
                    self.ground.count("promotions");
                    return Some(());
                }
                Some(Rank::Withdrawn) => return None,
                Some(Rank::Live) | None => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
        self.rollback(version).await
    }

    /// A version that nobody had before. Its digest is approved from the moment of the push.
    async fn push(&mut self, files: &str) -> Option<String> {
        self.next += 1;
        let version = format!("2.0.{}", self.next);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits");
        let path = format!("{path}/{files}");
        let words = [
            "version",
            "push",
            &path,
            "--model",
            MODEL,
            "--version",
            &version,
        ];
        let pushed = self.ground.command(&words).await;
        let what = Deed::Pushed {
            version: version.clone(),
        };
        self.acknowledge(&pushed, what)?;
        let shown = format!("{MODEL}@{version}");
        let shown = self.ground.ask(&["version", "show", &shown]).await?;
        let digest = shown["digest"].as_str()?.to_owned();
        let mut history = self.ground.history();
        history.approved.insert(version.clone(), digest);
        drop(history);
        Some(version)
    }

    fn acknowledge(&self, outcome: &Outcome, what: Deed) -> Option<()> {
        match outcome {
            Outcome::Done(_) | Outcome::Waiting(_) => {
                let at = self.ground.now();
                let mut history = self.ground.history();
                history.acknowledged.push(Acknowledged { at, what });
                Some(())
            }
            Outcome::Refused(_) => {
                self.ground.count("commands refused");
                None
            }
            Outcome::Unknown => {
                self.ground.count("commands without an answer");
                None
            }
        }
    }

    async fn start(&self, version: &str, canary: bool, watch: &str) -> Option<String> {
        let (strategy, stages) = if canary {
            ("canary", CANARY)
        } else {
            ("direct", "")
        };
        let lease = LEASE.as_secs();
        let plan = format!(
            "model = \"{MODEL}\"\ncandidate = \"{version}\"\nstrategy = \"{strategy}\"\n\
             lease = \"{lease}s\"\n\
             [policy]\nerror_rate_max = 0.02\nagreement_min = 0.5\nlatency_multiplier_max = 1000\n\
             min_requests = 20\ncheck_every = \"250ms\"\n{stages}\
             [[stage]]\nname = \"full\"\nmode = \"full\"\nwatch = \"{watch}\"\n"
        );
        let path = self.ground.dir.join("plan.toml");
        std::fs::write(&path, plan).ok()?;
        let started = self
            .ground
            .command(&["rollout", "start", path.to_str()?])
            .await;
        let rollout = started.json().and_then(|started| {
            let id = started["id"].as_str();
            id.map(str::to_owned)
        });
        let what = Deed::Rollout {
            rollout: rollout.clone().unwrap_or_default(),
            rank: Rank::Live,
        };
        self.acknowledge(&started, what)?;
        self.ground.count("rollouts");
        rollout
    }

    /// Takes a version back; it may be on trial or stable.
    async fn rollback(&self, version: &str) -> Option<()> {
        let asked = self.ground.now();
        let words = [
            "rollback",
            MODEL,
            "--reason",
            "chaos",
            "--version",
            version,
            "--wait",
            "0s",
        ];
        let outcome = self.ground.command(&words).await;
        let told = outcome.json();
        let rollout = told.as_ref().and_then(|told| told["rollout"].as_str());
        let what = Deed::Rollout {
            rollout: rollout.unwrap_or_default().to_owned(),
            rank: Rank::Withdrawn,
        };
        self.acknowledge(&outcome, what)?;
        let told = told?;
        self.note_rollback(&told, asked)?;
        self.ground.count("rollbacks by the operator");
        Some(())
    }

    fn note_rollback(&self, told: &Value, asked: At) -> Option<()> {
        let rollout = told["rollout"].as_str()?.to_owned();
        let version = told["withdrawn"].as_str()?.to_owned();
        let withdrawal = Withdrawal {
            rollout: rollout.clone(),
            generation: told["generation"].as_u64()?,
            asked: Some(asked),
            known: self.ground.now(),
        };
        let mut history = self.ground.history();
        // The observer may have seen it first; the earlier moment is the stricter one.
        if !history.withdrawals.contains_key(&version) {
            history.withdrawals.insert(version.clone(), withdrawal);
            drop(history);
            tokio::spawn(follow(Arc::clone(&self.ground), rollout, version));
        }
        Some(())
    }

    /// A rollout of an earlier trip (or of an old backup) ends first.
    async fn end_what_is_live(&self) -> Option<()> {
        let rollouts = self.ground.ask(&["rollout", "list"]).await?;
        for rollout in rollouts.as_array()? {
            if super::checker::rank(rollout["state"].as_str()?) == Rank::Live {
                self.rollback(rollout["candidate"].as_str()?).await;
            }
        }
        Some(())
    }

    /// Everything is healed: a rollout reaches every node, and so does its rollback.
    pub(super) async fn last_trip(&mut self) -> Result<()> {
        self.end_what_is_live().await;
        let version = self.push("2.0.0").await.context("the last push failed")?;
        let started = self.ground.now();
        self.start(&version, false, "1h")
            .await
            .context("the last rollout did not start")?;
        let everywhere = || {
            let history = self.ground.history();
            history.nodes.iter().all(|node| {
                let mut late = node.answers.iter().rev().take_while(|a| a.sent >= started);
                late.any(|answer| answer.version.as_deref() == Some(&version))
            })
        };
        let mut left = 120;
        while !everywhere() {
            left -= 1;
            ensure!(
                left > 0,
                "{version} did not reach every node after the healing"
            );
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let words = [
            "rollback",
            MODEL,
            "--reason",
            "chaos",
            "--version",
            &version,
            "--wait",
            "30s",
        ];
        let asked = self.ground.now();
        let told = self.ground.ask(&words).await;
        let told = told.context("the last rollback was not answered")?;
        self.note_rollback(&told, asked);
        let receipts = &told["receipts"];
        ensure!(
            receipts["received"] == self.ground.nodes.len(),
            "the last rollback did not reach every node: {receipts}"
        );
        Ok(())
    }
}

/// Asks who answered a withdrawal until all have, or are fenced.
pub(super) async fn follow(ground: Arc<Ground>, rollout: String, version: String) {
    let end = ground.now() + FOLLOW_MAX;
    while ground.now() < end {
        let told = ground.ask(&["rollout", "receipts", &rollout]).await;
        if let Some(told) = told.filter(|told| told["withdrawn"] == version.as_str()) {
            note_report(&ground, &version, &told);
            if told["settled"] == true {
                return;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn note_report(ground: &Ground, version: &str, told: &Value) {
    let got = ground.now();
    let mut report = Report {
        got,
        version: version.to_owned(),
        settled: told["settled"] == true,
        ..Report::default()
    };
    for node in told["nodes"].as_array().into_iter().flatten() {
        let is_it = |known: &super::ground::Node| node["node"] == known.name.as_str();
        let Some(index) = ground.nodes.iter().position(is_it) else {
            continue;
        };
        let word = match node["state"].as_str() {
            Some("receipt") => NodeReport::Receipt,
            Some("fenced") => NodeReport::Fenced,
            Some(_) | None => NodeReport::Open,
        };
        report.nodes.insert(index, word);
        report.after_ms.extend(node["after_ms"].as_f64());
    }
    ground.history().reports.push(report);
}
