//! Resources of compute.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::{
    AttachmentId, Error, FlavorId, HostId, ImageId, NetworkId, PortId, ProjectId, ServerGroupId, ServerId,
    SnapshotId, Timestamp, UserId, VolumeId,
};
use contract::host::{HostCapacity, ImageRef, NicSpec, Power, PowerObserved};
use contract::services::FixedIpInfo;
use serde::{Deserialize, Serialize};
use store::{Meta, Migration, Step, Tx};
use uuid::Uuid;

/// Text by key.
pub type Texts = BTreeMap<String, String>;

store::resource! {
    /// A flavor.
    pub struct Flavor, table "compute_flavors", id FlavorId {
        unique: [[name]],
        index: [],
    } {
        /// Name, unique.
        pub name: String,
        /// See [`FlavorSize`].
        pub size: FlavorSize,
        /// Whether every project may use it.
        pub public: bool,
        /// Whether it is left out of the choice.
        pub disabled: bool,
        /// Projects that may use it although it is not public.
        pub projects: BTreeSet<ProjectId>,
        /// Description (2.55).
        pub description: Option<String>,
    }
}

/// What a flavor gives; copied into each server, so that a flavor can be deleted under it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlavorSize {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub ram: u64,
    /// Root disk in GiB; 0 = none of its own (boot from volume, or the image's size).
    pub disk: u64,
    /// Ephemeral disk in GiB.
    pub ephemeral: u64,
    /// Swap in MiB.
    pub swap: u64,
    /// `rxtx_factor`.
    pub rxtx_factor: f64,
    /// Extra specs.
    pub extra_specs: Texts,
}

store::resource! {
    /// A key pair; the id is `user/name`.
    pub struct KeyPair, table "compute_keypairs", id String {
        unique: [[user_id, name]],
        index: [user_id],
    } {
        /// Number shown by old versions.
        pub number: u64,
        /// Owner.
        pub user_id: UserId,
        /// Name, unique per user.
        pub name: String,
        /// `ssh` or `x509`.
        pub kind: String,
        /// MD5 of the key (SSH) or SHA-1 of the certificate, with colons.
        pub fingerprint: String,
        /// Public key or certificate.
        pub public_key: String,
    }
}

/// What a server does, as Nova's `vm_state` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// On its way.
    Building,
    /// Runs.
    Active,
    /// Off.
    Stopped,
    /// Halted in memory.
    Paused,
    /// Saved to disk.
    Suspended,
    /// Failed; see its fault.
    Error,
}

impl VmState {
    /// Nova's word.
    pub fn as_str(self) -> &'static str {
        match self {
            VmState::Building => "building",
            VmState::Active => "active",
            VmState::Stopped => "stopped",
            VmState::Paused => "paused",
            VmState::Suspended => "suspended",
            VmState::Error => "error",
        }
    }
}

/// Nova's `power_state` numbers.
pub mod power {
    /// Not known.
    pub const NOSTATE: u8 = 0;
    /// Runs.
    pub const RUNNING: u8 = 1;
    /// Halted.
    pub const PAUSED: u8 = 3;
    /// Off.
    pub const SHUTDOWN: u8 = 4;
    /// Its process vanished.
    pub const CRASHED: u8 = 6;
    /// Saved.
    pub const SUSPENDED: u8 = 7;
}

/// Why a server failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// HTTP-like code.
    pub code: u16,
    /// For everyone.
    pub message: String,
    /// For administrators.
    pub details: String,
    /// When.
    pub created: Timestamp,
}

/// A network interface of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// The port; chosen before it exists where it is ours.
    pub port: PortId,
    /// Its network.
    pub network: NetworkId,
    /// Whether the user brought the port: then it is released, not deleted.
    pub given: bool,
    /// A wanted address.
    pub fixed_ip: Option<IpAddr>,
    /// Device tag.
    pub tag: Option<String>,
    /// Whether it shall go.
    pub detaching: bool,
    /// What the network service said when it was bound; `None` until then.
    pub plugged: Option<Plugged>,
}

