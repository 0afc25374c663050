//! What the block storage service keeps.

use std::collections::BTreeMap;

use base::{
    AttachmentId, HostId, ImageId, ProjectId, ServerId, SnapshotId, Timestamp, UserId, VolumeId, VolumeTypeId,
};
use contract::host::VolumeSource;
use serde_json::Value;
use uuid::Uuid;

/// Tables of the block storage service.
pub const MIGRATIONS: &[store::Migration] = &[store::Migration::new(
    1,
    "volumes",
    &[
        store::Step::table::<Volume>(),
        store::Step::table::<Snapshot>(),
        store::Step::table::<Attachment>(),
        store::Step::table::<VolumeType>(),
        store::Step::table::<TypeAccess>(),
        store::Step::table::<Quota>(),
        store::Step::table::<Host>(),
        store::Step::table::<Transfer>(),
    ],
)];

store::resource! {
    /// A volume. `generation` grows with its size alone: what a host has to do.
    pub struct Volume, table "volumes", id VolumeId {
        unique: [],
        index: [project_id, status, host, name, size_gib, volume_type_id, made],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Creator.
        pub user_id: UserId,
        /// Display name; empty if none was given.
        pub name: String,
        /// Description.
        pub description: Option<String>,
        /// Size in GiB.
        pub size_gib: u64,
        /// One of [`status`].
        pub status: String,
        /// Type.
        pub volume_type_id: VolumeTypeId,
        /// Availability zone.
        pub availability_zone: String,
        /// Host that stores it, once decided.
        pub host: Option<HostId>,
        /// First content.
        pub source: VolumeSource,
        /// The volume it was copied from.
        pub source_volid: Option<VolumeId>,
        /// The snapshot it was made from.
        pub snapshot_id: Option<SnapshotId>,
        /// The image it was made from.
        pub image_id: Option<ImageId>,
        /// A server can boot from it.
        pub bootable: bool,
        /// May be attached to more than one server.
        pub multiattach: bool,
        /// Only to be read (told to clients; `None`: never set).
        pub readonly: Option<bool>,
        /// User metadata.
        pub metadata: BTreeMap<String, String>,
        /// Metadata of the image it was made from.
        pub image_metadata: BTreeMap<String, String>,
        /// The host has made it (its content is there).
        pub made: bool,
        /// To be deleted: hosts are no longer told to keep it. Never taken back.
        pub doomed: bool,
        /// When the present work of a host was asked for.
        pub since: Timestamp,
        /// What the host said last, for the operator.
        pub error: Option<String>,
    }
}

store::resource! {
    /// A snapshot of a volume.
    pub struct Snapshot, table "volume_snapshots", id SnapshotId {
        unique: [],
        index: [project_id, status, host, volume_id, name, size_gib],
    } {
        /// Owner.
        pub project_id: ProjectId,
        /// Creator.
        pub user_id: UserId,
        /// Of which volume.
        pub volume_id: VolumeId,
        /// Display name; empty if none was given.
        pub name: String,
        /// Description.
        pub description: Option<String>,
        /// Size of the volume at that moment in GiB.
        pub size_gib: u64,
        /// `creating`, `available`, `deleting`, `error`, `error_deleting`.
        pub status: String,
        /// Host that stores it.
        pub host: Option<HostId>,
        /// User metadata.
        pub metadata: BTreeMap<String, String>,
        /// The host has made it.
        pub made: bool,
        /// To be deleted: hosts are no longer told to keep it. Never taken back.
        pub doomed: bool,
        /// When the present work of a host was asked for.
        pub since: Timestamp,
        /// What the host said last, for the operator.
        pub error: Option<String>,
    }
}

store::resource! {
    /// A volume given to a server (or, without one, held).
    pub struct Attachment, table "volume_attachments", id AttachmentId {
        unique: [],
        index: [volume_id, project_id, server_id, status],
    } {
        /// Which volume.
        pub volume_id: VolumeId,
        /// Owner of the volume.
        pub project_id: ProjectId,
        /// To which server; `None`: none is known.
        pub server_id: Option<ServerId>,
        /// `reserved`, `attaching`, `attached`, `detaching`.
        pub status: String,
        /// Device in the guest.
        pub device: Option<String>,
        /// `rw` or `ro`.
        pub mode: String,
        /// Name of the host that attached it.
        pub host_name: Option<String>,
        /// What the client told about itself.
        pub connector: Option<Value>,
        /// Made by the compute service, which alone may end it.
        pub managed: bool,
        /// When it became `attached`.
        pub attached_at: Option<Timestamp>,
    }
}

