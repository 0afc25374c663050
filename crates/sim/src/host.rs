//! A simulated host: hypervisor, block storage, ports, images.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Entropy, Error, NetworkId, PortId, Result, ServerId, SnapshotId, Timestamp, VolumeId};
use bytes::Bytes;
use contract::drivers::{
    BlockDevice, BlockStorage, Guest, GuestLease, GuestPlan, HostNetwork, Hypervisor, ImageSource,
};
use contract::host::{
    DiskSource, HostCapacity, ImageRef, MetadataPort, NicSpec, Power, PowerObserved, SnapshotSpec, VolumeSpec,
};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::network::SimNetwork;

/// What a simulated host is like.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Physical CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Local disk in GiB.
    pub disk_gib: u64,
    /// Time from start to running, in milliseconds.
    pub boot_ms: RangeInclusive<u64>,
    /// Chance in a million that a boot is slow, and how many milliseconds it then takes at most.
    pub slow_boot: (u32, u64),
    /// NUMA nodes that CPUs and memory are spread over.
    pub numa_nodes: u32,
    /// Image download in MiB/s; 0 = at once.
    pub image_mib_s: u64,
    /// Chance in a million that a driver call fails.
    pub fault_ppm: u32,
}

impl Default for Profile {
    fn default() -> Self {
        Profile {
            vcpus: 64,
            memory_mib: 512 * 1024,
            disk_gib: 8192,
            boot_ms: 5..=20,
            slow_boot: (0, 0),
            numa_nodes: 1,
            image_mib_s: 0,
            fault_ppm: 0,
        }
    }
}

#[derive(Clone)]
struct Chance {
    entropy: Entropy,
    fault_ppm: u32,
}

impl Chance {
    fn fault(&self, what: &str) -> Result<()> {
        if self.fault_ppm > 0 && self.entropy.below(1_000_000) < u64::from(self.fault_ppm) {
            return Err(Error::unavailable(format!("injected fault in {what}")));
        }
        Ok(())
    }
}

/// All drivers of one simulated host.
#[derive(Clone)]
pub struct SimHost {
    /// Runs nothing, remembers everything.
    pub hypervisor: Arc<SimHypervisor>,
    /// Volumes as numbers.
    pub storage: Arc<SimStorage>,
    /// Ports as names.
    pub network: Arc<SimHostNetwork>,
    /// Images as durations.
    pub images: Arc<SimImages>,
}

impl SimHost {
    /// A host named `hostname` in `network`.
    pub fn new(hostname: &str, profile: Profile, entropy: &Entropy, network: Arc<SimNetwork>) -> Self {
        let chance = Chance { entropy: Entropy::seeded(entropy.u64()), fault_ppm: profile.fault_ppm };
        network.add_host(hostname);
        SimHost {
            hypervisor: Arc::new(SimHypervisor {
                hostname: hostname.to_owned(),
                guests: Mutex::default(),
                disks: Mutex::default(),
                lease: Mutex::default(),
                events: broadcast::Sender::new(256),
                chance: chance.clone(),
                profile: profile.clone(),
            }),
            storage: Arc::new(SimStorage { state: Mutex::default(), chance: chance.clone() }),
            network: Arc::new(SimHostNetwork {
                hostname: hostname.to_owned(),
                ports: Mutex::default(),
                metadata: Mutex::default(),
                fabric: network,
                chance: chance.clone(),
            }),
            images: Arc::new(SimImages { have: Mutex::default(), mib_s: profile.image_mib_s, chance }),
        }
    }
}

impl SimHost {
    /// The power goes: no guest runs, no port is plugged; disks stay.
    pub fn power_off(&self) {
        self.hypervisor.power_off();
        self.network.power_off();
    }
}

/// A local disk as its content: a number.
#[derive(Debug, Clone, Copy)]
struct Disk {
    content: u64,
    transfer: Option<Uuid>,
}

/// A hypervisor that only remembers.
pub struct SimHypervisor {
    hostname: String,
    guests: Mutex<BTreeMap<ServerId, Guest>>,
    /// Local disks: what is on them, and by which transfer they came.
    disks: Mutex<BTreeMap<(ServerId, String), Disk>>,
    lease: Mutex<Option<GuestLease>>,
    events: broadcast::Sender<ServerId>,
    chance: Chance,
    profile: Profile,
}

