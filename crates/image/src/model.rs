//! What the image service keeps.

use std::collections::BTreeMap;

use base::{ImageId, ProjectId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Tables of the image service.
pub const MIGRATIONS: &[store::Migration] = &[store::Migration::new(
    1,
    "images and members",
    &[store::Step::table::<Image>(), store::Step::table::<Member>()],
)];

store::resource! {
    /// An image: a record, and once `active` a file of bytes that never changes.
    pub struct Image, table "images", id ImageId {
        unique: [],
        index: [owner, visibility, status, name],
    } {
        /// Owner.
        pub owner: Option<ProjectId>,
        /// Name; need not be unique.
        pub name: Option<String>,
        /// One of [`status`].
        pub status: String,
        /// `public`, `private`, `shared` or `community`.
        pub visibility: String,
        /// Declared format; equal to the probed one once `active` (but for `ami`, `ari`, `aki`, which are raw).
        pub disk_format: Option<String>,
        /// What wraps the disk; `bare`: nothing.
        pub container_format: Option<String>,
        /// Format probed from the bytes.
        pub probed: Option<String>,
        /// Smallest disk in GiB.
        pub min_disk: u64,
        /// Smallest memory in MiB.
        pub min_ram: u64,
        /// Cannot be deleted.
        pub protected: bool,
        /// Not in lists unless asked for.
        pub os_hidden: bool,
        /// Tags in the order they came.
        pub tags: Vec<String>,
        /// Custom properties.
        pub properties: BTreeMap<String, String>,
        /// The bytes, once there are some.
        pub data: Option<Data>,
        /// The upload under way, or the staged bytes that wait for import.
        pub upload: Option<Upload>,
        /// When the status last changed hands (uploads that ended are told from running ones by file locks, not by this).
        pub touched_at: Timestamp,
    }
}

store::resource! {
    /// A project that a shared image is offered to.
    pub struct Member, table "image_members", id Uuid {
        unique: [[image_id, member_id]],
        index: [image_id, member_id, status],
    } {
        /// The image.
        pub image_id: ImageId,
        /// The project.
        pub member_id: ProjectId,
        /// `pending`, `accepted` or `rejected`; the member's own choice.
        pub status: String,
    }
}

/// What is known of stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Length in bytes.
    pub size: u64,
    /// Size of the disk inside, in bytes.
    pub virtual_size: u64,
    /// MD5, hex.
    pub checksum: String,
    /// SHA-512, hex.
    pub sha512: String,
}

/// Bytes on their way in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Names the temporary file; while its writer lives, that file is locked.
    pub token: String,
    /// Bytes announced or, once staged, received: counted against the quota.
    pub size: u64,
    /// Hashes of staged bytes: MD5 and SHA-512, hex.
    pub staged: Option<(String, String)>,
    /// Why the last import failed, for people.
    pub failure: Option<String>,
}

/// Values of [`Image::status`].
pub mod status {
    /// No bytes yet.
    pub const QUEUED: &str = "queued";
    /// Bytes come in.
    pub const SAVING: &str = "saving";
    /// Bytes come into the staging area, or wait there.
    pub const UPLOADING: &str = "uploading";
    /// Staged bytes are being checked and published.
    pub const IMPORTING: &str = "importing";
    /// Usable.
    pub const ACTIVE: &str = "active";
    /// Kept, but not handed out.
    pub const DEACTIVATED: &str = "deactivated";
}
