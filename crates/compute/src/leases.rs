//! Giving leases to hosts, and taking servers from hosts whose lease has ended.
//!
//! Invariant: the end in the row is written before a lease is answered, and every lease ends before it. Giving a server
//! away changes the same row in the same transaction, so that of a renewal and an evacuation at the same time only one
//! happens. See `docs/adr/0011-leases-fence-hosts.md`.

use std::time::Duration;

use base::{Error, HostId, Result, Timestamp};
use store::Tx;

use crate::State;
use crate::logic::fence;
use crate::model::{Host, HostLease, Server, VmState};

/// What this process knows to be written down for a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    generation: u64,
    until: Timestamp,
}

/// The task of a server that is made anew on another host.
pub(crate) const REBUILDING: &str = "rebuilding";

impl State {
    pub(crate) async fn give_lease(&self, id: HostId, generation: u64) -> Result<Duration> {
        let (term, now) = (self.config.lease, self.clock.now());
        let wanted = now.plus(term);
        self.hosts.alive(id, now);
        if self.hosts.given(id).is_some_and(|g| g.generation == generation && wanted <= g.until) {
            return Ok(term);
        }
        // Half a term more is written, so that not every renewal is a write.
        let until = wanted.plus(term / 2);
        self.store
            .write(move |tx| {
                let host = tx.get::<Host>(&id)?;
                let mut host = host.ok_or_else(|| Error::conflict("This host has not reported yet."))?;
                if host.forced_down {
                    return Err(Error::forbidden(format!("Host {} was declared dead.", host.name)));
                }
                let lease = tx.get::<HostLease>(&id)?;
                let least = lease.as_ref().map_or(0, |l| l.fence);
                if generation < least || generation > host.spec_generation {
                    return Err(Error::conflict(format!(
                        "A lease needs a spec between generation {least} and {}, not {generation}.",
                        host.spec_generation
                    )));
                }
                // Other replicas know only by the row that it lives.
                host.seen_at = host.seen_at.max(now);
                tx.update_status(&mut host)?;
                match lease {
                    Some(mut lease) => {
                        lease.until = lease.until.max(until);
                        tx.update_status(&mut lease)
                    }
                    None => tx.insert(&mut HostLease { id, meta: store::Meta::default(), until, fence: 0 }),
                }
            })
            .await?;
        self.hosts.give(id, Given { generation, until });
        Ok(term)
    }
}

/// From now on the host gets no lease with a spec below `fence`.
pub(crate) fn raise(tx: &mut Tx<'_>, host: HostId, fence: u64) -> Result<()> {
    let Some(mut lease) = tx.get::<HostLease>(&host)? else { return Ok(()) };
    lease.fence = lease.fence.max(fence);
    tx.update_status(&mut lease)
}

/// Takes a server from a host that cannot run it any more; it is placed anew by its reconciler.
pub(crate) fn take_away(tx: &mut Tx<'_>, server: &mut Server, margin: Duration) -> Result<()> {
    fence::can_move(server)?;
    if let Some(id) = server.host_id {
        let host = tx.get::<Host>(&id)?;
        let host =
            host.ok_or_else(|| Error::conflict(format!("The host of instance {} is not known.", server.id)))?;
        let lease = tx.get::<HostLease>(&id)?;
        fence::proof(&host, lease.as_ref(), tx.now(), margin)?;
        raise(tx, id, host.spec_generation + 1)?;
        tx.wake("host", id);
    }
    server.host_id = None;
    server.host_name = None;
    server.zone = None;
    server.ready = false;
    server.failing_since = None;
    server.fault = None;
    server.vm_state = VmState::Active;
    server.task = Some(REBUILDING.to_owned());
    tx.wake("server", server.id);
    Ok(())
}
