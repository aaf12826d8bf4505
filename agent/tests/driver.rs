//! The driver and the link with a memory disk and no engine, as a simulator runs them.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing has failed")]

#[path = "support/coordinator.rs"]
mod coordinator;
mod support;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coordinator::Coordinator;
use rollcall_agent::driver::{Driver, Ports, Preparer, RouteTable, StateStore};
use rollcall_agent::link::{LinkConfig, link};
use rollcall_agent_core::agent::{Agent, AgentIdentity};
use rollcall_agent_core::effect::DurableState;
use rollcall_agent_core::input::PrepareFailure;
use rollcall_agent_core::route::Route;
use rollcall_shared::assignment::{Assignment, VersionRef, Withdrawal};
use rollcall_shared::ids::{Generation, ModelName, RolloutId};
use rollcall_shared::time::Timestamp;
use rollcall_shared::wire::FromAgent;
use rollcall_transport::ca::CaCertificate;
use rollcall_transport::clock::Clock;
use rollcall_transport::endpoint::{agent_config, agent_endpoint};
use rollcall_transport::identity::Identity;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Default)]
struct Disk {
    refuses: AtomicBool,
    /// Held by whoever wants saves to wait.
    busy: tokio::sync::Mutex<()>,
    begun: AtomicUsize,
    saved: Mutex<DurableState>,
}

impl StateStore for Disk {
    type Error = io::Error;

    async fn save(self: Arc<Self>, state: Arc<DurableState>) -> io::Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _turn = self.busy.lock().await;
        if self.refuses.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.saved.lock().unwrap() = DurableState::clone(&state);
        Ok(())
    }
}

/// Everything is ready at once, but versions whose major number is 9 never are.
#[derive(Default)]
struct Words {
    installed: Mutex<Vec<VersionRef>>,
    unloaded: Mutex<Vec<VersionRef>>,
}

impl Preparer for Words {
    type Prepared = ();

