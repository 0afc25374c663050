//! What a host shall be ([`HostSpec`], down) and what it is ([`HostReport`], up).
//!
//! The server folds all desired rows of a host into one `HostSpec`. The agent keeps the last accepted one on disk and
//! refuses an older generation, and the same generation with other content: two servers can then only waste work.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base::net::IpNet;
use base::{
    HostId, ImageId, MacAddr, NetworkId, PortId, ProjectId, ServerId, SnapshotId, Timestamp, UserId, VolumeId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Everything one host shall run. A full picture, not a delta: what is absent shall not be there. Pictures that follow
/// each other share the servers that did not change, so that a host's thousandth change costs no more than its first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// The host.
    pub host: HostId,
    /// Grows with every change of the content; never back.
    pub generation: u64,
    /// Servers, in id order.
    pub servers: Vec<Arc<ServerSpec>>,
    /// Volumes stored on this host, in id order.
    pub volumes: Vec<VolumeSpec>,
    /// Snapshots of those volumes, in id order.
    pub snapshots: Vec<SnapshotSpec>,
}

impl HostSpec {
    /// A spec of nothing.
    pub fn empty(host: HostId) -> Self {
        HostSpec { host, generation: 0, servers: Vec::new(), volumes: Vec::new(), snapshots: Vec::new() }
    }
}

/// The power state a server shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Guest CPUs run.
    Running,
    /// No guest process (its disks stay).
    Stopped,
    /// Guest CPUs halted, memory kept in RAM.
    Paused,
    /// Memory saved to disk, no guest process.
    Suspended,
}

/// A virtual machine as it shall be on this host.
// `Eq`, so that two `Arc`s of the same one are equal without a look inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// The server.
    pub id: ServerId,
    /// The server resource's generation this was made from; echoed in the report.
    pub generation: u64,
    /// Owner.
    pub project_id: ProjectId,
    /// Creator.
    pub user_id: UserId,
    /// Display name.
    pub name: String,
    /// Desired power state.
    pub power: Power,
    /// Reboots asked for so far; when it exceeds the number done, the agent reboots once and records the new number.
    pub reboots: u64,
    /// Whether the latest asked reboot is hard (reset) rather than soft (ACPI, then reset after a grace period).
    pub reboot_hard: bool,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Flavor extra specs and image properties (`hw_*`) that matter to the hypervisor.
    pub properties: BTreeMap<String, String>,
    /// Disks in boot order (the first is the boot disk).
    pub disks: Vec<DiskSpec>,
    /// Network interfaces in guest order.
    pub nics: Vec<NicSpec>,
    /// Whether a config drive (label `config-2`) is attached.
    pub config_drive: bool,
    /// What the guest may read about itself, by config drive and metadata service.
    pub metadata: GuestMetadata,
    /// Local disks are those of another host, fetched before anything else: the server is on its way here. While this is
    /// set the server stands still, here and there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks_from: Option<DisksFrom>,
}

/// Where the local disks of a server come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksFrom {
    /// The host that has them.
    pub host: HostId,
    /// Names this move: what came by another one is worth nothing.
    pub transfer: Uuid,
}

/// Largest piece of a disk that passes at once.
pub const PIECE: usize = 2 * 1024 * 1024;

/// A piece of a local disk of a server that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPart {
    /// The server.
    pub server: ServerId,
    /// The move.
    pub transfer: Uuid,
    /// Name of the disk, as in [`DiskSpec::name`].
    pub disk: String,
    /// Where in its file the piece begins.
    pub offset: u64,
}

/// A disk of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// `root`, `ephemeral0`, `swap`, or the volume's id: the name under which the disk is found again.
    pub name: String,
    /// What it is made of.
    pub source: DiskSource,
    /// virtio-blk serial: first 20 characters of the volume id, empty for local disks.
    pub serial: String,
    /// The guest device name reported by the API, e.g. `/dev/vda` (a hint; the guest decides).
    pub device: String,
}

/// What a disk is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A local overlay on an image, `size_gib` large (0: the image's virtual size).
    Image {
        /// Which image.
        image: ImageRef,
        /// Size in GiB; 0 = the image's own virtual size.
        size_gib: u64,
    },
    /// An empty local disk.
    Blank {
        /// Size in GiB.
        size_gib: u64,
    },
    /// A volume of the block storage service.
    Volume {
        /// Which volume; the host's block driver says where it is.
        volume: VolumeId,
    },
}

