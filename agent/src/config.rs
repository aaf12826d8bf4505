//! The agent's configuration: one TOML file, checked once at the start.
//!
//! Unknown keys are refused, because a misspelt bound is no bound. Paths that the
//! file does not give lie in `dir`, where `enroll` puts them.

pub mod engine;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_shared::ids::ModelName;
use rollcall_shared::limits::{LABELS_MAX, MODELS_PER_NODE_MAX, TEXT_BYTES_MAX};
use rollcall_shared::signing::PublicKey;
use rollcall_shared::time::human;
use serde::{Deserialize, Serialize};

/// Name of the configuration in the agent's folder.
pub const CONFIG_FILE: &str = "agent.toml";
/// Name of the private key in the agent's folder.
pub const KEY_FILE: &str = "node.key";
/// Name of the node's certificate in the agent's folder.
pub const CERTIFICATE_FILE: &str = "node.pem";
/// Name of the fleet's CA certificate in the agent's folder.
pub const CA_FILE: &str = "ca.pem";

/// Everything that an operator can set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// State, cache, key and certificates live here. Relative: to the file's folder.
    pub dir: PathBuf,
    /// `HOST:PORT` of the coordinators, tried in turn. May be empty: then the agent
    /// serves what it has.
    #[serde(default)]
    pub coordinators: Vec<String>,
    /// Checks manifests; `enroll` writes it.
    pub registry_key: PublicKey,
    /// Where the HTTP port listens. Default: 127.0.0.1:8080. It has no access control
    /// of its own: put it where only clients and Prometheus can reach it.
    #[serde(default = "http_default")]
    pub http: SocketAddr,
    /// Where gRPC listens; not given (the default): nowhere. It has no access control
    /// either. Port 0: a free one, which the log and the status tell.
    #[serde(default)]
    pub grpc: Option<SocketAddr>,
    /// The models that this node hosts; empty (the default): all.
    #[serde(default)]
    pub models: Vec<ModelName>,
    /// Where the node stands, e.g. `zone = "eu-1"`; plans select nodes by it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How requests are run.
    #[serde(default)]
    pub serving: Serving,
    /// Models whose requests run together where several wait: `[batching.MODEL]`.
    #[serde(default)]
    pub batching: BTreeMap<ModelName, Batching>,
    /// What runs the models.
    #[serde(default)]
    pub engine: engine::Engine,
    /// What is kept on disk.
    #[serde(default)]
    pub cache: Cache,
    /// How it logs.
    #[serde(default)]
    pub log: Log,
    /// The private key is read from here if it lies here: what a service manager gives
    /// this process alone. From the command line, not the file.
    #[serde(skip)]
    pub credentials: Option<PathBuf>,
}

/// How requests are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serving {
    /// Threads that clients' connections live on. 0 (the default): one for four cores.
    pub connection_threads: usize,
    /// Threads that run stable versions. 0 (the default): one a core.
    pub stable_threads: usize,
    /// Threads that run candidates. 0 (the default): as many as stable's.
    pub candidate_threads: usize,
    /// Threads, at low priority, that run shadow copies. Default 1.
    pub shadow_threads: usize,
    /// Requests that wait for a stable thread. More: 503 with `Retry-After`. Default 256.
    pub stable_queue: usize,
    /// Requests that wait for a candidate thread. More: stable answers. Default 64.
    pub candidate_queue: usize,
    /// Copies that wait for a shadow thread. More: shed, and counted. Default 64.
    pub shadow_queue: usize,
    /// Past this, stable answers in the candidate's place. Default 2s.
    #[serde(with = "human")]
    pub candidate_timeout: Duration,
    /// Past this, a client gets 503. Default 30s.
    #[serde(with = "human")]
    pub stable_timeout: Duration,
    /// Bodies of requests in memory at one time, in MiB. More: 503. Default 256.
    pub bodies_mib_max: usize,
}

/// How requests for a model run together ([`crate::batch`]). Its inputs and outputs must be
/// batched in its signature, and its smoke cases must pass as one batch; otherwise they run
/// one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Rows of one run. Default 32.
    pub max_rows: usize,
    /// How long the first request of a run waits for others. 0s (the default): not at all; what
    /// waits anyhow while the threads are busy runs together.
    #[serde(with = "human")]
    pub max_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_rows: 32,
            max_delay: Duration::ZERO,
        }
    }
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Versions that are not in use are evicted beyond this, in MiB. Default 10,240.
    pub quota_mib: u64,
}

