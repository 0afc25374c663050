//! The agent on simulated drivers, in virtual time, against a control plane that is a variable.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, Config, Drivers};
use async_trait::async_trait;
use base::{Entropy, Error, HostId, ManualClock, ProjectId, Result, ServerId, UserId, VolumeId};
use contract::drivers::{BlockStorage, Guest, GuestPlan, Hypervisor};
use contract::host::{
    DiskSource, DiskSpec, GuestMetadata, HostCapacity, HostReport, HostSpec, Power, PowerObserved,
    ServerReport, ServerSpec, VolumeSource, VolumeSpec,
};
use contract::services::ControlPlane;
use parking_lot::Mutex;
use sim::{Profile, SimHost, SimNetwork};
use tokio::sync::watch;

/// A control plane that holds one spec and keeps the last report.
struct Desk {
    spec: watch::Sender<Option<Arc<HostSpec>>>,
    reports: watch::Sender<Option<HostReport>>,
    away: Mutex<bool>,
}

#[async_trait]
impl ControlPlane for Desk {
    async fn spec(&self, _: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        if *self.away.lock() {
            return Err(Error::unavailable("away"));
        }
        let mut changes = self.spec.subscribe();
        let newer = changes.wait_for(|s| s.as_ref().is_some_and(|s| s.generation > after));
        match tokio::time::timeout(Duration::from_secs(30), newer).await {
            Ok(Ok(spec)) => Ok(spec.clone()),
            _ => Ok(None),
        }
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        if *self.away.lock() {
            return Err(Error::unavailable("away"));
        }
        self.reports.send_replace(Some(report));
        Ok(())
    }
}

struct World {
    desk: Arc<Desk>,
    host: SimHost,
    spec: HostSpec,
    entropy: Entropy,
    stop: watch::Sender<bool>,
    task: Option<tokio::task::JoinHandle<()>>,
    dir: tempfile::TempDir,
}

fn start(
    dir: &Path,
    boot_id: &str,
    id: HostId,
    host: &SimHost,
    desk: &Arc<Desk>,
) -> (watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let config = Config { host: id, state_dir: dir.to_owned(), boot_id: boot_id.into() };
    let drivers = Drivers {
        hypervisor: host.hypervisor.clone(),
        storage: host.storage.clone(),
        network: host.network.clone(),
        images: host.images.clone(),
    };
    let agent = Agent::new(config, drivers, desk.clone(), Arc::new(ManualClock::default())).unwrap();
    let (stop, stopped) = watch::channel(false);
    (stop, tokio::spawn(agent.run(stopped)))
}

impl World {
    fn new() -> Self {
        let entropy = Entropy::seeded(1);
        let id = HostId::random(&entropy);
        let host = SimHost::new("h1", Profile::default(), &entropy, Arc::new(SimNetwork::default()));
        let desk = Arc::new(Desk {
            spec: watch::Sender::new(None),
            reports: watch::Sender::new(None),
            away: Mutex::new(false),
        });
        let dir = tempfile::tempdir().unwrap();
        let (stop, task) = start(dir.path(), "boot-1", id, &host, &desk);
        let spec = HostSpec { host: id, generation: 0, servers: vec![], volumes: vec![], snapshots: vec![] };
        World { desk, host, spec, entropy, stop, task: Some(task), dir }
    }

    fn publish(&mut self) {
        self.spec.generation += 1;
        self.desk.spec.send_replace(Some(Arc::new(self.spec.clone())));
    }

