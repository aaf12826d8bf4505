use std::collections::BTreeMap;

use rollcall_shared::limits::FEEDBACK_ITEMS_MAX;
use rollcall_shared::wire::Hello;

use super::*;
use crate::coordinator::fixtures::*;
use crate::input::{Command, Role};

fn item(id: impl ToString) -> FeedbackItem {
    FeedbackItem {
        id: id.to_string(),
        row: None,
        label: Some("3".to_owned()),
        kpis: BTreeMap::new(),
    }
}

fn push(items: Vec<FeedbackItem>) -> Command {
    let model = digits();
    Command::PushFeedback { model, items }
}

#[test]
fn feedback_goes_to_every_node_that_hosts_the_model_and_can_read_it() {
    let mut world = World::with_nodes(4);
    let old = Hello {
        protocol: PROTOCOL_QUALITY - 1,
        ..hello()
    };
    let elsewhere = Hello {
        models: vec![ModelName::new("wine").unwrap()],
        ..hello()
    };
    world.connect(2, old);
    world.connect(3, elsewhere);
    let connection = |world: &World, n| world.core.fleet.nodes[&node(n)].connection.unwrap();
    let operator = person("otto", [Role::Operator]);
    let records = world.journal.len();
    let effects = world.command(operator, push(vec![item("a"), item("b")]));
    let offer = Effect::Offer {
        to: vec![connection(&world, 1), connection(&world, 4)],
        message: ToAgent::Feedback(Feedback {
            model: digits(),
            items: vec![item("a"), item("b")],
        }),
    };
    let done = Done::FeedbackSent {
        nodes: 2,
        too_old: 1,
        too_old_nodes: vec![node(2)],
    };
    let reply = Effect::Reply {
        ticket: TICKET,
        result: Ok(done),
    };
    assert_eq!(effects, [offer, reply]);
    assert_eq!(world.journal.len(), records, "not in the journal");
}

#[test]
fn much_feedback_goes_in_messages_of_a_bounded_size() {
    let mut world = World::with_nodes(1);
    let long = "x".repeat(1_000);
    let items: Vec<_> = (0..100).map(|id| item(format!("{id}{long}"))).collect();
    let effects = world.command(admin(), push(items.clone()));
    let mut sent = Vec::new();
    for effect in &effects[..effects.len() - 1] {
        let Effect::Offer {
            message: ToAgent::Feedback(feedback),
            ..
        } = effect
        else {
            panic!("{effect:?}");
        };
        assert!(feedback.items.len() <= 33);
        sent.extend(feedback.items.clone());
    }
    assert_eq!(sent, items);
}

#[test]
fn feedback_is_refused_where_it_makes_no_sense() {
    let mut world = World::with_nodes(1);
    let viewer = person("vera", [Role::Viewer, Role::Promoter]);
    let refused = world.result(viewer, push(vec![item("a")])).unwrap_err();
    assert!(refused.to_string().contains("operator"), "{refused}");
    let many = push(vec![item("a"); FEEDBACK_ITEMS_MAX + 1]);
    assert!(matches!(
        world.result(admin(), many),
        Err(Refusal::Invalid(_))
    ));
    let unknown = Command::PushFeedback {
        model: ModelName::new("wine").unwrap(),
        items: vec![item("a")],
    };
    assert!(matches!(
        world.result(admin(), unknown),
        Err(Refusal::NotFound(_))
    ));
}
