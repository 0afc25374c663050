//! Fairness, limits, sweeps and leadership, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Entropy, Error, Result, Timestamp};
use parking_lot::Mutex;
use reconcile::{Controller, Handle, Limits, Options, Outcome, Owner, Reconciler, Sharing};
use store::Store;
use tokio::time::Instant;

/// Shows tokio's time, which tests pause and which then runs ahead of itself.
pub struct TokioClock(Instant);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_767_225_600).plus(self.0.elapsed())
    }
}

fn clock() -> Arc<TokioClock> {
    Arc::new(TokioClock(Instant::now()))
}

type Run = dyn Fn(&str, u32) -> Result<Outcome> + Send + Sync;

/// A reconciler made of a closure, which is told the key and how often it ran.
struct Scripted {
    kind: &'static str,
    takes: Duration,
    run: Box<Run>,
    sweep: Box<dyn Fn() -> Result<Vec<String>> + Send + Sync>,
    sweep_takes: Duration,
    runs: Mutex<BTreeMap<String, u32>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Scripted {
    fn new(kind: &'static str, run: impl Fn(&str, u32) -> Result<Outcome> + Send + Sync + 'static) -> Self {
        Scripted {
            kind,
            takes: Duration::from_millis(10),
            run: Box::new(run),
            sweep: Box::new(|| Ok(Vec::new())),
            sweep_takes: Duration::ZERO,
            runs: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        }
    }

    fn count(&self, key: &str) -> u32 {
        self.runs.lock().get(key).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Reconciler for Scripted {
    fn kind(&self) -> &'static str {
        self.kind
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        let n = {
            let mut runs = self.runs.lock();
            let n = runs.entry(key.into()).or_default();
            *n += 1;
            *n
        };
        tokio::time::sleep(self.takes).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        (self.run)(key, n)
    }

    async fn sweep(&self) -> Result<Vec<String>> {
        let found = (self.sweep)();
        tokio::time::sleep(self.sweep_takes).await;
        found
    }
}

async fn memory() -> Store {
    Store::memory(clock(), &[]).await.unwrap()
}

async fn start(store: &Store, options: Options, reconcilers: &[&Arc<Scripted>]) -> Handle {
    let controller = Controller::new(store.clone(), store.clock().clone(), Entropy::seeded(1));
    reconcilers
        .iter()
        .fold(controller, |c, r| c.add(Arc::<Scripted>::clone(r) as Arc<dyn Reconciler>, options))
        .start()
        .await
        .unwrap()
}

async fn wake(store: &Store, kind: &'static str, key: impl ToString) {
    let key = key.to_string();
    let work = move |tx: &mut store::Tx<'_>| {
        tx.wake(kind, &key);
        Ok(())
    };
    store.write(work).await.unwrap();
}

/// Outbox rows of a kind that nobody acknowledged.
async fn left(store: &Store, kind: &'static str) -> usize {
    let mut wakes = store.subscribe(kind).await.unwrap();
    std::iter::from_fn(|| wakes.try_next()).count()
}

#[tokio::test(start_paused = true)]
async fn idle_knows_of_wakes_on_their_way() {
    let store = memory().await;
    let once = Arc::new(Scripted::new("thing", |_, _| Ok(Outcome::Done)));
    let handle = start(&store, Options::default(), &[&once]).await;
    for n in 0..50 {
        wake(&store, "thing", n).await;
        handle.idle().await;
        assert_eq!(once.count(&n.to_string()), 1);
    }
    handle.stop().await;
    assert_eq!(left(&store, "thing").await, 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_workers() {
    let store = memory().await;
    let slow = Arc::new(Scripted::new("thing", |_, _| Ok(Outcome::Done)));
    let handle = start(&store, Options { workers: 3, ..Options::default() }, &[&slow]).await;
    let began = Instant::now();
    for n in 0..300 {
        handle.wake("thing", &n.to_string());
    }
    handle.idle().await;
    assert_eq!(slow.most_at_once.load(Ordering::SeqCst), 3);
    assert!(began.elapsed() >= Duration::from_secs(1), "300 runs of 10 ms by three");
    assert_eq!(handle.status()[0].runs, 300);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_waits_keeps_one_outbox_row() {
    let store = memory().await;
    let poll = Scripted::new("thing", |_, _| Ok(Outcome::After(Duration::from_secs(3600))));
    let poll = Arc::new(poll);
    let handle = start(&store, Options::default(), &[&poll]).await;
    for _ in 0..20 {
        wake(&store, "thing", "a").await;
        handle.idle().await;
    }
    assert_eq!(poll.count("a"), 20, "a wake-up does not wait for the hour");
    tokio::time::sleep(Duration::from_secs(7300)).await;
    assert_eq!(poll.count("a"), 22);
    handle.stop().await;
    assert_eq!(left(&store, "thing").await, 1, "enough to find it after a crash");
}

#[tokio::test(start_paused = true)]
async fn two_that_fail_and_wake_each_other_do_not_spin() {
    let store = memory().await;
    let handles: Arc<Mutex<Option<Handle>>> = Arc::default();
    let failing = |own: &'static str, other: &'static str| {
        let handles = handles.clone();
        Arc::new(Scripted::new(own, move |key, _| {
            if let Some(handle) = handles.lock().as_ref() {
                handle.wake(other, key);
                handle.wake(own, key);
            }
            Err(Error::unavailable("not yet"))
        }))
    };
    let (one, two) = (failing("one", "two"), failing("two", "one"));
    let handle = start(&store, Options::default(), &[&one, &two]).await;
    *handles.lock() = Some(handle.clone());
    handle.wake("one", "a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let runs = one.count("a") + two.count("a");
    assert!((60..300).contains(&runs), "about one a second each: {runs}");
    handles.lock().take();
}

#[tokio::test(start_paused = true)]
async fn news_shorten_a_long_backoff() {
    let store = memory().await;
    let flaky =
        Scripted::new("thing", |_, n| if n <= 9 { Err(Error::unavailable("no")) } else { Ok(Outcome::Done) });
    let flaky = Arc::new(flaky);
    let limits = Limits { first: Duration::from_secs(1), most: Duration::from_secs(3600) };
    let handle = start(&store, Options { limits, ..Options::default() }, &[&flaky]).await;
    wake(&store, "thing", "a").await;
    while flaky.count("a") < 9 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The next retry of its own is minutes away.
    let began = Instant::now();
    wake(&store, "thing", "a").await;
    handle.idle().await;
    assert_eq!(flaky.count("a"), 10);
    assert!(began.elapsed() < Duration::from_secs(2));
    let status = &handle.status()[0];
    assert_eq!((status.failing, status.backlog, status.failures), (0, 0, 9));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_was_overtaken_counts_nothing() {
    let store = memory().await;
    // Every sweep says that "a" has not converged, and takes longer to say it than "a" takes to converge.
    let mut slow = Scripted::new("thing", |_, _| Ok(Outcome::Done));
    slow.sweep = Box::new(|| Ok(vec!["a".into()]));
    slow.sweep_takes = Duration::from_secs(5);
    let slow = Arc::new(slow);
    let handle = start(&store, Options::default(), &[&slow]).await;
    wake(&store, "thing", "a").await;
    handle.idle().await;
    let status = &handle.status()[0];
    assert_eq!((slow.count("a"), status.missed), (1, 0));
    assert!(status.last_sweep.is_some());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(handle.status()[0].missed > 0, "the next one is right: nobody told of it");
}

#[tokio::test(start_paused = true)]
async fn sweeps_that_fail_or_panic_are_tried_again() {
    let store = memory().await;
    let sweeps = Arc::new(AtomicUsize::new(0));
    let counted = sweeps.clone();
    let mut broken = Scripted::new("thing", |_, _| Ok(Outcome::Done));
    broken.sweep = Box::new(move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Err(Error::unavailable("no database")),
        1 => panic!("in a sweep"),
        _ => Ok(vec!["a".into()]),
    });
    let broken = Arc::new(broken);
    let handle = start(&store, Options::default(), &[&broken]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(broken.count("a") >= 1);
    assert_eq!(handle.status()[0].sweep_failures, 2);
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_running_ones_or_drops_them() {
    let store = memory().await;
    let mut slow = Scripted::new("thing", |_, _| Ok(Outcome::Done));
    slow.takes = Duration::from_secs(10);
    let slow = Arc::new(slow);
    let options = Options { workers: 1, ..Options::default() };
    let handle = start(&store, options, &[&slow]).await;
    for key in ["a", "b"] {
        wake(&store, "thing", key).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    handle.stop().await;
    assert_eq!((slow.count("a"), slow.count("b")), (1, 0));
    assert_eq!(left(&store, "thing").await, 1, "b was not begun");
    let handle = start(&store, options, &[&slow]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    handle.stop_within(Duration::from_secs(2)).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(slow.count("b"), 1);
    let handle = start(&store, options, &[&slow]).await;
    handle.idle().await;
    assert_eq!(slow.count("b"), 2, "dropped where it stood, so it came again");
}

fn member(name: &str) -> store::Replica {
    let text = || name.to_owned();
    store::Replica { id: text(), name: text(), address: String::new(), version: text(), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn replicas_share_the_work_and_take_it_over() {
    let ttl = Duration::from_secs(30);
    let store = memory().await;
    let replica = |name: &'static str| {
        let store = store.clone();
        async move {
            let task = Arc::new(Scripted::new("thing", |_, _| Ok(Outcome::Done)));
            let handle = Controller::new(store.clone(), store.clock().clone(), Entropy::seeded(1))
                .add(task.clone(), Options::default())
                .sharing(Some(Sharing { me: member(name), ttl }))
                .start()
                .await
                .unwrap();
            (task, handle)
        }
    };
    let keys = |word: &'static str| (0..100).map(move |n| format!("{word}{n}")).collect::<Vec<_>>();
    let wake_all = async |word: &'static str| {
        for key in keys(word) {
            wake(&store, "thing", &key).await;
        }
    };
    let seconds = |n| tokio::time::sleep(Duration::from_secs(n));
    let (one, first) = replica("one").await;
    let (two, second) = replica("two").await;
    seconds(60).await;
    assert_eq!((first.shards().held(), second.shards().held()), (16, 16));
    wake_all("a").await;
    seconds(30).await;
    for key in keys("a") {
        assert_eq!(one.count(&key) + two.count(&key), 1, "{key}");
    }
    let share = keys("a").iter().filter(|k| one.count(k) == 1).count();
    assert!((20..80).contains(&share), "{share}");
    let key = keys("a").into_iter().find(|k| one.count(k) == 1).unwrap();
    assert_eq!(first.shards().owner(&key), Owner::Me);
    assert_eq!(second.shards().owner(&key), Owner::Other(member("one")));
    second.wake("thing", &key);
    seconds(5).await;
    assert_eq!((one.count(&key), two.count(&key)), (2, 0), "a hint finds its replica");
    first.stop().await;
    wake_all("b").await;
    seconds(25).await;
    assert!(keys("b").iter().all(|k| two.count(k) == 1 && one.count(k) == 0), "given back, so taken over");
    // Somebody takes half and dies without a word: it is taken over once the leases have run out.
    let none = std::collections::BTreeSet::new();
    let dead = member("ghost");
    let ghost = || store.share("reconcile", &dead, reconcile::SHARDS, &none, ttl);
    assert_eq!(ghost().await.unwrap().mine.len(), 0);
    seconds(25).await;
    let shares = ghost().await.unwrap();
    assert_eq!(shares.mine.len(), 16, "{shares:?} {:?}", second.shards().held());
    wake_all("c").await;
    seconds(5).await;
    let done = keys("c").iter().filter(|k| two.count(k) == 1).count();
    assert!((20..80).contains(&done), "{done}");
    seconds(60).await;
    assert!(keys("c").iter().all(|k| two.count(k) == 1));
    // It comes back: what it writes under its old token is refused.
    let (shard, token) = shares.mine.first_key_value().unwrap();
    let fence = store::Fence { name: store::shard_lease("reconcile", *shard), token: *token };
    let late = store::fenced(
        fence,
        store.write(|tx| {
            tx.wake("thing", "late");
            Ok(())
        }),
    )
    .await;
    assert_eq!(late.unwrap_err().kind(), base::Kind::Unavailable);
    assert_eq!(two.count("late"), 0);
}

/// Whatever runs answer and whenever wake-ups come: each key runs after its last wake-up, and in the end nothing is left.
#[tokio::test(start_paused = true)]
async fn every_wake_up_is_followed_by_a_run_that_began_after_it() {
    for seed in 0..20 {
        let entropy = Entropy::seeded(seed);
        let store = memory().await;
        let began: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
        let (noted, dice) = (began.clone(), entropy.clone());
        let random = Scripted::new("thing", move |key, _| {
            // 10 ms ago, when this run began.
            noted.lock().insert(key.into(), Instant::now() - Duration::from_millis(10));
            match dice.below(8) {
                0 => Err(Error::unavailable("no")),
                1 => panic!("in a reconciler"),
                2 => Ok(Outcome::After(Duration::from_millis(dice.below(500)))),
                _ => Ok(Outcome::Done),
            }
        });
        let random = Arc::new(random);
        let handle = start(&store, Options { workers: 2, ..Options::default() }, &[&random]).await;
        let mut woken = BTreeMap::new();
        for _ in 0..100 {
            let key = entropy.below(8).to_string();
            woken.insert(key.clone(), Instant::now());
            wake(&store, "thing", key).await;
            tokio::time::sleep(Duration::from_millis(entropy.below(20))).await;
        }
        let settled = async {
            while handle.status()[0].backlog + handle.status()[0].running > 0 {
                handle.idle().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), settled).await.expect("settles");
        for (key, at) in woken {
            assert!(began.lock()[&key] >= at, "seed {seed}: {key} was woken and not run again");
        }
        handle.stop().await;
        assert_eq!(left(&store, "thing").await, 0, "seed {seed}");
    }
}

/// The queue's work does not grow with its length.
#[tokio::test]
async fn twenty_thousand_keys_are_no_burden() {
    let store = memory().await;
    let mut quick = Scripted::new("thing", |_, _| Ok(Outcome::After(Duration::from_secs(3600))));
    quick.takes = Duration::ZERO;
    let quick = Arc::new(quick);
    let handle = start(&store, Options::default(), &[&quick]).await;
    for n in 0..20_000 {
        handle.wake("thing", &n.to_string());
    }
    tokio::time::timeout(Duration::from_secs(60), handle.idle()).await.expect("in time");
    assert_eq!(handle.status()[0].runs, 20_000);
}
