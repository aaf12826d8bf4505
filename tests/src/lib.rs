//! A fleet for end-to-end tests: real processes, real QUIC, real HTTP on free ports.
//! The tests are in `tests/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rollcall_simulations::cluster::Cluster;
use rollcall_simulations::multicall::Programs;
use rollcall_simulations::traffic::http_client;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running fleet that ends, processes and files, with its owner.
pub struct Fleet {
    /// Its processes and commands.
    pub cluster: Cluster,
    /// Its files.
    pub dir: TempDir,
    /// Its agents' HTTP client.
    pub http: reqwest::Client,
}

impl Fleet {
    /// Starts a coordinator and `agents` agents out of the executable at `programs`.
    ///
    /// # Errors
    /// When anything does not come up.
    pub async fn start(programs: &str, agents: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let programs = Programs::at(programs.into());
        let cluster = Cluster::start(programs, dir.path(), agents, None).await?;
        Ok(Self {
            cluster,
            dir,
            http: http_client(),
        })
    }

    /// Pushes `digits` at `version` from the test models.
    ///
    /// # Errors
    /// When the push is refused.
    pub fn push(&self, version: &str) -> Result<()> {
        let path = model_folder().join("digits").join(version);
        let path = path.to_str().context("UTF-8 path")?;
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

    /// Starts a rollout and gives its id.
    ///
    /// # Errors
    /// When the plan is refused.
    pub fn rollout(&self, plan: &str) -> Result<String> {
        let file = self.dir.path().join("plan.toml");
        std::fs::write(&file, plan)?;
        let path = file.to_str().context("UTF-8 path")?;
        let started: Value = self.cluster.json(&["rollout", "start", path])?;
        Ok(started["id"].as_str().context("no rollout id")?.to_owned())
    }

    /// Waits until a rollout is in `state`.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn until_state(&self, id: &str, state: &str) -> Result<Value> {
        self.until(id, &format!("it is {state}"), |rollout| {
            rollout["state"] == state
        })
        .await
    }

    /// Waits until a rollout is as asked for.
    ///
    /// # Errors
    /// When it is not in time; with the rollout as it is.
    pub async fn until(
        &self,
        id: &str,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let show = || self.cluster.json::<Value>(&["rollout", "show", id]);
        let waited = self
            .cluster
            .until(&format!("{id}: {what}"), || Ok(holds(&show()?)))
            .await;
        let now = show()?;
        waited.with_context(|| format!("{now:#}"))?;
        Ok(now)
    }

    /// Waits until a rollout runs in the stage of that name.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_stage(&self, id: &str, stage: &str) -> Result<()> {
        let show = || self.cluster.json::<Value>(&["rollout", "show", id]);
        self.cluster
            .until(&format!("{id} is in {stage}"), || {
                let rollout = show()?;
                Ok(rollout["state"] == "running" && rollout["stage_name"] == stage)
            })
            .await
    }

    /// Pushes `version` and makes it stable everywhere.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn make_stable(&self, version: &str) -> Result<()> {
        self.push(version)?;
        let id = self.rollout(&direct_plan(version, "100ms"))?;
        self.until_state(&id, "promoted").await?;
        Ok(())
    }

    /// The version that answers one good request on a node, with this sticky key.
    ///
    /// # Errors
    /// When the node does not answer with 200.
    pub async fn ask(&self, node: usize, key: &str) -> Result<String> {
        let url = format!(
            "http://{}/v2/models/digits/infer",
            self.cluster.agents[node]
        );
        let request = self
            .http
            .post(url)
            .header("x-rollcall-key", key)
            .json(&good_request());
        let answer = request.send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(status.is_success(), "{status}: {body}");
        Ok(body["model_version"]
            .as_str()
            .context("no version")?
            .to_owned())
    }

    /// Waits until a node answers with `version`.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_answers(&self, node: usize, version: &str) -> Result<()> {
        let wait = async {
            while !self
                .ask(node, "key")
                .await
                .is_ok_and(|answered| answered == version)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .with_context(|| format!("node {node} did not answer with {version}"))
    }

    /// Waits until `version` answers at least one of many keys on a node.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_candidate_answers(&self, node: usize, version: &str) -> Result<()> {
        let wait = async {
            for key in 0.. {
                if self
                    .ask(node, &format!("key-{key}"))
                    .await
                    .is_ok_and(|answer| answer == version)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .with_context(|| format!("{version} answered nobody on node {node}"))
    }

    /// Waits until `version` answers forty keys in a row on a node.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_stable_alone(&self, node: usize, version: &str) -> Result<()> {
        let wait = async {
            let mut in_a_row = 0;
            while in_a_row < 40 {
                let answer = self.ask(node, &format!("key-{in_a_row}")).await;
                in_a_row = if answer.is_ok_and(|answer| answer == version) {
                    in_a_row + 1
                } else {
                    0
                };
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .with_context(|| format!("{version} does not answer alone on node {node}"))
    }

    /// What a command that must fail prints on stderr, and its exit code.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refusal(&self, arguments: &[&str]) -> Result<(String, i32)> {
        refusal(&mut self.cluster.operator(arguments))
    }
}

/// What a command that must fail prints on stderr, and its exit code.
///
/// # Errors
/// When it succeeds.
pub fn refusal(command: &mut Command) -> Result<(String, i32)> {
    let output = command.output()?;
    ensure!(
        !output.status.success(),
        "this should have been refused: {command:?}"
    );
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok((text, output.status.code().context("killed")?))
}

/// Where the trained models lie.
#[must_use]
pub fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// An image of the digits model's kind, all pixels 1.
#[must_use]
pub fn good_request() -> Value {
    let data = vec![1.0; 64];
    serde_json::json!({
        "inputs": [{ "name": "input", "datatype": "FP32", "shape": [1, 64], "data": data }]
    })
}

/// Straight to every node, with a watch of so long.
#[must_use]
pub fn direct_plan(version: &str, watch: &str) -> String {
    format!(
        "model = \"digits\"\ncandidate = \"{version}\"\nstrategy = \"direct\"\nlease = \"3s\"\n\
         [policy]\ncheck_every = \"100ms\"\n[[stage]]\nname = \"full\"\nmode = \"full\"\nwatch = \"{watch}\"\n"
    )
}

/// Shadow for no time, then half of all requests until somebody advances.
#[must_use]
pub fn canary_plan(version: &str) -> String {
    format!(
        "model = \"digits\"\ncandidate = \"{version}\"\nstrategy = \"canary\"\nlease = \"3s\"\n\
         [policy]\ncheck_every = \"100ms\"\n\
         [[stage]]\nname = \"shadow\"\nmode = \"shadow\"\n\
         [[stage]]\nname = \"half\"\nmode = \"canary\"\nby = \"request\"\nshare_percent = 50\n\
         [[stage]]\nname = \"full\"\nmode = \"full\"\n"
    )
}