    async fn prepare(&self, _: ModelName, version: VersionRef) -> Result<(), PrepareFailure> {
        if version.version.major == 9 {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn install(&self, _: &ModelName, version: VersionRef, (): ()) {
        self.installed.lock().unwrap().push(version);
    }

    fn unload(&self, _: &ModelName, version: VersionRef) {
        self.unloaded.lock().unwrap().push(version);
    }

    async fn pin(&self, _: &BTreeSet<(ModelName, VersionRef)>) {}
}

#[derive(Default)]
struct Swaps(Mutex<Vec<Route>>);

impl RouteTable for Swaps {
    fn swap(&self, route: Route) {
        self.0.lock().unwrap().push(route);
    }
}

struct Small {
    disk: Arc<Disk>,
    words: Arc<Words>,
    swaps: Arc<Swaps>,
    observed: Arc<Mutex<Vec<(Generation, Timestamp)>>>,
    _stop: DropGuard,
}

fn start(coordinator: &Coordinator, dir: &Path) -> Small {
    coordinator.enrol(dir, "node-1");
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let identity = Identity::from_pem(&read("node.pem"), &read("node.key")).unwrap();
    let ca = CaCertificate::from_pem(&read("ca.pem")).unwrap();
    let (link, handle, link_events) = link(LinkConfig {
        feedback: Box::new(drop),
        endpoint: agent_endpoint("127.0.0.1:0".parse().unwrap()).unwrap(),
        client: agent_config(&identity, &ca).unwrap(),
        coordinators: vec![coordinator.address.to_string()],
        random: Box::new(|| 0.1),
    });
    let stop = CancellationToken::new();
    let clock = Clock::start(Timestamp::ZERO);
    let (agent, boot) = Agent::restore(
        AgentIdentity::default(),
        DurableState::default(),
        clock.now(),
    );
    let (_events, local_inputs) = mpsc::channel(1);
    let (disk, words) = (Arc::<Disk>::default(), Arc::<Words>::default());
    let swaps = Arc::<Swaps>::default();
    let observed = Arc::<Mutex<Vec<_>>>::default();
    let seen = Arc::clone(&observed);
    let ports = Ports {
        clock,
        link: handle,
        link_events,
        local_inputs,
        state_store: Arc::clone(&disk),
        preparer: Arc::clone(&words),
        routes: Arc::clone(&swaps),
        on_swap: Some(Arc::new(move |route: &Route, at| {
            seen.lock().unwrap().push((route.generation, at));
        })),
        on_change: None,
    };
    let driver = Driver::new(agent, boot, ports);
    tokio::spawn(link.run(driver.fence(), stop.clone()));
    tokio::spawn(driver.run(stop.clone()));
    Small {
        disk,
        words,
        swaps,
        observed,
        _stop: stop.drop_guard(),
    }
}

fn assignment(generation: u64, stable: VersionRef) -> Assignment {
    Assignment {
        model: support::digits(),
        generation: Generation(generation),
        stable: Some(stable),
        previous: None,
        candidate: None,
    }
}

fn receipt_of(generation: u64) -> impl FnMut(FromAgent) -> Option<()> {
    move |message| match message {
        FromAgent::Receipt(receipt) => (receipt.generation == Generation(generation)).then_some(()),
        FromAgent::Hello(hello) => hello
            .receipts
            .iter()
            .any(|receipt| receipt.generation == Generation(generation))
            .then_some(()),
        FromAgent::Heartbeat(_)
        | FromAgent::Readiness(_)
        | FromAgent::Rehearsed(_)
        | FromAgent::Event(_) => None,
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable_and_serving_does_not_wait_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    let small = start(&coordinator, dir.path());
    let (one, two) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    coordinator.assign(assignment(1, one)).await;
    heard.next(receipt_of(1)).await;

    small.disk.refuses.store(true, Ordering::SeqCst);
    coordinator.assign(assignment(2, two)).await;
    support::eventually("the route is swapped", || {
        small
            .swaps
            .0
            .lock()
            .unwrap()
            .last()
            .is_some_and(|route| route.stable == Some(two))
    })
    .await;
    let acknowledged = tokio::time::timeout(Duration::from_millis(700), heard.next(receipt_of(2)));
    assert!(
        acknowledged.await.is_err(),
        "acknowledged without being durable"
    );
    // Neither does a fresh connection acknowledge it.
    coordinator.disconnect();
    let acknowledged = tokio::time::timeout(Duration::from_millis(700), heard.next(receipt_of(2)));
    assert!(acknowledged.await.is_err(), "acknowledged in a hello");

    small.disk.refuses.store(false, Ordering::SeqCst);
    heard.next(receipt_of(2)).await;
    let saved = small.disk.saved.lock().unwrap().clone();
    assert_eq!(
        saved.assignments[&support::digits()].generation,
        Generation(2)
    );
    let observed = small.observed.lock().unwrap();
    assert!(
        observed
            .iter()
            .any(|(generation, _)| *generation == Generation(2))
    );
    assert!(observed.is_sorted_by_key(|(_, at)| *at));
}

#[tokio::test]
async fn a_withdrawal_does_not_wait_for_a_disk_that_is_busy_and_undoes_what_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    let small = start(&coordinator, dir.path());
    let (one, two) = (coordinator.publish("1.0.0"), coordinator.publish("2.0.0"));
    let with_previous = |generation, stable, previous| Assignment {
        previous: Some(previous),
        ..assignment(generation, stable)
    };
    coordinator.assign(with_previous(1, one, two)).await;
    heard.next(receipt_of(1)).await;
    support::eventually("both are loaded", || {
        small.words.installed.lock().unwrap().len() == 2
    })
    .await;

    let busy = small.disk.busy.lock().await;
    let begun = small.disk.begun.load(Ordering::SeqCst);
    coordinator.assign(with_previous(2, two, one)).await;
    support::eventually("the new route waits for the disk", || {
        small.disk.begun.load(Ordering::SeqCst) > begun
    })
    .await;
    let withdrawal = Withdrawal {
        model: support::digits(),
        rollout: RolloutId(1),
        withdrawn: two,
        generation: Generation(3),
        serving: Some(one),
    };
    coordinator.withdraw(withdrawal).await;
    let swaps = || small.swaps.0.lock().unwrap().clone();
    support::eventually("the withdrawal is carried out", || {
        swaps().last().unwrap().generation == Generation(3)
    })
    .await;
    assert_eq!(swaps().last().unwrap().stable, Some(one));
    assert_eq!(small.disk.saved.lock().unwrap().withdrawals.len(), 0);

    drop(busy);
    heard.next(receipt_of(3)).await;
    assert_eq!(small.disk.saved.lock().unwrap().withdrawals.len(), 1);
    let served_two = swaps().iter().any(|route| route.stable == Some(two));
    assert!(!served_two, "a route that was undone was put in place");
}

#[tokio::test]
async fn a_preparation_that_is_no_longer_wanted_is_ended_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    let small = start(&coordinator, dir.path());
    let one = coordinator.publish("1.0.0");
    let never = VersionRef {
        version: "9.0.0".parse().unwrap(),
        digest: one.digest,
    };
    coordinator.assign(assignment(1, never)).await;
    heard
        .next(|message| matches!(message, FromAgent::Readiness(_)).then_some(()))
        .await;
    coordinator.assign(assignment(2, one)).await;
    heard.next(receipt_of(2)).await;
    support::eventually("the preparation is ended", || {
        small.words.unloaded.lock().unwrap().contains(&never)
    })
    .await;
    assert_eq!(*small.words.installed.lock().unwrap(), [one]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_made_again_and_says_hello_with_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let (coordinator, mut heard) = Coordinator::start();
    let _small = start(&coordinator, dir.path());
    coordinator
        .assign(assignment(1, coordinator.publish("1.0.0")))
        .await;
    heard.next(receipt_of(1)).await;
    for _ in 0..3 {
        coordinator.disconnect();
        let held = heard
            .next(|message| match message {
                FromAgent::Hello(hello) => Some(hello.held),
                _ => None,
            })
            .await;
        assert_eq!(held, [(support::digits(), Generation(1))]);
        heard
            .next(|message| matches!(message, FromAgent::Heartbeat(_)).then_some(()))
            .await;
    }
}
