//! Host-side driver traits. Drivers hold no policy: `observe` says what is, `ensure` makes it so (idempotent, from any
//! state, after any crash), `remove` is idempotent and a missing thing is success, `events` are hints only.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::{PortId, Result, ServerId, SnapshotId, Timestamp, VolumeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::host::{
    HostCapacity, ImageRef, MetadataPort, NicSpec, PowerObserved, ServerSpec, SnapshotSpec, VolumeSpec,
};

/// A guest as a hypervisor finds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    /// The server.
    pub id: ServerId,
    /// What it does.
    pub power: PowerObserved,
    /// Reboots done since it was made.
    pub reboots: u64,
    /// Volumes attached now.
    pub volumes: Vec<VolumeId>,
    /// Ports plugged now.
    pub ports: Vec<PortId>,
}

/// Which guests of a host may run, and until when.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GuestLease {
    /// The moment, by the clock that the agent's lease is measured with.
    pub until: Timestamp,
    /// The guests.
    pub servers: BTreeSet<ServerId>,
}

/// Where a disk's data is for a hypervisor on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// File or device path.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: &'static str,
}

/// A server with everything around it resolved to this host: what a hypervisor needs to start it.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// The server.
    pub spec: Arc<ServerSpec>,
    /// One per disk of the spec, same order. Local disks (image overlay, blank) are `None`: the hypervisor makes them.
    pub disks: Vec<Option<BlockDevice>>,
    /// Verified local copies of images used by `DiskSource::Image`, same order as `disks` (`None` elsewhere).
    pub images: Vec<Option<PathBuf>>,
    /// Tap device names, one per NIC, same order.
    pub taps: Vec<String>,
    /// VFAT filesystem image (512-byte sectors) with label `config-2`, if the server has a config drive; attach it as a
    /// read-only disk, never as a CD-ROM (2048-byte sectors cannot carry it).
    pub config_drive: Option<Vec<u8>>,
}

/// Runs guests: `qemu`, `sim`.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What this host can carry.
    async fn capacity(&self) -> Result<HostCapacity>;

    /// All guests this driver owns on this host, stopped ones included.
    async fn observe(&self) -> Result<Vec<Guest>>;

    /// Makes the guest as planned: creates disks, starts, stops, pauses, suspends, reboots, and hot-plugs or unplugs
    /// disks and NICs of a running guest until it equals the plan. A guest that shut itself down, or crashed, stays
    /// down and is reported; it starts again when `start` is true (the agent decides, from generations).
    async fn ensure(&self, plan: &GuestPlan, start: bool) -> Result<Guest>;

    /// Ends the guest and deletes its local disks.
    async fn remove(&self, id: ServerId) -> Result<()>;

    /// The last `length` lines (all if `None`) of the serial console.
    async fn console_log(&self, id: ServerId, length: Option<usize>) -> Result<String>;

    /// Replaces the lease of this host's guests. Once one was given, guests that it does not name, and all guests when its
    /// moment has passed, stand still until a newer one lets them go on; the driver sees to that even while the agent is
    /// dead. Called only where the host has leases.
    async fn lease(&self, _lease: &GuestLease) -> Result<()> {
        Ok(())
    }

    /// A piece of the file of a local disk of a guest that is down, from `offset` on; empty at its end.
    async fn read_disk(&self, _id: ServerId, _disk: &str, _offset: u64) -> Result<Bytes> {
        Err(base::Error::not_implemented("This hypervisor hands out no disks."))
    }

    /// Whether a local disk came here by this transfer, whole.
    async fn has_disk(&self, _id: ServerId, _transfer: Uuid, _disk: &str) -> Result<bool> {
        Err(base::Error::not_implemented("This hypervisor takes no disks."))
    }

    /// Takes a piece of a local disk that comes from another host, pieces in order; an empty one is the end: from then on
    /// the disk is the guest's, in place of any before. The guest is down.
    async fn write_disk(
        &self,
        _id: ServerId,
        _transfer: Uuid,
        _disk: &str,
        _offset: u64,
        _piece: Bytes,
    ) -> Result<()> {
        Err(base::Error::not_implemented("This hypervisor takes no disks."))
    }

    /// Hints that a guest changed by itself.
    fn events(&self) -> broadcast::Receiver<ServerId>;
}

