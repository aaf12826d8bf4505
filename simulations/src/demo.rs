//! The whole story on one machine: a good version is promoted, a bad one is
//! caught by the judge before any client meets it, and a third is rolled back
//! while one node cannot be reached.
//!
//! Every claim that is printed was checked from the outside first: by the
//! versions in the answers that clients got, not by Rollcall's own bookkeeping.
//! A claim that does not hold ends the demo with an error.

mod telling;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::multicall::Programs;
use crate::traffic::{Answer, Observer, Rows, Tally, Traffic, Way};
use telling::{decisive, receipts};

/// Requests a second to each agent.
const RATE: u32 = 60;
/// The lease of the last act: how long an unreachable node may go on with the candidate.
const LEASE: Duration = Duration::from_secs(4);

const GOOD: &str = include_str!("demo/good.toml");
const BAD_ANSWERS: &str = include_str!("demo/bad-answers.toml");
const FAILING: &str = include_str!("demo/failing.toml");
const FIRST: &str = include_str!("demo/first.toml");

/// What the demo was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many agents, 3 to 50.
    pub agents: u16,
    /// Leave everything running at the end.
    pub keep: bool,
    /// First of a block of ports; `None`: free ones.
    pub port: Option<u16>,
}

/// Tells the story.
///
/// # Errors
/// When any step fails or any claim does not hold.
pub async fn run(options: Options) -> Result<()> {
    let models = models_folder()?;
    let dir = tempfile::Builder::new()
        .prefix("rollcall-demo-")
        .tempdir()?;
    let mut story = Story::begin(&options, dir.path(), &models).await?;
    let told = story.tell(&models).await;
    if told.is_err() {
        let dir = dir.keep();
        return told.context(format!("the demo failed; logs are in {}", dir.display()));
    }
    if options.keep {
        telling::keep_running(&story.cluster, &dir.keep()).await?;
    }
    Ok(())
}

fn models_folder() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models");
    folder.canonicalize().with_context(|| {
        format!(
            "{} is missing: run the demo from a checkout",
            folder.display()
        )
    })
}

struct Story {
    began: Instant,
    cluster: Cluster,
    observer: Observer,
    rows: Arc<Rows>,
    traffic: Option<Traffic>,
}

impl Story {
    async fn begin(options: &Options, dir: &Path, models: &Path) -> Result<Self> {
        println!(
            "Rollcall, the whole story on one machine: a coordinator and {} agents as processes,",
            options.agents
        );
        println!(
            "QUIC with mutual TLS, ONNX models, traffic over HTTP and gRPC. About a minute.\n"
        );
        let began = Instant::now();
        let rows = Arc::new(Rows::read(&models.join("digits/1.0.0/validation.json"))?);
        let programs = Programs::here()?;
        let cluster = Cluster::start(programs, dir, options.agents, options.port).await?;
        let observer = Observer::default();
        let story = Self {
            began,
            cluster,
            observer,
            rows,
            traffic: None,
        };
        story.say(&format!(
            "{} agents enrolled with one-time tokens and connected",
            options.agents
        ));
        Ok(story)
    }

    async fn tell(&mut self, models: &Path) -> Result<()> {
        self.first_version(models).await?;
        self.good_version(models).await?;
        self.bad_answers(models).await?;
        self.failing_version_and_a_lost_link(models).await?;
        self.audit()
    }

    fn say(&self, line: &str) {
        println!("{:>6.1} s  {line}", self.began.elapsed().as_secs_f64());
    }

    fn act(title: &str) {
        println!("\n{title}");
    }

    fn push(&self, models: &Path, version: &str) -> Result<()> {
        let path = models.join("digits").join(version);
        let path = path.to_str().context("the checkout's path is not UTF-8")?;
        self.cluster.print(&[
            "version",
            "push",
            path,
            "--model",
            "digits",
            "--version",
            version,
        ])?;
        Ok(())
    }

