//! Metadata service: what a guest may read about itself, over HTTP on 169.254.169.254 and on the config drive.
//!
//! A guest is known by its network and its source address, which OVN's port security has verified; nothing a guest
//! sends can choose another guest's data. Formats: EC2 (`/latest/meta-data/…`) and OpenStack
//! (`/openstack/latest/…`), as Nova's metadata API documents them.

mod document;
mod serve;

pub use document::{answer, files};
pub use serve::{Directory, Listeners};
