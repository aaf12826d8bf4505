//! Why a connection ended, in words that both ends understand.

use std::fmt;

use quinn::{Connection, ConnectionError, VarInt};

/// A longer reason is cut: it must fit one packet with the rest of the close.
const REASON_BYTES_MAX: usize = 512;

/// Why one end closed the connection; travels as QUIC's application error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Done; also what a peer sees when the last handle is dropped.
    Normal,
    /// The peer broke the protocol. Reconnecting with the same software will not help.
    ProtocolError,
    /// The certificate was revoked. The node must enrol anew.
    Revoked,
    /// A newer connection of the same node took over.
    Superseded,
    /// The peer did not keep up; it should reconnect and resynchronise.
    Slow,
    /// The process is going away; try again soon.
    Shutdown,
    /// The node is not wanted; the reason says what to do.
    Refused,
}

impl CloseCode {
    const ALL: [Self; 7] = [
        Self::Normal,
        Self::ProtocolError,
        Self::Revoked,
        Self::Superseded,
        Self::Slow,
        Self::Shutdown,
        Self::Refused,
    ];

    /// On the wire; never changes between releases.
    const fn number(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::ProtocolError => 1,
            Self::Revoked => 2,
            Self::Superseded => 3,
            Self::Slow => 4,
            Self::Shutdown => 5,
            Self::Refused => 6,
        }
    }

    fn from_number(number: VarInt) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|code| VarInt::from_u32(code.number()) == number)
    }
}

/// Closes the connection at once; what was not yet acknowledged may be lost.
/// A reason over 512 bytes is cut.
pub fn close(connection: &Connection, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(VarInt::from_u32(code.number()), &reason.as_bytes()[..end]);
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed it.
    #[error("closed by the peer: {code:?}: {reason}")]
    ByPeer {
        /// Why.
        code: CloseCode,
        /// In the peer's words; untrusted text, at most a packet long.
        reason: String,
    },
    /// This end closed it.
    #[error("closed by this end")]
    ByUs,
    /// Nothing was heard for the idle time-out.
    #[error("timed out: nothing heard from the peer")]
    TimedOut,
    /// The peer does not know the connection, e.g. because it restarted.
    #[error("the peer no longer knows the connection")]
    Reset,
    /// TLS or QUIC refused: a certificate, an ALPN, a broken packet.
    #[error("{reason}")]
    Transport {
        /// What went wrong.
        reason: String,
    },
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let reason = Printable(&close.reason).to_string();
                match CloseCode::from_number(close.error_code) {
                    Some(code) => Self::ByPeer { code, reason },
                    None => Self::Transport {
                        reason: format!("closed with unknown code {}: {reason}", close.error_code),
                    },
                }
            }
            ConnectionError::LocallyClosed => Self::ByUs,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::CidsExhausted => Self::Transport {
                reason: error.to_string(),
            },
        }
    }
}

/// A peer's words without what could disturb a terminal or a log.
struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.0)
            .chars()
            .filter(|character| !character.is_control())
            .try_for_each(|character| write!(f, "{character}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_as_they_were_sent_and_unknown_ones_are_not_guessed() {
        for code in CloseCode::ALL {
            assert_eq!(
                CloseCode::from_number(VarInt::from_u32(code.number())),
                Some(code)
            );
        }
        assert_eq!(CloseCode::from_number(VarInt::from_u32(7)), None);
    }

    #[test]
    fn a_peers_reason_cannot_carry_terminal_escapes() {
        assert_eq!(Printable(b"a\x1b[31mb\n\xff").to_string(), "a[31mb\u{fffd}");
    }
}
