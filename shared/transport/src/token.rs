//! The text of tokens: what an operator copies from the coordinator to a node or
//! into the CLI's configuration.
//!
//! `rollcall1.<id>.<secret>.<CA fingerprint>` enrols one node; the fingerprint
//! lets the node recognise its coordinator before it trusts anything.
//! `rollcallop1.<id>.<secret>` is an operator's. The coordinator keeps the id and
//! [`secret_hash`] only. This module formats and parses; it makes no secrets.

use std::fmt;
use std::str::FromStr;

use rollcall_shared::digest::Digest;

const ENROLMENT: &str = "rollcall1";
const OPERATOR: &str = "rollcallop1";

/// An id is 1 to so many characters.
pub const ID_CHARS_MAX: usize = 32;
/// A secret has at least so many characters: 128 bits in hexadecimal, 160 in base32.
pub const SECRET_CHARS_MIN: usize = 32;
/// A secret has at most so many characters.
pub const SECRET_CHARS_MAX: usize = 128;

/// What is wrong with a token. Never quotes it: errors end up in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The parts are not those of the expected kind.
    #[error("not a token of the form {expected}")]
    Form {
        /// What one looks like.
        expected: &'static str,
    },
    /// The id breaks its rules.
    #[error("a token's id has 1 to {ID_CHARS_MAX} characters of a-z 0-9")]
    Id,
    /// The secret breaks its rules.
    #[error("a token's secret has {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} characters of a-z 0-9")]
    Secret,
    /// The fingerprint is not a digest.
    #[error("a token's fingerprint has 64 hexadecimal digits")]
    Fingerprint,
}

/// The id and the secret that both kinds have.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    id: String,
    secret: String,
}

impl Credential {
    /// Checks and keeps both parts: lower-case base32 or hexadecimal text.
    ///
    /// # Errors
    /// When a part is too short, too long, or has other characters.
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Result<Self, TokenError> {
        let (id, secret) = (id.into(), secret.into());
        let plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if !(1..=ID_CHARS_MAX).contains(&id.len()) || !plain(&id) {
            return Err(TokenError::Id);
        }
        if !(SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&secret.len()) || !plain(&secret) {
            return Err(TokenError::Secret);
        }
        Ok(Self { id, secret })
    }

    /// Names the token; not secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the coordinator stores and compares.
    #[must_use]
    pub fn secret_hash(&self) -> Digest {
        secret_hash(&self.secret)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, secret)", self.id)
    }
}

/// What the coordinator stores of a secret. A plain hash is enough: a secret has
/// at least 128 random bits, so there is nothing to guess.
#[must_use]
pub fn secret_hash(secret: &str) -> Digest {
    Digest::of(secret.as_bytes())
}

/// Lets one node into the fleet. [`Display`](fmt::Display) shows the secret; `Debug` does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentToken {
    /// Which token it is, and the proof.
    pub credential: Credential,
    /// Fingerprint of the fleet's CA certificate.
    pub pin: Digest,
}

impl fmt::Display for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Credential { id, secret } = &self.credential;
        write!(f, "{ENROLMENT}.{id}.{secret}.{}", self.pin)
    }
}

impl FromStr for EnrolmentToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [ENROLMENT, id, secret, pin] = parts[..] else {
            return Err(TokenError::Form {
                expected: "rollcall1.<id>.<secret>.<fingerprint>",
            });
        };
        Ok(Self {
            credential: Credential::new(id, secret)?,
            pin: pin.parse().map_err(|_| TokenError::Fingerprint)?,
        })
    }
}

/// An operator's key to the coordinator. [`Display`](fmt::Display) shows the secret; `Debug` does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorToken {
    /// Which token it is, and the proof.
    pub credential: Credential,
}

impl fmt::Display for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Credential { id, secret } = &self.credential;
        write!(f, "{OPERATOR}.{id}.{secret}")
    }
}

impl FromStr for OperatorToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [OPERATOR, id, secret] = parts[..] else {
            return Err(TokenError::Form {
                expected: "rollcallop1.<id>.<secret>",
            });
        };
        Ok(Self {
            credential: Credential::new(id, secret)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn enrolment() -> EnrolmentToken {
        EnrolmentToken {
            credential: Credential::new("k7", SECRET).unwrap(),
            pin: Digest::of(b"ca"),
        }
    }

    #[test]
    fn tokens_read_as_they_print() {
        let token = enrolment();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        let operator = OperatorToken {
            credential: token.credential,
        };
        assert_eq!(operator.to_string(), format!("rollcallop1.k7.{SECRET}"));
        assert_eq!(format!("{operator}\n").parse(), Ok(operator));
    }

    #[test]
    fn one_kind_is_not_taken_for_the_other() {
        let operator = format!("rollcallop1.k7.{SECRET}");
        assert!(operator.parse::<EnrolmentToken>().is_err());
        assert!(enrolment().to_string().parse::<OperatorToken>().is_err());
    }

    #[test]
    fn short_secrets_and_strange_characters_are_refused() {
        assert_eq!(Credential::new("k7", "short"), Err(TokenError::Secret));
        assert_eq!(
            Credential::new("k7", SECRET.to_uppercase()),
            Err(TokenError::Secret)
        );
        assert_eq!(Credential::new("", SECRET), Err(TokenError::Id));
        assert_eq!(Credential::new("k/7", SECRET), Err(TokenError::Id));
    }

    #[test]
    fn neither_debug_output_nor_errors_show_the_secret() {
        assert!(!format!("{:?}", enrolment()).contains(SECRET));
        let error = format!("rollcall1.k7.{SECRET}").parse::<EnrolmentToken>();
        assert!(!error.unwrap_err().to_string().contains(SECRET));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,200}") {
            let _ = text.parse::<EnrolmentToken>();
            let _ = text.parse::<OperatorToken>();
        }
    }
}
