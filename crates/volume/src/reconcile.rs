//! Places volumes on hosts and wakes hosts that have work; what hosts did comes back in their reports.

use std::sync::Arc;
use std::time::Duration;

use ::reconcile::{Outcome, Reconciler};
use async_trait::async_trait;
use base::{HostId, Result, SnapshotId, VolumeId};
use contract::host::VolumeSource;
use store::{Query, Tx};

use crate::State;
use crate::model::{Host, Snapshot, Volume, status};

/// Pause while there is no host at all.
const NO_HOST: Duration = Duration::from_secs(2);

/// The reconciler of kind `volume`; keys are volume ids.
pub(crate) struct Volumes(pub Arc<State>);

/// The reconciler of kind `volume_snapshot`; keys are snapshot ids.
pub(crate) struct Snapshots(pub Arc<State>);

/// Where something went.
enum Placed {
    /// To a host, which has to know.
    On(HostId),
    /// Nowhere, and that is fine.
    Done,
    /// Nowhere: there is no host.
    Waiting,
}

impl Placed {
    fn tell(self, state: &State) -> Outcome {
        match self {
            Placed::On(host) => {
                state.host_changed(Some(host));
                Outcome::Done
            }
            Placed::Done => Outcome::Done,
            Placed::Waiting => Outcome::After(NO_HOST),
        }
    }
}

/// The only host, or with `choose` the one with the most free space.
fn pick(tx: &mut Tx<'_>, choose: bool) -> Result<(usize, Option<HostId>)> {
    let hosts = tx.list::<Host>(&Query::new())?;
    let count = hosts.len();
    let best = match hosts.as_slice() {
        [one] => Some(one.id),
        _ if choose => hosts.iter().max_by_key(|h| (h.free_gib, h.id)).map(|h| h.id),
        _ => None,
    };
    Ok((count, best))
}

fn place(tx: &mut Tx<'_>, id: VolumeId) -> Result<Placed> {
    let Some(mut volume) = tx.get::<Volume>(&id)? else { return Ok(Placed::Done) };
    if let Some(host) = volume.host {
        return Ok(Placed::On(host));
    }
    if volume.doomed {
        tx.delete::<Volume>(&id)?;
        return Ok(Placed::Done);
    }
    // Copies are made where their origin lies; an origin that lies nowhere yet is decided with its copy.
    if let Some(host) = origin_host(tx, &volume.source)? {
        volume.host = Some(host);
        tx.update_status(&mut volume)?;
        return Ok(Placed::On(host));
    }
    let (count, host) = pick(tx, false)?;
    if count == 0 {
        return Ok(Placed::Waiting);
    }
    volume.host = host;
    // Of several hosts, the one whose server first gets the volume makes it: storage is local.
    if host.is_none() && volume.status == status::CREATING {
        volume.status = status::AVAILABLE.to_owned();
    }
    tx.update_status(&mut volume)?;
    Ok(host.map_or(Placed::Done, Placed::On))
}

fn origin_host(tx: &mut Tx<'_>, source: &VolumeSource) -> Result<Option<HostId>> {
    Ok(match source {
        VolumeSource::Snapshot(id) => tx.get::<Snapshot>(id)?.and_then(|s| s.host),
        VolumeSource::Volume(id) => tx.get::<Volume>(id)?.and_then(|v| v.host),
        VolumeSource::Blank | VolumeSource::Image(_) => None,
    })
}

fn place_snapshot(tx: &mut Tx<'_>, id: SnapshotId) -> Result<Placed> {
    let Some(mut snapshot) = tx.get::<Snapshot>(&id)? else { return Ok(Placed::Done) };
    if let Some(host) = snapshot.host {
        return Ok(Placed::On(host));
    }
    if snapshot.doomed {
        tx.delete::<Snapshot>(&id)?;
        return Ok(Placed::Done);
    }
    let Some(mut volume) = tx.get::<Volume>(&snapshot.volume_id)? else {
        snapshot.status = status::ERROR.to_owned();
        tx.update_status(&mut snapshot)?;
        return Ok(Placed::Done);
    };
    if volume.host.is_none() {
        volume.host = pick(tx, true)?.1;
        if volume.host.is_none() {
            return Ok(Placed::Waiting);
        }
        tx.update_status(&mut volume)?;
    }
    snapshot.host = volume.host;
    tx.update_status(&mut snapshot)?;
    Ok(volume.host.map_or(Placed::Done, Placed::On))
}

#[async_trait]
impl Reconciler for Volumes {
    fn kind(&self) -> &'static str {
        "volume"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let Ok(id) = key.parse::<VolumeId>() else { return Ok(Outcome::Done) };
        let placed = self.0.store().write(move |tx| place(tx, id)).await?;
        Ok(placed.tell(&self.0))
    }

    /// Volumes without a host that wait for one, or only for their end.
    async fn sweep(&self) -> Result<Vec<String>> {
        let query = Query::new().is_null("host").is_in("status", [status::CREATING, status::DELETING]);
        self.0.store().read(move |tx| tx.list_ids::<Volume>(&query)).await
    }
}

#[async_trait]
impl Reconciler for Snapshots {
    fn kind(&self) -> &'static str {
        "volume_snapshot"
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome> {
        let Ok(id) = key.parse::<SnapshotId>() else { return Ok(Outcome::Done) };
        let placed = self.0.store().write(move |tx| place_snapshot(tx, id)).await?;
        Ok(placed.tell(&self.0))
    }

    async fn sweep(&self) -> Result<Vec<String>> {
        let query = Query::new().is_null("host").is_in("status", [status::CREATING, status::DELETING]);
        self.0.store().read(move |tx| tx.list_ids::<Snapshot>(&query)).await
    }
}
