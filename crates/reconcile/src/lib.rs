//! Reconcilers: keyed queues that make what is as it shall be, for ever, from any state, after any crash.
//!
//! A wake-up carries a key and no data: losing or doubling one is harmless, because every reconciler also sweeps on a
//! timer. One run per key at a time; a key woken while it runs, runs again. Failures back off; panics are failures.
//!
//! Invariant: a key is never forgotten while the store says it has not converged. A sweep that finds a key that no
//! wake-up told of is counted as `missed`: steady growth is a bug.
//!
//! Start reading at [`Reconciler`], then [`Controller::start`].

mod leader;
mod queue;
mod status;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Entropy, Error, Result};
use futures::FutureExt;
use store::{Store, Subscription, Waiting};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

pub use leader::Exclusive;
pub use queue::Limits;
use queue::{Queue, Source};
pub use status::TaskStatus;

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
    /// Time between sweeps.
    pub sweep_every: Duration,
    /// Pauses after failures.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Options { workers: 8, sweep_every: Duration::from_secs(30), limits: Limits::default() }
    }
}

/// All reconcilers of a process.
pub struct Controller {
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    exclusive: Option<Exclusive>,
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
}

/// Running reconcilers; they stop when the last handle is dropped.
#[derive(Clone)]
pub struct Handle {
    tasks: Arc<Vec<Arc<Task>>>,
    stop: watch::Sender<Stop>,
    ended: watch::Receiver<()>,
}

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stop {
    No,
    /// Begin nothing; let running ones end.
    Gently,
    /// Drop the running ones; what they worked on comes again.
    Now,
}

/// Time between acknowledgements to the outbox, so that many share one write.
const FLUSH: Duration = Duration::from_millis(100);

impl Controller {
    /// A controller without reconcilers.
    pub fn new(store: Store, clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Controller { store, clock, entropy, exclusive: None, tasks: Vec::new() }
    }

    /// Adds a reconciler.
    #[must_use]
    pub fn add(mut self, reconciler: Arc<dyn Reconciler>, options: Options) -> Self {
        self.tasks.push((reconciler, options));
        self
    }

    /// Runs only while this process holds a lease: of several replicas on one database, one reconciles and the others
    /// wait to take over. Not needed with SQLite.
    #[must_use]
    pub fn exclusive(mut self, exclusive: Exclusive) -> Self {
        self.exclusive = Some(exclusive);
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
        let leader = leader::start(self.exclusive, &self.store, stopped.clone(), ending.clone());
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
            });
            let first = if *leader.borrow() { Some(task.subscribe().await?) } else { None };
            tasks.push(task.clone());
            let (leader, stopped, ending) = (leader.clone(), stopped.clone(), ending.clone());
            tokio::spawn(async move {
                task.run(first, leader, stopped).await;
                drop(ending);
            });
        }
        Ok(Handle { tasks: Arc::new(tasks), stop, ended })
    }
}

impl Handle {
    /// Wakes a key without the store: a hint from a driver.
    pub fn wake(&self, kind: &str, key: &str) {
        for task in self.tasks.iter().filter(|t| t.reconciler.kind() == kind) {
            task.queue.push(key, Source::Hint, 0);
            task.stir.notify_one();
        }
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

    /// Until it shall stop: waits to be the leader, and works as long as it is.
    async fn run(
        self: Arc<Self>,
        mut wakes: Option<Subscription>,
        mut leader: watch::Receiver<bool>,
        mut stop: watch::Receiver<Stop>,
    ) {
        loop {
            let stopped = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop > Stop::No) => true,
                led = leader.wait_for(|leads| *leads) => led.is_err(),
            };
            if stopped {
                return;
            }
            let subscribed = match wakes.take() {
                Some(wakes) => Ok(wakes),
                None => self.subscribe().await,
            };
            match subscribed {
                Ok(wakes) => self.work(wakes, &mut leader, &mut stop).await,
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
        leader: &mut watch::Receiver<bool>,
        stop: &mut watch::Receiver<Stop>,
    ) {
        let mut running = JoinSet::new();
        let mut aside = JoinSet::new();
        let mut sweep_at = Instant::now();
        let mut flush_at = Instant::now();
        loop {
            while let Some(wake) = wakes.try_next() {
                self.queue.push(&wake.key, Source::Wake, wake.seq);
            }
            while running.len() < self.options.workers.max(1)
                && let Some(key) = self.queue.pop()
            {
                running.spawn(self.clone().once(key));
            }
            // With all workers busy nothing can begin, however long it is due.
            let free = running.len() < self.options.workers.max(1);
            let due = self.queue.next_due().filter(|_| free);
            tokio::select! {
                // A stop begins nothing more; the timers are not starved by wake-ups.
                biased;
                _ = stop.wait_for(|stop| *stop > Stop::No) => break,
                _ = leader.wait_for(|leads| !*leads) => break,
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
        if let Err(error) = &found {
            tracing::warn!(kind = self.reconciler.kind(), error = %error.chain(), "sweep failed");
        }
        self.queue.sweep_ends(found, self.clock.now());
        self.stir.notify_one();
    }

    async fn once(self: Arc<Self>, key: String) {
        let began = Instant::now();
        let kind = self.reconciler.kind();
        let span = tracing::info_span!("reconcile", kind, key, otel.name = %format_args!("reconcile {kind}"));
        let run = AssertUnwindSafe(self.reconciler.reconcile(&key)).catch_unwind().instrument(span);
        let result = run.await.unwrap_or_else(|_| Err(Error::internal("a reconciler panicked")));
        if let Err(error) = &result {
            tracing::warn!(kind, key, error = %error.chain(), "reconcile failed; trying again later");
        }
        let took = began.elapsed();
        let outcome = if result.is_ok() { "ok" } else { "error" };
        metrics::counter!("allod_reconcile_runs_total", "kind" => kind, "result" => outcome).increment(1);
        metrics::histogram!("allod_reconcile_seconds", "kind" => kind).record(took);
        let worked = self.queue.done(&key, result, took, self.clock.now(), &self.entropy);
        self.done.lock().extend(worked);
        self.stir.notify_one();
    }
}
