//! Reconcilers: keyed queues that make what is as it shall be, for ever, from any state, after any crash.
//!
//! A wake-up carries a key and no data: losing or doubling one is harmless, because every reconciler also sweeps on a
//! timer. One run per key at a time; a key woken while it runs, runs again. Failures back off; panics are failures.
//!
//! Invariant: a key is never forgotten while the store says it has not converged. A sweep that finds a key that no
//! wake-up told of is counted as `missed`: steady growth is a bug.
//!
//! Start reading at [`Reconciler`], then [`Controller::start`].

mod queue;
mod shards;
mod status;
mod together;

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Entropy, Error, Result};
use futures::FutureExt;
use store::{Fence, Store, Subscription, Waiting};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

pub use queue::Limits;
use queue::{Queue, Source};
use shards::View;
pub use shards::{Owner, SHARDS, Shards, Sharing, shard_of};
pub use status::TaskStatus;
pub use together::Together;

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Converged; nothing more until the next wake-up.
    Done,
    /// Look again after this time.
    After(Duration),
}

/// Makes the objects of one kind as they shall be.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// The kind that `Tx::wake` names.
    fn kind(&self) -> &'static str;

    /// Works on one object, whatever state it is in; called again until it answers `Done`.
    ///
    /// # Errors
    /// Any error means: again, later.
    async fn reconcile(&self, key: &str) -> Result<Outcome>;

    /// Works on several objects at once, where that is cheaper than one after the other; one answer for each, in their
    /// order. Called with more than one key only where [`Options::batch`] says so.
    async fn reconcile_many(&self, keys: &[String]) -> Vec<Result<Outcome>> {
        let mut told = Vec::with_capacity(keys.len());
        for key in keys {
            told.push(self.reconcile(key).await);
        }
        told
    }

    /// The shards of objects, one for each key: of several replicas, the one that has it works on the object. Another than
    /// that of the key where the work needs what only one replica knows, as what a host reports.
    ///
    /// # Errors
    /// Where the store cannot be read.
    async fn shards(&self, keys: &[String]) -> Result<Vec<u32>> {
        Ok(keys.iter().map(|key| shard_of(key)).collect())
    }

    /// Keys of all objects that have not converged.
    ///
    /// # Errors
    /// Where the store cannot be read; the next sweep tries again.
    async fn sweep(&self) -> Result<Vec<String>>;
}

/// How a reconciler is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Runs at the same time.
    pub workers: usize,
    /// Keys that a run takes at most: those that are due when it begins. Where it is more than one, another run begins beside
    /// one that goes on only with as many keys, or when that one lasts: fewer, larger runs cost less.
    pub batch: usize,
    /// Time between sweeps.
    pub sweep_every: Duration,
    /// Pauses after failures.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options { workers: 8, batch: 1, sweep_every: Duration::from_secs(30), limits: Limits::default() }
    }
}

/// All reconcilers of a process.
pub struct Controller {
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    sharing: Option<Sharing>,
    tasks: Vec<(Arc<dyn Reconciler>, Options)>,
}

struct Task {
    reconciler: Arc<dyn Reconciler>,
    options: Options,
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    queue: Queue,
    /// Wake-ups on their way to the queue.
    waiting: parking_lot::Mutex<Option<Waiting>>,
    /// Something was queued, or a worker became free.
    stir: Notify,
    /// Wake-ups that were worked on, to be taken out of the outbox.
    done: parking_lot::Mutex<Vec<i64>>,
    /// What this replica works on.
    views: watch::Receiver<Arc<View>>,
}

/// Running reconcilers; they stop when the last handle is dropped.
#[derive(Clone)]
pub struct Handle {
    tasks: Arc<Vec<Arc<Task>>>,
    stop: watch::Sender<Stop>,
    ended: watch::Receiver<()>,
    shards: Shards,
}

/// Wakes keys of running reconcilers without keeping them: for what reconcilers themselves hold.
#[derive(Clone, Default)]
pub struct Waker(Weak<Vec<Arc<Task>>>);

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stop {
    No,
    /// Begin nothing; let running ones end.
    Gently,
    /// Drop the running ones; what they worked on comes again.
    Now,
}

/// After what time a wake-up that was left to another replica is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Keys of a sweep whose shards are asked for at once.
const SOME: usize = 500;
/// Time between acknowledgements to the outbox, so that many share one write.
const FLUSH: Duration = Duration::from_millis(100);
/// How long a run keeps others from beginning with less than a full batch.
const LASTS: Duration = Duration::from_secs(1);

impl Controller {
    /// A controller without reconcilers.
    pub fn new(store: Store, clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Controller { store, clock, entropy, sharing: None, tasks: Vec::new() }
    }