    async fn restart(&mut self, boot_id: &str) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
        let (stop, task) = start(self.dir.path(), boot_id, self.spec.host, &self.host, &self.desk);
        (self.stop, self.task) = (stop, Some(task));
    }

    fn add_server(&mut self) -> ServerId {
        let id = ServerId::random(&self.entropy);
        self.spec.servers.push(Arc::new(ServerSpec {
            id,
            generation: 1,
            project_id: ProjectId::new("p"),
            user_id: UserId::new("u"),
            name: "a".into(),
            power: Power::Running,
            reboots: 0,
            reboot_hard: false,
            vcpus: 1,
            memory_mib: 64,
            properties: BTreeMap::new(),
            disks: vec![],
            nics: vec![],
            config_drive: true,
            disks_from: None,
            metadata: GuestMetadata::default(),
        }));
        id
    }

    /// Waits until the last report satisfies `want`.
    async fn until(&self, want: impl Fn(&HostReport) -> bool) -> HostReport {
        let mut reports = self.desk.reports.subscribe();
        let found = reports.wait_for(|r| r.as_ref().is_some_and(&want));
        let found = tokio::time::timeout(Duration::from_secs(600), found).await;
        found.expect("the report comes in time").unwrap().clone().unwrap()
    }

    async fn until_server(&self, id: ServerId, want: impl Fn(&ServerReport) -> bool) {
        self.until(|r| r.servers.iter().any(|s| s.id == id && want(s))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_volume_runs_and_goes() {
    let mut world = World::new();
    let volume = VolumeId::random(&world.entropy);
    let id = world.add_server();
    world.spec.volumes.push(VolumeSpec {
        id: volume,
        generation: 1,
        size_gib: 1,
        source: VolumeSource::Blank,
    });
    Arc::make_mut(&mut world.spec.servers[0]).disks.push(DiskSpec {
        name: volume.to_string(),
        source: DiskSource::Volume { volume },
        serial: volume.to_string()[..20].into(),
        device: "/dev/vda".into(),
    });
    world.publish();
    world
        .until_server(id, |s| s.converged && s.power == Some(PowerObserved::Running) && s.volumes == [volume])
        .await;
    world.spec.servers.clear();
    world.spec.volumes.clear();
    world.publish();
    world.until(|r| r.generation == 2 && r.servers.is_empty() && r.volumes.is_empty()).await;
    assert!(world.host.hypervisor.observe().await.unwrap().is_empty());
    assert!(world.host.storage.observe().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_crashed_guest_is_reported_and_starts_only_when_asked() {
    let mut world = World::new();
    let id = world.add_server();
    world.publish();
    world.until_server(id, |s| s.power == Some(PowerObserved::Running)).await;
    world.host.hypervisor.crash(id);
    world.until_server(id, |s| s.power == Some(PowerObserved::Crashed)).await;
    world.restart("boot-1").await;
    world.until_server(id, |s| s.power == Some(PowerObserved::Crashed)).await;
    Arc::make_mut(&mut world.spec.servers[0]).generation += 1;
    world.publish();
    world.until_server(id, |s| s.generation == 2 && s.power == Some(PowerObserved::Running)).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_of_the_host_guests_start_without_the_control_plane() {
    let mut world = World::new();
    let id = world.add_server();
    world.publish();
    world.until_server(id, |s| s.power == Some(PowerObserved::Running)).await;
    *world.desk.away.lock() = true;
    world.host.hypervisor.crash(id);
    world.restart("boot-2").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    while world.host.hypervisor.observe().await.unwrap()[0].power != PowerObserved::Running {
        assert!(tokio::time::Instant::now() < deadline, "the guest starts from the ledger alone");
        tokio::time::advance(Duration::from_millis(50)).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_before_there_is_a_spec() {
    let world = World::new();
    let volume = VolumeSpec {
        id: VolumeId::random(&world.entropy),
        generation: 1,
        size_gib: 1,
        source: VolumeSource::Blank,
    };
    world.host.storage.ensure(&volume, None).await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    world.until(|r| r.generation == 0).await;
    assert_eq!(world.host.storage.observe().await.unwrap().len(), 1);
}

/// A control plane that keeps every word of guests that are as they shall be.
struct Hears {
    desk: Arc<Desk>,
    told: Mutex<Vec<Option<PowerObserved>>>,
}

#[async_trait]
impl ControlPlane for Hears {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        self.desk.spec(host, after).await
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        self.told.lock().extend(report.servers.iter().filter(|s| s.converged).map(|s| s.power));
        self.desk.report(report).await
    }
}

/// A hypervisor that takes a second to start a guest, which has no process until then, and longer to say what it saw.
struct Slow {
    inner: Arc<dyn Hypervisor>,
    starting: Mutex<Option<ServerId>>,
    seen: watch::Sender<u32>,
}

#[async_trait]
impl Hypervisor for Slow {
    async fn capacity(&self) -> Result<HostCapacity> {
        self.inner.capacity().await
    }

    async fn observe(&self) -> Result<Vec<Guest>> {
        let Some(id) = *self.starting.lock() else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return self.inner.observe().await;
        };
        let (power, volumes, ports) = (PowerObserved::Shutdown, vec![], vec![]);
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.seen.send_modify(|n| *n += 1);
        Ok(vec![Guest { id, power, reboots: 0, volumes, ports }])
    }

    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        *self.starting.lock() = Some(plan.spec.id);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let guest = self.inner.ensure(plan, start).await;
        *self.starting.lock() = None;
        guest
    }

    async fn remove(&self, id: ServerId) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String> {
        self.inner.console_log(id, length).await
    }

    fn events(&self) -> tokio::sync::broadcast::Receiver<ServerId> {
        self.inner.events()
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_seen_half_started_is_not_told_of_as_ended() {
    let mut world = World::new();
    world.stop.send_replace(true);
    world.task.take().unwrap().await.unwrap();
    let slow = Arc::new(Slow {
        inner: world.host.hypervisor.clone(),
        starting: Mutex::new(None),
        seen: watch::Sender::new(0),
    });
    let config =
        Config { host: world.spec.host, state_dir: world.dir.path().to_owned(), boot_id: "boot-1".into() };
    let drivers = Drivers {
        hypervisor: slow.clone(),
        storage: world.host.storage.clone(),
        network: world.host.network.clone(),
        images: world.host.images.clone(),
    };
    let hears = Arc::new(Hears { desk: world.desk.clone(), told: Mutex::default() });
    let agent = Agent::new(config, drivers, hears.clone(), Arc::new(ManualClock::default())).unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(agent.run(stopped));
    let id = world.add_server();
    world.publish();
    tokio::time::timeout(Duration::from_secs(600), async {
        while slow.starting.lock().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    // Another object, for whose sake the agent looks while the guest starts.
    world.spec.volumes.push(VolumeSpec {
        id: VolumeId::random(&world.entropy),
        generation: 1,
        size_gib: 1,
        source: VolumeSource::Blank,
    });
    world.publish();
    let mut seen = slow.seen.subscribe();
    tokio::time::timeout(Duration::from_secs(600), seen.wait_for(|n| *n > 0)).await.unwrap().unwrap();
    world.until(|r| r.volumes.iter().any(|v| v.ready)).await;
    world.until_server(id, |s| s.converged).await;
    assert!(hears.told.lock().iter().all(|p| *p == Some(PowerObserved::Running)), "{:?}", hears.told.lock());
    stop.send_replace(true);
    task.await.unwrap();
}

/// A control plane that also gives leases, to whoever holds a spec that is new enough.
struct Lessor {
    desk: Arc<Desk>,
    fence: Mutex<u64>,
}

#[async_trait]
impl ControlPlane for Lessor {
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>> {
        self.desk.spec(host, after).await
    }

    async fn report(&self, report: HostReport) -> Result<()> {
        self.desk.report(report).await
    }

    async fn lease(&self, _: HostId, generation: u64) -> Result<Duration> {
        if *self.desk.away.lock() {
            return Err(Error::unavailable("away"));
        }
        let fence = *self.fence.lock();
        if generation < fence { Err(Error::conflict("an older spec")) } else { Ok(Duration::from_secs(30)) }
    }
}

/// A clock that goes with the runtime's paused time.
struct Virtual(tokio::time::Instant);

impl base::Clock for Virtual {
    fn now(&self) -> base::Timestamp {
        base::Timestamp::from_secs(1_000_000).plus(self.0.elapsed())
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_cut_off_takes_its_new_spec_before_it_runs_anything() {
    let mut world = World::new();
    // The world's own agent has no leases: this one takes its place.
    world.stop.send_replace(true);
    world.task.take().unwrap().await.unwrap();
    let clock = Arc::new(Virtual(tokio::time::Instant::now()));
    let lessor = Arc::new(Lessor { desk: world.desk.clone(), fence: Mutex::new(0) });
    let begin = |world: &World| {
        let config =
            Config { host: world.spec.host, state_dir: world.dir.path().to_owned(), boot_id: "b".into() };
        let drivers = Drivers {
            hypervisor: world.host.hypervisor.clone(),
            storage: world.host.storage.clone(),
            network: world.host.network.clone(),
            images: world.host.images.clone(),
        };
        let agent = Agent::leased(config, drivers, lessor.clone(), clock.clone(), clock.clone()).unwrap();
        let (stop, stopped) = watch::channel(false);
        (stop, tokio::spawn(agent.run(stopped)))
    };
    let running = |world: &World| world.host.hypervisor.running(base::Clock::now(&*clock));
    let (stop, task) = begin(&world);
    let (kept, moved) = (world.add_server(), world.add_server());
    world.publish();
    world.until_server(moved, |s| s.power == Some(PowerObserved::Running)).await;
    world.until_server(kept, |s| s.power == Some(PowerObserved::Running)).await;
    *world.desk.away.lock() = true;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(running(&world).len(), 2, "a control plane that is away for a moment stops nothing");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(running(&world).is_empty(), "its lease has ended");
    // A new process has no other lease than the old one had, and starts nothing.
    stop.send_replace(true);
    task.await.unwrap();
    world.host.hypervisor.crash(kept);
    let (stop, task) = begin(&world);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running(&world).is_empty());
    assert_eq!(world.host.hypervisor.observe().await.unwrap().len(), 2, "and removes nothing");
    // One server was given to another host; the way is open again, but its new spec is not there yet.
    *lessor.fence.lock() = 2;
    *world.desk.away.lock() = false;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(running(&world).is_empty(), "no lease for an old spec");
    world.spec.servers.retain(|s| s.id == kept);
    Arc::make_mut(&mut world.spec.servers[0]).generation += 1;
    world.publish();
    world.until_server(kept, |s| s.generation == 2 && s.power == Some(PowerObserved::Running)).await;
    world.until(|r| !r.servers.iter().any(|s| s.id == moved)).await;
    assert_eq!(running(&world), std::collections::BTreeSet::from([kept]));
    stop.send_replace(true);
    task.await.unwrap();
}
