//! PostgreSQL: writers that meet in the same rows, one behind another.
//!
//! SERIALIZABLE lets all writers of one row but the first begin anew: the more there are, the less is written. A closure
//! that met others is therefore put in line, and so are later calls of the same closure for a while. Those that are in
//! line together share one transaction, each in a savepoint of its own, and so one commit; others are not held up.

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::Arc;

use base::{Clock, Error, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::outbox::{Outbox, Wake};
use crate::postgres::{Again, Session, Source, WRITE, unavailable};
use crate::{Ended, Work};

/// Closures that may share one transaction. PostgreSQL keeps 64 savepoints of a transaction in quick memory.
const BATCH: usize = 48;
/// How often a batch is tried before its closures are handed back.
const TRIES: usize = 4;
/// How long a closure that met others is put in line.
const REMEMBERED: i64 = 60;

const BEGIN: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; SAVEPOINT job";
/// After a closure that did its work.
const NEXT: &str = "RELEASE job; SAVEPOINT job";
/// After one that did not.
const UNDO: &str = "ROLLBACK TO job; RELEASE job; SAVEPOINT job";

/// Work that waits in line.
trait Job: Send {
    /// Runs the closure in a savepoint of its own; what it wakes, if it wrote.
    fn run(&mut self, session: &mut Session) -> Vec<Wake>;
    /// Runs it without one, and tells what is to be woken; `None`: the transaction has to be given up.
    fn hope(&mut self, session: &mut Session) -> Option<Vec<Wake>>;
    /// Whether what it did stands, should the transaction be committed.
    fn stands(&self) -> bool;
    fn finish(self: Box<Self>, commit: &Commit);
}

/// How a batch ended.
enum Commit {
    Done,
    /// Nothing was written, and may be if it is tried again.
    Again(Again),
    /// It was not begun, or whether it was written is not known.
    Failed(String),
}

struct Write<T> {
    work: Work<T>,
    now: Timestamp,
    ended: Option<Ended<T>>,
    answer: oneshot::Sender<Ended<T>>,
}

impl<T: Send> Job for Write<T> {
    fn run(&mut self, session: &mut Session) -> Vec<Wake> {
        let (ended, wakes) = match session.closure(&*self.work, self.now, true, |s| s.open(UNDO)) {
            Ok((value, wakes)) => (Ended::Done(Ok(value)), wakes),
            Err(ended) => (ended, Vec::new()),
        };
        self.ended = Some(ended);
        wakes
    }

    fn hope(&mut self, session: &mut Session) -> Option<Vec<Wake>> {
        let (ended, wakes) = match session.hopefully(&*self.work, self.now)? {
            Ok((value, wakes)) => (Ended::Done(Ok(value)), wakes),
            Err(ended) => (ended, Vec::new()),
        };
        self.ended = Some(ended);
        Some(wakes)
    }

    fn stands(&self) -> bool {
        matches!(self.ended, Some(Ended::Done(Ok(_))))
    }

    fn finish(self: Box<Self>, commit: &Commit) {
        let ended = match (commit, self.ended) {
            (Commit::Done, Some(ended)) => ended,
            (Commit::Again(again), _) => again.ended(),
            // What the closure refused is refused, whatever became of the others.
            (Commit::Failed(_), Some(ended)) if !matches!(ended, Ended::Done(Ok(_))) => ended,
            (Commit::Failed(why), _) => Ended::Done(Err(unavailable(why.clone()))),
            (Commit::Done, None) => Ended::Done(Err(Error::internal("a transaction was not run"))),
        };
        let _ = self.answer.send(ended);
    }
}

/// The line, and who is put in it.
pub(crate) struct Lane {
    jobs: mpsc::UnboundedSender<Box<dyn Job>>,
    /// Closures that met others, and until when that is remembered.
    met: Mutex<HashMap<TypeId, Timestamp>>,
    clock: Arc<dyn Clock>,
}

impl Lane {
    pub fn new(source: Source, clock: Arc<dyn Clock>, outbox: Arc<Outbox>) -> Self {
        let (jobs, waiting) = mpsc::unbounded_channel();
        tokio::spawn(serve(source, waiting, outbox, clock.clone()));
        Lane { jobs, met: Mutex::default(), clock }
    }

    /// Whether calls of this closure are put in line.
    pub fn takes(&self, closure: TypeId) -> bool {
        let now = self.clock.now();
        self.met.lock().get(&closure).is_some_and(|until| now < *until)
    }

    /// Remembers that this closure met other writers.
    pub fn met(&self, closure: TypeId) {
        self.met.lock().insert(closure, self.clock.now().plus_secs(REMEMBERED));
    }

    pub async fn write<T: Send + 'static>(&self, work: Work<T>) -> Ended<T> {
        let (answer, ended) = oneshot::channel();
        let job = Box::new(Write { work, now: self.clock.now(), ended: None, answer });
        if self.jobs.send(job).is_err() {
            return Ended::Done(Err(Error::internal("nobody serves the line")));
        }
        let ended = ended.await;
        ended.unwrap_or_else(|_| Ended::Done(Err(Error::internal("a transaction was dropped in line"))))
    }
}