    /// Adds a reconciler.
    #[must_use]
    pub fn add(mut self, reconciler: Arc<dyn Reconciler>, options: Options) -> Self {
        self.tasks.push((reconciler, options));
        self
    }

    /// Shares the work with the other replicas on the database: each works on the keys of its shards.
    #[must_use]
    pub fn sharing(mut self, sharing: Option<Sharing>) -> Self {
        self.sharing = sharing;
        self
    }

    /// Starts all; each begins with what the outbox kept and a sweep.
    ///
    /// # Errors
    /// Two reconcilers of one kind, or where the outbox cannot be read.
    pub async fn start(self) -> Result<Handle> {
        let (stop, stopped) = watch::channel(Stop::No);
        let (ending, ended) = watch::channel(());
        let ending = Arc::new(ending);
        let views = shards::start(self.sharing, &self.store, stopped.clone(), ending.clone());
        let mut tasks: Vec<Arc<Task>> = Vec::new();
        for (reconciler, options) in self.tasks {
            if tasks.iter().any(|t| t.reconciler.kind() == reconciler.kind()) {
                return Err(Error::internal(format!("two reconcilers of kind {}", reconciler.kind())));
            }
            let task = Arc::new(Task {
                queue: Queue::new(options.limits),
                reconciler,
                options,
                store: self.store.clone(),
                clock: self.clock.clone(),
                entropy: self.entropy.clone(),
                waiting: parking_lot::Mutex::default(),
                stir: Notify::new(),
                done: parking_lot::Mutex::default(),
                views: views.clone(),
            });
            let first = if views.borrow().alone { Some(task.subscribe().await?) } else { None };
            tasks.push(task.clone());
            let (views, stopped, ending) = (views.clone(), stopped.clone(), ending.clone());
            tokio::spawn(async move {
                task.run(first, views, stopped).await;
                drop(ending);
            });
        }
        Ok(Handle { tasks: Arc::new(tasks), stop, ended, shards: Shards(views) })
    }
}

impl Handle {
    /// What wakes keys without keeping the reconcilers running.
    pub fn waker(&self) -> Waker {
        Waker(Arc::downgrade(&self.tasks))
    }

    /// As [`Waker::wake`].
    pub fn wake(&self, kind: &str, key: &str) {
        self.waker().wake(kind, key);
    }

    /// How the work is shared with other replicas.
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// What every reconciler does.
    pub fn status(&self) -> Vec<TaskStatus> {
        self.tasks.iter().map(|t| t.queue.status(t.reconciler.kind())).collect()
    }

