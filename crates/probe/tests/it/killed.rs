//! A run that ends at any moment leaves nothing that cleanup does not find, and cleanup finds nothing else.

use std::sync::Arc;

use common::{Fake, clean, control, setup};
use futures::FutureExt;
use serde_json::json;
use tokio::sync::Notify;

use crate::common;
use crate::stub::{Fault, Stub, World};

/// Everything the scenario does, as little of it as there can be.
fn small() -> probe::scenario::Scenario {
    let mut scenario = control();
    scenario.set("networks=1").unwrap();
    scenario.set("guests=1").unwrap();
    scenario
}

async fn calls_of_a_whole_run() -> usize {
    let stub = Stub::start(World::default()).await;
    let setup = setup(&stub, small(), Fake::closed()).await;
    let iteration = setup.engine.iterate(1).await.unwrap();
    assert!(iteration.fine(), "{:#?}", iteration.failures().map(|r| r.told()).collect::<Vec<_>>());
    assert_eq!(stub.left(), Vec::<String>::new());
    assert!(setup.engine.journal.finish().unwrap());
    stub.with(|w| w.seen.len())
}

/// D33: killed at every single call, before the cloud heard of it and after the cloud did it: nothing is left.
#[tokio::test]
async fn killed_at_any_call_nothing_is_left() {
    let calls = calls_of_a_whole_run().await;
    assert!(calls >= 40, "{calls}");
    let moments: Vec<(usize, bool)> = (1..calls).flat_map(|n| [(n, false), (n, true)]).collect();
    let run = |(at, after): (usize, bool)| async move {
        let reached = Arc::new(Notify::new());
        let stub = Stub::start(World::default()).await;
        stub.with(|w| {
            // Somebody else's.
            w.things
                .insert("volumes".into(), vec![json!({"id": "o", "name": "others", "status": "available"})]);
            let reached = reached.clone();
            w.judge = Box::new(move |n, _| {
                if n != at {
                    return None;
                }
                reached.notify_one();
                Some(if after { Fault::HangAfter } else { Fault::HangBefore })
            });
        });
        let common::Setup { engine, dir, stop: _stop } = setup(&stub, small(), Fake::closed()).await;
        // What a kill leaves is what stands on the disk: the future is dropped where it is, and with it all memory.
        let ended = futures::select! {
            iteration = Box::pin(engine.iterate(1)).fuse() => Some(iteration),
            () = Box::pin(reached.notified()).fuse() => None,
        };
        drop(engine);
        stub.with(|w| w.judge = Box::new(|_, _| None));
        assert!(ended.is_none(), "call {at} did not come");
        assert_eq!(
            clean(&stub, dir.path()).await,
            Vec::<String>::new(),
            "killed at call {at}, after: {after}"
        );
        assert_eq!(stub.left(), ["volumes others"], "killed at call {at}, after: {after}");
    };
    for some in moments.chunks(16) {
        futures::future::join_all(some.iter().map(|m| run(*m))).await;
    }
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
    for number in 1..=20 {
        let (a, b) = tokio::join!(one.engine.iterate(number), two.engine.iterate(number));
        for iteration in [a.unwrap(), b.unwrap()] {
            assert!(iteration.fine(), "{:#?}", iteration.failures().map(|r| r.told()).collect::<Vec<_>>());
        }
    }
    assert_eq!(stub.left(), Vec::<String>::new());
}
