//! Replicas on one database: who they are, which shards of the work each has, and what fences one that was away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::query::Sql;
use crate::tx::Tx;
use crate::value::Value;

/// A process that works on the database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its id; another after every start.
    pub id: String,
    /// What an operator knows it by.
    pub name: String,
    /// Where other replicas reach it.
    pub address: String,
    /// Version of its program.
    pub version: String,
    /// The newest migration of each service that it knows; those of older versions say nothing.
    #[serde(default)]
    pub schemas: BTreeMap<String, u32>,
    /// Whether it suffers no other.
    #[serde(default)]
    pub alone: bool,
    /// What it keeps besides the database, which no other process has at the same time.
    #[serde(default)]
    pub home: String,
}

/// How the shards are shared at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Living replicas by id.
    pub replicas: BTreeMap<String, Replica>,
    /// Shards of the asker, with the fencing token of each.
    pub mine: BTreeMap<u32, u64>,
    /// Shards of the asker that another shall have: to be given up with the next call, once nothing works on them.
    pub surplus: BTreeSet<u32>,
    /// The holder of every shard that has one.
    pub holders: BTreeMap<u32, String>,
}

/// What a reconciler holds while it works: its writes are refused once another holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Name of the lease.
    pub name: String,
    /// The token under which it is held.
    pub token: u64,
}

tokio::task_local! {
    static FENCE: Fence;
}

/// Runs `work`; every transaction it writes (in its own task) commits only while the lease is held under that token. A
/// process that was stopped for a minute therefore writes nothing after another took its work over.
pub async fn fenced<T>(fence: Fence, work: impl Future<Output = T>) -> T {
    FENCE.scope(fence, work).await
}

/// The fence of the running task.
pub(crate) fn fence() -> Option<Fence> {
    FENCE.try_with(Clone::clone).ok()
}

/// Name of a shard's lease.
pub fn shard_lease(group: &str, shard: u32) -> String {
    format!("{group}/{shard:04}")
}

impl Tx<'_> {
    /// Refuses to go on where the lease is held under another token. Read in the transaction itself: under SERIALIZABLE a
    /// takeover either comes after this transaction, or this one fails.
    pub(crate) fn check_fence(&mut self, fence: &Fence) -> Result<()> {
        let sql = Sql::of(
            self.connection.postgres(),
            "SELECT token FROM allod_leases WHERE name = ?",
            [Value::Text(fence.name.clone())],
        );
        let rows = self.connection.query(&sql.text, &sql.params)?;
        let held = rows.first().and_then(|r| r.first()).map_or(0, Value::int);
        if u64::try_from(held) == Ok(fence.token) {
            return Ok(());
        }
        Err(Error::unavailable(format!("Another replica took over {}.", fence.name)))
    }

    fn execute(&mut self, text: &str, params: impl IntoIterator<Item = Value>) -> Result<()> {
        let sql = Sql::of(self.connection.postgres(), text, params);
        self.connection.execute(&sql.text, &sql.params)?;
        Ok(())
    }

    fn select_raw(&mut self, text: &str, params: impl IntoIterator<Item = Value>) -> Result<Vec<Vec<Value>>> {
        let sql = Sql::of(self.connection.postgres(), text, params);
        Ok(self.connection.query(&sql.text, &sql.params)?)
    }

    pub(crate) fn living(&mut self) -> Result<BTreeMap<String, Replica>> {
        let now = Value::Int(self.now().0);
        let rows = self.select_raw("SELECT id, body FROM allod_replicas WHERE expires_at > ?", [now])?;
        let mut replicas = BTreeMap::new();
        for row in rows {
            let mut row = row.into_iter();
            let (Some(id), Some(body)) = (row.next(), row.next()) else { continue };
            replicas.insert(id.text(), serde_json::from_str(&body.text()).map_err(Error::internal)?);
        }
        Ok(replicas)
    }

    /// Says that a replica lives.
    fn stay(&mut self, me: &Replica, ttl: Duration) -> Result<()> {
        let body = serde_json::to_string(me).map_err(Error::internal)?;
        let until = Value::Int(self.now().plus(ttl).0);
        self.execute(
            "INSERT INTO allod_replicas (id, body, expires_at) VALUES (?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET body = excluded.body, expires_at = excluded.expires_at",
            [Value::Text(me.id.clone()), Value::Text(body), until],
        )
    }

    /// Shard, holder, token and whether the lease is over, of all shards that were ever held.
    fn held(&mut self, group: &str) -> Result<BTreeMap<u32, (String, u64, bool)>> {
        let now = self.now().0;
        let (from, to) = (format!("{group}/"), format!("{group}0"));
        let rows = self.select_raw(
            "SELECT name, holder, token, expires_at FROM allod_leases WHERE name > ? AND name < ?",
            [Value::Text(from), Value::Text(to)],
        )?;
        let parse = |row: Vec<Value>| {
            let mut row = row.into_iter();
            let name = row.next()?.text();
            let shard = name.rsplit_once('/')?.1.parse().ok()?;
            let holder = row.next()?.text();
            let token = u64::try_from(row.next()?.int()).unwrap_or(0);
            Some((shard, (holder, token, row.next()?.int() <= now)))
        };
        Ok(rows.into_iter().filter_map(parse).collect())
    }
}

