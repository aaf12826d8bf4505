//! Approvals: a named role at a named gate, never in one's own cause.
//!
//! An approval belongs to the stage that comes next, and is used up when it begins. It can
//! be given early; it never replaces evidence.

use rollcall_shared::ids::RolloutId;

use crate::coordinator::{Coordinator, Turn};
use crate::effect::{Done, Refusal};
use crate::input::Actor;
use crate::record::{Cause, Event};
use crate::registry::cut;
use crate::roles::{actor_name, approves};
use crate::rollback::Target;
use crate::state::Rollout;

impl Coordinator {
    pub(crate) fn on_approve(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        id: RolloutId,
        gate: String,
        note: Option<String>,
    ) -> Result<Done, Refusal> {
        let rollout = self.live(id)?;
        let asked = rollout.next_stage().map_or(&[][..], |s| &s.approvals);
        if !asked.contains(&gate) {
            return Err(Refusal::Conflict(match asked {
                [] => format!("the next step of {id} asks for no approval"),
                gates => format!("the next stage of {id} asks for {}", gates.join(", ")),
            }));
        }
        if !approves(actor, &gate) {
            return Err(Refusal::Forbidden(format!(
                "{} may not approve this: it needs the role approver:{gate}",
                actor_name(actor)
            )));
        }
        if is_own(rollout, actor) {
            return Err(Refusal::Forbidden(format!(
                "{} started or owns {id}, and nobody approves their own rollout",
                actor_name(actor)
            )));
        }
        if rollout.approvals.contains_key(&gate) {
            return Ok(Done::Done);
        }
        let event = Event::GateApproved {
            rollout: id,
            gate,
            note: note.map(cut),
        };
        self.record(turn, actor.clone(), event);
        self.step(turn, id);
        Ok(Done::Done)
    }

    /// Anybody who could approve a gate of the plan may reject, their own rollout included:
    /// that is the safe direction.
    pub(crate) fn on_reject(
        &mut self,
        turn: &mut Turn,
        actor: &Actor,
        id: RolloutId,
        note: Option<String>,
    ) -> Result<Done, Refusal> {
        let rollout = self.live(id)?;
        let gates: Vec<&str> = rollout
            .plan
            .stages
            .iter()
            .flat_map(|stage| stage.approvals.iter().map(String::as_str))
            .collect();
        if gates.is_empty() {
            return Err(Refusal::Conflict(format!(
                "{id} has no gates to reject it at: use `rollcall rollback {}`",
                rollout.model
            )));
        }
        if !gates.iter().any(|gate| approves(actor, gate)) {
            return Err(Refusal::Forbidden(format!(
                "{} may not reject this: it needs the role approver:{}",
                actor_name(actor),
                gates.join(" or approver:")
            )));
        }
        let cause = Cause::Rejected {
            actor: actor_name(actor),
            note: note.map(cut),
        };
        let target = Target::candidate_of(rollout);
        Ok(self.withdraw(turn, actor.clone(), target, cause))
    }
}

fn is_own(rollout: &Rollout, actor: &Actor) -> bool {
    let name = actor_name(actor);
    let owns = |owner: &String| owner.eq_ignore_ascii_case(&name);
    name == actor_name(&rollout.started_by) || rollout.plan.owner.as_ref().is_some_and(owns)
}
