//! `rollcall-agent enroll`: from a token to a folder that `run` can use.
//!
//! The key is made here and never leaves. Files that are there are never
//! overwritten, and everything that can fail here is tried before the one-time
//! token is spent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rollcall_shared::ids::NodeId;
use rollcall_shared::wire::{EnrollAnswer, EnrollRequest};
use rollcall_transport::endpoint::agent_endpoint;
use rollcall_transport::enroll::{EnrollError, enroll};
use rollcall_transport::identity::{AgentKey, Identity, new_agent_key};
use rollcall_transport::token::EnrolmentToken;

use super::{CliError, block_on, parse_label};
use crate::config::{CA_FILE, CERTIFICATE_FILE, CONFIG_FILE, Config, KEY_FILE};
use crate::link::chain;

#[derive(Debug, Args)]
pub(super) struct Enroll {
    /// Where the coordinator listens for agents
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,
    /// From `rollcall token create --kind agent`; works once
    #[arg(long)]
    token: EnrolmentToken,
    /// The node's name; without it the coordinator makes one
    #[arg(long, value_name = "NAME")]
    node: Option<NodeId>,
    /// Where the node stands, e.g. zone=eu-1; may be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Where clients will reach this node's HTTP port, e.g. 0.0.0.0:8080
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where clients will reach this node over gRPC, e.g. 0.0.0.0:8081; without it: not at all
    #[arg(long, value_name = "ADDR")]
    grpc: Option<SocketAddr>,
    /// The folder to make; the key, state and cache will live there
    #[arg(long)]
    dir: PathBuf,
}