impl crate::Store {
    /// Says that `me` lives, renews its shards of `count`, gives up those of `give_up`, and takes free ones until it has its
    /// fair part: as many as any other, give or take one.
    ///
    /// # Errors
    /// From the database only.
    pub async fn share(
        &self,
        group: &'static str,
        me: &Replica,
        count: u32,
        give_up: &BTreeSet<u32>,
        ttl: Duration,
    ) -> Result<Shares> {
        let (me, give_up) = (me.clone(), give_up.clone());
        self.write(move |tx| share(tx, group, &me, count, &give_up, ttl)).await
    }

    /// Says, now and again within `ttl`, that `me` works on the database and suffers no other.
    ///
    /// # Errors
    /// `Conflict` that names another server, if one lives.
    pub async fn alone(&self, me: &Replica, ttl: Duration) -> Result<()> {
        let me = me.clone();
        self.write(move |tx| {
            for other in tx.living()?.into_values().filter(|r| r.id != me.id) {
                // Of two with one home the older is dead.
                if !other.alone || other.home != me.home {
                    let Replica { name, address, version, .. } = other;
                    return Err(Error::conflict(format!("{name} at {address} (version {version})")));
                }
                tx.execute("DELETE FROM allod_replicas WHERE id = ?", [Value::Text(other.id)])?;
            }
            tx.stay(&me, ttl)
        })
        .await
    }

    /// Says that a replica is gone: others take its shards at once.
    ///
    /// # Errors
    /// From the database only.
    pub async fn leave(&self, group: &'static str, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.write(move |tx| {
            let me = || Value::Text(id.clone());
            tx.execute("DELETE FROM allod_replicas WHERE id = ?", [me()])?;
            let (from, to) = (format!("{group}/"), format!("{group}0"));
            tx.execute(
                "UPDATE allod_leases SET expires_at = 0 WHERE holder = ? AND name > ? AND name < ?",
                [me(), Value::Text(from), Value::Text(to)],
            )
        })
        .await
    }

    /// The living replicas.
    ///
    /// # Errors
    /// From the database only.
    pub async fn replicas(&self) -> Result<Vec<Replica>> {
        self.read(|tx| {
            let there = !crate::migrate::columns(tx, "allod_replicas")?.is_empty();
            if there { Ok(tx.living()?.into_values().collect()) } else { Ok(Vec::new()) }
        })
        .await
    }
}

fn share(
    tx: &mut Tx<'_>,
    group: &str,
    me: &Replica,
    count: u32,
    give_up: &BTreeSet<u32>,
    ttl: Duration,
) -> Result<Shares> {
    let now = tx.now();
    let until = Value::Int(now.plus(ttl).0);
    tx.stay(me, ttl)?;
    // Those that did not come back in a day are forgotten.
    tx.execute("DELETE FROM allod_replicas WHERE expires_at < ?", [Value::Int(now.plus_secs(-86_400).0)])?;
    let replicas = tx.living()?;
    let held = tx.held(group)?;
    let mut shares = Shares { replicas, ..Shares::default() };
    for (shard, (holder, token, over)) in &held {
        let name = Value::Text(shard_lease(group, *shard));
        if *holder != me.id {
            if !over {
                shares.holders.insert(*shard, holder.clone());
            }
        } else if give_up.contains(shard) {
            tx.execute("UPDATE allod_leases SET expires_at = 0 WHERE name = ?", [name])?;
        } else if !over {
            renew(tx, name, &me.id, *token, until.clone())?;
            shares.mine.insert(*shard, *token);
        }
        // One of ours that is over is as free as any: it was given up, or may have been another's in between.
    }
    let fair = fair_part(&shares.replicas, &me.id, count);
    for shard in 0..count {
        let taken = shares.mine.contains_key(&shard) || shares.holders.contains_key(&shard);
        if taken || give_up.contains(&shard) || shares.mine.len() >= fair {
            continue;
        }
        let name = Value::Text(shard_lease(group, shard));
        let token = match held.get(&shard) {
            Some((_, token, _)) => {
                renew(tx, name, &me.id, token + 1, until.clone())?;
                token + 1
            }
            None => {
                tx.execute(
                    "INSERT INTO allod_leases (token, name, holder, expires_at) VALUES (1, ?, ?, ?)",
                    [name, Value::Text(me.id.clone()), until.clone()],
                )
                .map_err(|e| if e.kind() == base::Kind::Conflict { Error::retry(e.chain()) } else { e })?;
                1
            }
        };
        shares.mine.insert(shard, token);
    }
    let surplus = shares.mine.len().saturating_sub(fair);
    shares.surplus = shares.mine.keys().rev().take(surplus).copied().collect();
    for shard in shares.mine.keys() {
        shares.holders.insert(*shard, me.id.clone());
    }
    Ok(shares)
}

fn renew(tx: &mut Tx<'_>, name: Value, holder: &str, token: u64, until: Value) -> Result<()> {
    let token = Value::Int(i64::try_from(token).unwrap_or(i64::MAX));
    tx.execute(
        "UPDATE allod_leases SET holder = ?, token = ?, expires_at = ? WHERE name = ?",
        [Value::Text(holder.to_owned()), token, until, name],
    )
}

/// How many shards a replica shall have.
fn fair_part(replicas: &BTreeMap<String, Replica>, me: &str, count: u32) -> usize {
    let all = replicas.len().max(1);
    let place = replicas.keys().position(|id| id == me).unwrap_or(0);
    let count = count as usize;
    count / all + usize::from(place < count % all)
}