/// What the host and the guest must know of a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plugged {
    /// For the host.
    pub spec: NicSpec,
    /// For the guest's network data.
    pub addresses: Vec<FixedIpInfo>,
    /// Names of security groups.
    pub security_groups: Vec<String>,
    /// Floating addresses.
    pub floating: Vec<IpAddr>,
}

/// How far a volume of a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// To be made.
    Creating,
    /// Claimed, not yet at the host.
    Reserved,
    /// In the host's spec.
    Attaching,
    /// In use.
    Attached,
    /// Shall go.
    Detaching,
}

/// What a volume is made from, where the server makes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Exists already.
    Existing,
    /// Empty.
    Blank,
    /// An image.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// A volume of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// The volume; chosen before it exists where it is ours to make.
    pub volume: VolumeId,
    /// Its attachment; chosen by us.
    pub attachment: AttachmentId,
    /// Made from.
    pub origin: Origin,
    /// A volume whose host must store it too: the one its snapshot was taken of.
    pub near: Option<VolumeId>,
    /// Size in GiB of one to be made.
    pub size: u64,
    /// Volume type of one to be made.
    pub volume_type: Option<String>,
    /// 0 = the boot disk; `None` = not bootable.
    pub boot_index: Option<u32>,
    /// Device name, e.g. `/dev/vda`.
    pub device: String,
    /// Device tag.
    pub tag: Option<String>,
    /// Whether it is deleted with the server.
    pub delete_on_termination: bool,
    /// How far it is.
    pub state: DiskState,
    /// Whether other servers may have it at the same time (`multiattach`).
    #[serde(default)]
    pub shared: bool,
}

/// The image a server was made from, as its host must know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootImage {
    /// For the host.
    pub image: ImageRef,
    /// Properties that matter to the hypervisor, and those shown in the API.
    pub properties: Texts,
}

store::resource! {
    /// A virtual machine as its owner asked for it and as it is now.
    pub struct Server, table "compute_servers", id ServerId {
        unique: [],
        index: [project_id, host_id, group_id, deleting],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Creator.
        pub user_id: UserId,
        /// Display name.
        pub name: String,
        /// Description (2.19).
        pub description: Option<String>,
        /// Host name inside the guest.
        pub hostname: String,
        /// The flavor it was made with.
        pub flavor_id: FlavorId,
        /// That flavor's name then.
        pub flavor_name: String,
        /// What that flavor gave.
        pub size: FlavorSize,
        /// The image it boots from by itself; `None` when it boots from a volume.
        pub image: Option<BootImage>,
        /// The key pair: name and public key.
        pub key: Option<(String, String)>,
        /// User data as sent, base64.
        pub user_data: Option<String>,
        /// Whether it has a config drive.
        pub config_drive: bool,
        /// Metadata.
        pub metadata: Texts,
        /// Tags.
        pub tags: BTreeSet<String>,
        /// Administrator password, until the guest has read it.
        pub admin_pass: Option<String>,
        /// Names or ids of security groups for ports made for it.
        pub security_groups: Vec<base::SecurityGroupId>,
        /// The availability zone asked for.
        pub zone_wanted: Option<String>,
        /// The host asked for by an administrator.
        pub host_wanted: Option<String>,
        /// Hosts of these servers are wanted (`same_host`).
        pub same_host: Vec<ServerId>,
        /// Hosts of these servers are not wanted (`different_host`).
        pub different_host: Vec<ServerId>,
        /// Its server group.
        pub group_id: Option<ServerGroupId>,
        /// Reservation of a multi-create.
        pub reservation_id: String,
        /// Place in a multi-create.
        pub launch_index: u32,
        /// `OS-DCF:diskConfig`.
        pub disk_config: String,
        /// `accessIPv4`.
        pub access_ip_v4: Option<std::net::Ipv4Addr>,
        /// `accessIPv6`.
        pub access_ip_v6: Option<std::net::Ipv6Addr>,
        /// Trusted image certificates (2.63).
        pub trusted_certs: Option<Vec<String>>,
        /// Whether ordinary actions are refused, and by whom and why.
        pub locked: Option<Locked>,
        /// Interfaces in guest order.
        pub nics: Vec<Nic>,
        /// Volumes; the boot volume first.
        pub disks: Vec<Disk>,
        /// The host it is placed on.
        pub host_id: Option<HostId>,
        /// That host's name.
        pub host_name: Option<String>,
        /// That host's availability zone.
        pub zone: Option<String>,
        /// Whether everything around it is ready, so that the host may have it.
        pub ready: bool,
        /// Wanted power state.
        pub power: Power,
        /// Reboots asked for.
        pub reboots: u64,
        /// Whether the last asked reboot is hard.
        pub reboot_hard: bool,
        /// What it does.
        pub vm_state: VmState,
        /// What is being done with it.
        pub task: Option<String>,
        /// Nova's `power_state`; see [`power`].
        pub power_state: u8,
        /// Why it failed.
        pub fault: Option<Fault>,
        /// Since when the host tells an error about the present generation.
        pub failing_since: Option<Timestamp>,
        /// When it first ran.
        pub launched_at: Option<Timestamp>,
        /// Whether it shall go.
        pub deleting: bool,
        /// The move to another host that it is in; see [`Move`].
        #[serde(default)]
        pub moving: Option<Uuid>,
    }
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The server is being stopped.
    Stopping,
    /// The other host fetches its disks.
    Copying,
    /// It is being started at the other host.
    Starting,
    /// It waits for its owner to confirm or revert.
    Verify,
    /// Its first host shall forget it.
    Confirming,
    /// It is being stopped at the other host.
    Reverting,
    /// It is being started at its first host again.
    Returning,
    /// Over.
    Ended,
}

