//! A run that ends at any moment leaves nothing that cleanup does not find, and cleanup finds nothing else.

use std::sync::Arc;

use common::{Fake, clean, control, setup};
use futures::FutureExt;
use probe::scenario::Scenario;
use serde_json::json;
use tokio::sync::Notify;

use crate::common;
use crate::stub::{ATTACHED, Fault, Stub, World};

/// Everything the scenario does, as little of it as there can be.
fn small() -> Scenario {
    let mut scenario = control();
    scenario.set("networks=1").unwrap();
    scenario.set("guests=1").unwrap();
    scenario
}

/// The same, with a guest that boots otherwise.
fn booted(boot: &str) -> Scenario {
    let mut scenario = small();
    scenario.set(&format!("boot={boot}")).unwrap();
    scenario
}

/// With a guest for which the cloud makes a volume.
fn from_volume() -> Scenario {
    booted("implicit-volume")
}

async fn calls_of_a_whole_run(scenario: Scenario) -> usize {
    let stub = Stub::start(World::default()).await;
    let setup = setup(&stub, scenario, Fake::closed()).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert!(iteration.fine(), "{:#?}", iteration.failures().map(|r| r.told()).collect::<Vec<_>>());
    assert_eq!(stub.left(), Vec::<String>::new());
    assert!(setup.engine.journal.finish().unwrap());
    stub.with(|w| w.seen.len())
}

/// D33: killed at every single call, before the cloud heard of it and after the cloud did it: nothing is left.
#[tokio::test]
async fn killed_at_any_call_nothing_is_left() {
    // Some guests come to nothing, and the cloud forgets the volume that it made for one.
    let worlds: [(Scenario, &[&str]); 5] = [
        (small(), &[]),
        (booted("volume"), &[]),
        (booted("volume"), &["-guest-1"]),
        (from_volume(), &[]),
        (from_volume(), &["-guest-1"]),
    ];
    for (scenario, broken) in worlds {
        let calls = match broken.is_empty() {
            true => calls_of_a_whole_run(scenario.clone()).await,
            // Up to the wait for the guest, and its end.
            false => 30,
        };
        assert!(calls >= 30, "{calls}");
        let moments: Vec<(usize, bool)> = (1..calls).flat_map(|n| [(n, false), (n, true)]).collect();
        for some in moments.chunks(16) {
            futures::future::join_all(some.iter().map(|m| killed(&scenario, broken, *m))).await;
        }
    }
}

async fn killed(scenario: &Scenario, broken: &[&str], (at, after): (usize, bool)) {
    let reached = Arc::new(Notify::new());
    let broken = broken.iter().map(|b| (*b).to_owned()).collect();
    let stub = Stub::start(World { broken, ..World::default() }).await;
    stub.with(|w| {
        // Somebody else's.
        w.things.insert("volumes".into(), vec![json!({"id": "o", "name": "others", "status": "available"})]);
        let reached = reached.clone();
        w.judge = Box::new(move |n, _| {
            if n != at {
                return None;
            }
            reached.notify_one();
            Some(if after { Fault::HangAfter } else { Fault::HangBefore })
        });
    });
    let common::Setup { engine, dir, stop: _stop } = setup(&stub, scenario.clone(), Fake::closed()).await;
    // What a kill leaves is what stands on the disk: the future is dropped where it is, and with it all memory.
    let ended = futures::select! {
        iteration = Box::pin(engine.iterate(1)).fuse() => Some(iteration),
        () = Box::pin(reached.notified()).fuse() => None,
    };
    drop(engine);
    stub.with(|w| w.judge = Box::new(|_, _| None));
    assert!(ended.is_none(), "call {at} did not come");
    assert_eq!(clean(&stub, dir.path()).await, Vec::<String>::new(), "killed at call {at}, after: {after}");
    assert_eq!(stub.left(), ["volumes others"], "killed at call {at}, after: {after}");
}

