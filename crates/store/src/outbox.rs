//! Wake-ups: written with the transaction, delivered after it, kept until acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::query::Sql;
use crate::tx::Tx;
use crate::value::Value;

/// A wake-up: a key for the reconciler of a kind, and no data.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake {
    /// Which reconciler.
    pub kind: &'static str,
    /// Which object.
    pub key: String,
    /// Place in the outbox; given back to acknowledge.
    pub seq: i64,
}

/// Wake-ups of one kind.
pub struct Subscription {
    receiver: mpsc::UnboundedReceiver<Wake>,
    waiting: Arc<AtomicUsize>,
    /// The wake-up given out last still counts as waiting.
    given: bool,
}

/// How many wake-ups wait in a [`Subscription`]; cheap to clone.
#[derive(Debug, Clone)]
pub struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Delivered and not handled: one is handled when the next is asked for.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Subscription {
    /// The next wake-up; `None` once the store is gone.
    pub async fn next(&mut self) -> Option<Wake> {
        self.handled();
        let wake = self.receiver.recv().await;
        self.given = wake.is_some();
        wake
    }

    /// One that is there already.
    pub fn try_next(&mut self) -> Option<Wake> {
        self.handled();
        let wake = self.receiver.try_recv().ok();
        self.given = wake.is_some();
        wake
    }

    /// A view of how many wait.
    pub fn waiting(&self) -> Waiting {
        Waiting(self.waiting.clone())
    }

    fn handled(&mut self) {
        if std::mem::take(&mut self.given) {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

struct Subscriber {
    sender: mpsc::UnboundedSender<Wake>,
    waiting: Arc<AtomicUsize>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    subscribers: Mutex<BTreeMap<&'static str, Vec<Subscriber>>>,
    /// Delivered and not yet acknowledged: a poll does not deliver them again.
    delivered: Mutex<BTreeMap<i64, &'static str>>,
    /// The newest migration this program knows, by service.
    known: Mutex<BTreeMap<&'static str, u32>>,
    /// The database has migrations that this program does not know.
    behind: AtomicBool,
}

impl Outbox {
    pub fn subscribe(&self, kind: &'static str) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let subscriber = Subscriber { sender, waiting: waiting.clone() };
        let mut subscribers = self.subscribers.lock();
        let of_kind = subscribers.entry(kind).or_default();
        of_kind.retain(|s| !s.sender.is_closed());
        if of_kind.is_empty() {
            // What an ended subscription left unacknowledged is this one's.
            self.delivered.lock().retain(|_, k| *k != kind);
        }
        of_kind.push(subscriber);
        Subscription { receiver, waiting, given: false }
    }

    /// Notes the newest migration of a service that this program knows.
    pub fn knows(&self, service: &'static str, newest: u32) {
        self.known.lock().insert(service, newest);
    }

    /// Notes the newest migrations of the database.
    pub fn newest(&self, all: impl Iterator<Item = (String, i64)>) {
        let known = self.known.lock();
        for (service, number) in all {
            if known.get(service.as_str()).is_some_and(|n| number > i64::from(*n))
                && !self.behind.swap(true, Ordering::SeqCst)
            {
                tracing::warn!(
                    service,
                    number,
                    "a newer server changed the schema; fields unknown here are kept"
                );
            }
        }
    }

    pub fn notice(&self, applied: &[crate::migrate::Applied]) {
        self.newest(applied.iter().map(|a| (a.service.clone(), i64::from(a.number))));
    }

    /// Whether rows may have fields that this program does not know.
    pub fn behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.subscribers.lock().keys().copied().collect()
    }

    pub fn deliver(&self, wakes: Vec<Wake>) {
        if wakes.is_empty() {
            return;
        }
        let mut subscribers = self.subscribers.lock();
        let mut delivered = self.delivered.lock();
        for wake in wakes {
            let Some(of_kind) = subscribers.get_mut(wake.kind) else { continue };
            // A subscription that ended does not keep its wake-ups from the next one.
            of_kind.retain(|s| !s.sender.is_closed());
            if of_kind.is_empty() || delivered.insert(wake.seq, wake.kind).is_some() {
                continue;
            }
            for subscriber in of_kind {
                subscriber.waiting.fetch_add(1, Ordering::SeqCst);
                let _ = subscriber.sender.send(wake.clone());
            }
        }
    }

    /// What is delivered and not acknowledged.
    pub fn given(&self) -> Vec<i64> {
        self.delivered.lock().keys().copied().collect()
    }

    /// Forgets what had been delivered before the outbox was read, and is not in it any more: others acknowledged it.
    pub fn prune(&self, before: &[i64], found: &[Wake]) {
        let found: std::collections::HashSet<i64> = found.iter().map(|w| w.seq).collect();
        let gone: Vec<i64> = before.iter().copied().filter(|seq| !found.contains(seq)).collect();
        self.forget(&gone);
    }

    fn forget(&self, seqs: &[i64]) {
        let mut delivered = self.delivered.lock();
        for seq in seqs {
            delivered.remove(seq);
        }
    }
}

impl Tx<'_> {
    /// Writes the transaction's wake-ups; called by the engines just before the commit.
    pub(crate) fn flush_wakes(&mut self) -> Result<Vec<Wake>> {
        let mut wakes = std::mem::take(&mut self.wakes);
        if self.connection.postgres() && wakes.len() > 1 {
            wakes = self.flush_many(&wakes)?;
            self.connection.notify()?;
            return Ok(wakes);
        }
        for wake in &mut wakes {
            let mut sql =
                Sql::new("INSERT INTO allod_outbox (kind, object) VALUES (", self.connection.postgres());
            sql.bind(Value::Text(wake.kind.to_owned())).push(", ").bind(Value::Text(wake.key.clone()));
            sql.push(") RETURNING seq");
            let rows = self.rows(&sql)?;
            wake.seq = rows.first().and_then(|r| r.first()).map_or(0, Value::int);
        }
        if !wakes.is_empty() {
            self.connection.notify()?;
        }
        Ok(wakes)
    }

    /// One statement for all; they come back in the order of their places.
    fn flush_many(&mut self, wakes: &[Wake]) -> Result<Vec<Wake>> {
        let kinds: BTreeMap<&str, &'static str> = wakes.iter().map(|w| (w.kind, w.kind)).collect();
        let list: Vec<[&str; 2]> = wakes.iter().map(|w| [w.kind, w.key.as_str()]).collect();
        let list = serde_json::to_string(&list).map_err(Error::internal)?;
        let mut sql = Sql::new(
            "INSERT INTO allod_outbox (kind, object) SELECT v.w->>0, v.w->>1 FROM jsonb_array_elements(CAST(CAST(",
            true,
        );
        sql.bind(Value::Text(list)).push(" AS TEXT) AS JSONB)) AS v(w) RETURNING seq, kind, object");
        let mut told: Vec<Wake> = self
            .rows(&sql)?
            .into_iter()
            .filter_map(|row| {
                let mut row = row.into_iter();
                let seq = row.next()?.int();
                Some(Wake { kind: kinds.get(row.next()?.text().as_str())?, key: row.next()?.text(), seq })
            })
            .collect();
        told.sort_by_key(|w| w.seq);
        Ok(told)
    }

    pub(crate) fn pending_wakes(&mut self, kind: &'static str) -> Result<Vec<Wake>> {
        let mut sql =
            Sql::new("SELECT seq, object FROM allod_outbox WHERE kind = ", self.connection.postgres());
        sql.bind(Value::Text(kind.to_owned())).push(" ORDER BY seq");
        let rows = self.rows(&sql)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let mut row = row.into_iter();
                let seq = row.next()?.int();
                Some(Wake { kind, key: row.next()?.text(), seq })
            })
            .collect())
    }
}

