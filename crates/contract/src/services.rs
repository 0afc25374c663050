//! What one service may ask of another. The caller chooses ids first and writes them into its own resource; then a
//! reconcile step asks. Asking twice is harmless. `ensure_*` answers the present state; a permanent refusal (bad
//! input, no such network, over quota) is an error of its kind, which the caller puts on its own resource.
//!
//! Methods that take `&AuthContext` answer as that caller would be answered over HTTP (404 for what it may not see);
//! methods without one are between services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use base::net::IpNet;
use base::{
    AttachmentId, HostId, ImageId, MacAddr, NetworkId, PortId, ProjectId, ResourceProviderId, Result,
    SecurityGroupId, ServerId, SnapshotId, SubnetId, UserId, VolumeId,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::auth::AuthContext;
use crate::host::{DiskPart, HostReport, HostSpec, MetadataPort, NicSpec};

/// An image as other services see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The image.
    pub id: ImageId,
    /// Name.
    pub name: String,
    /// `queued`, `saving`, `active`, `deactivated`, `deleted`.
    pub status: String,
    /// Owner.
    pub owner: Option<ProjectId>,
    /// Probed format of the stored bytes: `qcow2`, `raw`, …
    pub disk_format: String,
    /// `bare` etc.
    pub container_format: String,
    /// Length in bytes.
    pub size: u64,
    /// Size of the disk inside, in bytes.
    pub virtual_size: u64,
    /// Smallest disk in GiB.
    pub min_disk_gib: u64,
    /// Smallest RAM in MiB.
    pub min_ram_mib: u64,
    /// SHA-512 of the bytes, hex.
    pub sha512: String,
    /// Custom properties (`hw_*`, `os_*`, …).
    pub properties: BTreeMap<String, String>,
}

/// The image service.
#[async_trait]
pub trait Images: Send + Sync {
    /// As the caller may see it.
    async fn get(&self, auth: &AuthContext, id: ImageId) -> Result<ImageInfo>;
    /// Between services.
    async fn describe(&self, id: ImageId) -> Result<ImageInfo>;
    /// The bytes from `offset`.
    async fn read(&self, id: ImageId, offset: u64) -> Result<BoxStream<'static, Result<Bytes>>>;
    /// Path of the stored bytes where they are a file on this machine (read-only for everyone else).
    async fn local_path(&self, id: ImageId) -> Result<Option<std::path::PathBuf>>;
}

/// Where a host gets image bytes from: the image service itself, or the link to it.
#[async_trait]
pub trait ImageBytes: Send + Sync {
    /// All bytes of an image.
    async fn bytes(&self, id: ImageId) -> Result<BoxStream<'static, Result<Bytes>>>;
}

#[async_trait]
impl<T: Images + ?Sized> ImageBytes for T {
    async fn bytes(&self, id: ImageId) -> Result<BoxStream<'static, Result<Bytes>>> {
        self.read(id, 0).await
    }
}

/// How much of one resource class a provider has (Placement API, "inventory").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Total.
    pub total: u64,
    /// Kept back.
    pub reserved: u64,
    /// Smallest single claim.
    pub min_unit: u64,
    /// Largest single claim.
    pub max_unit: u64,
    /// Claims are multiples of it.
    pub step_size: u64,
    /// Factor by which `total - reserved` may be promised.
    pub allocation_ratio: f64,
}

impl Inventory {
    /// How much may be claimed in all.
    pub fn capacity(&self) -> u64 {
        let base = self.total.saturating_sub(self.reserved) as f64 * self.allocation_ratio;
        if base.is_finite() && base > 0.0 { base as u64 } else { 0 }
    }

    /// Whether `amount` has a size that can be claimed here at all.
    pub fn deals(&self, amount: u64) -> bool {
        amount >= self.min_unit
            && amount <= self.max_unit
            && (self.step_size == 0 || amount.is_multiple_of(self.step_size))
    }

    /// Whether `amount` more may be claimed where `used` is claimed already.
    pub fn fits(&self, used: u64, amount: u64) -> bool {
        self.deals(amount) && used.saturating_add(amount) <= self.capacity()
    }
}