/// An image as an agent needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image.
    pub id: ImageId,
    /// SHA-512 of the bytes, lower-case hex; the agent verifies it.
    pub sha512: String,
    /// `qcow2` or `raw` (others are refused for booting).
    pub format: String,
    /// Length in bytes.
    pub size: u64,
}

/// A network interface of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// The port; also the `iface-id` under which OVN binds the tap.
    pub port: PortId,
    /// Its network.
    pub network: NetworkId,
    /// MAC address.
    pub mac: MacAddr,
    /// MTU of the network.
    pub mtu: u32,
    /// Fixed addresses.
    pub fixed_ips: Vec<IpAddr>,
    /// Metadata port of that network and its addresses, where the network has one.
    pub metadata_port: Option<MetadataPort>,
}

/// The localport through which guests of a network reach the metadata service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataPort {
    /// The port.
    pub port: PortId,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// What a guest may read about itself (Nova metadata formats are built from this by the agent).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestMetadata {
    /// `hostname` in the metadata.
    pub hostname: String,
    /// Availability zone.
    pub availability_zone: String,
    /// User metadata of the server (`meta`).
    pub meta: BTreeMap<String, String>,
    /// SSH public keys by key pair name.
    pub public_keys: BTreeMap<String, String>,
    /// User data as sent by the user, still base64; `None` if none.
    pub user_data: Option<String>,
    /// Administrator password, if one was set.
    pub admin_pass: Option<String>,
    /// Launch index in a multi-create request.
    pub launch_index: u32,
    /// `network_data.json` of the OpenStack metadata format.
    pub network_data: Value,
    /// Flavor name (EC2 `instance-type`).
    pub instance_type: String,
    /// Image id (EC2 `ami-id` is derived from it).
    pub image_id: Option<ImageId>,
    /// Security group names.
    pub security_groups: Vec<String>,
    /// Floating address (EC2 `public-ipv4`).
    pub public_ipv4: Option<IpAddr>,
    /// Volume device tags and other `devices` entries of the OpenStack format.
    pub devices: Vec<Value>,
}

/// A volume as it shall be on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The volume.
    pub id: VolumeId,
    /// The volume resource's generation; echoed in the report.
    pub generation: u64,
    /// Size in GiB; only grows.
    pub size_gib: u64,
    /// Where its first content comes from; ignored once the volume exists.
    pub source: VolumeSource,
}

/// Where a new volume's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// Zeros.
    Blank,
    /// An image.
    Image(ImageRef),
    /// A snapshot on the same host.
    Snapshot(SnapshotId),
    /// A copy of another volume on the same host. The volume's own id: it was made before and has to be there; one that
    /// is missing is an error and is never made anew, because that would hide the loss of its content.
    Volume(VolumeId),
}

/// A snapshot as it shall be on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// The snapshot.
    pub id: SnapshotId,
    /// The snapshot resource's generation; echoed in the report.
    pub generation: u64,
    /// Of which volume.
    pub volume: VolumeId,
}

/// What a host is, measured. Sent on change and every 30 s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host.
    pub host: HostId,
    /// Grows with every report of this agent; the server ignores older ones.
    pub sequence: u64,
    /// The generation of the spec that the agent holds.
    pub generation: u64,
    /// When it was measured, by the agent's clock.
    pub at: Timestamp,
    /// Version of the agent's program; empty where it is from before agents told it.
    #[serde(default)]
    pub version: String,
    /// What the host has.
    pub capacity: HostCapacity,
    /// Servers found.
    pub servers: Vec<ServerReport>,
    /// Volumes found.
    pub volumes: Vec<VolumeReport>,
    /// Snapshots found.
    pub snapshots: Vec<SnapshotReport>,
}

/// What a host has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct HostCapacity {
    /// Name of the host (`hypervisor_hostname`, OVN chassis name).
    pub hostname: String,
    /// `QEMU` (KVM or TCG) or `sim`.
    pub hypervisor_type: String,
    /// E.g. 10000002 for 10.0.2, as Nova shows it.
    pub hypervisor_version: u64,
    /// `kvm`, `tcg` or `sim`.
    pub accelerator: String,
    /// Physical CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Space for local disks in GiB.
    pub disk_gib: u64,
    /// Free space for local disks in GiB.
    pub disk_free_gib: u64,
    /// CPU model, features, topology as Nova's `cpu_info`.
    pub cpu_info: Value,
    /// Address on which guests' services of this host are reached.
    pub host_ip: Option<IpAddr>,
    /// Whether local disks of servers can come from here and go to here.
    #[serde(default)]
    pub moves_disks: bool,
}