/// Runs what waits, until the store is gone.
async fn serve(
    source: Source,
    mut waiting: mpsc::UnboundedReceiver<Box<dyn Job>>,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
) {
    while let Some(first) = waiting.recv().await {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let session = match source.session().await {
            Ok(session) => session,
            Err(error) => {
                let commit = Commit::Failed(error.chain());
                batch.into_iter().for_each(|job| job.finish(&commit));
                continue;
            }
        };
        let outbox = outbox.clone();
        let run = tokio::task::spawn_blocking({
            let now = clock.now();
            move || together(session, batch, &outbox, now)
        });
        if let Err(error) = run.await {
            tracing::error!(%error, "a batch of transactions ended early");
        }
    }
}

/// One transaction for all; tried again while others are in the way.
fn together(mut session: Session, mut batch: Vec<Box<dyn Job>>, outbox: &Outbox, now: Timestamp) {
    let mut commit = Commit::Done;
    let mut hopeful = true;
    for _ in 0..TRIES {
        let hoped = if hopeful { hope(&mut session, &mut batch, now) } else { None };
        hopeful = hoped.is_some();
        let (wakes, ended) = hoped.unwrap_or_else(|| attempt(&mut session, &mut batch));
        commit = ended;
        match &commit {
            Commit::Done => {
                outbox.deliver(wakes);
                break;
            }
            Commit::Again(Again::Conflict(_)) => {
                metrics::counter!("allod_store_retries_total").increment(1);
            }
            Commit::Again(Again::Lost(_)) | Commit::Failed(_) => break,
        }
    }
    batch.into_iter().for_each(|job| job.finish(&commit));
}

/// All in one go: no savepoints, what several read is read once, and writes are not waited for. `None`: one of them did
/// not do what was expected, and nothing was written.
fn hope(session: &mut Session, batch: &mut [Box<dyn Job>], now: Timestamp) -> Option<(Vec<Wake>, Commit)> {
    session.open(WRITE);
    let mut wakes = Vec::new();
    for job in batch.iter_mut() {
        let Some(woken) = job.hope(session) else { return vain(session) };
        wakes.extend(woken);
    }
    let Ok(wakes) = session.wake(wakes, now) else { return vain(session) };
    if session.opened().is_some() {
        // Nothing was asked of the database.
        return Some((wakes, Commit::Done));
    }
    Some((wakes, commit(session, "COMMIT")))
}

fn vain(session: &mut Session) -> Option<(Vec<Wake>, Commit)> {
    if let Some(again) = session.give_up() {
        return Some((Vec::new(), Commit::Again(again)));
    }
    session.despair();
    None
}

fn attempt(session: &mut Session, batch: &mut [Box<dyn Job>]) -> (Vec<Wake>, Commit) {
    let mut wakes = Vec::new();
    session.open(BEGIN);
    for job in batch.iter_mut() {
        wakes.extend(job.run(session));
        if let Some(again) = session.give_up() {
            return (Vec::new(), Commit::Again(again));
        }
        session.open(if job.stands() { NEXT } else { UNDO });
    }
    let end = match session.opened() {
        // Nothing was asked of the database.
        Some(BEGIN) => return (wakes, Commit::Done),
        Some(UNDO) => "ROLLBACK TO job; COMMIT",
        _ => "COMMIT",
    };
    (wakes, commit(session, end))
}

fn commit(session: &mut Session, sql: &str) -> Commit {
    match session.commit(sql) {
        Ok(()) => Commit::Done,
        Err((Some(again @ Again::Conflict(_)), _)) => Commit::Again(again),
        Err((_, error)) => Commit::Failed(error.chain()),
    }
}