    fn start_rollout(&self, name: &str, plan: &str) -> Result<String> {
        let path = self.cluster.dir.join(name);
        std::fs::write(&path, plan)?;
        let path = path
            .to_str()
            .context("the temporary folder's path is not UTF-8")?;
        let started: Value = self.cluster.json(&["rollout", "start", path])?;
        Ok(started["id"]
            .as_str()
            .context("`rollout start` named no rollout")?
            .to_owned())
    }

    fn rollout(&self, id: &str) -> Result<Value> {
        self.cluster.json(&["rollout", "show", id])
    }

    async fn until_stage(&self, id: &str, stage: &str) -> Result<()> {
        self.cluster
            .until(&format!("{id} is in stage {stage}"), || {
                let rollout = self.rollout(id)?;
                Ok(rollout["state"] == "running" && rollout["stage_name"] == stage)
            })
            .await
    }

    async fn until_state(&self, id: &str, state: &str) -> Result<Value> {
        self.cluster
            .until(&format!("{id} is {state}"), || {
                Ok(self.rollout(id)?["state"] == state)
            })
            .await?;
        self.rollout(id)
    }

    /// Answers to requests sent from now on, for so long.
    async fn watch(&self, seconds: f64) -> Vec<Answer> {
        let from = Instant::now();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        self.observer.since(from)
    }

    async fn first_version(&mut self, models: &Path) -> Result<()> {
        Self::act("The first version");
        self.push(models, "1.0.0")?;
        let id = self.start_rollout("first.toml", FIRST)?;
        self.until_state(&id, "promoted").await?;
        self.traffic = Some(Traffic::start(
            &self.cluster.agents,
            "digits",
            Way::ALL,
            &self.rows,
            RATE,
            &self.observer,
        ));
        let tally = Tally::of(&self.watch(1.0).await);
        ensure!(
            tally.errors == 0 && tally.share("1.0.0") >= 1.0,
            "not all answers come from 1.0.0: {:?}",
            tally.versions
        );
        ensure!(
            tally.nodes.len() == self.cluster.agents.len(),
            "a node did not answer"
        );
        ensure!(
            tally.ways.len() == Way::ALL.len(),
            "a way of asking was not answered: {:?}",
            tally.ways
        );
        self.say(&format!(
            "digits 1.0.0 is stable everywhere: {} answers a second (JSON, binary, gRPC in turn), {:.1} % right, \
             p50 {:.2} ms",
            tally.total,
            tally.accuracy() * 100.0,
            tally.p50().as_secs_f64() * 1e3
        ));
        Ok(())
    }

    async fn good_version(&mut self, models: &Path) -> Result<()> {
        Self::act("A better version: shadow, 10 % of requests, half of the nodes, full");
        self.push(models, "2.0.0")?;
        let began = Instant::now();
        let id = self.start_rollout("good.toml", GOOD)?;
        self.until_stage(&id, "shadow").await?;
        let tally = Tally::of(&self.watch(1.5).await);
        ensure!(
            tally.share("1.0.0") >= 1.0,
            "shadow answered a client: {:?}",
            tally.versions
        );
        self.say(&format!(
            "shadow: 2.0.0 gets copies of all requests, clients got {} answers, none of it",
            tally.total
        ));

        self.until_stage(&id, "canary-10").await?;
        let answers = self.watch(2.5).await;
        let tally = Tally::of(&answers);
        let share = tally.share("2.0.0") * 100.0;
        ensure!(
            (4.0..18.0).contains(&share),
            "{share:.1} % of answers came from 2.0.0"
        );
        self.say(&format!(
            "canary-10: 2.0.0 answered {share:.1} % of {} requests",
            tally.total
        ));

        self.until_stage(&id, "half-of-nodes").await?;
        self.half_of_the_nodes_answer_with_it().await?;

        self.until_state(&id, "promoted").await?;
        let tally = Tally::of(&self.watch(1.0).await);
        ensure!(
            tally.share("2.0.0") >= 1.0,
            "not all answers come from 2.0.0: {:?}",
            tally.versions
        );
        let trip = Tally::of(&self.observer.since(began));
        ensure!(
            trip.errors == 0,
            "{} requests failed during the rollout",
            trip.errors
        );
        self.say(&format!(
            "promoted: 2.0.0 is stable, {:.1} % right; {} requests during the rollout, 0 failed",
            tally.accuracy() * 100.0,
            trip.total
        ));
        Ok(())
    }

