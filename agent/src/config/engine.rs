//! `[engine]`: what runs the models of this node.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rollcall_shared::ids::ModelName;
use rollcall_shared::time::human;
use serde::{Deserialize, Serialize};

use super::{ConfigError, check};

/// What runs the models of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// What runs a model that `models` does not name. Default `tract`.
    pub default: EngineName,
    /// Memory that a version which is loaded beside another one of its model must leave
    /// free, in MiB. Default 512.
    pub memory_reserve_mib: u64,
    /// What runs some models, by their names.
    pub models: BTreeMap<ModelName, EngineName>,
    /// Where the onnxruntime library is. Given: the agent does not start without it.
    pub onnxruntime: Option<OnnxRuntime>,
    /// The server that runs models for this agent.
    pub upstream: Option<Upstream>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            default: EngineName::Tract,
            memory_reserve_mib: 512,
            models: BTreeMap::new(),
            onnxruntime: None,
            upstream: None,
        }
    }
}

/// An engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    /// Built in, on the CPU.
    #[default]
    Tract,
    /// The library that `[engine.onnxruntime]` names.
    Onnxruntime,
    /// The server that `[engine.upstream]` names.
    Upstream,
}

/// The onnxruntime library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxRuntime {
    /// The shared library, 1.23 or later: an absolute path.
    pub library: PathBuf,
    /// `cpu` (the default), `cuda`, or `cuda:1` for the second GPU. What a GPU cannot run
    /// of a model runs on the CPU.
    #[serde(default)]
    pub device: Device,
    /// Threads inside one run. Default 1: requests run beside each other already. More are
    /// made while a version loads, and keep the low priority that loading has.
    #[serde(default = "one")]
    pub threads: usize,
    /// Runs of one version at a time; each holds its own copy of the weights, but for
    /// those in files of their own. 0 (the default): one a core.
    #[serde(default)]
    pub sessions: usize,
}

/// Where onnxruntime computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The host's processor.
    #[default]
    Cpu,
    /// The GPU with this number.
    Cuda(u16),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is no device: write cpu, cuda or cuda:N")),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A server of the Open Inference Protocol whose models this agent loads and unloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its REST API, e.g. `http://127.0.0.1:9000`.
    pub url: String,
    /// Its model repository on this disk, which the agent writes to. An absolute path.
    pub repository: PathBuf,
    /// How a repository is laid out.
    pub layout: Layout,
    /// For `mlserver`: the class that serves an ONNX file, e.g. `my_runtimes.OnnxRuntime`;
    /// it finds the file as its settings' `parameters.uri`.
    #[serde(default)]
    pub implementation: Option<String>,
    /// Past this, a load has failed. Default 60s.
    #[serde(with = "human", default = "load_timeout_default")]
    pub load_timeout: Duration,
    /// Past this, an answer is not waited for. Default 10s. A candidate does not have
    /// longer than `serving.candidate_timeout` either way.
    #[serde(with = "human", default = "infer_timeout_default")]
    pub infer_timeout: Duration,
}

/// How a model repository is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `NAME/config.pbtxt` and `NAME/1/model.onnx`; Triton must run with
    /// `--model-control-mode=explicit`.
    Triton,
    /// `NAME/model-settings.json` and `NAME/model.onnx`.
    Mlserver,
}

fn one() -> usize {
    1
}

fn load_timeout_default() -> Duration {
    Duration::from_secs(60)
}

fn infer_timeout_default() -> Duration {
    Duration::from_secs(10)
}

impl Engine {
    /// Checks bounds and consistency.
    ///
    /// # Errors
    /// The first value that cannot work.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for name in self.models.values().chain([&self.default]) {
            let (given, why) = match name {
                EngineName::Tract => (true, ""),
                EngineName::Onnxruntime => (
                    self.onnxruntime.is_some(),
                    "say where its library is in [engine.onnxruntime]",
                ),
                EngineName::Upstream => (
                    self.upstream.is_some(),
                    "say which server it is in [engine.upstream]",
                ),
            };
            check("engine", &format!("{name:?}").to_lowercase(), given, why)?;
        }
        if let Some(onnxruntime) = &self.onnxruntime {
            onnxruntime.validate()?;
        }
        self.upstream.as_ref().map_or(Ok(()), Upstream::validate)
    }
}

