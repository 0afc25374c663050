//! What hosts are told and what they say: [`contract::services::HostPart`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use base::{HostId, Result, SnapshotId, Timestamp, VolumeId};
use contract::host::{DiskSource, HostReport, HostSpec, SnapshotSpec, VolumeSource, VolumeSpec};
use contract::services::HostPart;
use store::{Query, Tx};

use crate::State;
use crate::api::common::attachments;
use crate::logic::follow::{self, Next};
use crate::logic::machine::by_attachments;
use crate::model::{Host, Snapshot, Volume, status};

/// Seconds between writes of the moment a host was last seen.
const KEEP_SEEN: i64 = 60;

/// What the last report of a host said, in memory.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// When.
    pub at: Timestamp,
    /// When that was last written down.
    written_at: Timestamp,
    name: String,
    total_gib: u64,
    /// Free space in GiB.
    pub free_gib: u64,
}

#[async_trait]
impl HostPart for State {
    async fn contribute(&self, specs: &mut [HostSpec]) -> Result<()> {
        for spec in specs.iter() {
            let attached: Vec<VolumeId> =
                spec.servers.iter().flat_map(|s| &s.disks).filter_map(volume_of).collect();
            self.bind(spec.host, attached).await?;
        }
        let hosts: Vec<HostId> = specs.iter().map(|s| s.host).collect();
        let (volumes, snapshots) = self
            .store
            .read(move |tx| {
                let here = || Query::new().is_in("host", &hosts);
                Ok((tx.list::<Volume>(&here())?, tx.list::<Snapshot>(&here())?))
            })
            .await?;
        let mut by_host: BTreeMap<HostId, (Vec<Volume>, Vec<Snapshot>)> = BTreeMap::new();
        for volume in volumes {
            if let Some(host) = volume.host {
                by_host.entry(host).or_default().0.push(volume);
            }
        }
        for snapshot in snapshots {
            if let Some(host) = snapshot.host {
                by_host.entry(host).or_default().1.push(snapshot);
            }
        }
        for spec in specs {
            if let Some((volumes, snapshots)) = by_host.remove(&spec.host) {
                add(spec, volumes, snapshots);
            }
        }
        Ok(())
    }

    async fn report(&self, reports: &[Arc<HostReport>]) -> Result<()> {
        for report in reports {
            self.note(report).await?;
        }
        let hosts: Vec<HostId> = reports.iter().map(|r| r.host).collect();
        let busy = [
            status::CREATING,
            status::DELETING,
            status::EXTENDING,
            status::ERROR,
            status::ERROR_EXTENDING,
            status::ERROR_DELETING,
        ];
        let (volumes, snapshots) = self
            .store
            .read(move |tx| {
                let busy = || Query::new().is_in("status", busy);
                let here = || Query::new().is_in("host", &hosts);
                let volumes = here().any_of([busy(), Query::new().eq("made", false)]);
                Ok((tx.list::<Volume>(&volumes)?, tx.list::<Snapshot>(&here().any_of([busy()]))?))
            })
            .await?;
        let now = self.clock.now();
        // The last word of each host.
        let of: BTreeMap<HostId, &HostReport> = reports.iter().map(|r| (r.host, &**r)).collect();
        let of = |host: Option<HostId>| host.and_then(|host| of.get(&host));
        let mut nudge = BTreeSet::new();
        let volumes: Vec<(VolumeId, Next)> = volumes
            .iter()
            .filter_map(|v| {
                let told = of(v.host)?.volumes.iter().find(|r| r.id == v.id);
                let next = follow::volume(v, told, now);
                if matches!(next, Next::Ready) {
                    nudge.extend(v.host);
                }
                Some((v.id, next))
            })
            .filter(|(_, next)| *next != Next::Stay)
            .collect();
        let snapshots: Vec<(SnapshotId, Next)> = snapshots
            .iter()
            .filter_map(|s| {
                let told = of(s.host)?.snapshots.iter().find(|r| r.id == s.id);
                let next = follow::snapshot(s, told, now);
                if matches!(next, Next::Failed(_)) {
                    nudge.extend(s.host);
                }
                Some((s.id, next))
            })
            .filter(|(_, next)| *next != Next::Stay)
            .collect();
        if volumes.is_empty() && snapshots.is_empty() {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                for (id, next) in &volumes {
                    volume_follows(tx, *id, next)?;
                }
                for (id, next) in &snapshots {
                    snapshot_follows(tx, *id, next)?;
                }
                Ok(())
            })
            .await?;
        for host in nudge {
            self.host_changed(Some(host));
        }
        Ok(())
    }
}

