//! Limits, and what counts against them. Claimed in the transaction that makes the thing.

use std::collections::BTreeMap;

use base::{Error, ProjectId, Result, VolumeTypeId};
use store::{Query, Tx};

use crate::model::{Quota, Snapshot, Volume, VolumeType};

/// Id of the row that changes the defaults.
pub const DEFAULT_CLASS: &str = "class:default";

/// Limits of projects that have none of their own; -1: none.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Volumes.
    pub volumes: i64,
    /// Snapshots.
    pub snapshots: i64,
    /// GiB of volumes and snapshots together.
    pub gigabytes: i64,
    /// GiB of one volume.
    pub per_volume_gigabytes: i64,
}

impl Default for Defaults {
    /// Cinder's.
    fn default() -> Self {
        Defaults { volumes: 10, snapshots: 10, gigabytes: 1000, per_volume_gigabytes: -1 }
    }
}

/// Names every quota set has, in Cinder's order, with defaults for what this service does not make.
fn base(defaults: &Defaults) -> [(&'static str, i64); 7] {
    [
        ("volumes", defaults.volumes),
        ("snapshots", defaults.snapshots),
        ("gigabytes", defaults.gigabytes),
        ("per_volume_gigabytes", defaults.per_volume_gigabytes),
        ("backups", 10),
        ("backup_gigabytes", 1000),
        ("groups", 10),
    ]
}

/// Limits in the order they are shown.
pub type Limits = Vec<(String, i64)>;

/// The defaults, with the operator's changes and a set for each volume type.
///
/// # Errors
/// From the database.
pub fn defaults(tx: &mut Tx<'_>, config: &Defaults) -> Result<Limits> {
    let changed = row(tx, &ProjectId::new(DEFAULT_CLASS))?;
    let mut limits: Limits = base(config).into_iter().map(|(name, limit)| (name.to_owned(), limit)).collect();
    for kind in tx.list::<VolumeType>(&Query::new().sort("name", store::Order::Asc))? {
        for what in ["volumes", "snapshots", "gigabytes"] {
            limits.push((format!("{what}_{}", kind.name), -1));
        }
    }
    overlay(&mut limits, &changed);
    Ok(limits)
}

/// The limits of a project.
///
/// # Errors
/// From the database.
pub fn limits(tx: &mut Tx<'_>, config: &Defaults, project: &ProjectId) -> Result<Limits> {
    let mut limits = defaults(tx, config)?;
    let own = row(tx, project)?;
    overlay(&mut limits, &own);
    Ok(limits)
}

fn row(tx: &mut Tx<'_>, id: &ProjectId) -> Result<BTreeMap<String, i64>> {
    Ok(tx.get::<Quota>(id)?.map(|q| q.limits).unwrap_or_default())
}

fn overlay(limits: &mut Limits, own: &BTreeMap<String, i64>) {
    for (name, limit) in limits {
        if let Some(own) = own.get(name) {
            *limit = *own;
        }
    }
}

/// What a project uses of one limit.
///
/// # Errors
/// From the database.
pub fn used(tx: &mut Tx<'_>, project: &ProjectId, name: &str) -> Result<u64> {
    let mine = || Query::new().eq("project_id", project);
    match name {
        "volumes" => tx.count::<Volume>(&mine()),
        "snapshots" => tx.count::<Snapshot>(&mine()),
        "gigabytes" => Ok(tx.sum::<Volume>("size_gib", &mine())? + tx.sum::<Snapshot>("size_gib", &mine())?),
        _ => {
            let Some((what, kind)) = name.split_once('_') else { return Ok(0) };
            let Some(kind) = tx.first::<VolumeType>(&Query::new().eq("name", kind))? else { return Ok(0) };
            of_type(tx, project, what, kind.id)
        }
    }
}

fn of_type(tx: &mut Tx<'_>, project: &ProjectId, what: &str, kind: VolumeTypeId) -> Result<u64> {
    let query = Query::new().eq("project_id", project).eq("volume_type_id", kind);
    match what {
        "volumes" => tx.count::<Volume>(&query),
        "gigabytes" => tx.sum::<Volume>("size_gib", &query),
        "snapshots" => {
            let volumes = tx.list_ids::<Volume>(&query)?;
            tx.count::<Snapshot>(&Query::new().eq("project_id", project).is_in("volume_id", volumes))
        }
        _ => Ok(0),
    }
}

/// What is to be taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claim {
    /// Volumes.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// GiB.
    pub gigabytes: u64,
}

/// Refuses where a claim would exceed a limit of the project.
///
/// # Errors
/// `OverQuota` in Cinder's words.
pub fn claim(
    tx: &mut Tx<'_>,
    config: &Defaults,
    project: &ProjectId,
    kind: &VolumeType,
    claim: Claim,
) -> Result<()> {
    let limits = limits(tx, config, project)?;
    let wanted = [("volumes", claim.volumes), ("snapshots", claim.snapshots), ("gigabytes", claim.gigabytes)];
    for (what, wanted) in wanted.into_iter().filter(|(_, n)| *n > 0) {
        for name in [what.to_owned(), format!("{what}_{}", kind.name)] {
            let limit = limits.iter().find(|(n, _)| *n == name).map_or(-1, |(_, l)| *l);
            let Ok(limit) = u64::try_from(limit) else { continue };
            let used = used(tx, project, &name)?;
            if used.saturating_add(wanted) > limit {
                return Err(exceeded(&name, what, wanted, used, limit));
            }
        }
    }
    Ok(())
}

/// Refuses a volume that is larger than any may be.
///
/// # Errors
/// `OverQuota`.
pub fn claim_size(tx: &mut Tx<'_>, config: &Defaults, project: &ProjectId, size_gib: u64) -> Result<()> {
    let limits = limits(tx, config, project)?;
    let limit = limits.iter().find(|(n, _)| n == "per_volume_gigabytes").map_or(-1, |(_, l)| *l);
    match u64::try_from(limit) {
        Ok(limit) if size_gib > limit => Err(Error::over_quota(format!(
            "Requested volume size {size_gib}G is larger than maximum allowed limit {limit}G."
        ))),
        _ => Ok(()),
    }
}

fn exceeded(name: &str, what: &str, wanted: u64, used: u64, limit: u64) -> Error {
    Error::over_quota(match what {
        "gigabytes" => format!(
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {name} quota. Requested {wanted}G, quota is {limit}G and {used}G has been consumed."
        ),
        "snapshots" => format!(
            "SnapshotLimitExceeded: Maximum number of snapshots allowed ({limit}) exceeded for quota '{name}'."
        ),
        _ => format!(
            "VolumeLimitExceeded: Maximum number of volumes allowed ({limit}) exceeded for quota '{name}'."
        ),
    })
}
