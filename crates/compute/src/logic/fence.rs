//! When a server may be given to another host: only when its host proves that it cannot run it any more.
//!
//! The proof is the end of the host's lease: no lease that was ever given ends after the moment that is written down, a
//! host without a valid lease runs nothing, and the margin covers how late its guards look and how far the clocks of two
//! control planes are apart.

use std::time::Duration;

use base::{Error, Result, Timestamp};

use crate::model::{Host, HostLease, Server, VmState};

/// Refuses unless the host cannot run anything now.
pub fn proof(host: &Host, lease: Option<&HostLease>, now: Timestamp, margin: Duration) -> Result<()> {
    let Some(lease) = lease else {
        return Err(Error::conflict(format!(
            "Host {} never held a lease, so nothing proves that it has stopped its servers.",
            host.name
        )));
    };
    let end = lease.until.plus(margin);
    if now < end {
        return Err(Error::conflict(format!(
            "Host {} may still run its servers: its lease is sure to have ended at {} only.",
            host.name,
            end.iso_seconds()
        )));
    }
    Ok(())
}

/// Refuses a server that cannot be made anew elsewhere.
pub fn can_move(server: &Server) -> Result<()> {
    let id = server.id;
    if server.moving.is_some() {
        return Err(Error::conflict(format!(
            "Instance {id} is on its way between two hosts: confirm or revert that first, or wait until it is called off."
        )));
    }
    if server.deleting || !matches!(server.vm_state, VmState::Active | VmState::Stopped | VmState::Error) {
        return Err(super::state::conflict(server, "evacuate"));
    }
    if !server.disks.is_empty() {
        return Err(Error::conflict(format!(
            "Instance {id} has volumes, which are stored on its host and cannot follow it."
        )));
    }
    if server.image.is_none() {
        return Err(Error::conflict(format!("Instance {id} has no image to be made anew from.")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base::{Entropy, HostId};
    use contract::host::HostCapacity;

    use super::*;

    #[test]
    fn a_lease_is_waited_for() {
        let id = HostId::random(&Entropy::seeded(1));
        let host = Host {
            id,
            meta: store::Meta::default(),
            name: "h1".into(),
            capacity: HostCapacity::default(),
            agent_version: String::new(),
            seen_at: Timestamp(0),
            disabled: false,
            disabled_reason: None,
            forced_down: true,
            spec_generation: 3,
            spec_hash: String::new(),
        };
        let margin = Duration::from_secs(15);
        assert!(
            proof(&host, None, Timestamp::from_secs(1 << 30), margin).is_err(),
            "forced down is no proof"
        );
        let lease =
            HostLease { id, meta: store::Meta::default(), until: Timestamp::from_secs(100), fence: 0 };
        assert!(proof(&host, Some(&lease), Timestamp::from_secs(114), margin).is_err());
        assert!(proof(&host, Some(&lease), Timestamp::from_secs(115), margin).is_ok());
    }
}