impl SimHypervisor {
    /// The guest's process vanishes, as by `kill -9`.
    pub fn crash(&self, id: ServerId) {
        self.change(id, PowerObserved::Crashed);
    }

    /// The guest shuts itself down.
    pub fn shut_down(&self, id: ServerId) {
        self.change(id, PowerObserved::Shutdown);
    }

    /// Guests whose CPUs run at this moment of the lease clock: those that run, as far as the lease lets them.
    pub fn running(&self, now: Timestamp) -> BTreeSet<ServerId> {
        let lease = self.lease.lock();
        let may = |id: &ServerId| lease.as_ref().is_none_or(|l| now < l.until && l.servers.contains(id));
        let guests = self.guests.lock();
        guests.values().filter(|g| g.power == PowerObserved::Running && may(&g.id)).map(|g| g.id).collect()
    }

    /// The guests there are.
    pub fn guests(&self) -> Vec<Guest> {
        self.guests.lock().values().cloned().collect()
    }

    /// Puts a guest there behind the agent's back; for tests of what looks for such guests.
    pub fn plant(&self, guest: Guest) {
        self.guests.lock().insert(guest.id, guest);
    }

    /// What is on a local disk.
    pub fn content(&self, id: ServerId, disk: &str) -> Option<u64> {
        self.disks.lock().get(&(id, disk.to_owned())).map(|d| d.content)
    }

    fn power_off(&self) {
        for guest in self.guests.lock().values_mut() {
            // Memory saved to disk outlasts the power.
            if guest.power != PowerObserved::Suspended {
                guest.power = PowerObserved::Crashed;
            }
        }
    }

    fn change(&self, id: ServerId, power: PowerObserved) {
        if let Some(guest) = self.guests.lock().get_mut(&id) {
            guest.power = power;
        }
        let _ = self.events.send(id);
    }

    async fn boot(&self) {
        let (low, mut high) = (*self.profile.boot_ms.start(), *self.profile.boot_ms.end());
        let (chance, slow) = self.profile.slow_boot;
        if chance > 0 && self.chance.entropy.below(1_000_000) < u64::from(chance) {
            high = high.max(slow);
        }
        let ms = low + self.chance.entropy.below(high.saturating_sub(low) + 1);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }
}

#[async_trait]
impl Hypervisor for SimHypervisor {
    async fn capacity(&self) -> Result<HostCapacity> {
        Ok(HostCapacity {
            hostname: self.hostname.clone(),
            hypervisor_type: "sim".into(),
            hypervisor_version: 1,
            accelerator: "sim".into(),
            vcpus: self.profile.vcpus,
            memory_mib: self.profile.memory_mib,
            disk_gib: self.profile.disk_gib,
            disk_free_gib: self.profile.disk_gib,
            cpu_info: serde_json::json!({
                "arch": "x86_64", "model": "sim", "vendor": "allod",
                "topology": {"cells": self.profile.numa_nodes},
            }),
            host_ip: None,
            moves_disks: true,
        })
    }

