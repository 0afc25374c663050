//! Drivers of one agent on a machine: the simulated ones, behind whatever is wrong with the machine. A dead agent's calls
//! have no effect, also those that were under way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::Drivers;
use async_trait::async_trait;
use base::{Error, NetworkId, PortId, Result, ServerId, SnapshotId, VolumeId};
use bytes::Bytes;
use contract::drivers::{
    BlockDevice, BlockStorage, Guest, GuestLease, GuestPlan, HostNetwork, Hypervisor, ImageSource,
};
use contract::host::{HostCapacity, ImageRef, MetadataPort, NicSpec, SnapshotSpec, VolumeSpec};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::host::Machine;

/// The machine's drivers for an agent that lives until `dead`.
pub fn guarded(machine: &Arc<Machine>, dead: &CancellationToken) -> Drivers {
    let guard = || Guard { machine: machine.clone(), dead: dead.clone() };
    Drivers {
        hypervisor: Arc::new(GuardedHypervisor(guard())),
        storage: Arc::new(GuardedStorage(guard())),
        network: Arc::new(GuardedNetwork(guard())),
        images: Arc::new(GuardedImages(guard())),
    }
}

struct Guard {
    machine: Arc<Machine>,
    dead: CancellationToken,
}

fn gone() -> Error {
    Error::unavailable("the agent is dead")
}

impl Guard {
    /// A call that only looks.
    async fn look<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        // Real drivers ask processes and daemons.
        tokio::time::sleep(Duration::from_millis(1 + self.machine.dice.below(4))).await;
        if self.dead.is_cancelled() {
            return Err(gone());
        }
        call.await
    }

    /// A call that changes something; `writes`: on the disk.
    async fn act<T>(
        &self,
        what: &'static str,
        of: impl std::fmt::Display,
        writes: bool,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let delayed = async {
            let most = self.machine.disk_delay_ms.load(Ordering::SeqCst);
            if most > 0 {
                tokio::time::sleep(Duration::from_millis(self.machine.dice.below(most))).await;
            }
            if writes && self.machine.disk_full.load(Ordering::SeqCst) {
                return Err(Error::unavailable("no space left on device"));
            }
            call.await
        };
        if self.dead.is_cancelled() {
            return Err(gone());
        }
        let result = tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(gone()),
            result = delayed => result,
        };
        let ended = if result.is_ok() { "" } else { " failed" };
        self.machine.trace.event("driver", format_args!("{} {what} {of}{ended}", self.machine.name));
        result
    }
}

struct GuardedHypervisor(Guard);

#[async_trait]
impl Hypervisor for GuardedHypervisor {
    async fn capacity(&self) -> Result<HostCapacity> {
        self.0.look(self.0.machine.sim.hypervisor.capacity()).await
    }
    async fn observe(&self) -> Result<Vec<Guest>> {
        self.0.look(self.0.machine.sim.hypervisor.observe()).await
    }
    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest> {
        let call = self.0.machine.sim.hypervisor.ensure(plan, start);
        self.0.act(if start { "start" } else { "ensure" }, plan.spec.id, true, call).await
    }
    async fn lease(&self, lease: &GuestLease) -> Result<()> {
        if !self.0.machine.fenced {
            return Ok(());
        }
        let told = self.0.machine.sim.hypervisor.lease(lease);
        self.0.act("lease", lease.servers.len(), false, told).await
    }
    async fn remove(&self, id: ServerId) -> Result<()> {
        self.0.act("remove", id, false, self.0.machine.sim.hypervisor.remove(id)).await
    }
    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String> {
        self.0.look(self.0.machine.sim.hypervisor.console_log(id, length)).await
    }
    async fn read_disk(&self, id: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        self.0.look(self.0.machine.sim.hypervisor.read_disk(id, disk, offset)).await
    }
    async fn has_disk(&self, id: ServerId, transfer: Uuid, disk: &str) -> Result<bool> {
        self.0.look(self.0.machine.sim.hypervisor.has_disk(id, transfer, disk)).await
    }
    async fn write_disk(
        &self,
        id: ServerId,
        transfer: Uuid,
        disk: &str,
        offset: u64,
        piece: Bytes,
    ) -> Result<()> {
        let call = self.0.machine.sim.hypervisor.write_disk(id, transfer, disk, offset, piece);
        self.0.act("disk", id, true, call).await
    }
    fn events(&self) -> broadcast::Receiver<ServerId> {
        self.0.machine.sim.hypervisor.events()
    }
}

struct GuardedStorage(Guard);

#[async_trait]
impl BlockStorage for GuardedStorage {
    async fn observe(&self) -> Result<Vec<(VolumeId, u64)>> {
        self.0.look(self.0.machine.sim.storage.observe()).await
    }
    async fn observe_snapshots(&self) -> Result<Vec<SnapshotId>> {
        self.0.look(self.0.machine.sim.storage.observe_snapshots()).await
    }
    async fn ensure(&self, spec: &VolumeSpec, image: Option<&Path>) -> Result<()> {
        self.0.act("volume", spec.id, true, self.0.machine.sim.storage.ensure(spec, image)).await
    }
    async fn remove(&self, id: VolumeId) -> Result<()> {
        self.0.act("volume-remove", id, false, self.0.machine.sim.storage.remove(id)).await
    }
    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<()> {
        self.0.act("snapshot", spec.id, true, self.0.machine.sim.storage.ensure_snapshot(spec)).await
    }
    async fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.0.act("snapshot-remove", id, false, self.0.machine.sim.storage.remove_snapshot(id)).await
    }
    fn device(&self, id: VolumeId) -> BlockDevice {
        self.0.machine.sim.storage.device(id)
    }
}

struct GuardedNetwork(Guard);

#[async_trait]
impl HostNetwork for GuardedNetwork {
    async fn plug(&self, nic: &NicSpec) -> Result<String> {
        self.0.act("plug", nic.port, false, self.0.machine.sim.network.plug(nic)).await
    }
    async fn installed(&self, port: PortId) -> Result<bool> {
        self.0.look(self.0.machine.sim.network.installed(port)).await
    }
    async fn unplug(&self, port: PortId) -> Result<()> {
        self.0.act("unplug", port, false, self.0.machine.sim.network.unplug(port)).await
    }
    async fn observe(&self) -> Result<Vec<PortId>> {
        self.0.look(self.0.machine.sim.network.observe()).await
    }
    async fn metadata_listener(
        &self,
        network: NetworkId,
        port: &MetadataPort,
    ) -> Result<Option<std::net::TcpListener>> {
        self.0.look(self.0.machine.sim.network.metadata_listener(network, port)).await
    }
    async fn remove_metadata(&self, network: NetworkId) -> Result<()> {
        self.0.look(self.0.machine.sim.network.remove_metadata(network)).await
    }
    async fn observe_metadata(&self) -> Result<Vec<NetworkId>> {
        self.0.look(self.0.machine.sim.network.observe_metadata()).await
    }
}

struct GuardedImages(Guard);

#[async_trait]
impl ImageSource for GuardedImages {
    async fn fetch(&self, image: &ImageRef, into: &Path) -> Result<PathBuf> {
        self.0.act("image", image.id, false, self.0.machine.sim.images.fetch(image, into)).await
    }
}