    async fn half_of_the_nodes_answer_with_it(&self) -> Result<()> {
        let everybody = self.cluster.agents.len();
        let half = everybody.div_ceil(2);
        let is_split = |tally: &Tally| {
            tally.nodes_only("2.0.0") == half && tally.nodes_only("1.0.0") == everybody - half
        };
        // The stage has begun; its assignments are on their way for some milliseconds.
        let lately = || {
            self.observer
                .since(Instant::now() - Duration::from_millis(300))
        };
        self.cluster
            .until("every node answers with one version", || {
                Ok(is_split(&Tally::of(&lately())))
            })
            .await?;
        let tally = Tally::of(&self.watch(1.5).await);
        ensure!(
            is_split(&tally),
            "nodes mix versions or the cohort is not {half}: {:?}",
            tally.nodes
        );
        self.say(&format!(
            "half-of-nodes: {half} nodes answer with 2.0.0 only, {} with 1.0.0 only",
            everybody - half
        ));
        Ok(())
    }

    async fn bad_answers(&mut self, models: &Path) -> Result<()> {
        Self::act("A bad version: its answers are wrong, its tests pass");
        self.push(models, "3.0.0")?;
        let began = Instant::now();
        let id = self.start_rollout("bad-answers.toml", BAD_ANSWERS)?;
        let rollout = self.until_state(&id, "withdrawn").await?;
        self.say(&format!(
            "the judge withdrew 3.0.0 by itself: {}",
            decisive(&rollout)?
        ));
        let tally = Tally::of(&self.observer.since(began));
        ensure!(
            tally.share("2.0.0") >= 1.0,
            "a client met the bad version: {:?}",
            tally.versions
        );
        let rollback = self.settled(&id).await?;
        self.say(&format!(
            "{}; {} clients' answers meanwhile, 0 from 3.0.0",
            receipts(&rollback),
            tally.total
        ));
        Ok(())
    }

    async fn failing_version_and_a_lost_link(&mut self, models: &Path) -> Result<()> {
        Self::act(
            "Somebody skips the stages: 5.0.0 goes everywhere at once, and fails on some inputs",
        );
        self.push(models, "5.0.0")?;
        let began = Instant::now();
        let last = self.cluster.agents.len() - 1;
        let id = self.start_rollout("failing.toml", FAILING)?;
        self.until_answer(began, last, "5.0.0").await?;
        self.cluster.last_link.cut(true);
        let cut = Instant::now();
        self.say(&format!(
            "node-{} answers with 5.0.0; its link to the coordinator is cut now",
            last + 1
        ));

        let rollout = self.until_state(&id, "withdrawn").await?;
        self.say(&format!(
            "the judge withdrew 5.0.0: {}",
            decisive(&rollout)?
        ));
        self.connected_nodes_have_switched(&id, last).await?;
        let rollback = self.settled(&id).await?;
        self.say(&receipts(&rollback));
        let fenced = rollback["receipts"]["fenced"]
            .as_array()
            .map_or(0, Vec::len);
        ensure!(
            fenced == 1,
            "one node should be fenced by its lease: {rollback}"
        );
        self.cut_off_node_fenced_itself(cut, last)?;
        self.healed_node_stays_with_stable(began, last, &rollback["generation"])
            .await
    }

