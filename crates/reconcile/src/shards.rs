//! Which replica works on which keys: keys fall into shards, every shard is leased to one replica.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base::Error;
use store::{Fence, Replica, Shares, Store, shard_lease};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Stop;

/// Into how many parts the work of a cloud falls; the most replicas that can share it.
pub const SHARDS: u32 = 32;
/// The leases' group.
const GROUP: &str = "reconcile";

/// The shard of a key: the same in every replica and version.
pub fn shard_of(key: &str) -> u32 {
    let hash =
        key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    // The low bits of this hash depend on few of the key's.
    u32::try_from((hash ^ (hash >> 32)) % u64::from(SHARDS)).unwrap_or(0)
}

/// How a replica takes part. Replicas' clocks must agree to within a small part of `ttl`; should two believe that they
/// have a shard, the older one's writes are refused.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// This process.
    pub me: Replica,
    /// How long the others wait after this one is gone without a word.
    pub ttl: Duration,
}

/// Who is to be asked about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Me,
    /// Another one.
    Other(Replica),
    /// Nobody, for the moment.
    Nobody,
}

/// What this replica knows of the shards.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// One process does everything.
    pub alone: bool,
    /// The shards this process works on, with their tokens.
    pub mine: BTreeMap<u32, u64>,
    me: String,
    shares: Shares,
}

impl View {
    pub fn any(&self) -> bool {
        self.alone || !self.mine.is_empty()
    }

    /// Whether this process works on a shard, and what fences it.
    pub fn fence(&self, shard: u32) -> Option<Fence> {
        self.mine.get(&shard).map(|token| Fence { name: shard_lease(GROUP, shard), token: *token })
    }
}

/// A look at how the shards are shared; cheap to clone.
#[derive(Clone)]
pub struct Shards(pub(crate) watch::Receiver<Arc<View>>);

impl Shards {
    /// Who works on `key`.
    pub fn owner(&self, key: &str) -> Owner {
        let view = self.0.borrow();
        let shard = shard_of(key);
        if view.alone || view.mine.contains_key(&shard) {
            return Owner::Me;
        }
        // One that is being given up is still leased to this process, but nobody works on it.
        let holder = view.shares.holders.get(&shard).filter(|id| **id != view.me);
        match holder.and_then(|id| view.shares.replicas.get(id)) {
            Some(replica) => Owner::Other(replica.clone()),
            None => Owner::Nobody,
        }
    }

    /// Waits until another than now works on `key`.
    pub async fn moved(&self, key: &str) {
        let before = self.owner(key);
        let mut views = self.0.clone();
        while self.owner(key) == before {
            if views.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// How many shards this process has.
    pub fn held(&self) -> usize {
        self.0.borrow().mine.len()
    }
}

/// Keeps this process's shards; without sharing it has all from the start. Ends, giving the shards back, when all who hold
/// `ended` besides are gone.
pub(crate) fn start(
    sharing: Option<Sharing>,
    store: &Store,
    stop: watch::Receiver<Stop>,
    ended: Arc<watch::Sender<()>>,
) -> watch::Receiver<Arc<View>> {
    let (views, seen) = watch::channel(Arc::new(View { alone: sharing.is_none(), ..View::default() }));
    let store = store.clone();
    tokio::spawn(async move {
        match sharing {
            Some(sharing) => keep(&sharing, &store, &views, stop, &ended).await,
            // The channel must stay open as long as there are tasks.
            None => tasks_ended(stop, &ended).await,
        }
    });
    seen
}

async fn keep(
    sharing: &Sharing,
    store: &Store,
    views: &watch::Sender<Arc<View>>,
    stop: watch::Receiver<Stop>,
    ended: &Arc<watch::Sender<()>>,
) {
    let every = sharing.ttl / 3;
    let mut until = Instant::now();
    let mut give_up = BTreeSet::new();
    let mut gone = std::pin::pin!(tasks_ended(stop, ended));
    loop {
        let asked = Instant::now();
        let shared =
            tokio::time::timeout(every, store.share(GROUP, &sharing.me, SHARDS, &give_up, sharing.ttl)).await;
        match shared.unwrap_or_else(|_| Err(Error::unavailable("The database does not answer."))) {
            Ok(shares) => {
                until = asked + sharing.ttl;
                // What is to be given up is not worked on from now on, and given up with the next round.
                give_up.clone_from(&shares.surplus);
                let mut mine = shares.mine.clone();
                mine.retain(|shard, _| !give_up.contains(shard));
                publish(views, View { alone: false, mine, me: sharing.me.id.clone(), shares });
            }
            // As long as the leases last nobody else has the shards. Stops a tenth before others may begin.
            Err(error) => {
                tracing::warn!(error = %error.chain(), "shards not renewed");
                if until.checked_sub(sharing.ttl / 10).is_none_or(|end| end <= Instant::now()) {
                    publish(views, View::default());
                }
            }
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(every) => {}
            () = &mut gone => break,
        }
    }
    if let Err(error) = store.leave(GROUP, &sharing.me.id).await {
        tracing::warn!(error = %error.chain(), "shards not given back; their leases run out");
    }
}

fn publish(views: &watch::Sender<Arc<View>>, next: View) {
    views.send_if_modified(|held| {
        let (mine, routes) = (held.mine != next.mine, held.shares != next.shares);
        if mine {
            tracing::info!(shards = next.mine.len(), replicas = next.shares.replicas.len(), "shards changed");
        }
        if mine || routes {
            *held = Arc::new(next);
        }
        mine || routes
    });
}

/// After the stop was asked for, until no task holds `ended` but this one.
async fn tasks_ended(mut stop: watch::Receiver<Stop>, ended: &Arc<watch::Sender<()>>) {
    let _ = stop.wait_for(|stop| *stop > Stop::No).await;
    while Arc::strong_count(ended) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_over_all_shards() {
        let mut counts = BTreeMap::new();
        for n in 0..3200 {
            *counts.entry(shard_of(&format!("{n:08x}-0000-4000-8000-000000000000"))).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), SHARDS as usize);
        assert!(counts.values().all(|n| (40..200).contains(n)), "{counts:?}");
    }
}
