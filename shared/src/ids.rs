//! Names and numbers that identify things.
//!
//! Names are checked when they are made, so that whoever holds one need not
//! check again: they are safe in file names, URLs, certificates and logs.
//! They are keys everywhere and are cloned at every turn, so clones share the text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::NAME_BYTES_MAX;

/// A name that breaks the rules for names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot be a {kind}: use 1 to {NAME_BYTES_MAX} of a-z 0-9 - _ . and begin with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    text: String,
}

fn check_name(kind: &'static str, text: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let good = (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(allowed)
        && text.as_bytes()[0].is_ascii_alphanumeric();
    if good {
        Ok(())
    } else {
        Err(NameError {
            kind,
            text: text.chars().take(80).collect(),
        })
    }
}

/// Reads a name where it lies, without a copy that is thrown away.
struct NameVisitor(&'static str);

impl de::Visitor<'_> for NameVisitor {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
        check_name(self.0, text).map_err(E::custom)?;
        Ok(text.into())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `text` and makes the name.
            ///
            /// # Errors
            /// When `text` breaks the rules for names.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                check_name($kind, text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(NameVisitor($kind)).map(Self)
            }
        }
    };
}

name!(
    /// A fleet, e.g. `payments`; part of every identity.
    FleetName,
    "fleet name"
);
name!(
    /// A serving node, e.g. `node-4`; comes from its certificate, never from a message.
    NodeId,
    "node name"
);
name!(
    /// A model, e.g. `fraud-detector`.
    ModelName,
    "model name"
);

/// One trip of a candidate through a plan; printed `r-7`. A journal never gives it twice; one
/// that was restored from an old backup may give it to another trip than the past that it lost,
/// until an agent has told of that past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RolloutId(pub u64);

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r-{}", self.0))
    }
}

/// The text is not a rollout id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a rollout id: write it as `rollcall rollout list` shows it, e.g. r-7")]
pub struct RolloutIdError {
    text: String,
}

impl FromStr for RolloutId {
    type Err = RolloutIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("r-")
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| RolloutIdError {
                text: text.to_owned(),
            })
    }
}

/// `"r-7"` for people, a number on the wire.
impl Serialize for RolloutId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for RolloutId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(de::Error::custom)
        } else {
            u64::deserialize(deserializer).map(Self)
        }
    }
}

/// Counts the changes of what a model's agents should do. Only grows; an agent
/// ignores anything older than what it holds. Zero: nothing was ever assigned.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One live connection of one agent; made by the coordinator's shell, never reused
/// while the process lives. Messages of a superseded connection are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_hurt_a_file_system_or_a_url_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "-rf",
            "a/b",
            "A",
            "a b",
            "ü",
            "a\0",
            &"x".repeat(NAME_BYTES_MAX + 1),
        ] {
            assert!(NodeId::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["n", "node-4", "eu-1.host_7", &"x".repeat(NAME_BYTES_MAX)] {
            assert!(NodeId::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_rollout_id_reads_as_it_prints() {
        assert_eq!("r-7".parse(), Ok(RolloutId(7)));
        assert!("7".parse::<RolloutId>().is_err());
    }
}
