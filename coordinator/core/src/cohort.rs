//! Which nodes make a node cohort.
//!
//! Eligible nodes are sorted into strata by zone and hardware, so that a canary meets every
//! kind of node that the fleet has. The seats are spread over the strata by largest
//! remainder; within a stratum nodes stand in the order of their rank, a hash of model,
//! rollout and node, so that neither name nor age decides.
//!
//! Nodes that are in the cohort keep their seats and count towards their stratum: a cohort
//! only ever grows. (Largest remainder alone would not do: when seats are added, a stratum
//! may lose one. That is the Alabama paradox.)

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use rollcall_shared::hashing::CohortHasher;
use rollcall_shared::ids::NodeId;
use rollcall_shared::plan::CohortSize;

/// The label that names a node's zone.
pub const ZONE_LABEL: &str = "zone";
/// The label that names a node's hardware.
pub const HARDWARE_LABEL: &str = "hardware";

/// Labels of each eligible node.
pub(crate) type Eligible<'a> = BTreeMap<&'a NodeId, &'a BTreeMap<String, String>>;

/// Picks a cohort of `size` out of `eligible`, in which every node of `keep` stays.
/// `keep` must be eligible.
pub(crate) fn pick(
    hasher: &CohortHasher,
    eligible: &Eligible<'_>,
    keep: &BTreeSet<NodeId>,
    size: CohortSize,
) -> BTreeSet<NodeId> {
    let total = eligible.len();
    let seats = seats(size, total).max(keep.len());
    let mut strata: BTreeMap<_, Stratum<'_>> = BTreeMap::new();
    for (node, labels) in eligible {
        let stratum = strata
            .entry((labels.get(ZONE_LABEL), labels.get(HARDWARE_LABEL)))
            .or_default();
        stratum.nodes += 1;
        if keep.contains(*node) {
            stratum.taken += 1;
        } else {
            stratum.spare.insert((Reverse(hasher.rank(node)), *node));
        }
    }
    let mut strata: Vec<Stratum<'_>> = strata.into_values().collect();
    let mut cohort = keep.clone();
    // The stratum with the largest deficit gets the next seat; the first of equals.
    let mut deficits: BTreeSet<(i128, Reverse<usize>)> = strata
        .iter()
        .enumerate()
        .map(|(i, stratum)| (stratum.deficit(seats, total), Reverse(i)))
        .collect();
    while cohort.len() < seats {
        let Some((_, Reverse(index))) = deficits.pop_last() else {
            break;
        };
        let stratum = &mut strata[index];
        let Some((_, node)) = stratum.spare.pop_last() else {
            continue;
        };
        cohort.insert(node.clone());
        stratum.taken += 1;
        deficits.insert((stratum.deficit(seats, total), Reverse(index)));
    }
    cohort
}

#[derive(Default)]
struct Stratum<'a> {
    nodes: usize,
    taken: usize,
    /// Not in the cohort; the lowest rank last.
    spare: BTreeSet<(Reverse<u64>, &'a NodeId)>,
}

impl Stratum<'_> {
    /// How many seats are missing to the exact share, times `total`.
    fn deficit(&self, seats: usize, total: usize) -> i128 {
        let product = |a: usize, b: usize| a as i128 * b as i128;
        product(seats, self.nodes) - product(self.taken, total)
    }
}

fn seats(size: CohortSize, total: usize) -> usize {
    match size {
        CohortSize::Count(count) => total.min(usize::try_from(count).unwrap_or(usize::MAX)),
        CohortSize::Percent(percent) => {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "node counts are small, percent is 0 to 100"
            )]
            // 7 % of 100 is 7.000000000000001 in floating point: that is 7, not 8.
            let seats = (percent * total as f64 / 100.0 - 1e-9).ceil() as usize;
            seats.clamp(usize::from(total > 0), total)
        }
    }
}

#[cfg(test)]
mod tests;
