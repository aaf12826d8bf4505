use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rollcall_shared::digest::Digest;
use rollcall_shared::ids::NodeId;

use crate::coordinator::fixtures::*;
use crate::{Actor, Command, Done, Effect, Refusal, Role, TokenKind};

fn token(id: &str, kind: TokenKind) -> Command {
    Command::CreateToken {
        id: id.to_owned(),
        secret_hash: Digest::of(b"secret"),
        kind,
        name: "bo".to_owned(),
        expires_at: Some(seconds(200)),
    }
}

fn operator(role: Role) -> TokenKind {
    TokenKind::Operator {
        roles: BTreeSet::from([role]),
    }
}

fn enroll(token: &str, name: &str, key: &[u8]) -> Command {
    Command::Enroll {
        token: token.to_owned(),
        secret_hash: Digest::of(b"secret"),
        node: NodeId::new(name).unwrap(),
        labels: BTreeMap::new(),
        key: Digest::of(key),
    }
}

fn with_token() -> World {
    let mut world = World::empty();
    world.done(admin(), token("t-1", TokenKind::Agent));
    world
}

#[test]
fn a_reused_token_is_refused() {
    let mut world = with_token();
    world.done(Actor::System, enroll("t-1", "node-1", b"key"));
    let again = world.result(Actor::System, enroll("t-1", "node-2", b"key"));
    assert_eq!(
        again,
        Err(Refusal::Forbidden(
            "this token was used up by node-1: make a new one with `rollcall token create --kind agent`"
                .to_owned()
        ))
    );
    let other_key = world.result(Actor::System, enroll("t-1", "node-1", b"other"));
    assert!(matches!(other_key, Err(Refusal::Forbidden(_))));
}

#[test]
fn a_lost_answer_does_not_cost_the_token() {
    let mut world = with_token();
    let first = world.done(Actor::System, enroll("t-1", "node-1", b"key"));
    let again = world.command(Actor::System, enroll("t-1", "node-1", b"key"));
    let node = NodeId::new("node-1").unwrap();
    assert_eq!(first, Done::Enrolled { node: node.clone() });
    let result = Ok(Done::Enrolled { node });
    assert_eq!(
        again,
        vec![Effect::Reply {
            ticket: TICKET,
            result
        }]
    );
}

#[test]
fn an_expired_revoked_or_unknown_token_is_refused() {
    let mut world = with_token();
    let refused = |world: &mut World, token: &str| match world
        .result(Actor::System, enroll(token, "node-1", b"key"))
    {
        Err(Refusal::Forbidden(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(&mut world, "t-9").contains("not an agent token"));
    world.now = world.now + Duration::from_secs(100);
    assert!(refused(&mut world, "t-1").contains("expired"));
    world.done(
        admin(),
        Command::RevokeToken {
            id: "t-1".to_owned(),
        },
    );
    assert!(refused(&mut world, "t-1").contains("revoked"));
}

#[test]
fn a_name_that_is_taken_is_a_conflict() {
    let mut world = with_token();
    world.done(Actor::System, enroll("t-1", "node-1", b"key"));
    world.done(admin(), token("t-2", TokenKind::Agent));
    let taken = world.result(Actor::System, enroll("t-2", "node-1", b"key"));
    assert!(matches!(taken, Err(Refusal::Conflict(_))));
    assert_eq!(world.core.tokens()[1].used_by, None);
}

#[test]
fn only_live_operator_tokens_authenticate() {
    let mut world = with_token();
    world.done(admin(), token("t-2", operator(Role::Viewer)));
    let at = |world: &World, id: &str, secret: &[u8], s| {
        world.core.authenticate(id, Digest::of(secret), seconds(s))
    };
    assert_eq!(
        at(&world, "t-2", b"secret", 199),
        Some(person("bo", [Role::Viewer]))
    );
    assert_eq!(at(&world, "t-2", b"secret", 200), None);
    assert_eq!(at(&world, "t-2", b"guess", 199), None);
    assert_eq!(at(&world, "t-1", b"secret", 199), None);
    world.done(
        admin(),
        Command::RevokeToken {
            id: "t-2".to_owned(),
        },
    );
    assert_eq!(at(&world, "t-2", b"secret", 199), None);
}

#[test]
fn the_last_admin_token_cannot_be_revoked() {
    let mut world = World::empty();
    world.done(admin(), token("t-1", operator(Role::Admin)));
    let revoke = Command::RevokeToken {
        id: "t-1".to_owned(),
    };
    assert!(matches!(
        world.result(admin(), revoke.clone()),
        Err(Refusal::Conflict(_))
    ));
    world.done(admin(), token("t-2", operator(Role::Admin)));
    assert_eq!(world.result(admin(), revoke), Ok(Done::Done));
}

#[test]
fn a_node_connects_with_the_key_it_enrolled_with_until_it_is_revoked() {
    let mut world = with_token();
    world.done(Actor::System, enroll("t-1", "node-1", b"key"));
    let node = NodeId::new("node-1").unwrap();
    let may = |world: &World, key: &[u8]| world.core.node_may_connect(&node, Digest::of(key));
    assert_eq!(may(&world, b"key"), Ok(()));
    assert!(may(&world, b"other").is_err());
    world.done(admin(), Command::RevokeNode { node: node.clone() });
    assert!(may(&world, b"key").unwrap_err().contains("revoked"));
}
