//! Images and members as callers read them.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::model::{Image, Member};

/// An image in Glance's form: attributes and custom properties side by side.
pub(crate) struct ImageView<'a>(pub &'a Image);

impl Serialize for ImageView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let image = self.0;
        let data = image.data.as_ref();
        let id = image.id.to_string();
        let path = format!("/v2/images/{id}");
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &image.properties {
            map.serialize_entry(name, value)?;
        }
        if image.upload.as_ref().is_some_and(|u| u.failure.is_some()) {
            map.serialize_entry("os_glance_failed_import", "file")?;
        }
        map.serialize_entry("name", &image.name)?;
        map.serialize_entry("disk_format", &image.disk_format)?;
        map.serialize_entry("container_format", &image.container_format)?;
        map.serialize_entry("visibility", &image.visibility)?;
        map.serialize_entry("size", &data.map(|d| d.size))?;
        map.serialize_entry("virtual_size", &data.map(|d| d.virtual_size))?;
        map.serialize_entry("status", &image.status)?;
        map.serialize_entry("checksum", &data.map(|d| &d.checksum))?;
        map.serialize_entry("protected", &image.protected)?;
        map.serialize_entry("min_ram", &image.min_ram)?;
        map.serialize_entry("min_disk", &image.min_disk)?;
        map.serialize_entry("owner", &image.owner)?;
        map.serialize_entry("os_hidden", &image.os_hidden)?;
        map.serialize_entry("os_hash_algo", &data.map(|_| "sha512"))?;
        map.serialize_entry("os_hash_value", &data.map(|d| &d.sha512))?;
        map.serialize_entry("id", &id)?;
        map.serialize_entry("created_at", &image.meta.created_at.iso_seconds())?;
        map.serialize_entry("updated_at", &image.meta.updated_at.iso_seconds())?;
        map.serialize_entry("tags", &image.tags)?;
        map.serialize_entry("self", &path)?;
        map.serialize_entry("file", &format!("{path}/file"))?;
        map.serialize_entry("schema", "/v2/schemas/image")?;
        map.end()
    }
}

/// A member in Glance's form.
pub(crate) struct MemberView<'a>(pub &'a Member);

impl Serialize for MemberView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let member = self.0;
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("member_id", &member.member_id)?;
        map.serialize_entry("image_id", &member.image_id)?;
        map.serialize_entry("status", &member.status)?;
        map.serialize_entry("created_at", &member.meta.created_at.iso_seconds())?;
        map.serialize_entry("updated_at", &member.meta.updated_at.iso_seconds())?;
        map.serialize_entry("schema", "/v2/schemas/member")?;
        map.end()
    }
}