impl crate::Store {
    /// How many wake-ups of each kind are not acknowledged. One that only grows belongs to a kind that nobody works on.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn unacknowledged(&self) -> Result<BTreeMap<String, u64>> {
        self.read(|tx| {
            let rows = tx.connection.query("SELECT kind, COUNT(*) FROM allod_outbox GROUP BY kind", &[])?;
            Ok(rows
                .into_iter()
                .filter_map(|row| {
                    let mut row = row.into_iter();
                    Some((row.next()?.text(), u64::try_from(row.next()?.int()).unwrap_or(0)))
                })
                .collect())
        })
        .await
    }

    /// Gives wake-ups back that others shall work on: should they still be there when the outbox is read next, they are
    /// delivered here again.
    pub fn give_back(&self, seqs: &[i64]) {
        self.0.outbox.forget(seqs);
    }

    /// Tells that these wake-ups were worked on; they will not come again.
    ///
    /// # Errors
    /// Where the database cannot be written; then they come again after a restart, which is harmless.
    pub async fn acknowledge(&self, seqs: Vec<i64>) -> Result<()> {
        if seqs.is_empty() {
            return Ok(());
        }
        let list: Vec<Value> = seqs.iter().map(|seq| Value::Int(*seq)).collect();
        self.write(move |tx| {
            let mut sql = Sql::new("DELETE FROM allod_outbox WHERE ", tx.connection.postgres());
            sql.is_one_of("seq", list.clone());
            tx.change(&sql)?;
            Ok(())
        })
        .await?;
        self.0.outbox.forget(&seqs);
        Ok(())
    }
}
