//! Wake-ups: written with the transaction, delivered after it, kept until acknowledged.

use std::collections::{BTreeMap, BTreeSet};

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
}

impl Subscription {
    /// The next wake-up; `None` once the store is gone.
    pub async fn next(&mut self) -> Option<Wake> {
        self.receiver.recv().await
    }

    /// One that is there already.
    pub fn try_next(&mut self) -> Option<Wake> {
        self.receiver.try_recv().ok()
    }
}

#[derive(Default)]
pub(crate) struct Outbox {
    subscribers: Mutex<BTreeMap<&'static str, Vec<mpsc::UnboundedSender<Wake>>>>,
    /// Delivered and not yet acknowledged: a poll does not deliver them again.
    delivered: Mutex<BTreeSet<i64>>,
}

impl Outbox {
    pub fn subscribe(&self, kind: &'static str) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.lock().entry(kind).or_default().push(sender);
        Subscription { receiver }
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.subscribers.lock().keys().copied().collect()
    }

    pub fn deliver(&self, wakes: Vec<Wake>) {
        let mut subscribers = self.subscribers.lock();
        let mut delivered = self.delivered.lock();
        for wake in wakes {
            let Some(senders) = subscribers.get_mut(wake.kind) else { continue };
            if delivered.insert(wake.seq) {
                senders.retain(|s| s.send(wake.clone()).is_ok());
            }
        }
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
        for wake in &mut wakes {
            let mut sql =
                Sql::new("INSERT INTO allod_outbox (kind, object) VALUES (", self.connection.postgres());
            sql.bind(Value::Text(wake.kind.to_owned())).push(", ").bind(Value::Text(wake.key.clone()));
            sql.push(") RETURNING seq");
            let rows = self.connection.query(&sql.text, &sql.params)?;
            wake.seq = rows.first().and_then(|r| r.first()).map_or(0, Value::int);
        }
        if !wakes.is_empty() && self.connection.postgres() {
            self.connection.query("SELECT CAST(pg_notify('allod', '') AS TEXT)", &[])?;
        }
        Ok(wakes)
    }

    pub(crate) fn pending_wakes(&mut self, kind: &'static str) -> Result<Vec<Wake>> {
        let mut sql =
            Sql::new("SELECT seq, object FROM allod_outbox WHERE kind = ", self.connection.postgres());
        sql.bind(Value::Text(kind.to_owned())).push(" ORDER BY seq");
        let rows = self.connection.query(&sql.text, &sql.params)?;
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
    /// Tells that these wake-ups were worked on; they will not come again.
    ///
    /// # Errors
    /// Where the database cannot be written; then they come again after a restart, which is harmless.
    pub async fn acknowledge(&self, seqs: Vec<i64>) -> Result<()> {
        if seqs.is_empty() {
            return Ok(());
        }
        let list = serde_json::to_string(&seqs).map_err(Error::internal)?;
        self.write(move |tx| {
            let postgres = tx.connection.postgres();
            let mut sql = Sql::new("DELETE FROM allod_outbox WHERE seq IN (SELECT ", postgres);
            if postgres {
                sql.push("CAST(jsonb_array_elements_text(CAST(CAST(").bind(Value::Text(list.clone()));
                sql.push(" AS TEXT) AS JSONB)) AS BIGINT))");
            } else {
                sql.push("value FROM json_each(").bind(Value::Text(list.clone())).push("))");
            }
            tx.connection.execute(&sql.text, &sql.params)?;
            Ok(())
        })
        .await?;
        self.0.outbox.forget(&seqs);
        Ok(())
    }
}
