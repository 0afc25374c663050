//! The lease: how long this host may run its guests without hearing from the control plane again.
//!
//! A host that is cut off cannot know whether its servers were given to another host. So it holds a lease, counted on a
//! clock of its own from *before* it asked; the control plane writes down an end that is never before ours, and gives no
//! server away until that has passed. The lease is on disk, so that a new process neither loses nor lengthens it, and in
//! the hypervisor's hands, so that guests stand still while this process is dead.
//!
//! Invariant: without a valid lease nothing is started; a lease is only ever given to a host that holds a spec which
//! knows of every server that was taken from it (see `docs/adr/0011-leases-fence-hosts.md`).

use std::path::PathBuf;
use std::sync::Arc;

use base::{Clock, Error, Result, Timestamp};
use contract::drivers::GuestLease;
use contract::host::HostSpec;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Content {
    /// The boot in which the clock counts.
    boot_id: String,
    /// Its end.
    until: Timestamp,
}

/// The lease of this host.
pub(crate) struct Lease {
    clock: Arc<dyn Clock>,
    path: PathBuf,
    boot_id: String,
    until: Mutex<Timestamp>,
}

impl Lease {
    /// Takes up what an earlier process held, if this is the same boot.
    pub fn open(clock: Arc<dyn Clock>, path: PathBuf, boot_id: String) -> Self {
        let held = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
        let until = held.filter(|c| c.boot_id == boot_id).map_or(Timestamp(i64::MIN), |c| c.until);
        Lease { clock, path, boot_id, until: Mutex::new(until) }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn valid(&self) -> bool {
        self.now() < *self.until.lock()
    }

    /// Writes a longer lease down, then holds it. A failing disk costs the lease: better still than twice.
    pub fn extend(&self, until: Timestamp) -> Result<()> {
        let mut held = self.until.lock();
        if until <= *held {
            return Ok(());
        }
        let content = Content { boot_id: self.boot_id.clone(), until };
        let aside = self.path.with_extension("json.new");
        let io = |e: std::io::Error| Error::internal(format!("{}: {e}", self.path.display()));
        std::fs::write(&aside, serde_json::to_vec(&content).map_err(Error::internal)?).map_err(io)?;
        std::fs::rename(&aside, &self.path).map_err(io)?;
        *held = until;
        Ok(())
    }

    /// What the hypervisor is told: the servers of the spec, until the end.
    pub fn of_guests(&self, spec: Option<&HostSpec>) -> GuestLease {
        let servers = spec.map(|s| s.servers.iter().map(|server| server.id).collect()).unwrap_or_default();
        GuestLease { until: *self.until.lock(), servers }
    }
}

#[cfg(test)]
mod tests {
    use base::ManualClock;

    use super::*;

    #[test]
    fn a_lease_survives_its_process_but_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::default());
        let open = |boot: &str| Lease::open(clock.clone(), dir.path().join("lease.json"), boot.to_owned());
        let lease = open("a");
        assert!(!lease.valid(), "none was ever given");
        let end = lease.now().plus_secs(10);
        lease.extend(end).unwrap();
        lease.extend(end.plus_secs(-5)).unwrap();
        assert!(lease.valid() && open("a").valid());
        assert!(!open("b").valid(), "its clock began anew");
        clock.advance(std::time::Duration::from_secs(9));
        assert!(open("a").valid(), "a late answer does not shorten it");
        clock.advance(std::time::Duration::from_secs(1));
        assert!(!lease.valid() && !open("a").valid());
    }
}
