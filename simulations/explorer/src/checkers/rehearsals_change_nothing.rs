//! A rehearsal of a rollback changes nothing: no route, lease, generation or disk on any node,
//! and no assignment; the coordinator says that it was run, and no more.

use rollcall_agent_core::agent::ModelStatus;
use rollcall_agent_core::effect::Effect as AgentEffect;
use rollcall_coordinator_core::effect::{Effect, Urgent};
use rollcall_coordinator_core::input::{Command, Input};
use rollcall_coordinator_core::record::Event;
use rollcall_shared::wire::FromAgent;

use super::{REHEARSAL, Verdicts};

/// What an agent is, before or after a rehearsal.
pub type Standing = Vec<ModelStatus>;

/// Whether only a rehearsal is spoken of.
#[must_use]
pub fn is_of_rehearsal(input: &Input) -> bool {
    matches!(
        input,
        Input::Command {
            command: Command::Rehearse { .. },
            ..
        } | Input::FromAgent {
            message: FromAgent::Rehearsed(_),
            ..
        }
    )
}

/// What the coordinator wants done after such an input.
pub fn coordinator(effects: &[Effect], verdicts: &mut Verdicts) {
    let harmless = |effect: &Effect| match effect {
        Effect::Broadcast(Urgent::Rehearse(_)) | Effect::Reply { .. } => true,
        Effect::Append(records) => records.iter().all(|record| {
            matches!(
                record.event,
                Event::RehearsalBegan { .. } | Event::RehearsalEnded { .. }
            )
        }),
        Effect::Broadcast(Urgent::Withdraw(_))
        | Effect::Send { .. }
        | Effect::Offer { .. }
        | Effect::Disconnect { .. } => false,
    };
    if let Some(effect) = effects.iter().find(|effect| !harmless(effect)) {
        let what = format!("a rehearsal made the coordinator do {effect:?}");
        verdicts.broken(REHEARSAL, None, what);
    }
}

/// What an agent wants done after a rehearsal, and how it stood before and after it.
pub fn agent(
    node: usize,
    effects: &[AgentEffect],
    standing: (&Standing, &Standing),
    verdicts: &mut Verdicts,
) {
    let only_answered = match effects {
        [] => true,
        [AgentEffect::Send(word)] => matches!(word, FromAgent::Rehearsed(_)),
        _ => false,
    };
    if !only_answered {
        let what = format!("a rehearsal made it do {effects:?}");
        verdicts.broken(REHEARSAL, Some(node), what);
    }
    if standing.0 != standing.1 {
        let what = format!("a rehearsal made {:?} of {:?}", standing.1, standing.0);
        verdicts.broken(REHEARSAL, Some(node), what);
    }
}

#[cfg(test)]
mod tests {
    use rollcall_agent_core::effect::DurableState;

    use super::*;

    #[test]
    fn an_agent_that_does_anything_but_answer_is_noticed() {
        let mut verdicts = Verdicts::default();
        let standing = Standing::new();
        agent(0, &[], (&standing, &standing), &mut verdicts);
        assert_eq!(verdicts.violations, []);
        let persisted = [AgentEffect::Persist(DurableState::default())];
        agent(0, &persisted, (&standing, &standing), &mut verdicts);
        assert_eq!(verdicts.violations.len(), 1);
    }
}