impl Enroll {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let key = new_agent_key()
            .context("cannot make a key")
            .map_err(CliError::Failed)?;
        self.claim_folder(&key).map_err(CliError::Failed)?;
        let done = self.enrol(&key);
        if done.is_err() {
            // The key is of no use to anyone now; the next attempt makes its own.
            let _ = fs::remove_file(self.dir.join(KEY_FILE));
        }
        done
    }

    fn enrol(&self, key: &AgentKey) -> Result<ExitCode, CliError> {
        let answer = block_on(self.ask(key)).map_err(CliError::Failed)??;
        match answer {
            EnrollAnswer::Refused { reason } => Err(CliError::Failed(anyhow!(
                "the coordinator refuses this node: {reason}"
            ))),
            EnrollAnswer::Enrolled {
                node,
                fleet,
                certificate,
                ca,
                registry_key,
            } => {
                Identity::from_pem(&certificate, &key.key_pem)
                    .context("the coordinator's certificate does not fit this node's key")
                    .map_err(CliError::Failed)?;
                self.write(&certificate, &ca, &registry_key)
                    .map_err(CliError::Failed)?;
                let config = self.dir.join(CONFIG_FILE);
                println!("{node} is enrolled in fleet {fleet}. Start it with:");
                println!("  rollcall-agent run --config {}", config.display());
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    /// Makes the folder and the key file, which also claims the folder.
    fn claim_folder(&self, key: &AgentKey) -> anyhow::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .with_context(|| format!("cannot make the folder {}", self.dir.display()))?;
        for name in [CONFIG_FILE, KEY_FILE, CERTIFICATE_FILE, CA_FILE] {
            let path = self.dir.join(name);
            if path.exists() {
                bail!(
                    "{} exists: this folder is of an enrolled node. Give another --dir, or \
                     move it away if the node is to be enrolled anew",
                    path.display()
                );
            }
        }
        put(&self.dir.join(KEY_FILE), &key.key_pem, 0o600)
    }

    async fn ask(&self, key: &AgentKey) -> Result<EnrollAnswer, CliError> {
        let request = EnrollRequest {
            token: self.token.to_string(),
            node: self
                .node
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            labels: self.labels.iter().cloned().collect(),
            csr: key.csr.clone(),
        };
        let unreachable = |why: String| {
            CliError::Unreachable(anyhow!(
                "no coordinator of the token's fleet at {}: {why}. Check --coordinator, and \
                 that UDP gets through",
                self.coordinator
            ))
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(&self.coordinator)
            .await
            .map_err(|error| unreachable(error.to_string()))?
            .collect();
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            let bind = if address.is_ipv6() {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let bind: SocketAddr = bind.parse().context("bind").map_err(CliError::Failed)?;
            let endpoint = agent_endpoint(bind)
                .context("no UDP socket")
                .map_err(CliError::Failed)?;
            let pin = self.token.pin;
            match enroll(&endpoint.quic, address, pin, &request, None).await {
                Ok(answer) => return Ok(answer),
                Err(error @ EnrollError::Connect(_)) => last = chain(&error),
                Err(error) => {
                    let broke_off = anyhow!(error).context("the enrolment broke off");
                    return Err(CliError::Failed(broke_off));
                }
            }
        }
        Err(unreachable(last))
    }

    /// The configuration comes last: where it is, the rest is.
    fn write(&self, certificate: &str, ca: &str, registry_key: &str) -> anyhow::Result<()> {
        let labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
        let ports = [self.http, self.grpc];
        let text = configuration(&self.coordinator, registry_key, ports, &labels);
        let parsed: Config =
            toml::from_str(&text).context("the coordinator's answer is unusable")?;
        parsed.validate()?;
        put(&self.dir.join(CERTIFICATE_FILE), certificate, 0o644)?;
        put(&self.dir.join(CA_FILE), ca, 0o644)?;
        put(&self.dir.join(CONFIG_FILE), &text, 0o644)?;
        // The names too must survive a power loss: the token is spent.
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .with_context(|| format!("cannot write {}", self.dir.display()))
    }
}

fn put(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The configuration with everything that can be set, and its default.
fn configuration(
    coordinator: &str,
    registry_key: &str,
    [http, grpc]: [Option<SocketAddr>; 2],
    labels: &BTreeMap<String, String>,
) -> String {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let http = match http {
        Some(address) => format!("http = \"{address}\""),
        None => "# http = \"127.0.0.1:8080\"".to_owned(),
    };
    let grpc = match grpc {
        Some(address) => format!("grpc = \"{address}\""),
        None => "# grpc = \"127.0.0.1:8081\"".to_owned(),
    };
    let mut text = format!(
        "# Configuration of a Rollcall agent, written by `rollcall-agent enroll`.\n\
         # What stands behind a # is the default.\n\
         \n\
         # Key, certificates, state and cache. Relative to this file.\n\
         dir = \".\"\n\
         # Where the coordinators listen for agents; tried in turn.\n\
         coordinators = [{coordinators}]\n\
         # Checks that a version is what the registry signed.\n\
         registry_key = {registry_key}\n\
         # The HTTP port for clients and Prometheus. It has no access control.\n\
         {http}\n\
         # The same for gRPC. None: no gRPC.\n\
         {grpc}\n\
         # The models that this node hosts. None: all.\n\
         # models = [\"fraud-detector\"]\n\
         \n\
         # Where the node stands; plans select nodes by it.\n\
         [labels]\n",
        coordinators = quote(coordinator),
        registry_key = quote(registry_key)
    );
    for (key, value) in labels {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} = {}", quote(key), quote(value));
    }
    text.push_str(
        "\n\
         [serving]\n\
         # Threads for clients' connections; 0: one for four cores.\n\
         # connection_threads = 0\n\
         # Threads that run models; 0: one a core, and as many for candidates.\n\
         # stable_threads = 0\n\
         # candidate_threads = 0\n\
         # shadow_threads = 1\n\
         # Requests that may wait. Full: 503; stable answers; the copy is shed.\n\
         # stable_queue = 256\n\
         # candidate_queue = 64\n\
         # shadow_queue = 64\n\
         # Past this, stable answers in the candidate's place.\n\
         # candidate_timeout = \"2s\"\n\
         # Past this, a client gets 503.\n\
         # stable_timeout = \"30s\"\n\
         # Bodies of requests in memory at one time, in MiB.\n\
         # bodies_mib_max = 256\n\
         \n\
         [cache]\n\
         # Versions that are not in use are evicted beyond this, in MiB.\n\
         # quota_mib = 10240\n\
         \n\
         [log]\n\
         # format = \"text\"    # or \"json\"\n\
         # filter = \"info\"\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_configuration_reads_back_with_the_defaults_that_it_names() {
        let key = "ab".repeat(32);
        let labels = BTreeMap::from([("zone".to_owned(), "eu \"1\"".to_owned())]);
        let text = configuration("host:7443", &key, [None; 2], &labels);
        let config: Config = toml::from_str(&text).unwrap();
        config.validate().unwrap();
        assert_eq!(config.labels, labels);
        let elsewhere: SocketAddr = "0.0.0.0:9000".parse().unwrap();
        let free = "127.0.0.1:0".parse().unwrap();
        let text_elsewhere =
            configuration("host:7443", &key, [Some(elsewhere), Some(free)], &labels);
        let moved: Config = toml::from_str(&text_elsewhere).unwrap();
        assert_eq!((moved.http, moved.grpc), (elsewhere, Some(free)));
        // Every commented default is the true default, where there is one.
        let is_example = |line: &str| line.starts_with("models") || line.starts_with("grpc");
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !is_example(rest) => rest,
                Some(_) | None => line,
            })
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(toml::from_str::<Config>(&uncommented).unwrap(), config);
    }
}
