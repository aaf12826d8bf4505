//! The coordinator's configuration: one TOML file in its data folder.
//!
//! Every field but the fleet's name has a default, written out in the file that
//! `rollcall init` makes. Unknown fields are refused: a misspelt bound is not a default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_shared::ids::FleetName;
use rollcall_shared::limits::{HEARTBEAT_EVERY, LEASE_MIN};
use rollcall_shared::time::{display_duration, human};
use serde::Deserialize;

/// Where agents connect unless told otherwise.
pub const QUIC_PORT: u16 = 7700;
/// Where operators connect unless told otherwise.
pub const HTTPS_PORT: u16 = 7701;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The fleet's name; must be the one in the CA's certificate.
    pub fleet: FleetName,
    /// Journal, keys and blobs. Relative: from the config file's folder. Default `.`.
    #[serde(default = "here")]
    pub data_dir: PathBuf,
    /// Address for agents (QUIC over UDP). Default `[::]:7700`.
    #[serde(default = "any_quic")]
    pub quic_listen: SocketAddr,
    /// Address for operators (HTTPS over TCP). Default `[::]:7701`.
    #[serde(default = "any_https")]
    pub https_listen: SocketAddr,
    /// How often agents say that they live. Default 1s; at most half the shortest lease.
    #[serde(default = "heartbeat_every", with = "human")]
    pub heartbeat_every: Duration,
    /// How long agents measure before they report. Default 5s.
    #[serde(default = "report_every", with = "human")]
    pub report_every: Duration,
    /// Largest file of a version, in bytes. Larger: the push is refused. Default 16 GiB.
    #[serde(default = "blob_bytes_max")]
    pub blob_bytes_max: u64,
    /// Files that agents may fetch at the same time; others wait. Default 32.
    #[serde(default = "artifact_streams_max")]
    pub artifact_streams_max: usize,
    /// What the log looks like. Default `text`.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Which lines are logged, as `tracing` filters. Default `info`.
    #[serde(default = "log_filter")]
    pub log_filter: String,
    /// Private keys that lie here are read from here, not from the data folder: what a
    /// service manager gives this process alone. From the command line, not the file.
    #[serde(skip)]
    pub credentials: Option<PathBuf>,
}

/// What the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn here() -> PathBuf {
    PathBuf::from(".")
}
fn any_quic() -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, QUIC_PORT).into()
}
fn any_https() -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, HTTPS_PORT).into()
}
const fn heartbeat_every() -> Duration {
    HEARTBEAT_EVERY
}
const fn report_every() -> Duration {
    Duration::from_secs(5)
}
const fn blob_bytes_max() -> u64 {
    16 << 30
}
const fn artifact_streams_max() -> usize {
    32
}
fn log_filter() -> String {
    "info".to_owned()
}

/// A configuration that is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}. `rollcall init --dir DIR` makes one", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or not the form.
    #[error("{} is not a configuration: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// Readable, but it makes no sense.
    #[error("{}: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which field, and what to write.
        why: String,
    },
}

impl Config {
    /// The defaults of a fleet, with data in `data_dir`.
    #[must_use]
    pub fn of(fleet: FleetName, data_dir: PathBuf) -> Self {
        Self {
            fleet,
            data_dir,
            quic_listen: any_quic(),
            https_listen: any_https(),
            heartbeat_every: heartbeat_every(),
            report_every: report_every(),
            blob_bytes_max: blob_bytes_max(),
            artifact_streams_max: artifact_streams_max(),
            log_format: LogFormat::default(),
            log_filter: log_filter(),
            credentials: None,
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense; the error names the field.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let mut config: Self = toml::from_str(&text).map_err(|source| ConfigError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.validate().map_err(|why| ConfigError::Invalid {
            path: path.to_owned(),
            why,
        })?;
        if config.data_dir.is_relative() {
            config.data_dir = path
                .parent()
                .unwrap_or(Path::new("."))
                .join(&config.data_dir);
        }
        Ok(config)
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// The first field that is out of bounds, and what to write.
    pub fn validate(&self) -> Result<(), String> {
        let bounded = |name: &str, value: Duration, min: Duration, max: Duration| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!(
                    "{name} is {}; it must be {} to {}",
                    display_duration(value),
                    display_duration(min),
                    display_duration(max)
                ))
            }
        };
        let short = Duration::from_millis(50);
        bounded(
            "heartbeat_every",
            self.heartbeat_every,
            short,
            LEASE_MIN / 2,
        )?;
        bounded(
            "report_every",
            self.report_every,
            short,
            Duration::from_secs(300),
        )?;
        if self.blob_bytes_max == 0 {
            return Err("blob_bytes_max is 0; nothing could be pushed".to_owned());
        }
        if !(1..=1_024).contains(&self.artifact_streams_max) {
            return Err("artifact_streams_max must be 1 to 1024".to_owned());
        }
        Ok(())
    }

    /// Where everything lies in the data folder.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout {
            folder: self.data_dir.clone(),
            credentials: self.credentials.clone(),
        }
    }
}

/// Where everything lies in a data folder.
#[derive(Clone, Debug)]
pub struct Layout {
    folder: PathBuf,
    credentials: Option<PathBuf>,
}

impl Layout {
    /// The layout of the data folder `folder`.
    #[must_use]
    pub const fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            credentials: None,
        }
    }
    /// The folder itself; the journal lies here.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }
    /// The CA's certificate; not secret.
    #[must_use]
    pub fn ca_certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }
    /// The CA's private key.
    #[must_use]
    pub fn ca_key(&self) -> PathBuf {
        self.secret("ca.key")
    }
    /// The coordinator's certificates.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("coordinator.pem")
    }
    /// The coordinator's private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.secret("coordinator.key")
    }
    /// The key that signs manifests: 64 hexadecimal digits.
    #[must_use]
    pub fn registry_key(&self) -> PathBuf {
        self.secret("registry.key")
    }
    fn secret(&self, name: &str) -> PathBuf {
        let given = self.credentials.as_ref().map(|folder| folder.join(name));
        given
            .filter(|path| path.exists())
            .unwrap_or_else(|| self.folder.join(name))
    }
    /// The blob folder.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_key_that_the_service_manager_gives_goes_before_the_one_in_the_data_folder() {
        let given = tempfile::tempdir().unwrap();
        std::fs::write(given.path().join("ca.key"), "secret").unwrap();
        let mut config = read("fleet = \"payments\"").unwrap();
        config.credentials = Some(given.path().to_owned());
        assert_eq!(config.layout().ca_key(), given.path().join("ca.key"));
        assert_eq!(
            config.layout().key(),
            config.data_dir.join("coordinator.key")
        );
    }

    #[test]
    fn a_fleet_name_is_enough() {
        let config = read("fleet = \"payments\"").unwrap();
        assert_eq!(config.heartbeat_every, HEARTBEAT_EVERY);
        assert_eq!(config.quic_listen.port(), QUIC_PORT);
        assert!(config.data_dir.is_absolute());
    }

    #[test]
    fn unknown_fields_and_values_out_of_bounds_are_refused_by_name() {
        for (text, says) in [
            ("fleet = \"p\"\nhearbeat_every = \"1s\"", "hearbeat_every"),
            (
                "fleet = \"p\"\nheartbeat_every = \"3s\"",
                "heartbeat_every is 3s",
            ),
            ("fleet = \"p\"\nreport_every = \"0s\"", "report_every"),
            (
                "fleet = \"p\"\nartifact_streams_max = 0",
                "artifact_streams_max",
            ),
            ("fleet = \"P\"", "fleet name"),
            ("", "fleet"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }
}