/// A provider with what it has and what is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The provider.
    pub provider: ResourceProviderId,
    /// Its name (host name).
    pub name: String,
    /// Inventories by resource class (`VCPU`, `MEMORY_MB`, `DISK_GB`).
    pub inventories: BTreeMap<String, Inventory>,
    /// Used by resource class.
    pub used: BTreeMap<String, u64>,
    /// Trait names.
    pub traits: Vec<String>,
}

impl Candidate {
    /// Whether there is room for everything.
    pub fn has_room(&self, resources: &BTreeMap<String, u64>) -> bool {
        has_room(&self.inventories, &self.used, resources)
    }
}

/// Whether inventories have room for everything beside what is used; all by resource class.
pub fn has_room(
    inventories: &BTreeMap<String, Inventory>,
    used: &BTreeMap<String, u64>,
    resources: &BTreeMap<String, u64>,
) -> bool {
    resources.iter().all(|(class, amount)| {
        let used = used.get(class).copied().unwrap_or(0);
        inventories.get(class).is_some_and(|i| i.fits(used, *amount))
    })
}

/// What a server claims of one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The server.
    pub consumer: ServerId,
    /// Its owner.
    pub project: ProjectId,
    /// Its creator.
    pub user: UserId,
    /// The provider.
    pub provider: ResourceProviderId,
    /// Amounts by resource class.
    pub resources: BTreeMap<String, u64>,
}

/// The placement service.
#[async_trait]
pub trait Placement: Send + Sync {
    /// Makes the provider exist with exactly these inventories and traits. Never below what is allocated.
    async fn ensure_provider(
        &self,
        id: ResourceProviderId,
        name: &str,
        inventories: &BTreeMap<String, Inventory>,
        traits: &[String],
    ) -> Result<()>;
    /// All providers as they are now.
    async fn providers(&self) -> Result<Vec<Arc<Candidate>>>;
    /// Claims, in one transaction, each for itself: `Conflict` for those where there is no room. The same claim again is
    /// success.
    async fn allocate(&self, claims: &[Claim]) -> Result<Vec<Result<()>>>;
    /// Gives back all of a consumer's allocations.
    async fn deallocate(&self, consumer: ServerId) -> Result<()>;
    /// What the second of each pair has becomes what the first has, instead of what it had; no moment without a claim.
    /// Nothing where the second has nothing.
    async fn take_over(&self, pairs: &[(ServerId, ServerId)]) -> Result<()>;
    /// Used and total by resource class of a provider.
    async fn usage(&self, provider: ResourceProviderId) -> Result<BTreeMap<String, u64>>;
}

/// A network as compute sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// The network.
    pub id: NetworkId,
    /// Name (key in a server's `addresses`).
    pub name: String,
    /// Owner.
    pub project_id: ProjectId,
    /// Whether other projects may use it.
    pub shared: bool,
    /// `router:external`.
    pub external: bool,
    /// Its subnets.
    pub subnets: Vec<SubnetId>,
    /// `port_security_enabled`.
    pub port_security: bool,
}

/// A port as compute sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortInfo {
    /// The port.
    pub id: PortId,
    /// Its network.
    pub network_id: NetworkId,
    /// That network's name.
    pub network_name: String,
    /// Owner.
    pub project_id: ProjectId,
    /// `ACTIVE`, `DOWN`, `BUILD`.
    pub status: String,
    /// MAC.
    pub mac: MacAddr,
    /// MTU of the network.
    pub mtu: u32,
    /// Fixed addresses.
    pub fixed_ips: Vec<FixedIpInfo>,
    /// `(fixed, floating)` address pairs.
    pub floating_ips: Vec<(IpAddr, IpAddr)>,
    /// Server it belongs to; empty if free.
    pub device_id: String,
    /// Host name it is bound to.
    pub host: Option<String>,
    /// Security groups: id and name.
    pub security_groups: Vec<(SecurityGroupId, String)>,
    /// Metadata localport of its network.
    pub metadata_port: Option<MetadataPort>,
}

/// A fixed address with what the guest's `network_data.json` needs of its subnet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FixedIpInfo {
    /// The subnet.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip: IpAddr,
    /// The subnet's prefix.
    pub cidr: IpNet,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
    /// Whether the guest gets it by DHCP.
    pub dhcp: bool,
    /// Host routes.
    pub host_routes: Vec<(IpNet, IpAddr)>,
}