    async fn observe(&self) -> Result<Vec<Guest>> {
        Ok(self.guests.lock().values().cloned().collect())
    }

    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        self.chance.fault("hypervisor")?;
        let spec = &plan.spec;
        let before = self.guests.lock().get(&spec.id).cloned();
        for disk in spec.disks.iter().filter(|d| !matches!(d.source, DiskSource::Volume { .. })) {
            let made = || Disk { content: self.chance.entropy.u64(), transfer: None };
            self.disks.lock().entry((spec.id, disk.name.clone())).or_insert_with(made);
        }
        let down = |p: PowerObserved| matches!(p, PowerObserved::Shutdown | PowerObserved::Crashed);
        let was = before.as_ref().map(|g| g.power);
        let up = was.is_some_and(|p| !down(p));
        let power = match spec.power {
            Power::Stopped => PowerObserved::Shutdown,
            _ if !up && !start => was.unwrap_or(PowerObserved::Shutdown),
            Power::Running => PowerObserved::Running,
            Power::Paused => PowerObserved::Paused,
            Power::Suspended => PowerObserved::Suspended,
        };
        let reboots = before.as_ref().map_or(spec.reboots, |g| g.reboots.max(spec.reboots));
        if !up && start || before.is_some_and(|g| g.reboots < spec.reboots) {
            self.boot().await;
        }
        let guest = Guest {
            id: spec.id,
            power,
            reboots,
            volumes: spec
                .disks
                .iter()
                .filter_map(|d| match d.source {
                    DiskSource::Volume { volume } => Some(volume),
                    _ => None,
                })
                .collect(),
            ports: spec.nics.iter().map(|n| n.port).collect(),
        };
        self.guests.lock().insert(spec.id, guest.clone());
        Ok(guest)
    }

    async fn lease(&self, lease: &GuestLease) -> Result<()> {
        *self.lease.lock() = Some(lease.clone());
        Ok(())
    }

    async fn remove(&self, id: ServerId) -> Result<()> {
        self.chance.fault("hypervisor")?;
        self.guests.lock().remove(&id);
        self.disks.lock().retain(|(server, _), _| *server != id);
        Ok(())
    }

    async fn read_disk(&self, id: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        self.chance.fault("disk")?;
        let up = |g: &Guest| !matches!(g.power, PowerObserved::Shutdown | PowerObserved::Crashed);
        if self.guests.lock().get(&id).is_some_and(up) {
            return Err(Error::conflict(format!("server {id} has its disks open")));
        }
        let found = self.disks.lock().get(&(id, disk.to_owned())).copied();
        let found = found.ok_or_else(|| Error::not_found(format!("server {id} has no disk {disk} here")))?;
        let all = Bytes::copy_from_slice(&found.content.to_be_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        // Two pieces, so that there is something in between.
        Ok(all.slice(from..(from + 4).min(all.len())))
    }

    async fn has_disk(&self, id: ServerId, transfer: Uuid, disk: &str) -> Result<bool> {
        Ok(self.disks.lock().get(&(id, disk.to_owned())).is_some_and(|d| d.transfer == Some(transfer)))
    }

    async fn write_disk(
        &self,
        id: ServerId,
        transfer: Uuid,
        disk: &str,
        offset: u64,
        piece: Bytes,
    ) -> Result<()> {
        self.chance.fault("disk")?;
        let mut disks = self.disks.lock();
        let aside = (id, format!("{disk}.{transfer}"));
        if piece.is_empty() {
            let whole = disks.remove(&aside).filter(|_| offset == 8);
            let whole = whole.ok_or_else(|| Error::conflict(format!("disk {disk} came in part")))?;
            disks.insert((id, disk.to_owned()), Disk { transfer: Some(transfer), ..whole });
            return Ok(());
        }
        let held = disks.entry(aside).or_insert(Disk { content: 0, transfer: None });
        for (at, byte) in (offset..).zip(piece) {
            let shift = 56_u64.saturating_sub(8 * at);
            held.content = held.content & !(0xff << shift) | u64::from(byte) << shift;
        }
        Ok(())
    }

    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String> {
        if !self.guests.lock().contains_key(&id) {
            return Err(Error::not_found(format!("Instance {id} could not be found.")));
        }
        let lines = [format!("sim: {} booted", id), "sim: login:".to_owned()];
        let skip = length.map_or(0, |n| lines.len().saturating_sub(n));
        Ok(lines.iter().skip(skip).map(|l| format!("{l}\n")).collect())
    }

    fn events(&self) -> broadcast::Receiver<ServerId> {
        self.events.subscribe()
    }
}

#[derive(Default)]
struct Volumes {
    volumes: BTreeMap<VolumeId, u64>,
    snapshots: BTreeSet<SnapshotId>,
}

/// Block storage that only remembers sizes.
pub struct SimStorage {
    state: Mutex<Volumes>,
    chance: Chance,
}

#[async_trait]
impl BlockStorage for SimStorage {
    async fn observe(&self) -> Result<Vec<(VolumeId, u64)>> {
        Ok(self.state.lock().volumes.iter().map(|(id, size)| (*id, *size)).collect())
    }

    async fn observe_snapshots(&self) -> Result<Vec<SnapshotId>> {
        Ok(self.state.lock().snapshots.iter().copied().collect())
    }

