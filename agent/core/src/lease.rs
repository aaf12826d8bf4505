//! How long a candidate may be used without hearing from the coordinator.
//!
//! A lease runs from the *sending* of the heartbeat (or `Hello`) that was answered, on
//! this node's own clock: whatever the network did to the answer, the coordinator made
//! it after that moment, so a coordinator that decides to withdraw at T knows that every
//! lease it granted before ends by T + length, without comparing clocks.
//!
//! Deliberately absent: any lease on stable, any lease that survives a restart, and any
//! way to lengthen a lease but an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::assignment::{CandidateAssignment, VersionRef};
use rollcall_shared::ids::RolloutId;
use rollcall_shared::limits::{HEARTBEATS_IN_FLIGHT_MAX, LEASE_MAX};
use rollcall_shared::time::Timestamp;

/// The lease of one model's candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    rollout: RolloutId,
    version: VersionRef,
    length: Duration,
    /// `None`: no answer has named this candidate yet.
    grant: Option<Grant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    from: Timestamp,
    until: Timestamp,
}

impl Lease {
    /// A lease that nobody has granted yet.
    pub(crate) fn ungranted(candidate: &CandidateAssignment) -> Self {
        Self {
            rollout: candidate.rollout,
            version: candidate.version,
            length: candidate.lease().min(LEASE_MAX),
            grant: None,
        }
    }

    /// The lease under a new generation: the same candidate keeps the time it has (less,
    /// if leases became shorter; never more), another one begins with nothing.
    pub(crate) fn under(held: Option<&Self>, candidate: &CandidateAssignment) -> Self {
        let mut lease = Self::ungranted(candidate);
        lease.grant = held
            .filter(|h| (h.rollout, h.version) == (lease.rollout, lease.version))
            .and_then(|h| h.grant)
            .map(|grant| Grant {
                from: grant.from,
                until: grant.until.min(grant.from + lease.length),
            });
        lease
    }

    /// How long it is, if it is granted.
    pub(crate) const fn length(&self) -> Duration {
        self.length
    }

    /// An answer to something sent at `from` named the generation we hold.
    pub(crate) fn renew(&mut self, from: Timestamp) {
        let until = from + self.length;
        if self.grant.is_none_or(|grant| until > grant.until) {
            self.grant = Some(Grant { from, until });
        }
    }

    /// When it ends, if it is still running.
    pub(crate) fn running_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.grant.map(|g| g.until).filter(|until| now < *until)
    }
}

/// When each unanswered heartbeat was sent. Holds [`HEARTBEATS_IN_FLIGHT_MAX`]; the
/// oldest is forgotten, and an answer to it then renews nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeartbeatsInFlight {
    last_seq: u64,
    sent: BTreeMap<u64, Timestamp>,
}

impl HeartbeatsInFlight {
    /// Notes a heartbeat sent now; returns its number.
    pub(crate) fn send(&mut self, now: Timestamp) -> u64 {
        self.last_seq += 1;
        self.sent.insert(self.last_seq, now);
        if self.sent.len() > HEARTBEATS_IN_FLIGHT_MAX {
            self.sent.pop_first();
        }
        self.last_seq
    }

    /// When the answered heartbeat was sent; the first answer takes it out.
    pub(crate) fn answered(&mut self, seq: u64) -> Option<Timestamp> {
        self.sent.remove(&seq)
    }

    /// The connection is gone, and answers with it. Numbers go on.
    pub(crate) fn forget(&mut self) {
        self.sent.clear();
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::assignment::CandidateMode;

    use super::*;
    use crate::agent::fixtures::{at, candidate, version};

    #[test]
    fn a_lease_runs_from_the_sending_and_never_gets_shorter_by_a_late_answer() {
        let mut lease = Lease::ungranted(&candidate(1, 2, CandidateMode::Prepare));
        assert_eq!(lease.running_until(at(0)), None);
        lease.renew(at(5));
        assert_eq!(lease.running_until(at(14)), Some(at(15)));
        assert_eq!(lease.running_until(at(15)), None);
        lease.renew(at(3));
        assert_eq!(lease.running_until(at(14)), Some(at(15)));
    }

    #[test]
    fn another_rollout_or_version_begins_with_nothing() {
        let first = candidate(1, 2, CandidateMode::Prepare);
        let mut lease = Lease::ungranted(&first);
        lease.renew(at(5));
        assert_eq!(Lease::under(Some(&lease), &first), lease);
        for other in [
            CandidateAssignment {
                rollout: RolloutId(2),
                ..first
            },
            CandidateAssignment {
                version: version(3),
                ..first
            },
        ] {
            assert_eq!(
                Lease::under(Some(&lease), &other).running_until(at(6)),
                None
            );
        }
    }

    #[test]
    fn a_generation_with_a_shorter_lease_cuts_it_and_a_longer_one_waits_for_an_answer() {
        let first = candidate(1, 2, CandidateMode::Prepare);
        let mut lease = Lease::ungranted(&first);
        lease.renew(at(5));
        let with = |lease_ms| CandidateAssignment { lease_ms, ..first };
        let shorter = Lease::under(Some(&lease), &with(4_000));
        assert_eq!(shorter.running_until(at(6)), Some(at(9)));
        let longer = Lease::under(Some(&lease), &with(60_000));
        assert_eq!(longer.running_until(at(6)), Some(at(15)));
    }

    #[test]
    fn no_lease_is_longer_than_the_longest() {
        let endless = CandidateAssignment {
            lease_ms: u64::MAX,
            ..candidate(1, 2, CandidateMode::Prepare)
        };
        let mut lease = Lease::ungranted(&endless);
        lease.renew(at(0));
        assert_eq!(lease.running_until(at(0)), Some(at(0) + LEASE_MAX));
    }

    #[test]
    fn the_oldest_heartbeat_is_forgotten_and_an_answer_counts_once() {
        let mut heartbeats = HeartbeatsInFlight::default();
        for i in 0..=HEARTBEATS_IN_FLIGHT_MAX as u64 {
            assert_eq!(heartbeats.send(at(i)), i + 1);
        }
        assert_eq!(heartbeats.answered(1), None);
        assert_eq!(heartbeats.answered(2), Some(at(1)));
        assert_eq!(heartbeats.answered(2), None);
        heartbeats.forget();
        assert_eq!(heartbeats.answered(3), None);
        assert_eq!(heartbeats.send(at(99)), 66);
    }
}