impl PortInfo {
    /// The NIC as the host needs it.
    pub fn nic(&self) -> NicSpec {
        NicSpec {
            port: self.id,
            network: self.network_id,
            mac: self.mac,
            mtu: self.mtu,
            fixed_ips: self.fixed_ips.iter().map(|f| f.ip).collect(),
            metadata_port: self.metadata_port.clone(),
        }
    }
}

/// A port to be made for a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortRequest {
    /// Chosen by the caller.
    pub id: PortId,
    /// On which network.
    pub network_id: NetworkId,
    /// Owner.
    pub project_id: ProjectId,
    /// Display name.
    pub name: String,
    /// A wanted fixed address.
    pub fixed_ip: Option<IpAddr>,
    /// Groups; empty = the project's `default` group.
    pub security_groups: Vec<SecurityGroupId>,
    /// The server.
    pub device_id: String,
    /// `compute:<availability zone>`.
    pub device_owner: String,
    /// DNS name (the server's host name).
    pub dns_name: String,
    /// The host it is bound to.
    pub host: String,
}

/// The network service.
#[async_trait]
pub trait Networks: Send + Sync {
    /// Networks on which the caller may put servers (own and shared, not external).
    async fn available(&self, auth: &AuthContext) -> Result<Vec<NetworkInfo>>;
    /// One network as the caller may see it.
    async fn network(&self, auth: &AuthContext, id: NetworkId) -> Result<NetworkInfo>;
    /// One port as the caller may see it.
    async fn port(&self, auth: &AuthContext, id: PortId) -> Result<PortInfo>;
    /// Names or ids of the caller's security groups to ids; `BadRequest` names the missing one.
    async fn security_groups(&self, auth: &AuthContext, names: &[String]) -> Result<Vec<SecurityGroupId>>;
    /// Makes the ports exist (address allocated, quota claimed), bound to their hosts; all or none. Idempotent by id.
    async fn ensure_ports(&self, requests: &[PortRequest]) -> Result<Vec<PortInfo>>;
    /// Claims an existing free port for a device; `Conflict` if another has it. Idempotent.
    async fn claim_port(&self, port: PortId, device_id: &str, device_owner: &str) -> Result<PortInfo>;
    /// Binds to a host by name (`None` unbinds).
    async fn bind_port(&self, port: PortId, host: Option<&str>) -> Result<()>;
    /// Frees a claimed port (clears device and binding); missing is success.
    async fn release_port(&self, port: PortId, device_id: &str) -> Result<()>;
    /// Deletes a port; missing is success.
    async fn delete_port(&self, port: PortId) -> Result<()>;
    /// Ports by device id, for many devices in one question.
    async fn ports_of(&self, devices: &[String]) -> Result<BTreeMap<String, Vec<PortInfo>>>;
    /// Adds (`true`) or removes a security group on all ports of a device.
    async fn set_security_group(
        &self,
        auth: &AuthContext,
        device_id: &str,
        group: &str,
        present: bool,
    ) -> Result<()>;
}

/// A volume as compute sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The volume.
    pub id: VolumeId,
    /// Owner.
    pub project_id: ProjectId,
    /// `creating`, `available`, `reserved`, `attaching`, `in-use`, `detaching`, `error`, …
    pub status: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Whether a server can boot from it.
    pub bootable: bool,
    /// May be attached to more than one server.
    pub multiattach: bool,
    /// Host that stores it, once decided.
    pub host: Option<HostId>,
    /// Properties of the image it was made from.
    pub image_metadata: BTreeMap<String, String>,
    /// The image it was made from.
    pub image_id: Option<ImageId>,
    /// Attachments: attachment, server, device.
    pub attachments: Vec<(AttachmentId, ServerId, String)>,
}

/// Where a volume to be made for a server comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeOrigin {
    /// Empty.
    Blank,
    /// From an image.
    Image(ImageId),
    /// From a snapshot.
    Snapshot(SnapshotId),
}

/// A volume to be made for a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// Chosen by the caller.
    pub id: VolumeId,
    /// Owner.
    pub project_id: ProjectId,
    /// Creator.
    pub user_id: UserId,
    /// Display name.
    pub name: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Content.
    pub origin: VolumeOrigin,
    /// Volume type name or id; `None` = the default.
    pub volume_type: Option<String>,
    /// Host that must store it (where the server was scheduled).
    pub host: Option<HostId>,
}

