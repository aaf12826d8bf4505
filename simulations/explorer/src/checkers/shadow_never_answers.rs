//! Promise 8, as far as a world without threads can see it: while a candidate only shadows,
//! every request is answered by stable, at once and by nobody else.

use rollcall_agent_core::route::{CandidateUsage, Pick};

use super::{Seen, Verdicts};

pub(super) fn picked(seen: &Seen<'_>, verdicts: &mut Verdicts) {
    let usage = seen.route.candidate.as_ref().map(|c| c.usage);
    let Some(CandidateUsage::Shadow(_)) = usage else {
        return;
    };
    let answers = match seen.pick {
        Pick::Stable(stable) | Pick::StableAndShadow { stable, .. } => Some(stable),
        Pick::Candidate { candidate, .. } => Some(candidate),
        Pick::Nobody => None,
    };
    if answers != seen.route.stable {
        let what = format!(
            "while the candidate of {} only shadows, {answers:?} answers",
            seen.route.model
        );
        verdicts.broken(8, Some(seen.node), what);
    }
}
