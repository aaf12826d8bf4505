//! Instants and their printed form.
//!
//! A [`Timestamp`] is a number that a driver hands to a core. This module has
//! no `now()`: reading a clock is a shell's business, so that a simulator can
//! own time.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Nanoseconds since the Unix epoch, on the clock of whoever made it.
///
/// On one machine it never goes backwards (drivers anchor a monotonic clock to
/// wall time once, at start). Two machines' timestamps are never compared to
/// decide anything; they are only shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The Unix epoch; in simulations, the beginning of the run.
    pub const ZERO: Self = Self(0);
    /// Later than anything.
    pub const MAX: Self = Self(u64::MAX);

    /// From nanoseconds since the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC with milliseconds, e.g. `2026-01-15T16:00:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(timestamp) => write!(f, "{timestamp:.3}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

/// The text is not an RFC 3339 instant after 1970.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a time: write RFC 3339, e.g. 2026-01-15T16:00:00Z")]
pub struct TimestampError {
    text: String,
}

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>()
            .ok()
            .and_then(|timestamp| u64::try_from(timestamp.as_nanosecond()).ok())
            .map(Self)
            .ok_or_else(|| TimestampError {
                text: text.to_owned(),
            })
    }
}

/// Text (nanosecond precision) for people's formats, a number on the wire.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
                Ok(timestamp) => serializer.collect_str(&timestamp),
                Err(error) => Err(serde::ser::Error::custom(error)),
            }
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
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

/// Durations in config files and plans: `"10s"`, `"1m 30s"`, `"500ms"`.
///
/// Use as `#[serde(with = "rollcall_shared::time::human")]`. Not for the wire.
pub mod human {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Reads a human duration; negative ones are refused.
    ///
    /// # Errors
    /// When the text is not a duration such as `10s`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_duration(&text).map_err(de::Error::custom)
    }

    /// Writes a human duration.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&super::display_duration(*duration))
    }
}

/// The text is not a duration.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a duration: write a number and a unit, e.g. 500ms, 10s, 1h")]
pub struct DurationError {
    text: String,
}

/// Reads `500ms`, `10s`, `1m 30s`, `1h`.
///
/// # Errors
/// When the text is not a non-negative duration.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| DurationError {
            text: text.to_owned(),
        })
}

/// Writes a duration as [`parse_duration`] reads it, e.g. `1m 30s`.
#[must_use]
pub fn display_duration(duration: Duration) -> String {
    jiff::SignedDuration::try_from(duration).map_or_else(
        |_| format!("{}s", duration.as_secs()),
        |signed| format!("{signed:#}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_rfc_3339_and_reads_back() {
        let timestamp: Timestamp = "2026-01-15T16:00:00.25Z".parse().unwrap();
        assert_eq!(timestamp.to_string(), "2026-01-15T16:00:00.250Z");
        let json = serde_json::to_string(&timestamp).unwrap();
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), timestamp);
    }

    #[test]
    fn durations_read_the_way_plans_write_them() {
        assert_eq!(parse_duration("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(parse_duration("1m").unwrap(), Duration::from_secs(60));
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1h").unwrap(), Duration::from_secs(3600));
        assert!(parse_duration("ten seconds").is_err());
        assert!(parse_duration("-3s").is_err());
        assert_eq!(
            parse_duration(&display_duration(Duration::from_millis(90_500))).unwrap(),
            Duration::from_millis(90_500)
        );
    }

    #[test]
    fn time_before_the_epoch_and_overflow_saturate() {
        assert_eq!(Timestamp::ZERO - Duration::from_secs(1), Timestamp::ZERO);
        assert_eq!(Timestamp::MAX + Duration::from_secs(1), Timestamp::MAX);
        assert_eq!(Timestamp::ZERO.since(Timestamp::MAX), Duration::ZERO);
    }
}
