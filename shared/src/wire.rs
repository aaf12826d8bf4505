//! The messages between agents and the coordinator.
//!
//! Compatibility: bincode knows no field names, so a variant or a field is never
//! changed or removed, only appended as a new variant under a new protocol
//! number; golden bytes in the tests guard this. Both ends speak every protocol
//! from [`PROTOCOL_MIN`] to [`PROTOCOL`], and use the highest that both know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::assignment::{Assignment, Snapshot, VersionRef, Withdrawal};
use crate::digest::Digest;
use crate::feedback::Feedback;
use crate::ids::{Generation, ModelName};
use crate::report::{AgentEvent, Readiness, ReadyState, Receipt, Report, protocol_2};

/// ALPN of an agent's connection.
pub const ALPN: &[u8] = b"rollcall/1";
/// ALPN of an enrolment, the only thing that works without a client certificate.
pub const ALPN_ENROLL: &[u8] = b"rollcall-enroll/1";

/// The newest protocol that this code speaks.
pub const PROTOCOL: u16 = 3;
/// The oldest.
pub const PROTOCOL_MIN: u16 = 1;
/// The first protocol with [`ToAgent::Rehearse`] and [`FromAgent::Rehearsed`]. Whoever speaks an
/// older one cannot read them and must not be sent them.
pub const PROTOCOL_REHEARSE: u16 = 2;
/// The first protocol with [`FromAgentReport::Report`] and [`ToAgent::Feedback`].
pub const PROTOCOL_QUALITY: u16 = 3;

/// The protocol that two ends use: the highest that both speak.
#[must_use]
pub fn negotiate(theirs_min: u16, theirs: u16) -> Option<u16> {
    let common = PROTOCOL.min(theirs);
    (common >= PROTOCOL_MIN && common >= theirs_min).then_some(common)
}

/// From an agent, on its control stream (or, when small and repeatable, as a datagram).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromAgent {
    /// First on every connection.
    Hello(Hello),
    /// "I live, and hold these generations." Answered by [`ToAgent::HeartbeatAnswer`].
    Heartbeat(Heartbeat),
    /// A route was swapped.
    Receipt(Receipt),
    /// News about a version that should be on the node.
    Readiness(Readiness),
    /// Cannot wait for the next report.
    Event(AgentEvent),
    /// Answers [`ToAgent::Rehearse`]. Since protocol 2.
    Rehearsed(Rehearsed),
}

/// To an agent, on its control stream (or, when small and repeatable, as a datagram).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answers [`FromAgent::Hello`].
    Welcome(Welcome),
    /// The node is not wanted; the connection closes.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// New work for one model.
    Assign(Assignment),
    /// Take a candidate away, for good. Also sent as a datagram, ahead of the stream.
    Withdraw(Withdrawal),
    /// Everything about the models on which the agent lagged.
    Sync(Snapshot),
    /// Answers [`FromAgent::Heartbeat`].
    HeartbeatAnswer(HeartbeatAnswer),
    /// Say what a withdrawal would come to, and change nothing. Travels as a withdrawal
    /// does, beacons included. Since protocol 2.
    Rehearse(Rehearsal),
    /// What came of answers, for whoever gave them; nobody answers. Since protocol 3.
    Feedback(Feedback),
}

/// Who an agent is and what it holds. Its name comes from its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol it speaks.
    pub protocol_min: u16,
    /// Newest protocol it speaks.
    pub protocol: u16,
    /// Its software, e.g. `rollcall-agent 0.1.0`.
    pub software: String,
    /// Where it stands, e.g. `zone = eu-1`.
    pub labels: BTreeMap<String, String>,
    /// The models it hosts; empty: all.
    pub models: Vec<ModelName>,
    /// The generation it holds of each model.
    pub held: Vec<(ModelName, Generation)>,
    /// All withdrawals it knows.
    pub withdrawals: Vec<Withdrawal>,
    /// What it serves now, and what it has ready.
    pub receipts: Vec<Receipt>,
    /// What it has loaded and warmed.
    pub ready: Vec<Readiness>,
}

