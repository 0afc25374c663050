//! Contract tests: what every driver of a trait must do, as functions that a driver's own tests call.
//!
//! They return `Err(text)` instead of panicking, so that a test can add what it knows (logs, a seed).

use std::time::Duration;

use base::{Entropy, SnapshotId, VolumeId};

use crate::drivers::{BlockStorage, Guest, GuestPlan, Hypervisor};
use crate::host::{Power, PowerObserved, SnapshotSpec, VolumeSource, VolumeSpec};
use crate::net::{Item, NetworkBackend};

/// What a contract test says.
pub type Verdict = Result<(), String>;

fn check(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn tell(error: base::Error) -> String {
    error.chain()
}

/// Volumes and snapshots: made once, grown, copied from snapshots, removed; every verb twice.
///
/// # Errors
/// What the driver did wrong.
pub async fn block_storage(driver: &dyn BlockStorage, entropy: &Entropy) -> Verdict {
    let id = VolumeId::random(entropy);
    let mut spec = VolumeSpec { id, generation: 1, size_gib: 1, source: VolumeSource::Blank };
    for _ in 0..2 {
        driver.ensure(&spec, None).await.map_err(tell)?;
    }
    let found = driver.observe().await.map_err(tell)?;
    check(
        found.iter().filter(|v| **v == (id, 1)).count() == 1,
        "a volume made twice is there once, 1 GiB large",
    )?;
    spec.size_gib = 2;
    driver.ensure(&spec, None).await.map_err(tell)?;
    check(driver.observe().await.map_err(tell)?.contains(&(id, 2)), "a volume grows")?;
    let snapshot = SnapshotSpec { id: SnapshotId::random(entropy), generation: 1, volume: id };
    for _ in 0..2 {
        driver.ensure_snapshot(&snapshot).await.map_err(tell)?;
    }
    check(
        driver.observe_snapshots().await.map_err(tell)? == [snapshot.id],
        "a snapshot made twice is there once",
    )?;
    let copy = VolumeSpec {
        id: VolumeId::random(entropy),
        generation: 1,
        size_gib: 2,
        source: VolumeSource::Snapshot(snapshot.id),
    };
    driver.ensure(&copy, None).await.map_err(tell)?;
    for _ in 0..2 {
        driver.remove_snapshot(snapshot.id).await.map_err(tell)?;
    }
    check(driver.observe_snapshots().await.map_err(tell)?.is_empty(), "a snapshot goes")?;
    check(driver.observe().await.map_err(tell)?.contains(&(copy.id, 2)), "a volume outlives its snapshot")?;
    for id in [id, copy.id, id] {
        driver.remove(id).await.map_err(tell)?;
    }
    check(
        driver.observe().await.map_err(tell)?.is_empty(),
        "volumes go, and removing a missing one is success",
    )
}

/// A guest's life: start, pause, resume, stop, start only when asked, reboot counted once, removal.
///
/// # Errors
/// What the driver did wrong.
pub async fn hypervisor(driver: &dyn Hypervisor, mut plan: GuestPlan) -> Verdict {
    let id = plan.spec.id;
    let mut step = async |power: Power, reboots: u64, start: bool| -> Result<Guest, String> {
        let spec = std::sync::Arc::make_mut(&mut plan.spec);
        spec.power = power;
        spec.reboots = reboots;
        spec.generation += 1;
        driver.ensure(&plan, start).await.map_err(tell)
    };
    let guest = step(Power::Running, 0, true).await?;
    check(
        guest.id == id && guest.power == PowerObserved::Running,
        &format!("a guest starts, but is {:?}", guest.power),
    )?;
    check(
        step(Power::Running, 0, false).await?.power == PowerObserved::Running,
        "asking again changes nothing",
    )?;
    check(step(Power::Paused, 0, false).await?.power == PowerObserved::Paused, "a guest pauses")?;
    check(step(Power::Running, 0, false).await?.power == PowerObserved::Running, "a guest goes on")?;
    check(step(Power::Running, 1, false).await?.reboots == 1, "a reboot is counted")?;
    check(step(Power::Running, 1, false).await?.reboots == 1, "a reboot is done once")?;
    let stopped = step(Power::Stopped, 1, false).await?;
    check(stopped.power == PowerObserved::Shutdown, "a guest stops")?;
    let still = step(Power::Running, 1, false).await?;
    check(still.power == PowerObserved::Shutdown, "a guest that is down stays down unless a start is asked")?;
    check(
        step(Power::Running, 1, true).await?.power == PowerObserved::Running,
        "a stopped guest starts again",
    )?;
    check(driver.observe().await.map_err(tell)?.iter().any(|g| g.id == id), "a guest is observed")?;
    driver.console_log(id, Some(5)).await.map_err(tell)?;
    for _ in 0..2 {
        driver.remove(id).await.map_err(tell)?;
    }
    check(!driver.observe().await.map_err(tell)?.iter().any(|g| g.id == id), "a guest goes")
}

/// Items: applied twice is once, nothing to repair after, older revisions ignored, removal, sync removes strangers.
///
/// # Errors
/// What the driver did wrong.
pub async fn network_backend(driver: &dyn NetworkBackend, items: &[Item]) -> Verdict {
    for _ in 0..2 {
        for item in items {
            driver.apply(item).await.map_err(tell)?;
        }
    }
    let repaired = driver.sync(items).await.map_err(tell)?;
    check(repaired == 0, &format!("nothing to repair after applying every item, yet {repaired} were"))?;
    let Some(last) = items.last() else { return Ok(()) };
    for _ in 0..2 {
        driver.remove(last.key()).await.map_err(tell)?;
    }
    check(driver.sync(items).await.map_err(tell)? == 1, "sync brings back the one item that was removed")?;
    check(
        driver.sync(&[]).await.map_err(tell)? >= items.len(),
        "sync removes everything that is not listed",
    )?;
    check(driver.sync(&[]).await.map_err(tell)? == 0, "an empty backend has nothing to repair")
}

/// How long a contract test may wait for an effect.
pub const DEADLINE: Duration = Duration::from_secs(20);