/// D30: the volume that the cloud made for a guest that came to nothing is removed, and no other: not even one that somebody
/// attached to that guest meanwhile.
#[tokio::test]
async fn d30_a_broken_guests_volume_is_removed() {
    // An iteration to its end.
    let stub = Stub::start(World { broken: vec!["-guest-1".into()], ..World::default() }).await;
    let setup_of = setup(&stub, from_volume(), Fake::closed()).await;
    let iteration = setup_of.engine.iterate(1).await.unwrap();
    assert_eq!(iteration.failures().count(), 1, "the guest itself");
    assert!(
        iteration
            .records
            .iter()
            .any(|r| r.step == "remove-volume" && r.id.as_ref().is_some_and(|i| i.ends_with("-brought")))
    );
    assert_eq!((stub.left(), iteration.left), (Vec::<String>::new(), Vec::<String>::new()));

    // One that is killed when the guest is to go.
    let stub = Stub::start(World { broken: vec!["-guest-1".into()], ..World::default() }).await;
    let reached = Arc::new(Notify::new());
    stub.with(|w| {
        w.things.insert("volumes".into(), vec![json!({"id": "o", "name": "others", "status": "in-use"})]);
        let reached = reached.clone();
        w.judge = Box::new(move |_, s| {
            let now = s.is("DELETE", "/servers/");
            now.then(|| reached.notify_one()).map(|()| Fault::HangBefore)
        });
    });
    let common::Setup { engine, dir, stop: _stop } = setup(&stub, from_volume(), Fake::closed()).await;
    futures::select! {
        _ = Box::pin(engine.iterate(1)).fuse() => panic!("the guest was not removed"),
        () = Box::pin(reached.notified()).fuse() => {}
    }
    drop(engine);
    stub.with(|w| {
        w.judge = Box::new(|_, _| None);
        let server = &mut w.things.get_mut("servers").unwrap()[0];
        server[ATTACHED].as_array_mut().unwrap().push(json!({"id": "o", "delete_on_termination": false}));
    });
    assert_eq!(clean(&stub, dir.path()).await, Vec::<String>::new());
    assert_eq!(stub.left(), ["volumes others"]);
}

/// D19: a stop is heeded before the next step, whichever it is, and everything is removed.
#[tokio::test]
async fn stopped_at_any_step_everything_is_removed() {
    struct Stopper(
        parking_lot::Mutex<Option<tokio::sync::watch::Sender<bool>>>,
        String,
        parking_lot::Mutex<Vec<String>>,
    );
    impl probe::engine::Witness for Stopper {
        fn step(&self, step: &str, _: usize) {
            self.2.lock().push(step.to_owned());
            if let Some(stop) = self.0.lock().as_ref().filter(|_| step == self.1) {
                stop.send_replace(true);
            }
        }
    }
    for (index, step) in control().steps.iter().enumerate() {
        let stub = Stub::start(World::default()).await;
        let stopper = Arc::new(Stopper(Default::default(), step.id.clone(), Default::default()));
        let limit = std::time::Duration::from_secs(20);
        let setup = common::setup_seen(&stub, control(), Fake::closed(), stopper.clone(), limit).await;
        *stopper.0.lock() = Some(setup.stop);
        let iteration = setup.engine.iterate(1).await.unwrap();
        assert!(iteration.stopped && !iteration.fine());
        let steps = stopper.2.lock().clone();
        assert_eq!(steps.iter().filter(|s| !s.starts_with("remove-")).count(), index + 1, "{steps:?}");
        assert_eq!(
            (stub.left(), iteration.left),
            (Vec::<String>::new(), Vec::<String>::new()),
            "{}",
            step.id
        );
        assert!(setup.engine.journal.finish().unwrap());
    }
}

/// D32: two probes in one project do not touch each other's.
#[tokio::test]
async fn two_probes_in_one_project_leave_each_other_alone() {
    let stub = Stub::start(World::default()).await;
    let (one, two) =
        (setup(&stub, control(), Fake::closed()).await, setup(&stub, control(), Fake::closed()).await);
    for number in 1..=50 {
        let (a, b) = tokio::join!(one.engine.iterate(number), two.engine.iterate(number));
        for iteration in [a.unwrap(), b.unwrap()] {
            assert!(iteration.fine(), "{:#?}", iteration.failures().map(|r| r.told()).collect::<Vec<_>>());
        }
    }
    assert_eq!(stub.left(), Vec::<String>::new());
}