    async fn ensure(&self, spec: &VolumeSpec, _image: Option<&Path>) -> Result<()> {
        self.chance.fault("storage")?;
        let mut state = self.state.lock();
        let size = state.volumes.entry(spec.id).or_default();
        *size = (*size).max(spec.size_gib);
        Ok(())
    }

    async fn remove(&self, id: VolumeId) -> Result<()> {
        self.chance.fault("storage")?;
        self.state.lock().volumes.remove(&id);
        Ok(())
    }

    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        self.chance.fault("storage")?;
        let mut state = self.state.lock();
        if !state.snapshots.contains(&spec.id) && !state.volumes.contains_key(&spec.volume) {
            return Err(Error::not_found(format!("volume {} is not on this host", spec.volume)));
        }
        state.snapshots.insert(spec.id);
        Ok(())
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.chance.fault("storage")?;
        self.state.lock().snapshots.remove(&id);
        Ok(())
    }

    fn device(&self, id: VolumeId) -> BlockDevice {
        BlockDevice { path: PathBuf::from(format!("/sim/volumes/{id}")), format: "raw" }
    }
}

impl SimStorage {
    /// The volumes there are, with their sizes in GiB.
    pub fn volumes(&self) -> Vec<(VolumeId, u64)> {
        self.state.lock().volumes.iter().map(|(id, size)| (*id, *size)).collect()
    }

    /// The snapshots there are.
    pub fn snapshots(&self) -> Vec<SnapshotId> {
        self.state.lock().snapshots.iter().copied().collect()
    }

    /// Takes a volume away behind the agent's back; for tests of what looks for it.
    pub fn lose(&self, id: VolumeId) {
        self.state.lock().volumes.remove(&id);
    }
}

/// A switch that only remembers which ports are plugged.
pub struct SimHostNetwork {
    hostname: String,
    ports: Mutex<BTreeSet<PortId>>,
    metadata: Mutex<BTreeSet<NetworkId>>,
    fabric: Arc<SimNetwork>,
    chance: Chance,
}

impl SimHostNetwork {
    /// The ports plugged now.
    pub fn plugged(&self) -> Vec<PortId> {
        self.ports.lock().iter().copied().collect()
    }

    fn power_off(&self) {
        self.metadata.lock().clear();
        for port in std::mem::take(&mut *self.ports.lock()) {
            self.fabric.unplugged(port, &self.hostname);
        }
    }
}

#[async_trait]
impl HostNetwork for SimHostNetwork {
    async fn plug(&self, nic: &NicSpec) -> Result<String> {
        self.chance.fault("plug")?;
        self.ports.lock().insert(nic.port);
        self.fabric.plugged(nic.port, &self.hostname);
        Ok(format!("tap{}", &nic.port.to_string()[..11]))
    }

    async fn installed(&self, port: PortId) -> Result<bool> {
        Ok(self.ports.lock().contains(&port))
    }

    async fn unplug(&self, port: PortId) -> Result<()> {
        self.chance.fault("unplug")?;
        self.ports.lock().remove(&port);
        self.fabric.unplugged(port, &self.hostname);
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<PortId>> {
        Ok(self.ports.lock().iter().copied().collect())
    }

    async fn metadata_listener(
        &self,
        network: NetworkId,
        _port: &MetadataPort,
    ) -> Result<Option<std::net::TcpListener>> {
        self.metadata.lock().insert(network);
        Ok(None)
    }

    async fn remove_metadata(&self, network: NetworkId) -> Result<()> {
        self.metadata.lock().remove(&network);
        Ok(())
    }

    async fn observe_metadata(&self) -> Result<Vec<NetworkId>> {
        Ok(self.metadata.lock().iter().copied().collect())
    }
}

/// Image downloads that only take time.
pub struct SimImages {
    have: Mutex<BTreeSet<base::ImageId>>,
    mib_s: u64,
    chance: Chance,
}

#[async_trait]
impl ImageSource for SimImages {
    async fn fetch(&self, image: &ImageRef, into: &Path) -> Result<PathBuf> {
        self.chance.fault("image download")?;
        if self.have.lock().insert(image.id) && self.mib_s > 0 {
            let millis = image.size * 1000 / (self.mib_s * 1024 * 1024);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        Ok(into.join(image.id.to_string()))
    }
}
