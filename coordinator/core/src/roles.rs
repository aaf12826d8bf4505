//! Who may do what. One table; every command passes it before anything else looks at it.
//!
//! Roles do not include each other, except that `admin` may do everything but approve:
//! who holds the keys must not be able to wave a rollout through alone.

use rollcall_shared::ids::NodeId;

use crate::effect::Refusal;
use crate::input::{Actor, Command, Role};

/// What a command asks of its actor.
enum Needed {
    /// Any token will do.
    Anyone,
    /// One of these roles, or admin.
    OneOf(&'static [Role]),
    /// The command itself names the approver's role, or its rollout does; see `approvals`.
    Approver,
    /// A one-time token that the command carries; see `tokens`.
    OneTimeToken,
}

const fn needed(command: &Command) -> Needed {
    match command {
        Command::StartRollout { dry_run: true, .. } => Needed::Anyone,
        Command::Rollback { .. }
        | Command::Rehearse { .. }
        | Command::Pause { .. }
        | Command::Quarantine { .. } => Needed::OneOf(&[Role::Operator, Role::Promoter]),
        Command::RegisterVersion { .. }
        | Command::StartRollout { dry_run: false, .. }
        | Command::Resume { .. }
        | Command::Advance { .. }
        | Command::Archive { .. }
        | Command::Restore { .. } => Needed::OneOf(&[Role::Promoter]),
        Command::PushFeedback { .. } | Command::RecordKpi { .. } => {
            Needed::OneOf(&[Role::Operator])
        }
        Command::CreateToken { .. }
        | Command::RevokeToken { .. }
        | Command::RevokeNode { .. }
        | Command::Release { .. } => Needed::OneOf(&[]),
        Command::Approve { .. } | Command::Reject { .. } => Needed::Approver,
        Command::Enroll { .. } => Needed::OneTimeToken,
    }
}

/// Refuses what the actor may not do.
pub(crate) fn permit(actor: &Actor, command: &Command) -> Result<(), Refusal> {
    let needed = needed(command);
    match (actor, needed) {
        (_, Needed::OneTimeToken)
        | (Actor::System, Needed::Anyone | Needed::OneOf(_))
        | (Actor::Operator { .. }, Needed::Anyone | Needed::Approver) => Ok(()),
        (Actor::Operator { name, roles }, Needed::OneOf(any)) => {
            if roles.contains(&Role::Admin) || any.iter().any(|role| roles.contains(role)) {
                return Ok(());
            }
            let names: Vec<_> = any.iter().chain(&[Role::Admin]).map(role_name).collect();
            Err(Refusal::Forbidden(format!(
                "{name} may not do this: it needs the role {}",
                names.join(" or ")
            )))
        }
        (Actor::System, Needed::Approver) => Err(Refusal::Forbidden(
            "only a person with an approver role approves or rejects".to_owned(),
        )),
        (Actor::Agent { node }, Needed::Anyone | Needed::OneOf(_) | Needed::Approver) => {
            Err(refused_agent(node))
        }
    }
}

fn refused_agent(node: &NodeId) -> Refusal {
    Refusal::Forbidden(format!(
        "{node} is a serving node: it may enrol, and nothing else"
    ))
}

/// How a role is written.
pub(crate) fn role_name(role: &Role) -> String {
    match role {
        Role::Viewer => "viewer".to_owned(),
        Role::Operator => "operator".to_owned(),
        Role::Promoter => "promoter".to_owned(),
        Role::Admin => "admin".to_owned(),
        Role::Approver(gate) => format!("approver:{gate}"),
    }
}

/// Whether the actor may approve in the name of `gate`.
pub(crate) fn approves(actor: &Actor, gate: &str) -> bool {
    match actor {
        Actor::Operator { roles, .. } => roles.contains(&Role::Approver(gate.to_owned())),
        Actor::System | Actor::Agent { .. } => false,
    }
}

/// The actor's name, for records and messages.
pub(crate) fn actor_name(actor: &Actor) -> String {
    match actor {
        Actor::System => "rollcall".to_owned(),
        Actor::Operator { name, .. } => name.clone(),
        Actor::Agent { node } => node.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rollcall_shared::ids::{ModelName, RolloutId};

    use super::*;

    fn operator(role: Role) -> Actor {
        Actor::Operator {
            name: "ana".to_owned(),
            roles: BTreeSet::from([role]),
        }
    }

    #[test]
    fn a_refusal_names_the_role_that_is_needed() {
        let rollback = Command::Rollback {
            version: None,
            model: ModelName::new("digits").unwrap(),
            reason: String::new(),
        };
        assert_eq!(
            permit(&operator(Role::Viewer), &rollback),
            Err(Refusal::Forbidden(
                "ana may not do this: it needs the role operator or promoter or admin".to_owned()
            ))
        );
        for role in [Role::Operator, Role::Promoter, Role::Admin] {
            assert_eq!(permit(&operator(role), &rollback), Ok(()));
        }
    }

    #[test]
    fn admin_may_do_everything_but_approve() {
        let advance = Command::Advance {
            rollout: RolloutId(1),
        };
        assert_eq!(permit(&operator(Role::Admin), &advance), Ok(()));
        assert!(permit(&operator(Role::Operator), &advance).is_err());
        assert!(!approves(&operator(Role::Admin), "security"));
        assert!(approves(
            &operator(Role::Approver("security".to_owned())),
            "security"
        ));
    }
}