impl OnnxRuntime {
    fn validate(&self) -> Result<(), ConfigError> {
        check(
            "engine.onnxruntime.library",
            &self.library.display(),
            self.library.is_absolute(),
            "write an absolute path, such as /usr/lib/libonnxruntime.so",
        )?;
        let few = |count| count <= 1_024;
        check(
            "engine.onnxruntime.threads",
            &self.threads,
            self.threads > 0 && few(self.threads),
            "write 1 to 1024",
        )?;
        check(
            "engine.onnxruntime.sessions",
            &self.sessions,
            few(self.sessions),
            "write at most 1024, or 0 for one a core",
        )
    }
}

impl Upstream {
    fn validate(&self) -> Result<(), ConfigError> {
        let host = self.url.strip_prefix("http://");
        check(
            "engine.upstream.url",
            &self.url,
            host.is_some_and(|host| !host.trim_end_matches('/').is_empty()),
            "write http://HOST:PORT; the server is on this node, so without TLS",
        )?;
        check(
            "engine.upstream.repository",
            &self.repository.display(),
            self.repository.is_absolute(),
            "write the absolute path of the server's model repository",
        )?;
        check(
            "engine.upstream.implementation",
            &self.implementation.as_deref().unwrap_or_default(),
            self.implementation.is_some() == (self.layout == Layout::Mlserver),
            "name the runtime's class where layout is mlserver, and nowhere else",
        )?;
        for (key, timeout) in [
            ("engine.upstream.load_timeout", self.load_timeout),
            ("engine.upstream.infer_timeout", self.infer_timeout),
        ] {
            let good = (Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(&timeout);
            check(key, &format!("{timeout:?}"), good, "write 1ms to 1h")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Engine, String> {
        let engine: Engine = toml::from_str(text).map_err(|error| error.to_string())?;
        engine.validate().map_err(|error| error.to_string())?;
        Ok(engine)
    }

    const UPSTREAM: &str = "[upstream]\nurl = \"http://127.0.0.1:9000\"\nrepository = \"/m\"\n";

    #[test]
    fn an_engine_for_all_and_another_for_some_models() {
        let text = "default = \"onnxruntime\"\nmodels = { wine = \"tract\" }\n\
                    [onnxruntime]\nlibrary = \"/lib/x.so\"\ndevice = \"cuda:1\"";
        let engine = parse(text).unwrap();
        assert_eq!(engine.default, EngineName::Onnxruntime);
        let wine = ModelName::new("wine").unwrap();
        assert_eq!(engine.models[&wine], EngineName::Tract);
        let onnxruntime = engine.onnxruntime.clone().unwrap();
        assert_eq!(onnxruntime.device, Device::Cuda(1));
        assert_eq!((onnxruntime.threads, onnxruntime.sessions), (1, 0));
        let written = toml::to_string(&engine).unwrap();
        assert_eq!(parse(&written).unwrap(), engine);
        assert_eq!(parse("").unwrap(), Engine::default());
        let upstream = parse(&format!("{UPSTREAM}layout = \"triton\"")).unwrap();
        let timeout = upstream.upstream.unwrap().infer_timeout;
        assert_eq!(timeout, Duration::from_secs(10));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_write() {
        for (text, wanted) in [
            ("default = \"onnxruntime\"", "[engine.onnxruntime]"),
            ("models = { wine = \"upstream\" }", "[engine.upstream]"),
            ("default = \"torch\"", "unknown variant"),
            ("[onnxruntime]\nlibrary = \"x.so\"", "absolute"),
            (
                "[onnxruntime]\nlibrary = \"/x.so\"\ndevice = \"tpu\"",
                "cuda:N",
            ),
            (
                "[onnxruntime]\nlibrary = \"/x.so\"\nthreads = 0",
                "1 to 1024",
            ),
            (&format!("{UPSTREAM}layout = \"mlserver\""), "class"),
            (
                &format!("{UPSTREAM}layout = \"triton\"\nload_timeout = \"0s\""),
                "1ms to 1h",
            ),
            (
                "[upstream]\nurl = \"https://x\"\nrepository = \"/m\"\nlayout = \"triton\"",
                "without TLS",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text:?} gave {error:?}");
        }
    }
}