store::resource! {
    /// A kind of volume.
    pub struct VolumeType, table "volume_types", id VolumeTypeId {
        unique: [[name]],
        index: [name, is_public],
    } {
        /// Unique name.
        pub name: String,
        /// Description.
        pub description: Option<String>,
        /// Everybody may use it.
        pub is_public: bool,
        /// Extra specs.
        pub extra_specs: BTreeMap<String, String>,
    }
}

store::resource! {
    /// A project that may use a type which is not public.
    pub struct TypeAccess, table "volume_type_access", id Uuid {
        unique: [[type_id, project_id]],
        index: [type_id, project_id],
    } {
        /// The type.
        pub type_id: VolumeTypeId,
        /// The project.
        pub project_id: ProjectId,
    }
}

store::resource! {
    /// Limits of a project that differ from the defaults; the id `class:default` changes the defaults themselves.
    pub struct Quota, table "volume_quotas", id ProjectId {
        unique: [],
        index: [],
    } {
        /// Limit by resource name; -1: none.
        pub limits: BTreeMap<String, i64>,
    }
}

store::resource! {
    /// A host that reports.
    pub struct Host, table "volume_hosts", id HostId {
        unique: [],
        index: [name],
    } {
        /// Its name.
        pub name: String,
        /// Space in GiB.
        pub total_gib: u64,
        /// Free space in GiB.
        pub free_gib: u64,
        /// When it last reported (kept to about a minute).
        pub seen_at: Timestamp,
    }
}

store::resource! {
    /// A volume on offer to another project.
    pub struct Transfer, table "volume_transfers", id Uuid {
        unique: [[volume_id]],
        index: [volume_id, project_id],
    } {
        /// Which volume.
        pub volume_id: VolumeId,
        /// Who offers it.
        pub project_id: ProjectId,
        /// Display name.
        pub name: String,
        /// SHA-256 of salt and key, hex.
        pub key_hash: String,
        /// Salt, hex.
        pub salt: String,
    }
}

/// Values of [`Volume::status`].
pub mod status {
    /// A host makes it.
    pub const CREATING: &str = "creating";
    /// Free to be used.
    pub const AVAILABLE: &str = "available";
    /// Claimed for a server.
    pub const RESERVED: &str = "reserved";
    /// Being attached (by the older way).
    pub const ATTACHING: &str = "attaching";
    /// Attached.
    pub const IN_USE: &str = "in-use";
    /// Being detached.
    pub const DETACHING: &str = "detaching";
    /// A host grows it.
    pub const EXTENDING: &str = "extending";
    /// A host deletes it.
    pub const DELETING: &str = "deleting";
    /// On offer to another project.
    pub const AWAITING_TRANSFER: &str = "awaiting-transfer";
    /// Could not be made.
    pub const ERROR: &str = "error";
    /// Could not be grown.
    pub const ERROR_EXTENDING: &str = "error_extending";
    /// Could not be deleted.
    pub const ERROR_DELETING: &str = "error_deleting";
}

impl Volume {
    /// A volume of nothing, to be filled in.
    pub(crate) fn blank(
        id: VolumeId,
        project_id: ProjectId,
        user_id: UserId,
        availability_zone: String,
        now: Timestamp,
    ) -> Self {
        Volume {
            id,
            meta: store::Meta::default(),
            project_id,
            user_id,
            name: String::new(),
            description: None,
            size_gib: 0,
            status: status::CREATING.to_owned(),
            volume_type_id: VolumeTypeId(Uuid::nil()),
            availability_zone,
            host: None,
            source: VolumeSource::Blank,
            source_volid: None,
            snapshot_id: None,
            image_id: None,
            bootable: false,
            multiattach: false,
            readonly: None,
            metadata: BTreeMap::new(),
            image_metadata: BTreeMap::new(),
            made: false,
            doomed: false,
            since: now,
            error: None,
        }
    }
}

impl Attachment {
    /// A claim on a volume.
    pub(crate) fn reserved(
        id: AttachmentId,
        volume: &Volume,
        server_id: Option<ServerId>,
        managed: bool,
    ) -> Self {
        Attachment {
            id,
            meta: store::Meta::default(),
            volume_id: volume.id,
            project_id: volume.project_id.clone(),
            server_id,
            status: "reserved".to_owned(),
            device: None,
            mode: "rw".to_owned(),
            host_name: None,
            connector: None,
            managed,
            attached_at: None,
        }
    }
}