/// Adds what a host shall store to its spec.
fn add(spec: &mut HostSpec, volumes: Vec<Volume>, snapshots: Vec<Snapshot>) {
    // What another volume is still being made from stays until that is done.
    let mut needed_volumes: BTreeSet<VolumeId> = BTreeSet::new();
    let mut needed_snapshots: BTreeSet<SnapshotId> = BTreeSet::new();
    for volume in volumes.iter().filter(|v| !v.made && !v.doomed) {
        match &volume.source {
            VolumeSource::Volume(id) => drop(needed_volumes.insert(*id)),
            VolumeSource::Snapshot(id) => drop(needed_snapshots.insert(*id)),
            VolumeSource::Blank | VolumeSource::Image(_) => {}
        }
    }
    for snapshot in snapshots.iter().filter(|s| !s.made && !s.doomed) {
        needed_volumes.insert(snapshot.volume_id);
    }
    spec.volumes.extend(volumes.into_iter().filter(|v| !v.doomed || needed_volumes.contains(&v.id)).map(
        |v| VolumeSpec {
            id: v.id,
            generation: v.meta.generation,
            size_gib: v.size_gib,
            // Once made it has to be there: a host that lost it must not hide that with a new one.
            source: if v.made { VolumeSource::Volume(v.id) } else { v.source },
        },
    ));
    let keep = |s: &Snapshot| {
        let wanted = s.made || s.status == status::CREATING;
        (wanted && !s.doomed) || needed_snapshots.contains(&s.id)
    };
    spec.snapshots.extend(snapshots.into_iter().filter(keep).map(|s| SnapshotSpec {
        id: s.id,
        generation: s.meta.generation,
        volume: s.volume_id,
    }));
    spec.volumes.sort_by_key(|v| v.id);
    spec.snapshots.sort_by_key(|s| s.id);
}

fn volume_of(disk: &contract::host::DiskSpec) -> Option<VolumeId> {
    match &disk.source {
        DiskSource::Volume { volume } => Some(*volume),
        DiskSource::Image { .. } | DiskSource::Blank { .. } => None,
    }
}

fn volume_follows(tx: &mut Tx<'_>, id: VolumeId, next: &Next) -> Result<()> {
    let Some(mut volume) = tx.get::<Volume>(&id)? else { return Ok(()) };
    match next {
        Next::Stay => return Ok(()),
        Next::Gone => {
            if volume.doomed {
                tx.delete::<Volume>(&id)?;
            }
            return Ok(());
        }
        Next::Ready => {
            volume.made = true;
            volume.error = None;
            if follow::waits(&volume.status) {
                by_attachments(attachments(tx, id)?.iter()).clone_into(&mut volume.status);
            }
        }
        Next::Failed(why) => {
            let to = if volume.made { status::ERROR_EXTENDING } else { status::ERROR };
            to.clone_into(&mut volume.status);
            volume.error = Some(why.clone());
        }
    }
    tx.update_status(&mut volume)
}

fn snapshot_follows(tx: &mut Tx<'_>, id: SnapshotId, next: &Next) -> Result<()> {
    let Some(mut snapshot) = tx.get::<Snapshot>(&id)? else { return Ok(()) };
    match next {
        Next::Stay => return Ok(()),
        Next::Gone => {
            if snapshot.doomed {
                tx.delete::<Snapshot>(&id)?;
            }
            return Ok(());
        }
        Next::Ready => {
            snapshot.made = true;
            snapshot.status = status::AVAILABLE.to_owned();
            snapshot.error = None;
        }
        Next::Failed(why) => {
            snapshot.status = status::ERROR.to_owned();
            snapshot.error = Some(why.clone());
        }
    }
    tx.update_status(&mut snapshot)
}

impl State {
    /// Volumes of servers of this host that no host has yet are this host's from now on.
    async fn bind(&self, host: HostId, volumes: Vec<VolumeId>) -> Result<()> {
        if volumes.is_empty() {
            return Ok(());
        }
        let loose = |tx: &mut Tx<'_>, ids: &[VolumeId]| {
            tx.list::<Volume>(&Query::new().is_in("id", ids.iter().copied()).is_null("host"))
        };
        let ids = volumes.clone();
        if self.store.read(move |tx| Ok(loose(tx, &ids)?.is_empty())).await? {
            return Ok(());
        }
        self.store
            .write(move |tx| {
                for mut volume in loose(tx, &volumes)? {
                    volume.host = Some(host);
                    tx.update_status(&mut volume)?;
                }
                Ok(())
            })
            .await
    }

    /// Keeps what is known of a host; writes only what is new or old.
    async fn note(&self, report: &HostReport) -> Result<()> {
        let now = self.clock.now();
        let capacity = &report.capacity;
        let before = self.seen.read().get(&report.host).cloned();
        let fresh = before.as_ref().is_some_and(|b| {
            b.name == capacity.hostname
                && b.total_gib == capacity.disk_gib
                && b.written_at.plus_secs(KEEP_SEEN) > now
        });
        let written_at = if fresh { before.map_or(now, |b| b.written_at) } else { now };
        let row = Host {
            id: report.host,
            meta: store::Meta::default(),
            name: capacity.hostname.clone(),
            total_gib: capacity.disk_gib,
            free_gib: capacity.disk_free_gib,
            seen_at: now,
        };
        let seen = Seen {
            at: now,
            written_at,
            name: row.name.clone(),
            total_gib: row.total_gib,
            free_gib: row.free_gib,
        };
        if !fresh {
            self.store
                .write(move |tx| match tx.get::<Host>(&row.id)? {
                    Some(there) => tx.update_status(&mut Host { meta: there.meta, ..row.clone() }),
                    None => tx.insert(&mut row.clone()),
                })
                .await?;
        }
        self.seen.write().insert(report.host, seen);
        Ok(())
    }
}
