//! Which versions may serve by right somewhere, whatever the fleet is told by now.
//!
//! A node that is cut off goes on with the assignment that it holds. What that names as
//! stable, or as `previous` (which stands in for a stable that cannot be loaded), serves there
//! by right: no lease ends it. So the rights to a version end node by node, with the node's
//! receipt of a generation that names it no more.
//!
//! A journal that was restored from an old backup does not know what it named in the past
//! that it lost: there only receipts of what it said since prove anything.

use std::collections::BTreeMap;

use rollcall_shared::assignment::VersionRef;
use rollcall_shared::ids::{Generation, ModelName};
use rollcall_shared::version::Version;
use serde::{Deserialize, Serialize};

use crate::state::State;

/// Who may serve one model by right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    versions: BTreeMap<Version, Right>,
    /// What was named before this generation is lost.
    lost_before: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Right {
    /// Assignments name it.
    Named,
    /// Assignments named it, up to before this generation.
    EndedAt(Generation),
}

impl Rights {
    /// Whether the version was ever named.
    pub(crate) fn ever_named(&self, version: Version) -> bool {
        self.versions.contains_key(&version)
    }

    /// Whether a node may serve the version by right, whose newest receipt is of this
    /// generation (0: there is none).
    pub(crate) fn may_linger(&self, version: Version, receipted: Generation) -> bool {
        receipted < self.lost_before
            || match self.versions.get(&version) {
                None => false,
                Some(Right::Named) => true,
                Some(Right::EndedAt(generation)) => receipted < *generation,
            }
    }

    /// From `generation` on, assignments name these versions and no others.
    fn name(&mut self, named: &[VersionRef], generation: Generation) {
        for (version, right) in &mut self.versions {
            let is_named = named.iter().any(|n| n.version == *version);
            if *right == Right::Named && !is_named {
                *right = Right::EndedAt(generation);
            }
        }
        for version in named {
            self.versions.insert(version.version, Right::Named);
        }
    }
}

impl State {
    /// The version to go back to, as assignments name it. Not while it is on trial again:
    /// then it is used under a lease, and no right beside it may outlast that.
    pub(crate) fn previous(&self, model: &ModelName) -> Option<VersionRef> {
        let on_trial = self.live_rollout(model).map(|r| r.candidate);
        let previous = self.models.get(model)?.previous;
        previous.filter(|version| Some(*version) != on_trial)
    }

    /// To be called after every change of a model's stable, previous or live rollout.
    pub(super) fn note_rights(&mut self, name: &ModelName) {
        let previous = self.previous(name);
        if let Some(model) = self.models.get_mut(name) {
            let named: Vec<VersionRef> = model.stable.into_iter().chain(previous).collect();
            model.rights.name(&named, model.generation);
        }
    }

    /// An agent remembers a past of this model that the journal lost.
    pub(super) fn note_lost_past(&mut self, name: &ModelName) {
        if let Some(model) = self.models.get_mut(name) {
            model.rights.lost_before = model.generation;
        }
        self.note_rights(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::fixtures::version;

    #[test]
    fn a_right_ends_with_the_receipt_of_a_generation_that_names_it_no_more() {
        let mut rights = Rights::default();
        let may_linger = |rights: &Rights, generation| {
            rights.may_linger(version(1).version, Generation(generation))
        };
        assert!(!may_linger(&rights, 0));
        rights.name(&[version(1)], Generation(3));
        assert!(may_linger(&rights, 99));
        rights.name(&[version(2)], Generation(5));
        assert!(may_linger(&rights, 4));
        assert!(!may_linger(&rights, 5));
        // Naming the others again changes nothing for it.
        rights.name(&[version(2), version(3)], Generation(9));
        assert!(!may_linger(&rights, 5));
        rights.name(&[version(1)], Generation(11));
        assert!(may_linger(&rights, 11));
    }

    #[test]
    fn of_a_lost_past_nothing_is_known() {
        let rights = Rights {
            lost_before: Generation(8),
            ..Rights::default()
        };
        assert!(rights.may_linger(version(1).version, Generation(7)));
        assert!(!rights.may_linger(version(1).version, Generation(8)));
    }
}