/// How the agent logs, to standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` (the default) or `json`.
    pub format: LogFormat,
    /// What is logged, as `tracing` filters are written. Default `info`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            connection_threads: 0,
            stable_threads: 0,
            candidate_threads: 0,
            shadow_threads: 1,
            stable_queue: 256,
            candidate_queue: 64,
            shadow_queue: 64,
            candidate_timeout: Duration::from_secs(2),
            stable_timeout: Duration::from_secs(30),
            bodies_mib_max: 256,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { quota_mib: 10_240 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

fn http_default() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: give a file that `rollcall-agent enroll` made")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("the configuration {path} is refused: {message}")]
    Form {
        /// Which file.
        path: PathBuf,
        /// Where and why, as the reader says it.
        message: String,
    },
    /// A value that cannot work.
    #[error("the configuration says {key} = {value}: {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what to write.
        why: &'static str,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown key, or a value that cannot work.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Form {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        if config.dir.is_relative() {
            let base = path.parent().unwrap_or(Path::new(""));
            config.dir = base.join(&config.dir);
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks bounds and consistency.
    ///
    /// # Errors
    /// The first value that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let serving = &self.serving;
        let positive = [
            ("serving.shadow_threads", serving.shadow_threads),
            ("serving.stable_queue", serving.stable_queue),
            ("serving.candidate_queue", serving.candidate_queue),
            ("serving.shadow_queue", serving.shadow_queue),
        ];
        for (key, value) in positive {
            check(key, &value, value > 0, "write at least 1")?;
        }
        for (key, value) in [
            ("serving.connection_threads", serving.connection_threads),
            ("serving.stable_threads", serving.stable_threads),
            ("serving.candidate_threads", serving.candidate_threads),
            ("serving.shadow_threads", serving.shadow_threads),
        ] {
            check(key, &value, value <= 1_024, "write at most 1024")?;
        }
        let timeout = format!("{:?}", serving.candidate_timeout);
        let good = serving.candidate_timeout >= Duration::from_millis(1)
            && serving.candidate_timeout < serving.stable_timeout;
        let why = "write at least 1ms, and less than serving.stable_timeout";
        check("serving.candidate_timeout", &timeout, good, why)?;
        let bodies = serving.bodies_mib_max;
        let good = (64..=65_536).contains(&bodies);
        check(
            "serving.bodies_mib_max",
            &bodies,
            good,
            "write 64 (one whole body) to 65536",
        )?;
        check(
            "cache.quota_mib",
            &self.cache.quota_mib,
            self.cache.quota_mib > 0,
            "write at least 1",
        )?;
        for batching in self.batching.values() {
            let rows = batching.max_rows;
            let good = (2..=4_096).contains(&rows);
            check("batching.MODEL.max_rows", &rows, good, "write 2 to 4096")?;
            let good = batching.max_delay < serving.candidate_timeout;
            let delay = format!("{:?}", batching.max_delay);
            let why = "write less than serving.candidate_timeout";
            check("batching.MODEL.max_delay", &delay, good, why)?;
        }
        self.engine.validate()?;
        self.validate_addresses()?;
        let models = self.models.len();
        check(
            "models",
            &models,
            models <= MODELS_PER_NODE_MAX,
            "name at most 64, or none for all",
        )?;
        let short = |text: &String| !text.is_empty() && text.len() <= TEXT_BYTES_MAX;
        let labels = self.labels.len();
        let good = labels <= LABELS_MAX && self.labels.iter().all(|(k, v)| short(k) && short(v));
        check(
            "labels",
            &labels,
            good,
            "give at most 64, none empty or over 1024 bytes",
        )
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        if let Some(grpc) = self.grpc {
            let good = grpc.port() == 0 || grpc != self.http;
            check("grpc", &grpc, good, "write another port than that of http")?;
        }
        for address in &self.coordinators {
            let good = address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            check("coordinators", address, good, "write HOST:PORT")?;
        }
        Ok(())
    }

    /// Where the node's private key lies.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        let given = self
            .credentials
            .as_ref()
            .map(|folder| folder.join(KEY_FILE));
        given
            .filter(|path| path.exists())
            .unwrap_or_else(|| self.path(KEY_FILE))
    }

    /// Where a file of the agent's folder lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn check(
    key: &'static str,
    value: &impl ToString,
    good: bool,
    why: &'static str,
) -> Result<(), ConfigError> {
    if good {
        Ok(())
    } else {
        Err(ConfigError::Value {
            key,
            value: value.to_string(),
            why,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "registry_key = \"0000000000000000000000000000000000000000000000000000000000000000\"";

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config =
            toml::from_str(&format!("dir = \"x\"\n{KEY}\n{text}")).map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_defaults_are_valid_and_written_configurations_read_back() {
        let config = parse("").unwrap();
        assert_eq!(config.serving, Serving::default());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_by_name() {
        for (text, names) in [
            ("colour = \"red\"", "colour"),
            ("[serving]\nshadow_queue = 0", "serving.shadow_queue"),
            (
                "[serving]\ncandidate_timeout = \"40s\"",
                "serving.candidate_timeout",
            ),
            ("[serving]\ncandidate_timeout = \"soon\"", "not a duration"),
            ("grpc = \"127.0.0.1:8080\"", "another port"),
            ("coordinators = [\"nowhere\"]", "HOST:PORT"),
            ("models = [\"../etc\"]", "model name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(names), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_relative_folder_is_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFIG_FILE);
        std::fs::write(&path, format!("dir = \".\"\n{KEY}")).unwrap();
        assert_eq!(Config::read(&path).unwrap().dir, dir.path().join("."));
    }
}