/// The coordinator's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol to use.
    pub protocol: u16,
    /// How often to send a heartbeat, in milliseconds.
    pub heartbeat_every_ms: u64,
    /// How long a report's window is, in milliseconds.
    pub report_every_ms: u64,
    /// Everything the agent must know.
    pub snapshot: Snapshot,
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts the heartbeats of one agent process.
    pub seq: u64,
    /// The generation it holds of each model.
    pub held: Vec<(ModelName, Generation)>,
}

/// What renews leases: those of models whose generation here is the one that the
/// agent holds, counted from the sending of heartbeat `seq`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Of the heartbeat that is answered.
    pub seq: u64,
    /// The current generation of each model that the node hosts.
    pub current: Vec<(ModelName, Generation)>,
}

/// What must arrive first, in a sealed datagram beside QUIC; the control stream repeats
/// it for those who do not answer. Only messages that mean the same however often they
/// come: withdrawals and rehearsals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beacon {
    /// Answers are wanted within so many milliseconds, spread evenly over the fleet, so
    /// that they do not come all at once and in the way of beacons to others.
    pub answer_within_ms: u32,
    /// The message.
    pub message: ToAgent,
}

/// "What would you do if this withdrawal came?" It travels the way of a withdrawal, so that
/// the time it takes is the time that a withdrawal would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Number of the journal's record that began it; never used again.
    pub rehearsal: u64,
    /// What a rollback would send. Nobody decided it: it must never be remembered nor obeyed.
    pub as_if: Withdrawal,
}

/// What a withdrawal would come to on one node. Nothing was changed to find it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// The rehearsal that is answered.
    pub rehearsal: u64,
    /// The model.
    pub model: ModelName,
    /// The generation that the node holds, and goes on holding.
    pub held: Generation,
    /// What would answer requests from the swap on: loaded and warm now. `None`: nothing would.
    pub serving: Option<VersionRef>,
    /// What must be loaded before the node could give its receipt. `None`: it would give it at once.
    pub missing: Option<Missing>,
}

/// A version that should serve and cannot yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub version: VersionRef,
    /// How far the node is with it; `None`: it was never told to have it.
    pub state: Option<ReadyState>,
}

/// First on a unidirectional report stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromAgentReport {
    /// One window, to a coordinator of protocol 2 or older, or from such an agent.
    Protocol2(protocol_2::Report),
    /// One window. Since protocol 3.
    Report(Report),
}

impl FromAgentReport {
    /// As the protocol of the connection has it.
    #[must_use]
    pub fn new(report: Report, protocol: u16) -> Self {
        if protocol < PROTOCOL_QUALITY {
            Self::Protocol2(report.into())
        } else {
            Self::Report(report)
        }
    }

    /// The report, whichever protocol it came by.
    #[must_use]
    pub fn into_report(self) -> Report {
        match self {
            Self::Protocol2(old) => old.into(),
            Self::Report(report) => report,
        }
    }
}

/// Asks for a blob on a stream of its own; the answer is an [`ArtifactAnswer`]
/// frame and then the bytes from `offset` to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRequest {
    /// Which blob.
    pub digest: Digest,
    /// From which byte on.
    pub offset: u64,
}

/// What follows on the artifact stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArtifactAnswer {
    /// The blob's whole size; `size - offset` bytes follow.
    Found {
        /// In bytes.
        size: u64,
    },
    /// There is no such blob, or nothing at that offset.
    Missing,
}

/// Asks for an identity, on a connection with [`ALPN_ENROLL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The one-time token, whole.
    pub token: String,
    /// The name the node wants; empty: one is made for it.
    pub node: String,
    /// Where it stands.
    pub labels: BTreeMap<String, String>,
    /// Certificate signing request, DER. The private key never leaves the node.
    pub csr: Vec<u8>,
}

/// The answer to [`EnrollRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollAnswer {
    /// The node is in the fleet.
    Enrolled {
        /// Its name.
        node: String,
        /// The fleet's name.
        fleet: String,
        /// Its certificate, PEM.
        certificate: String,
        /// The fleet's CA certificate, PEM.
        ca: String,
        /// The key that checks manifests, hexadecimal.
        registry_key: String,
    },
    /// It is not.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation_takes_the_highest_common_protocol_or_none() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 2), Some(2));
        assert_eq!(negotiate(1, 9), Some(PROTOCOL));
        assert_eq!(negotiate(PROTOCOL + 1, 9), None);
        assert_eq!(negotiate(0, 0), None);
    }
}