impl Stage {
    /// Whether the first host keeps its disks although the server is at the other.
    pub fn keeps_source(self) -> bool {
        matches!(self, Stage::Starting | Stage::Verify | Stage::Reverting)
    }
}

impl Move {
    /// The hosts that have to do with it.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        [Some(self.source), self.target].into_iter().flatten()
    }
}

/// What a host told last of a server that moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The generation that it worked on.
    pub generation: u64,
    /// What the guest does, where everything of that generation is as it shall be.
    pub power: Option<PowerObserved>,
    /// Since when it fails, and why.
    pub failing: Option<(Timestamp, String)>,
}

store::resource! {
    /// A server's way to another host.
    pub struct Move, table "compute_moves", id Uuid {
        unique: [],
        index: [server_id, source, target, open],
    } {
        /// The server.
        pub server_id: ServerId,
        /// The host it was at.
        pub source: HostId,
        /// That host's name.
        pub source_name: String,
        /// The host that was chosen.
        pub target: Option<HostId>,
        /// That host's name.
        pub target_name: Option<String>,
        /// The host asked for.
        pub host_wanted: Option<String>,
        /// What the server shall do afterwards.
        pub power: Power,
        /// How far it is.
        pub stage: Stage,
        /// Whether there is anything left to do.
        pub open: bool,
        /// How it ended.
        pub status: String,
        /// Why it did not end well.
        pub message: Option<String>,
        /// What the first host told last.
        pub source_told: Option<Told>,
        /// What the other host told last.
        pub target_told: Option<Told>,
        /// Who asked for it.
        pub user_id: UserId,
        /// In which project.
        pub project_id: ProjectId,
        /// The server's flavor.
        pub flavor_id: FlavorId,
    }
}

/// A lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Locked {
    /// `admin` or `owner`.
    pub by: String,
    /// Why (2.73).
    pub reason: Option<String>,
}