/// The block storage service.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// As the caller may see it.
    async fn get(&self, auth: &AuthContext, id: VolumeId) -> Result<VolumeInfo>;
    /// A snapshot as the caller may see it: its volume and size in GiB.
    async fn snapshot(&self, auth: &AuthContext, id: SnapshotId) -> Result<(VolumeId, u64)>;
    /// Between services.
    async fn describe(&self, id: VolumeId) -> Result<VolumeInfo>;
    /// Makes the volume exist (quota claimed); poll `describe` for `available`. Idempotent by id.
    async fn ensure_volume(&self, request: &VolumeRequest) -> Result<VolumeInfo>;
    /// Claims the volume for a server (`reserved`); `Conflict`/`BadRequest` where its status forbids it. Idempotent by attachment id.
    async fn reserve(&self, volume: VolumeId, attachment: AttachmentId, server: ServerId) -> Result<()>;
    /// Tells that the host attached it (`in-use`) as `device`. Idempotent.
    async fn attached(
        &self,
        volume: VolumeId,
        attachment: AttachmentId,
        device: &str,
        host: HostId,
    ) -> Result<()>;
    /// Tells that the claim is over (`available` when the last one ends). Idempotent; missing is success.
    async fn detached(&self, volume: VolumeId, attachment: AttachmentId) -> Result<()>;
    /// Deletes (delete-on-termination); missing is success.
    async fn delete(&self, volume: VolumeId) -> Result<()>;
}

/// One service's part of a host's spec and report. The agent endpoint (in compute) calls every part in turn.
#[async_trait]
pub trait HostPart: Send + Sync {
    /// Adds this service's desired objects of their hosts to the specs.
    async fn contribute(&self, specs: &mut [HostSpec]) -> Result<()>;
    /// Takes what hosts say. Must be cheap when nothing changed: it comes every 30 s from every host.
    async fn report(&self, reports: &[Arc<HostReport>]) -> Result<()>;
}

/// A hint that the desired state of hosts changed, so that specs are folded again. Implemented by compute.
pub trait HostNudge: Send + Sync {
    /// The spec of this host may have changed.
    fn host_changed(&self, host: HostId);
    /// The metadata of this server may have changed (a floating IP, a security group).
    fn device_changed(&self, device_id: &str);
}

/// Questions to a live host that are not desired state. Implemented by the agent (in-process) or its remote client.
#[async_trait]
pub trait HostAccess: Send + Sync {
    /// The last `length` lines of a server's serial console.
    async fn console_log(&self, host: HostId, server: ServerId, length: Option<usize>) -> Result<String>;
    /// A piece of a local disk of a server that stands still, from `offset` on; empty at its end.
    async fn read_disk(&self, host: HostId, _server: ServerId, _disk: &str, _offset: u64) -> Result<Bytes> {
        Err(base::Error::not_implemented(format!("Host {host} hands out no disks.")))
    }
}

/// The control plane as an agent sees it. Implemented by compute (in-process) and by an HTTPS client.
#[async_trait]
pub trait ControlPlane: Send + Sync {
    /// Waits until there is a spec with a generation above `after` (at most about 30 s), else `None`.
    async fn spec(&self, host: HostId, after: u64) -> Result<Option<Arc<HostSpec>>>;
    /// Hands in a report; also registers an unknown host.
    async fn report(&self, report: HostReport) -> Result<()>;
    /// Renews the host's lease: its guests may run for the time answered, counted from the moment before this was asked.
    /// `generation` is that of the spec the host holds. `Conflict`: the host must take a newer spec first, because a server
    /// may have been given to another host meanwhile; `Forbidden`: the host was declared dead.
    async fn lease(&self, _host: HostId, _generation: u64) -> Result<std::time::Duration> {
        Err(base::Error::not_implemented("This control plane gives no leases."))
    }
    /// A piece of a disk that the host is to take over from another one; empty at its end.
    async fn disk(&self, _host: HostId, _part: &DiskPart) -> Result<Bytes> {
        Err(base::Error::not_implemented("This control plane passes no disks on."))
    }
    /// `Forbidden` for a host that was removed and may speak no more.
    async fn admit(&self, _host: HostId) -> Result<()> {
        Ok(())
    }
}
