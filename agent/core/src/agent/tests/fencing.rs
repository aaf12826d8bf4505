//! A withdrawal is carried out at once as far as it concerns requests, and the rest in turn.

use super::*;

fn fence(agent: &mut Agent, withdrawal: &Withdrawal, seconds: u64) -> Option<Route> {
    agent.fence(withdrawal.clone(), at(seconds))
}

#[test]
fn a_fence_is_the_swap_and_the_next_input_is_the_rest() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(fence(&mut agent, &gone, 2), Some(route(3, 1)));
    assert_eq!(agent.next_wakeup(), Some(at(2)), "the rest is due");
    assert_eq!(
        agent.handle(Input::TimePassed, at(2))[..2],
        [
            persist(&assignment(3, 1), &[gone]),
            Send(receipt(3, &[(Role::Stable, 1)])),
        ]
    );
    assert!(agent.next_wakeup() > Some(at(2)));
}

#[test]
fn two_fences_are_one_state_and_one_receipt() {
    let mut agent = with_canary();
    let (gone, next) = (withdrawal(3, 1, 2, 1), withdrawal(4, 7, 8, 1));
    assert_eq!(fence(&mut agent, &gone, 2), Some(route(3, 1)));
    assert_eq!(fence(&mut agent, &next, 2), Some(route(4, 1)));
    let effects = agent.handle(Input::TimePassed, at(2));
    assert_eq!(effects[0], persist(&assignment(4, 1), &[gone, next]));
    let said = effects
        .iter()
        .filter(|e| matches!(e, Send(FromAgent::Receipt(_))));
    assert_eq!(
        said.collect::<Vec<_>>(),
        [&Send(receipt(4, &[(Role::Stable, 1)]))]
    );
}

#[test]
fn the_second_copy_of_a_withdrawal_repeats_the_receipt_and_no_swap() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    withdraw(&mut agent, &gone, 2);
    assert_eq!(fence(&mut agent, &gone, 2), None);
    assert_eq!(
        agent.handle(Input::TimePassed, at(2))[0],
        Send(receipt(3, &[(Role::Stable, 1)]))
    );
}

#[test]
fn a_connection_that_begins_after_a_fence_begins_with_hello_and_hello_with_the_disk() {
    let mut agent = with_canary();
    let gone = withdrawal(3, 1, 2, 1);
    assert_eq!(fence(&mut agent, &gone, 2), Some(route(3, 1)));
    let effects = agent.handle(Input::Connected, at(2));
    assert_eq!(
        effects[0],
        persist(&assignment(3, 1), std::slice::from_ref(&gone))
    );
    let Send(FromAgent::Hello(hello)) = &effects[1] else {
        panic!("{effects:?}");
    };
    assert_eq!(hello.withdrawals, [gone]);
    let said: Vec<_> = hello
        .receipts
        .iter()
        .cloned()
        .map(FromAgent::Receipt)
        .collect();
    assert_eq!(said, [receipt(3, &[(Role::Stable, 1)])]);
    let again = effects[2..]
        .iter()
        .any(|e| matches!(e, Send(FromAgent::Receipt(_))));
    assert!(!again, "said twice");
}

#[test]
fn a_withdrawal_that_is_none_of_our_business_leaves_nothing() {
    let mut agent = serving_1();
    let elsewhere = Withdrawal {
        model: ModelName::new("wine").unwrap(),
        ..withdrawal(3, 1, 2, 1)
    };
    agent.identity.models = vec![model()];
    assert_eq!(fence(&mut agent, &elsewhere, 2), None);
    assert_eq!(agent.handle(Input::TimePassed, at(2)), []);
}

#[test]
fn withdrawals_that_come_with_other_news_do_not_wait_for_the_disk_either() {
    let elsewhere = Withdrawal {
        model: ModelName::new("wine").unwrap(),
        ..withdrawal(5, 9, 7, None)
    };
    let gone = withdrawal(3, 1, 2, 1);
    let news = Snapshot {
        assignments: vec![],
        withdrawals: vec![gone.clone()],
    };
    let welcome = match welcome(&[]) {
        Input::Welcome(welcome) => Input::Welcome(Welcome {
            snapshot: news.clone(),
            ..welcome
        }),
        other => other,
    };
    for news in [Input::Sync(news), welcome] {
        let mut agent = with_canary();
        // On its way to the disk when the news come.
        let _ = agent.fence(elsewhere.clone(), at(2));
        let effects = agent.handle(news, at(2));
        assert_eq!(effects[0], Swap(route(3, 1)));
        let Persist(state) = &effects[1] else {
            panic!("{effects:?}");
        };
        for known in [&gone, &elsewhere] {
            assert!(state.withdrawals.contains(known));
        }
        assert!(effects.contains(&Send(receipt(3, &[(Role::Stable, 1)]))));
    }
}