    /// Waits for the receipts of all nodes but `last`, and holds them to their word.
    async fn connected_nodes_have_switched(&self, id: &str, last: usize) -> Result<()> {
        let receipts = || self.cluster.json::<Value>(&["rollout", "receipts", id]);
        let all_but_one = || Ok(receipts()?["receipts"]["received"] == last);
        self.cluster
            .until("all connected nodes sent their receipts", all_but_one)
            .await?;
        let late = self.watch(1.0).await;
        let late = late
            .iter()
            .filter(|answer| answer.node != last && answer.is_from("5.0.0"));
        ensure!(
            late.count() == 0,
            "a node went on with the withdrawn version after its receipt"
        );
        Ok(())
    }

    fn cut_off_node_fenced_itself(&self, cut: Instant, last: usize) -> Result<()> {
        let answers = self.observer.since(cut);
        let alone = answers
            .iter()
            .filter(|answer| answer.node == last && answer.is_from("5.0.0"));
        let alone = alone.map(|answer| answer.sent).max();
        let alone = alone.context("the cut-off node should have gone on under its lease")?;
        let after = alone.duration_since(cut);
        ensure!(
            after <= LEASE.mul_f64(1.01),
            "the cut-off node outlived its lease: {after:?}"
        );
        self.say(&format!(
            "seen from outside: the cut-off node's last answer from 5.0.0 was {:.1} s after the cut \
             (lease {} s)",
            after.as_secs_f64(),
            LEASE.as_secs()
        ));
        Ok(())
    }

    async fn healed_node_stays_with_stable(
        &self,
        began: Instant,
        last: usize,
        generation: &Value,
    ) -> Result<()> {
        self.cluster.last_link.cut(false);
        let healed = Instant::now();
        self.cluster
            .until("the cut-off node has heard of the rollback", || {
                let nodes: Vec<Value> = self.cluster.json(&["agent", "list"])?;
                let is_last = |node: &&Value| node["node"] == format!("node-{}", last + 1);
                let node = nodes.iter().find(is_last);
                Ok(node.is_some_and(|node| node["models"][0]["generation"] == *generation))
            })
            .await?;
        let back = healed.elapsed();
        let tally = Tally::of(&self.watch(1.0).await);
        ensure!(
            tally.share("2.0.0") >= 1.0,
            "not all answers come from 2.0.0: {:?}",
            tally.versions
        );
        let whole = Tally::of(&self.observer.since(began));
        ensure!(whole.errors == 0, "{} requests failed", whole.errors);
        self.say(&format!(
            "healed: node-{} heard of it after {:.1} s and stays with 2.0.0; of {} requests in this act \
             0 failed: stable answered where 5.0.0 could not",
            last + 1,
            back.as_secs_f64(),
            whole.total
        ));
        Ok(())
    }

    async fn until_answer(&self, from: Instant, node: usize, version: &str) -> Result<()> {
        self.cluster
            .until(&format!("node-{} answers with {version}", node + 1), || {
                let answers = self.observer.since(from);
                Ok(answers
                    .iter()
                    .any(|answer| answer.node == node && answer.is_from(version)))
            })
            .await
    }

    /// The receipts of a withdrawn rollout, once every node answered or is fenced.
    async fn settled(&self, id: &str) -> Result<Value> {
        let read = || self.cluster.json::<Value>(&["rollout", "receipts", id]);
        self.cluster
            .until("the rollback is settled", || Ok(read()?["settled"] == true))
            .await?;
        read()
    }

    fn audit(&self) -> Result<()> {
        Self::act("The record");
        let rollouts: Vec<Value> = self.cluster.json(&["rollout", "list"])?;
        let mut verdicts = 0;
        for rollout in &rollouts {
            let id = rollout["id"].as_str().context("a rollout without an id")?;
            let why: Value = self.cluster.json(&["rollout", "explain", id])?;
            ensure!(why["recomputed"] == true, "{id}: a verdict does not follow");
            verdicts += why["inputs"].as_array().map_or(0, Vec::len);
        }
        self.say(&format!(
            "{verdicts} verdicts computed again from what they were decided on: the same"
        ));
        let verified = self.cluster.print(&["audit", "verify"])?;
        self.say(verified.lines().next().unwrap_or_default());
        self.say("every step above was checked from the outside: the demo is green");
        Ok(())
    }
}
