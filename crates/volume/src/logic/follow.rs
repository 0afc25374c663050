//! What a host's report means for a volume or a snapshot. Pure.

use base::Timestamp;
use contract::host::{SnapshotReport, VolumeReport};

use crate::model::{Snapshot, Volume, status};

/// Seconds a host may fail before that is told to the user: most failures pass (an image server that restarts).
const PATIENCE: i64 = 30;

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Stay,
    /// It is as it shall be.
    Ready,
    /// The host does not have it any more.
    Gone,
    /// The host cannot, for this reason.
    Failed(String),
}

/// Statuses that end when the host is done.
pub fn waits(status: &str) -> bool {
    matches!(status, status::CREATING | status::EXTENDING | status::ERROR | status::ERROR_EXTENDING)
}

/// A volume and what its host says of it, if anything.
pub fn volume(volume: &Volume, report: Option<&VolumeReport>, now: Timestamp) -> Next {
    if volume.doomed {
        return if report.is_none() { Next::Gone } else { Next::Stay };
    }
    let Some(report) = report else { return Next::Stay };
    // An administrator's `error` on a volume that is whole is not for a host to take back.
    let unfinished =
        !volume.made || matches!(volume.status.as_str(), status::EXTENDING | status::ERROR_EXTENDING);
    if !unfinished {
        return Next::Stay;
    }
    if report.ready && report.size_gib >= volume.size_gib {
        return Next::Ready;
    }
    let waiting = matches!(volume.status.as_str(), status::CREATING | status::EXTENDING);
    match &report.error {
        Some(why) if waiting && report.generation >= volume.meta.generation && overdue(volume.since, now) => {
            Next::Failed(why.clone())
        }
        _ => Next::Stay,
    }
}

/// A snapshot and what its host says of it, if anything.
pub fn snapshot(snapshot: &Snapshot, report: Option<&SnapshotReport>, now: Timestamp) -> Next {
    if snapshot.doomed {
        return if report.is_none() { Next::Gone } else { Next::Stay };
    }
    let (Some(report), status::CREATING) = (report, snapshot.status.as_str()) else { return Next::Stay };
    if report.ready {
        return Next::Ready;
    }
    match &report.error {
        Some(why) if overdue(snapshot.since, now) => Next::Failed(why.clone()),
        _ => Next::Stay,
    }
}

fn overdue(since: Timestamp, now: Timestamp) -> bool {
    since.plus_secs(PATIENCE) <= now
}
