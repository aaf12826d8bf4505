//! How often a node may come, and an address from which nodes come too often.
//!
//! A handshake costs both ends the same, so a node that connects in a tight loop could
//! keep a core of ours busy with one of its own. Who it is stands in its certificate, and
//! that is seen only after the work is done. So there are two bounds: a node that comes too
//! often is sent away as soon as its name is known, and for a while the *address* that it
//! came from gets only so many handshakes a second, which costs nothing to refuse. Others
//! behind the same address share them; a restarted coordinator has forgotten.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rollcall_shared::ids::NodeId;
use rollcall_shared::time::Timestamp;

use super::rate::Bucket;

/// The time that one coming of a node pays for, and how many it may come at once. A
/// crashing agent that its service manager starts every few seconds stays within.
const COMING_COST: Duration = Duration::from_secs(2);
const COMINGS_AT_ONCE: u32 = 10;
/// A node that was cut off for what it did pays for so many comings.
const OFFENCE_COMINGS: u32 = 5;
/// It owes at most so much, and is back after that.
const DEBT_MAX: Duration = Duration::from_secs(60);

/// The time that one handshake from a crowded address pays for: 100 a second, which are
/// some 3 % of a core.
const HANDSHAKE_COST: Duration = Duration::from_millis(10);
const HANDSHAKES_AT_ONCE: u32 = 100;
/// How long an address stays crowded after the last node that came too often from it.
const CROWDED_FOR: Duration = Duration::from_secs(60);
/// Crowded addresses that are remembered. Each has an enrolled node that misbehaves.
const CROWDED_MAX: usize = 4_096;
/// Nodes that are remembered before those that owe nothing are forgotten; all of them are
/// gone through for that, so that it waits each time until as many more have come.
const NODES_KEPT: usize = 4_096;

/// Who came how often.
#[derive(Debug, Default)]
pub(super) struct Comings(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    nodes: BTreeMap<NodeId, Bucket>,
    /// How many were left when those that owe nothing were forgotten.
    left: usize,
    crowded: BTreeMap<IpAddr, Crowded>,
}

#[derive(Debug)]
struct Crowded {
    until: Timestamp,
    handshakes: Bucket,
}

/// What a handshake from an address may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Begin.
    Free,
    /// Begin, once the address is proven: it counts, and strangers must not spend for it.
    Proven,
    /// Not now.
    TooMany,
}

impl Comings {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing that holds this lock can leave a half-made change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a handshake may begin.
    pub(super) fn begin(&self, from: IpAddr, proven: bool, now: Timestamp) -> Beginning {
        let mut counts = self.counts();
        if counts.crowded.is_empty() {
            return Beginning::Free;
        }
        let Some(crowded) = counts.crowded.get_mut(&network(from)) else {
            return Beginning::Free;
        };
        if crowded.until <= now {
            return Beginning::Free;
        }
        if !proven {
            return Beginning::Proven;
        }
        match crowded.handshakes.try_spend(HANDSHAKE_COST, now) {
            Ok(()) => Beginning::Free,
            Err(_) => Beginning::TooMany,
        }
    }

    /// A node came.
    ///
    /// # Errors
    /// When it comes too often: how long it should stay away.
    pub(super) fn came(&self, node: &NodeId, from: IpAddr, now: Timestamp) -> Result<(), Duration> {
        let mut counts = self.counts();
        let came = counts.of(node, now).try_spend(COMING_COST, now);
        if came.is_err() {
            counts.crowd(from, now);
        }
        came
    }

    /// A node was cut off for what it did.
    pub(super) fn offended(&self, node: &NodeId, now: Timestamp) {
        let mut counts = self.counts();
        let bucket = counts.of(node, now);
        let mut after = *bucket;
        if after.spend(COMING_COST * OFFENCE_COMINGS, now) <= DEBT_MAX {
            *bucket = after;
        }
    }
}

impl Counts {
    fn of(&mut self, node: &NodeId, now: Timestamp) -> &mut Bucket {
        if self.nodes.len() >= self.left + NODES_KEPT && !self.nodes.contains_key(node) {
            self.nodes.retain(|_, bucket| !bucket.is_full(now));
            self.left = self.nodes.len();
        }
        self.nodes
            .entry(node.clone())
            .or_insert_with(|| Bucket::new(COMING_COST * COMINGS_AT_ONCE))
    }

    fn crowd(&mut self, from: IpAddr, now: Timestamp) {
        if self.crowded.len() >= CROWDED_MAX {
            self.crowded.retain(|_, crowded| crowded.until > now);
        }
        let room = self.crowded.len() < CROWDED_MAX;
        let until = now + CROWDED_FOR;
        match self.crowded.get_mut(&network(from)) {
            Some(crowded) => crowded.until = until,
            None if room => {
                let handshakes = Bucket::new(HANDSHAKE_COST * HANDSHAKES_AT_ONCE);
                self.crowded
                    .insert(network(from), Crowded { until, handshakes });
            }
            None => {}
        }
    }
}

/// What counts as one address: with IPv6 a host has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);
    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn came_too_often() -> Comings {
        let comings = Comings::default();
        for _ in 0..COMINGS_AT_ONCE {
            assert_eq!(comings.came(&node("a"), FROM, NOW), Ok(()));
        }
        assert_eq!(comings.came(&node("a"), FROM, NOW), Err(COMING_COST));
        comings
    }

    #[test]
    fn a_node_in_a_tight_loop_is_sent_away_and_others_are_not() {
        let comings = came_too_often();
        assert_eq!(comings.came(&node("b"), FROM, NOW), Ok(()));
        assert_eq!(comings.came(&node("a"), FROM, NOW + COMING_COST), Ok(()));
    }

    #[test]
    fn its_address_gets_so_many_handshakes_once_it_is_proven() {
        let comings = came_too_often();
        let begin = |proven, at| comings.begin(FROM, proven, at);
        assert_eq!(begin(false, NOW), Beginning::Proven);
        assert!((0..HANDSHAKES_AT_ONCE).all(|_| begin(true, NOW) == Beginning::Free));
        assert_eq!(begin(true, NOW), Beginning::TooMany);
        let other = "10.0.0.2".parse().unwrap();
        assert_eq!(comings.begin(other, false, NOW), Beginning::Free);
        assert_eq!(begin(false, NOW + CROWDED_FOR), Beginning::Free);
    }

    #[test]
    fn an_offender_stays_away_longer_but_not_for_ever() {
        let comings = Comings::default();
        for _ in 0..1_000 {
            comings.offended(&node("a"), NOW);
        }
        assert!(comings.came(&node("a"), FROM, NOW).is_err());
        assert_eq!(
            comings.came(&node("a"), FROM, NOW + DEBT_MAX + COMING_COST),
            Ok(())
        );
    }

    #[test]
    fn an_ipv6_host_is_one_address_however_many_it_uses() {
        let parse = |text: &str| network(text.parse().unwrap());
        assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:2"));
        assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
        assert_eq!(parse("::ffff:10.0.0.1"), FROM);
    }
}
