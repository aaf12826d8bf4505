//! Promise 5, for requests: a client whose key is not in the approved share does not meet
//! the candidate. The same key meets the same version on every node and at every time, and a
//! growing share only adds keys.

use std::collections::BTreeMap;

use rollcall_agent_core::route::{CandidateRoute, CandidateUsage, Pick};
use rollcall_shared::assignment::Share;
use rollcall_shared::ids::{ModelName, RolloutId};

use super::{Seen, Verdicts};

/// What happened to one client's key in one rollout.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    /// The smallest share at which it met the candidate.
    at_least: Option<Share>,
    /// The largest share at which it did not.
    not_at: Option<Share>,
}

/// Which clients met which candidates. The salt of a cohort is the model and the rollout: of a
/// rollout alone there can be two, one in a past that an old backup lost.
#[derive(Debug, Default)]
pub struct CohortIsSticky {
    met: BTreeMap<(RolloutId, u64, ModelName), Met>,
}

impl CohortIsSticky {
    pub(super) fn picked(&mut self, seen: &Seen<'_>, verdicts: &mut Verdicts) {
        let running = |c: &&CandidateRoute| seen.at < c.lease_until;
        let Some(candidate) = seen.route.candidate.as_ref().filter(running) else {
            return;
        };
        let (CandidateUsage::Canary(share) | CandidateUsage::Shadow(share)) = candidate.usage;
        let meets = match seen.pick {
            Pick::Candidate { .. } | Pick::StableAndShadow { .. } => true,
            Pick::Stable(_) => false,
            Pick::Nobody => return,
        };
        let key = (candidate.rollout, seen.client, seen.route.model.clone());
        let met = self.met.entry(key).or_default();
        if meets {
            met.at_least = Some(met.at_least.map_or(share, |least| least.min(share)));
        } else {
            met.not_at = met.not_at.max(Some(share));
        }
        if let (Some(least), Some(not)) = (met.at_least, met.not_at)
            && least <= not
        {
            let what = format!(
                "client {} meets the candidate of {} at a share of {least}, and not at {not}",
                seen.client, candidate.rollout
            );
            verdicts.broken(5, Some(seen.node), what);
        }
    }
}
