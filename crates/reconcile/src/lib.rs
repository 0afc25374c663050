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
mod status;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Clock, Entropy, Error, Result};
use futures::FutureExt;
use store::{Store, Wake};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

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
    tasks: Vec<(Arc<dyn Reconciler>, Options)>,
}

struct Task {
    reconciler: Arc<dyn Reconciler>,
    options: Options,
    store: Store,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    queue: Queue,
    /// Something was queued, or a worker became free.
    stir: Notify,
    /// Wake-ups that were worked on, to be taken out of the outbox.
    done: parking_lot::Mutex<Vec<i64>>,
}

/// Running reconcilers.
#[derive(Clone)]
pub struct Handle {
    tasks: Arc<Vec<Arc<Task>>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<usize>,
}

impl Controller {
    /// A controller without reconcilers.
    pub fn new(store: Store, clock: Arc<dyn Clock>, entropy: Entropy) -> Self {
        Controller { store, clock, entropy, tasks: Vec::new() }
    }

    /// Adds a reconciler.
    #[must_use]
    pub fn add(mut self, reconciler: Arc<dyn Reconciler>, options: Options) -> Self {
        self.tasks.push((reconciler, options));
        self
    }

    /// Starts all; each begins with what the outbox kept and a sweep.
    ///
    /// # Errors
    /// Where the outbox cannot be read.
    pub async fn start(self) -> Result<Handle> {
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = watch::channel(self.tasks.len());
        let ending = Arc::new(ending);
        let mut tasks = Vec::new();
        for (reconciler, options) in self.tasks {
            let wakes = self.store.subscribe(reconciler.kind()).await?;
            let task = Arc::new(Task {
                reconciler,
                options,
                store: self.store.clone(),
                clock: self.clock.clone(),
                entropy: self.entropy.clone(),
                queue: Queue::new(options.limits),
                stir: Notify::new(),
                done: parking_lot::Mutex::default(),
            });
            tasks.push(task.clone());
            let (stopped, ending) = (stopped.clone(), ending.clone());
            tokio::spawn(async move {
                task.run(wakes, stopped).await;
                ending.send_modify(|n| *n -= 1);
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

    /// Waits until no key is queued, running or waiting for a retry that is due at once.
    pub async fn idle(&self) {
        while !self.tasks.iter().all(|t| t.queue.is_idle()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets running ones end, then answers.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        let _ = ended.wait_for(|n| *n == 0).await;
    }
}

impl Task {
    async fn run(self: Arc<Self>, mut wakes: store::Subscription, mut stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        let mut sweep = tokio::time::interval(self.options.sweep_every);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut flush = tokio::time::interval(Duration::from_millis(100));
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while running.len() < self.options.workers
                && let Some(key) = self.queue.pop()
            {
                running.spawn(self.clone().once(key));
            }
            tokio::select! {
                wake = wakes.next() => match wake {
                    Some(Wake { key, seq, .. }) => self.queue.push(&key, Source::Wake, seq),
                    None => break,
                },
                () = self.stir.notified() => {}
                Some(_) = running.join_next(), if !running.is_empty() => {}
                () = tokio::time::sleep(self.queue.next_due()) => {}
                _ = sweep.tick() => self.sweep(),
                _ = flush.tick(), if !self.done.lock().is_empty() => self.flush(),
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        while running.join_next().await.is_some() {}
        let done = std::mem::take(&mut *self.done.lock());
        let _ = self.store.acknowledge(done).await;
    }

    fn flush(self: &Arc<Self>) {
        let done = std::mem::take(&mut *self.done.lock());
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.store.acknowledge(done).await {
                tracing::warn!(error = %error.chain(), "outbox not acknowledged; its keys come again after a restart");
            }
        });
    }

    fn sweep(self: &Arc<Self>) {
        let this = self.clone();
        tokio::spawn(async move {
            match this.reconciler.sweep().await {
                Ok(keys) => {
                    for key in keys {
                        this.queue.push(&key, Source::Sweep, 0);
                    }
                    this.stir.notify_one();
                }
                Err(error) => {
                    tracing::warn!(kind = this.reconciler.kind(), error = %error.chain(), "sweep failed");
                }
            }
        });
    }

    async fn once(self: Arc<Self>, key: String) {
        let began = tokio::time::Instant::now();
        let run = std::panic::AssertUnwindSafe(self.reconciler.reconcile(&key)).catch_unwind();
        let result = run.await.unwrap_or_else(|_| Err(Error::internal("a reconciler panicked")));
        if let Err(error) = &result {
            let kind = self.reconciler.kind();
            tracing::warn!(kind, key, error = %error.chain(), "reconcile failed; trying again later");
        }
        let worked = self.queue.done(&key, result, began.elapsed(), self.clock.now(), &self.entropy);
        self.done.lock().extend(worked);
        self.stir.notify_one();
    }
}