/// Work on volumes that running guests have open, which only their hypervisor can do. A storage driver that keeps
/// volumes as files asks this first; without it such work is refused, because a copy made behind a guest is torn.
#[async_trait]
pub trait LiveDisks: Send + Sync {
    /// Whether a guest process has the volume open.
    async fn in_use(&self, id: VolumeId) -> Result<bool>;

    /// Copies the volume's content of one moment into `target`: an existing, empty disk of the same virtual size that
    /// the hypervisor's user may write. Returns when the copy is whole and flushed; on error the caller deletes it.
    async fn copy(&self, id: VolumeId, target: &BlockDevice) -> Result<()>;

    /// Grows the volume and the guest's device to `bytes`.
    async fn grow(&self, id: VolumeId, bytes: u64) -> Result<()>;
}

/// Stores volumes: `block`, `sim`.
#[async_trait]
pub trait BlockStorage: Send + Sync {
    /// Volumes found with their sizes in GiB.
    async fn observe(&self) -> Result<Vec<(VolumeId, u64)>>;

    /// Snapshots found.
    async fn observe_snapshots(&self) -> Result<Vec<SnapshotId>>;

    /// Makes the volume exist with at least its size; `image` is the verified local copy for an image source.
    /// Content appears whole or not at all (made aside, then renamed).
    async fn ensure(&self, spec: &VolumeSpec, image: Option<&std::path::Path>) -> Result<()>;

    /// Deletes the volume.
    async fn remove(&self, id: VolumeId) -> Result<()>;

    /// Makes the snapshot exist.
    async fn ensure_snapshot(&self, spec: &SnapshotSpec) -> Result<()>;

    /// Deletes the snapshot; volumes made from it stay whole.
    async fn remove_snapshot(&self, id: SnapshotId) -> Result<()>;

    /// Where the volume's data is for a hypervisor of this host.
    fn device(&self, id: VolumeId) -> BlockDevice;
}

/// Plugs guests and metadata into the host's switch: `ovn` (Open_vSwitch database, taps, namespaces), `sim`.
#[async_trait]
pub trait HostNetwork: Send + Sync {
    /// Makes a tap for the NIC, plugged with `iface-id` = port id; answers the tap's name.
    async fn plug(&self, nic: &NicSpec) -> Result<String>;

    /// Whether all flows of the port are installed on this host.
    async fn installed(&self, port: PortId) -> Result<bool>;

    /// Removes the port's tap.
    async fn unplug(&self, port: PortId) -> Result<()>;

    /// Ports plugged now.
    async fn observe(&self) -> Result<Vec<PortId>>;

    /// Makes the metadata namespace of a network and answers a listening socket inside it on port 80 (`None` where
    /// the simulated driver has no sockets). Asked again for the same network after a restart, it re-uses the namespace.
    async fn metadata_listener(
        &self,
        network: base::NetworkId,
        port: &MetadataPort,
    ) -> Result<Option<std::net::TcpListener>>;

    /// Removes the metadata namespace of a network.
    async fn remove_metadata(&self, network: base::NetworkId) -> Result<()>;

    /// Networks that have a metadata namespace now.
    async fn observe_metadata(&self) -> Result<Vec<base::NetworkId>>;
}

/// Brings image bytes to a host: from the local image store, or over HTTPS from the server.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Makes a local file under `into` with the image's bytes, verified against its hash, and answers its path. The
    /// same image again answers the same file without reading it anew.
    async fn fetch(&self, image: &ImageRef, into: &std::path::Path) -> Result<PathBuf>;
}
