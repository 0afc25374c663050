//! Queue semantics, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Entropy, Error, ManualClock, Result};
use parking_lot::Mutex;
use reconcile::{Controller, Handle, Options, Outcome, Reconciler};
use store::Store;

#[derive(Default)]
struct Recorder {
    runs: Mutex<BTreeMap<String, u32>>,
    running: Mutex<BTreeSet<String>>,
    fail_first: u32,
    panic_on: Option<&'static str>,
    unconverged: Mutex<Vec<String>>,
}

#[async_trait]
impl Reconciler for Recorder {
    fn kind(&self) -> &'static str {
        "thing"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        assert!(self.running.lock().insert(key.into()), "one run per key at a time");
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.running.lock().remove(key);
        let runs = {
            let mut runs = self.runs.lock();
            let runs = runs.entry(key.into()).or_default();
            *runs += 1;
            *runs
        };
        if self.panic_on == Some(key) && runs == 1 {
            panic!("in a reconciler");
        }
        if runs <= self.fail_first { Err(Error::unavailable("not yet")) } else { Ok(Outcome::Done) }
    }

    async fn sweep(&self) -> Result<Vec<String>> {
        Ok(self.unconverged.lock().clone())
    }
}

impl Recorder {
    fn count(&self, key: &str) -> u32 {
        self.runs.lock().get(key).copied().unwrap_or(0)
    }

    async fn until(&self, key: &str, runs: u32) {
        let reached = async {
            while self.count(key) < runs {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), reached).await.expect("in time");
    }
}

async fn start(store: &Store, recorder: &Arc<Recorder>) -> Handle {
    Controller::new(store.clone(), Arc::new(ManualClock::default()), Entropy::seeded(1))
        .add(recorder.clone(), Options::default())
        .start()
        .await
        .unwrap()
}

async fn memory() -> Store {
    Store::memory(Arc::new(ManualClock::default()), &[]).await.unwrap()
}

async fn wake(store: &Store, key: &'static str) {
    store
        .write(move |tx| {
            tx.wake("thing", key);
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_runs_and_is_acknowledged() {
    let (store, recorder) = (memory().await, Arc::new(Recorder::default()));
    let handle = start(&store, &recorder).await;
    wake(&store, "a").await;
    recorder.until("a", 1).await;
    handle.stop().await;
    let mut left = store.subscribe("thing").await.unwrap();
    assert!(left.try_next().is_none());
    assert_eq!(handle.status()[0].missed, 0);
}

#[tokio::test(start_paused = true)]
async fn woken_while_running_runs_again_and_never_twice_at_once() {
    let (store, recorder) = (memory().await, Arc::new(Recorder::default()));
    let handle = start(&store, &recorder).await;
    for _ in 0..20 {
        wake(&store, "a").await;
        handle.wake("thing", "a");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    handle.idle().await;
    let runs = recorder.count("a");
    assert!((2..20).contains(&runs), "coalesced, yet run again: {runs}");
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_until_it_works() {
    let store = memory().await;
    let recorder = Arc::new(Recorder { fail_first: 4, ..Recorder::default() });
    let handle = start(&store, &recorder).await;
    let began = tokio::time::Instant::now();
    wake(&store, "a").await;
    recorder.until("a", 3).await;
    let status = &handle.status()[0];
    assert_eq!(status.oldest_unconverged.as_ref().map(|(k, _)| k.as_str()), Some("a"));
    recorder.until("a", 5).await;
    assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400 + 800));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(recorder.count("a"), 5, "done is done");
    assert_eq!(handle.status()[0].failures, 4);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure() {
    let store = memory().await;
    let recorder = Arc::new(Recorder { panic_on: Some("a"), ..Recorder::default() });
    let handle = start(&store, &recorder).await;
    wake(&store, "a").await;
    recorder.until("a", 2).await;
    handle.idle().await;
    assert_eq!(handle.status()[0].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_finds_what_no_wake_up_told_and_counts_it() {
    let (store, recorder) = (memory().await, Arc::new(Recorder::default()));
    recorder.unconverged.lock().push("lost".into());
    let handle = start(&store, &recorder).await;
    recorder.until("lost", 1).await;
    assert!(handle.status()[0].missed >= 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_worked_on_comes_after_a_restart() {
    let (store, recorder) = (memory().await, Arc::new(Recorder::default()));
    wake(&store, "before").await;
    let _handle = start(&store, &recorder).await;
    recorder.until("before", 1).await;
}
