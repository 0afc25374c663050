//! One replica reconciles: who holds the lease.

use std::sync::Arc;
use std::time::Duration;

use base::Error;
use store::Store;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Stop;

/// A lease that a [`crate::Controller`] has to hold. Replicas' clocks must agree to within a small part of `ttl`; should
/// two believe that they lead, compare-and-set and generations still keep them from undoing each other's work.
#[derive(Debug, Clone)]
pub struct Exclusive {
    /// What is leased; the same for all replicas.
    pub name: String,
    /// This process, as no other is called.
    pub holder: String,
    /// How long the others wait after this one is gone without a word.
    pub ttl: Duration,
}

/// Whether this process leads; without a lease it does from the start. Ends, giving the lease back, when all who hold
/// `ended` besides are gone.
pub(crate) fn start(
    exclusive: Option<Exclusive>,
    store: &Store,
    stop: watch::Receiver<Stop>,
    ended: Arc<watch::Sender<()>>,
) -> watch::Receiver<bool> {
    let (leads, leader) = watch::channel(exclusive.is_none());
    let store = store.clone();
    tokio::spawn(async move {
        match exclusive {
            Some(exclusive) => keep(&exclusive, &store, &leads, stop, &ended).await,
            // The channel must stay open as long as there are tasks.
            None => tasks_ended(stop, &ended).await,
        }
    });
    leader
}

async fn keep(
    lease: &Exclusive,
    store: &Store,
    leads: &watch::Sender<bool>,
    stop: watch::Receiver<Stop>,
    ended: &Arc<watch::Sender<()>>,
) {
    let mut until = Instant::now();
    let mut gone = std::pin::pin!(tasks_ended(stop, ended));
    loop {
        let asked = Instant::now();
        let renewed = tokio::time::timeout(lease.ttl / 3, store.lease(&lease.name, &lease.holder, lease.ttl));
        match renewed.await.unwrap_or_else(|_| Err(Error::unavailable("The database does not answer."))) {
            Ok(Some(_)) => until = asked + lease.ttl,
            Ok(None) => until = asked,
            // As long as the lease lasts nobody else has it.
            Err(error) => tracing::warn!(lease = lease.name, error = %error.chain(), "lease not renewed"),
        }
        let now = Instant::now();
        // Stops leading a tenth before the others may begin.
        let lead = until.checked_sub(lease.ttl / 10).is_some_and(|end| end > now);
        if leads.send_if_modified(|held| std::mem::replace(held, lead) != lead) {
            tracing::info!(lease = lease.name, lead, "leadership changed");
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(lease.ttl / 3) => {}
            () = &mut gone => break,
        }
    }
    if let Err(error) = store.release(&lease.name, &lease.holder).await {
        tracing::warn!(lease = lease.name, error = %error.chain(), "lease not given back; it runs out");
    }
}

/// After the stop was asked for, until no task holds `ended` but this one.
async fn tasks_ended(mut stop: watch::Receiver<Stop>, ended: &Arc<watch::Sender<()>>) {
    let _ = stop.wait_for(|stop| *stop > Stop::No).await;
    while Arc::strong_count(ended) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