    /// Waits until there is nothing to do now: no wake-up on its way, no key queued, running, or due at once. Keys that
    /// wait for their time (`After`, backoff) do not count. For tests.
    pub async fn idle(&self) {
        while !self.tasks.iter().all(|t| t.is_idle()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begins nothing more, lets running ones end, then answers.
    pub async fn stop(&self) {
        self.stop.send_if_modified(|stop| {
            let gently = *stop < Stop::Gently;
            if gently {
                *stop = Stop::Gently;
            }
            gently
        });
        let mut ended = self.ended.clone();
        // The channel closes when the last task is gone.
        while ended.changed().await.is_ok() {}
    }

    /// As [`Handle::stop`]; after `patience`, running ones are dropped where they stand. What they worked on comes again.
    pub async fn stop_within(&self, patience: Duration) {
        if tokio::time::timeout(patience, self.stop()).await.is_err() {
            self.stop.send_replace(Stop::Now);
            self.stop().await;
        }
    }
}

impl Waker {
    /// Wakes a key without the store: a hint from a driver. Where another replica works on the key it is told through the
    /// outbox. Nothing happens when the reconcilers are gone.
    pub fn wake(&self, kind: &str, key: &str) {
        let Some(tasks) = self.0.upgrade() else { return };
        for task in tasks.iter().filter(|t| t.reconciler.kind() == kind) {
            if task.views.borrow().alone {
                task.queue.push(key, Source::Hint, 0);
                task.stir.notify_one();
            } else {
                tokio::spawn(task.clone().hint(key.to_owned()));
            }
        }
    }
}

impl Task {
    async fn subscribe(&self) -> Result<Subscription> {
        let wakes = self.store.subscribe(self.reconciler.kind()).await?;
        *self.waiting.lock() = Some(wakes.waiting());
        Ok(wakes)
    }

    fn is_idle(&self) -> bool {
        // In this order: a wake-up counts as waiting until it is in the queue.
        let waiting = self.waiting.lock().as_ref().map_or(0, Waiting::count);
        waiting == 0 && self.queue.is_idle()
    }

    /// Until it shall stop: waits for shards, and works on them as long as they stay the same.
    async fn run(
        self: Arc<Self>,
        mut wakes: Option<Subscription>,
        mut views: watch::Receiver<Arc<View>>,
        mut stop: watch::Receiver<Stop>,
    ) {
        loop {
            let stopped = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop > Stop::No) => true,
                some = views.wait_for(|view| view.any()) => some.is_err(),
            };
            if stopped {
                return;
            }
            let subscribed = match wakes.take() {
                Some(wakes) => Ok(wakes),
                None => self.subscribe().await,
            };
            match subscribed {
                Ok(wakes) => self.work(wakes, &mut views, &mut stop).await,
                Err(error) => {
                    tracing::warn!(kind = self.reconciler.kind(), error = %error.chain(), "outbox not read");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn work(
        self: &Arc<Self>,
        mut wakes: Subscription,
        views: &mut watch::Receiver<Arc<View>>,
        stop: &mut watch::Receiver<Stop>,
    ) {
        let mut running = JoinSet::new();
        let mut aside = JoinSet::new();
        let mut sweep_at = Instant::now();
        let mut flush_at = Instant::now();
        let mine = views.borrow().mine.clone();
        // When another run begins although there is no full batch.
        let mut beside = Instant::now();
        loop {
            while let Some(wake) = wakes.try_next() {
                self.queue.push(&wake.key, Source::Wake, wake.seq);
            }
            while running.len() < self.options.workers.max(1) {
                let batch = self.options.batch;
                if batch > 1 && !running.is_empty() && Instant::now() < beside && !self.queue.fills(batch) {
                    break;
                }
                let keys: Vec<String> =
                    std::iter::from_fn(|| self.queue.pop()).take(self.options.batch.max(1)).collect();
                if keys.is_empty() {
                    break;
                }
                running.spawn(self.clone().begin(keys));
                beside = Instant::now() + LASTS;
            }
            // With all workers busy nothing can begin, however long it is due.
            let free = running.len() < self.options.workers.max(1);
            let alone = self.options.batch <= 1 || running.is_empty();
            let due =
                self.queue.next_due().filter(|_| free).map(|due| if alone { due } else { due.max(beside) });
            tokio::select! {
                // A stop begins nothing more; the timers are not starved by wake-ups.
                biased;
                _ = stop.wait_for(|stop| *stop > Stop::No) => break,
                _ = views.wait_for(|view| view.mine != mine) => break,
                () = tokio::time::sleep_until(sweep_at) => {
                    if self.queue.sweep_begins() {
                        aside.spawn(self.clone().sweep());
                    }
                    sweep_at = Instant::now() + self.until_next_sweep();
                }
                () = tokio::time::sleep_until(flush_at), if !self.done.lock().is_empty() => {
                    aside.spawn(self.clone().flush());
                    flush_at = Instant::now() + FLUSH;
                }
                () = tokio::time::sleep_until(due.unwrap_or(sweep_at)), if due.is_some() => {}
                Some(_) = running.join_next(), if !running.is_empty() => {}
                Some(_) = aside.join_next(), if !aside.is_empty() => {}
                () = self.stir.notified() => {}
                wake = wakes.next() => match wake {
                    Some(wake) => self.queue.push(&wake.key, Source::Wake, wake.seq),
                    None => break,
                },
            }
        }
        drop(wakes);
        self.queue.clear();
        loop {
            tokio::select! {
                biased;
                ended = running.join_next() => if ended.is_none() { break },
                _ = stop.wait_for(|stop| *stop == Stop::Now) => break,
            }
        }
        running.shutdown().await;
        while aside.join_next().await.is_some() {}
        // What was queued while the last ones ran is in the outbox, or the next sweep finds it.
        self.queue.clear();
        self.clone().flush().await;
    }

    /// Not all reconcilers at the same moment.
    fn until_next_sweep(&self) -> Duration {
        let every = self.options.sweep_every;
        let jitter = u64::try_from(every.as_micros() / 10).unwrap_or(0);
        every + Duration::from_micros(self.entropy.below(jitter))
    }

    async fn flush(self: Arc<Self>) {
        let done = std::mem::take(&mut *self.done.lock());
        if let Err(error) = self.store.acknowledge(done).await {
            tracing::warn!(error = %error.chain(), "outbox not acknowledged; its keys come again after a restart");
        }
    }

    async fn sweep(self: Arc<Self>) {
        let look = AssertUnwindSafe(self.reconciler.sweep()).catch_unwind();
        let found = look.await.unwrap_or_else(|_| Err(Error::internal("a sweep panicked")));
        let found = match found {
            Ok(keys) if !self.views.borrow().alone => self.only_mine(keys).await,
            found => found,
        };
        if let Err(error) = &found {
            tracing::warn!(kind = self.reconciler.kind(), error = %error.chain(), "sweep failed");
        }
        self.queue.sweep_ends(found, self.clock.now());
        self.stir.notify_one();
    }

    async fn begin(self: Arc<Self>, keys: Vec<String>) {
        let began = Instant::now();
        if self.views.borrow().alone {
            return self.once(keys, None, began).await;
        }
        let fences = match self.fences(&keys).await {
            Ok(fences) => fences,
            Err(error) => {
                let why = error.chain();
                keys.iter().for_each(|key| self.ended(key, Err(Error::unavailable(why.clone())), began));
                return;
            }
        };
        // Keys of one shard share a fence.
        let mut mine: Vec<(Fence, Vec<String>)> = Vec::new();
        for (key, fence) in keys.into_iter().zip(fences) {
            match fence {
                Some(fence) => match mine.iter_mut().find(|(f, _)| *f == fence) {
                    Some((_, keys)) => keys.push(key),
                    None => mine.push((fence, vec![key])),
                },
                None => self.pass_on(&key),
            }
        }
        futures::future::join_all(mine.into_iter().map(|(fence, keys)| self.once(keys, Some(fence), began)))
            .await;
    }

    async fn once(&self, keys: Vec<String>, fence: Option<Fence>, began: Instant) {
        let kind = self.reconciler.kind();
        let first = keys.first().map(String::as_str);
        let span = tracing::info_span!("reconcile", kind, key = first, keys = keys.len(), otel.name = %format_args!("reconcile {kind}"));
        let run = async {
            match keys.as_slice() {
                [key] => vec![self.reconciler.reconcile(key).await],
                keys => self.reconciler.reconcile_many(keys).await,
            }
        };
        let run = AssertUnwindSafe(run).catch_unwind().instrument(span);
        let told = match fence {
            Some(fence) => store::fenced(fence, run).await,
            None => run.await,
        };
        let mut told = told.unwrap_or_default().into_iter();
        for key in &keys {
            let result = told.next().unwrap_or_else(|| Err(Error::internal("a reconciler panicked")));
            self.ended(key, result, began);
        }
    }

    /// The fences of keys that this replica works on; `None` where another does.
    async fn fences(&self, keys: &[String]) -> Result<Vec<Option<Fence>>> {
        let shards = self.reconciler.shards(keys).await?;
        let view = self.views.borrow();
        Ok(shards.into_iter().map(|shard| view.fence(shard)).collect())
    }

    async fn only_mine(&self, keys: Vec<String>) -> Result<Vec<String>> {
        let mut mine = Vec::new();
        for some in keys.chunks(SOME) {
            let fences = self.fences(some).await?;
            mine.extend(
                some.iter().zip(fences).filter(|(_, fence)| fence.is_some()).map(|(key, _)| key.clone()),
            );
        }
        Ok(mine)
    }

    /// A key that another replica works on. Its wake-ups are left to that one; should they still be there after a while,
    /// they are looked at again: the key may have moved here meanwhile.
    fn pass_on(&self, key: &str) {
        let seqs = self.queue.pass_on(key);
        self.stir.notify_one();
        if !seqs.is_empty() {
            let store = self.store.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LOOK_AGAIN).await;
                store.give_back(&seqs);
            });
        }
    }

    /// A hint where replicas share the work.
    async fn hint(self: Arc<Self>, key: String) {
        let fences = self.fences(std::slice::from_ref(&key)).await;
        let told = match fences.map(|fences| fences.into_iter().any(|fence| fence.is_some())) {
            Ok(true) => {
                self.queue.push(&key, Source::Hint, 0);
                self.stir.notify_one();
                Ok(())
            }
            Ok(false) => {
                let kind = self.reconciler.kind();
                self.store
                    .write(move |tx| {
                        tx.wake(kind, &key);
                        Ok(())
                    })
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::warn!(error = %error.chain(), "a hint was lost; the next sweep finds it");
        }
    }

    fn ended(&self, key: &str, result: Result<Outcome>, began: Instant) {
        let kind = self.reconciler.kind();
        if let Err(error) = &result {
            tracing::warn!(kind, key, error = %error.chain(), "reconcile failed; trying again later");
        }
        let took = began.elapsed();
        let outcome = if result.is_ok() { "ok" } else { "error" };
        metrics::counter!("allod_reconcile_runs_total", "kind" => kind, "result" => outcome).increment(1);
        metrics::histogram!("allod_reconcile_seconds", "kind" => kind).record(took);
        let worked = self.queue.done(key, result, took, self.clock.now(), &self.entropy);
        self.done.lock().extend(worked);
        self.stir.notify_one();
    }
}