/// What a guest does, as far as the host can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerObserved {
    /// CPUs run.
    Running,
    /// Halted in memory.
    Paused,
    /// Saved to disk.
    Suspended,
    /// Shut down: no process, and that is as wanted or as the guest itself did.
    Shutdown,
    /// The process ended without being asked and without the guest asking.
    Crashed,
}

impl PowerObserved {
    /// All of them.
    pub const ALL: [PowerObserved; 5] = [
        PowerObserved::Running,
        PowerObserved::Paused,
        PowerObserved::Suspended,
        PowerObserved::Shutdown,
        PowerObserved::Crashed,
    ];

    /// The name as serialised.
    pub fn name(self) -> &'static str {
        match self {
            PowerObserved::Running => "running",
            PowerObserved::Paused => "paused",
            PowerObserved::Suspended => "suspended",
            PowerObserved::Shutdown => "shutdown",
            PowerObserved::Crashed => "crashed",
        }
    }
}

/// A server found on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    /// The server.
    pub id: ServerId,
    /// Generation of the `ServerSpec` that was last worked on.
    pub generation: u64,
    /// Whether everything of that generation is as it shall be.
    pub converged: bool,
    /// What it does.
    pub power: Option<PowerObserved>,
    /// How many reboots have been done (compare `ServerSpec::reboots`).
    pub reboots: u64,
    /// Volumes attached now.
    pub volumes: Vec<VolumeId>,
    /// Ports plugged now.
    pub ports: Vec<PortId>,
    /// Why it does not converge; readable by the operator.
    pub error: Option<String>,
}

/// A volume found on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeReport {
    /// The volume.
    pub id: VolumeId,
    /// Generation of the spec that was last worked on.
    pub generation: u64,
    /// Whether it is as it shall be.
    pub ready: bool,
    /// Present size in GiB.
    pub size_gib: u64,
    /// Why it does not converge.
    pub error: Option<String>,
}

/// A snapshot found on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The snapshot.
    pub id: SnapshotId,
    /// Whether it is complete.
    pub ready: bool,
    /// Why it does not converge.
    pub error: Option<String>,
}

#[cfg(test)]
mod compatibility {
    //! Servers and agents of the version before speak with those of this one: what they send is understood, and what they
    //! do not know they pass over. The samples are what the version before sends; they are replaced at a release, never
    //! to make a test pass.

    use serde::de::DeserializeOwned;

    use super::*;

    const SPEC: &str = include_str!("../testdata/host_spec.previous.json");
    const REPORT: &str = include_str!("../testdata/host_report.previous.json");

    /// Adds a field that nobody knows to every object that is a struct; maps of names have no unknown fields.
    fn widen(value: &mut Value, depth: usize) {
        const FREE: [&str; 6] = ["properties", "meta", "public_keys", "network_data", "cpu_info", "source"];
        match value {
            Value::Object(fields) => {
                for (name, field) in fields.iter_mut().filter(|(name, _)| !FREE.contains(&name.as_str())) {
                    let _ = name;
                    widen(field, depth + 1);
                }
                fields.insert("of_a_newer_version".into(), serde_json::json!({"depth": depth}));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| widen(item, depth)),
            _ => {}
        }
    }

    fn both_ways<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(sample: &str) {
        let theirs: Value = serde_json::from_str(sample).unwrap();
        let ours: T = serde_json::from_value(theirs.clone()).unwrap();
        // Every field that the version before needs is still sent, with the same name and meaning.
        let sent = serde_json::to_value(&ours).unwrap();
        covers(&sent, &theirs, "");
        let mut newer = theirs;
        widen(&mut newer, 0);
        assert_eq!(serde_json::from_value::<T>(newer).unwrap(), ours, "unknown fields are passed over");
    }

    fn covers(ours: &Value, theirs: &Value, path: &str) {
        match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => {
                for (name, theirs) in theirs {
                    let ours = ours.get(name).unwrap_or_else(|| panic!("{path}/{name} is not sent any more"));
                    covers(ours, theirs, &format!("{path}/{name}"));
                }
            }
            (Value::Array(ours), Value::Array(theirs)) => {
                assert_eq!(ours.len(), theirs.len(), "{path}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    covers(ours, theirs, path);
                }
            }
            _ => assert_eq!(ours, theirs, "{path}"),
        }
    }

    #[test]
    fn a_spec_of_the_version_before_is_understood_both_ways() {
        both_ways::<HostSpec>(SPEC);
    }

    #[test]
    fn a_report_of_the_version_before_is_understood_both_ways() {
        both_ways::<HostReport>(REPORT);
    }
}
