//! Version numbers, and how a version is named.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ids::ModelName;
use crate::time::Timestamp;

/// `major.minor.patch`, ordered as semantic versioning orders it. Pre-release
/// and build parts are refused: a version on a serving node is one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Incompatible signature or behaviour.
    pub major: u64,
    /// New training, same signature.
    pub minor: u64,
    /// Same model, repaired.
    pub patch: u64,
}

impl Version {
    /// A version from its three numbers.
    #[must_use]
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

/// The text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a version: write MAJOR.MINOR.PATCH, e.g. 2.1.0")]
pub struct VersionError {
    text: String,
}

impl FromStr for Version {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = semver::Version::parse(text).ok();
        parsed
            .filter(|v| v.pre.is_empty() && v.build.is_empty())
            .map(|v| Self::new(v.major, v.minor, v.patch))
            .ok_or_else(|| VersionError {
                text: text.chars().take(80).collect(),
            })
    }
}

/// `"2.1.0"` for people, three numbers on the wire.
impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.major, self.minor, self.patch).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(de::Error::custom)
        } else {
            <(u64, u64, u64)>::deserialize(deserializer).map(|(a, b, c)| Self::new(a, b, c))
        }
    }
}

/// A version of a model as operators write it: `digits@2.1.0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelVersion {
    /// The model.
    pub model: ModelName,
    /// Its version.
    pub version: Version,
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

/// The text is not `MODEL@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not MODEL@VERSION, e.g. digits@2.1.0")]
pub struct ModelVersionError {
    text: String,
}

impl FromStr for ModelVersion {
    type Err = ModelVersionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('@')
            .and_then(|(model, version)| {
                Some(Self {
                    model: model.parse().ok()?,
                    version: version.parse().ok()?,
                })
            })
            .ok_or_else(|| ModelVersionError {
                text: text.chars().take(120).collect(),
            })
    }
}

/// The full name of a registered version,
/// `{model}-v{major}.{minor}.{patch}-{YYYYMMDD-HHMM}` in UTC.
#[must_use]
pub fn full_name(model: &ModelName, version: Version, registered_at: Timestamp) -> String {
    let minute: String = registered_at
        .to_string()
        .chars()
        .filter(char::is_ascii_digit)
        .take(12)
        .collect();
    format!("{model}-v{version}-{}-{}", &minute[..8], &minute[8..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_carries_model_version_and_minute() {
        let at = "2026-01-15T16:00:59Z".parse().unwrap();
        let model = ModelName::new("fraud-detector").unwrap();
        assert_eq!(
            full_name(&model, Version::new(2, 1, 0), at),
            "fraud-detector-v2.1.0-20260115-1600"
        );
    }

    #[test]
    fn versions_order_by_number_not_by_text() {
        assert!("2.10.0".parse::<Version>().unwrap() > "2.9.9".parse().unwrap());
        for bad in ["1", "1.2", "v1.2.3", "1.2.3-rc1", "1.2.3+b", "01.2.3", ""] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?} was accepted");
        }
    }
}