store::resource! {
    /// Something that was done with a server (`os-instance-actions`).
    pub struct InstanceAction, table "compute_actions", id Uuid {
        unique: [],
        index: [server_id],
    } {
        /// The server.
        pub server_id: ServerId,
        /// `create`, `reboot`, …
        pub action: String,
        /// The request's id.
        pub request_id: String,
        /// By whom.
        pub user_id: UserId,
        /// In which project.
        pub project_id: ProjectId,
        /// When.
        pub start: Timestamp,
        /// When the work ended.
        pub finish: Option<Timestamp>,
        /// Whether it ended well.
        pub success: Option<bool>,
        /// Why not.
        pub message: Option<String>,
    }
}

store::resource! {
    /// A host as the control plane knows it.
    pub struct Host, table "compute_hosts", id HostId {
        unique: [[name]],
        index: [],
    } {
        /// Host name.
        pub name: String,
        /// What it has.
        pub capacity: HostCapacity,
        /// Version of its agent; empty for agents that do not tell it.
        #[serde(default)]
        pub agent_version: String,
        /// When it last reported (written now and then; the newest moment is in memory).
        pub seen_at: Timestamp,
        /// Whether new servers are kept away.
        pub disabled: bool,
        /// Why.
        pub disabled_reason: Option<String>,
        /// Whether an operator declared it dead.
        pub forced_down: bool,
        /// Generation of the last folded spec.
        pub spec_generation: u64,
        /// SHA-256 of the last folded spec's content.
        pub spec_hash: String,
    }
}

store::resource! {
    /// What fences a host; a row of its own, so that servers of an older version, which know nothing of it, leave it alone.
    pub struct HostLease, table "compute_leases", id HostId {
        unique: [],
        index: [],
    } {
        /// No lease that was given to the host ends later. Never goes back.
        pub until: Timestamp,
        /// Specs below this generation may name servers that were given to other hosts. Never goes back.
        pub fence: u64,
    }
}

store::resource! {
    /// A token with which one host may join; the id is the SHA-256 of its secret.
    pub struct JoinToken, table "compute_join_tokens", id String {
        unique: [],
        index: [expires_at],
    } {
        /// When it ends.
        pub expires_at: Timestamp,
        /// The host that used it, and the SHA-256 of that host's public key: the same host may ask again when the answer was lost.
        pub used: Option<(HostId, String)>,
    }
}

store::resource! {
    /// A host that joined with a token.
    pub struct JoinedHost, table "compute_joined_hosts", id HostId {
        unique: [[name]],
        index: [],
    } {
        /// Its name; `None` once it was removed.
        pub name: Option<String>,
        /// Whether it was removed: its certificate is worth nothing any more.
        pub removed: bool,
    }
}

store::resource! {
    /// What a project uses; claimed with what it pays for.
    pub struct Usage, table "compute_usage", id ProjectId {
        unique: [],
        index: [],
    } {
        /// Servers.
        pub instances: u64,
        /// Virtual CPUs.
        pub cores: u64,
        /// Memory in MiB.
        pub ram: u64,
    }
}

store::resource! {
    /// Limits of a project, where they differ from the defaults.
    pub struct QuotaSet, table "compute_quotas", id String {
        unique: [],
        index: [],
    } {
        /// By resource; -1 = no limit.
        pub limits: BTreeMap<String, i64>,
    }
}

store::resource! {
    /// A server group.
    pub struct ServerGroup, table "compute_groups", id ServerGroupId {
        unique: [],
        index: [project_id],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Creator.
        pub user_id: UserId,
        /// Name.
        pub name: String,
        /// `affinity`, `anti-affinity`, `soft-affinity`, `soft-anti-affinity`.
        pub policy: String,
        /// `max_server_per_host` (2.64).
        pub max_per_host: Option<u32>,
    }
}

store::resource! {
    /// A host aggregate.
    pub struct Aggregate, table "compute_aggregates", id Uuid {
        unique: [[name], [number]],
        index: [],
    } {
        /// The number clients know it by.
        pub number: u64,
        /// Name, unique.
        pub name: String,
        /// Host names.
        pub hosts: BTreeSet<String>,
        /// Metadata; `availability_zone` makes it a zone.
        pub metadata: Texts,
    }
}

