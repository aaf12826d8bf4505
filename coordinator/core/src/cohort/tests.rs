use proptest::prelude::*;
use rollcall_shared::ids::{ModelName, RolloutId};

use super::*;

type Fleet = BTreeMap<NodeId, BTreeMap<String, String>>;

/// `zones[i]` is the zone of node `i`.
fn fleet(zones: &[u8]) -> Fleet {
    zones
        .iter()
        .enumerate()
        .map(|(i, zone)| {
            let labels = BTreeMap::from([(ZONE_LABEL.to_owned(), format!("z{zone}"))]);
            (NodeId::new(format!("node-{i}")).unwrap(), labels)
        })
        .collect()
}

fn picked(fleet: &Fleet, keep: &BTreeSet<NodeId>, size: CohortSize) -> BTreeSet<NodeId> {
    let hasher = CohortHasher::new(&ModelName::new("digits").unwrap(), RolloutId(1));
    pick(&hasher, &fleet.iter().collect(), keep, size)
}

fn in_zone(fleet: &Fleet, cohort: &BTreeSet<NodeId>, zone: u8) -> usize {
    let zone = format!("z{zone}");
    cohort
        .iter()
        .filter(|node| fleet[*node][ZONE_LABEL] == zone)
        .count()
}

#[test]
fn percent_is_rounded_up_and_never_zero() {
    let fleet = fleet(&[0; 10]);
    let size = |percent| picked(&fleet, &BTreeSet::new(), CohortSize::Percent(percent)).len();
    assert_eq!(
        [size(0.1), size(10.0), size(11.0), size(100.0)],
        [1, 1, 2, 10]
    );
    assert_eq!(seats(CohortSize::Percent(7.0), 100), 7);
    assert_eq!(seats(CohortSize::Percent(50.0), 0), 0);
    assert_eq!(seats(CohortSize::Count(5), 3), 3);
}

#[test]
fn every_zone_gets_its_share() {
    let fleet = fleet(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    let cohort = picked(&fleet, &BTreeSet::new(), CohortSize::Percent(50.0));
    let zones = [0, 1, 2].map(|zone| in_zone(&fleet, &cohort, zone));
    assert_eq!(zones, [3, 2, 1]);
}

proptest! {
    #[test]
    fn growing_only_adds_nodes(
        zones in prop::collection::vec(0u8..5, 1..60),
        mut percents in prop::collection::vec(0.01f64..100.0, 1..6),
    ) {
        percents.sort_by(f64::total_cmp);
        let fleet = fleet(&zones);
        let mut cohort = BTreeSet::new();
        for percent in percents {
            let size = CohortSize::Percent(percent);
            let grown = picked(&fleet, &cohort, size);
            prop_assert!(grown.is_superset(&cohort));
            prop_assert_eq!(grown.len(), seats(size, fleet.len()));
            cohort = grown;
        }
    }

    #[test]
    fn no_stratum_is_more_than_a_node_off_its_share(
        zones in prop::collection::vec(0u8..5, 1..60),
        percent in 0.01f64..100.0,
    ) {
        let fleet = fleet(&zones);
        let cohort = picked(&fleet, &BTreeSet::new(), CohortSize::Percent(percent));
        for zone in 0..5 {
            let nodes = zones.iter().filter(|z| **z == zone).count();
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let exact = (cohort.len() * nodes) as f64 / zones.len() as f64;
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let got = in_zone(&fleet, &cohort, zone) as f64;
            prop_assert!((got - exact).abs() < 1.0, "zone {zone}: {got} of {exact}");
        }
    }

    #[test]
    fn the_order_in_which_nodes_joined_does_not_matter(zones in prop::collection::vec(0u8..3, 1..30)) {
        let all = fleet(&zones);
        let again: Fleet = all.clone().into_iter().rev().collect();
        let size = CohortSize::Percent(40.0);
        prop_assert_eq!(picked(&all, &BTreeSet::new(), size), picked(&again, &BTreeSet::new(), size));
    }
}
