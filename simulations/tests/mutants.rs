//! Every mutant still applies to the source as it is: drift is found at once, and not by who
//! runs `rollcall-sim mutants` next (that plants them, and takes minutes).

use std::collections::BTreeSet;
use std::path::Path;

use rollcall_simulations::mutants::{Fault, table};

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_edit_applies_exactly_once() {
    let broken: Vec<String> = table()
        .unwrap()
        .iter()
        .filter_map(|mutant| mutant.check(checkout()).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_mutant_has_a_name_of_its_own_and_changes_what_ships() {
    let mutants = table().unwrap();
    let names: BTreeSet<&str> = mutants.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names.len(), mutants.len());
    for mutant in &mutants {
        assert!(!mutant.expect.is_empty() && mutant.seeds > 0, "{mutant:?}");
        if let Fault::Source {
            file,
            find,
            replace,
        } = &mutant.fault
        {
            assert_ne!(find, replace, "{}", mutant.name);
            let ships = ["shared/src/", "coordinator/core/src/", "agent/core/src/"];
            assert!(
                ships.iter().any(|folder| file.starts_with(folder)),
                "{file}"
            );
        }
    }
}

#[test]
fn every_promise_that_a_world_can_see_has_a_mutant() {
    let mutants = table().unwrap();
    for promise in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        let name = format!("promise {promise}");
        assert!(mutants.iter().any(|m| m.expect.contains(&name)), "{name}");
    }
}