store::resource! {
    /// What is left of a deleted server: for usage reports.
    pub struct PastServer, table "compute_past", id ServerId {
        unique: [],
        index: [project_id, ended_at],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Name.
        pub name: String,
        /// Flavor name.
        pub flavor: String,
        /// Virtual CPUs.
        pub vcpus: u32,
        /// Memory in MiB.
        pub ram: u64,
        /// Disk in GiB.
        pub disk: u64,
        /// When it first ran.
        pub started_at: Timestamp,
        /// When it was deleted.
        pub ended_at: Timestamp,
    }
}

store::resource! {
    /// Which server has a volume that only one may have. Of two that ask at the same moment one meets the other's claim. It
    /// holds as long as that server has a disk with this attachment.
    pub struct VolumeClaim, table "compute_volume_claims", id VolumeId {
        unique: [],
        index: [],
    } {
        /// The server.
        pub server_id: ServerId,
        /// The attachment.
        pub attachment: AttachmentId,
    }
}

impl VolumeClaim {
    /// Claims the volume of a disk for a server.
    ///
    /// # Errors
    /// `BadRequest` where another disk has it.
    pub fn take(tx: &mut Tx<'_>, server: ServerId, disk: &Disk) -> base::Result<()> {
        if disk.shared || disk.origin != Origin::Existing {
            return Ok(());
        }
        let claim = VolumeClaim {
            id: disk.volume,
            meta: Meta::default(),
            server_id: server,
            attachment: disk.attachment,
        };
        let Some(held) = tx.get::<VolumeClaim>(&disk.volume)? else { return tx.insert(&mut { claim }) };
        let holder = tx.get::<Server>(&held.server_id)?;
        if holder.is_some_and(|s| s.disks.iter().any(|d| d.attachment == held.attachment)) {
            return Err(Error::bad_request(format!(
                "Invalid volume: volume {} status must be 'available'. Currently in 'reserved'",
                disk.volume
            )));
        }
        tx.update_status(&mut VolumeClaim { meta: held.meta, ..claim })
    }

    /// Gives back the volume of a disk that is gone.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub fn give_back(tx: &mut Tx<'_>, disk: &Disk) -> base::Result<()> {
        let held = tx.get::<VolumeClaim>(&disk.volume)?;
        if held.is_some_and(|claim| claim.attachment == disk.attachment) {
            tx.delete::<VolumeClaim>(&disk.volume)?;
        }
        Ok(())
    }
}

/// The tables.
pub const MIGRATIONS: &[Migration] = &[FIRST, JOINING, CLAIMS, VERSIONS, MOVES];

const FIRST: Migration = Migration::new(
    1,
    "compute",
    &[
        Step::table::<Flavor>(),
        Step::table::<KeyPair>(),
        Step::table::<Server>(),
        Step::table::<InstanceAction>(),
        Step::table::<Host>(),
        Step::table::<Usage>(),
        Step::table::<QuotaSet>(),
        Step::table::<ServerGroup>(),
        Step::table::<Aggregate>(),
        Step::table::<PastServer>(),
    ],
);

const JOINING: Migration = Migration::new(
    2,
    "leases and joining hosts",
    &[Step::table::<HostLease>(), Step::table::<JoinToken>(), Step::table::<JoinedHost>()],
);

/// A new field, no column: older servers are to notice, and keep it.
const VERSIONS: Migration = Migration::new(5, "versions of agents", &[Step::table::<Host>()]);

const CLAIMS: Migration = Migration::new(3, "claims of volumes", &[Step::table::<VolumeClaim>()]);

/// Server processes of this schema know moves.
pub(crate) const KNOWS_MOVES: u32 = 6;

/// Servers are marked, and hosts say whether they hand out disks.
const MOVES: Migration = Migration::new(
    KNOWS_MOVES,
    "moves of servers",
    &[Step::table::<Move>(), Step::table::<Server>(), Step::table::<Host>()],
);
