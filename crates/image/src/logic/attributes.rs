//! Attributes of an image as callers write them: which exist, who may write them, and what they may hold.
//! Source: Glance `api/v2/images.py` (read-only, reserved and base properties) and its image schema.

use base::{Error, ProjectId, Result};
use serde_json::Value;

use crate::model::{Image, status};

/// Written by the service alone.
const READ_ONLY: &[&str] = &[
    "created_at",
    "updated_at",
    "status",
    "checksum",
    "size",
    "virtual_size",
    "direct_url",
    "self",
    "file",
    "schema",
    "id",
    "os_hash_algo",
    "os_hash_value",
    "stores",
];
/// Names of older versions that no one may use.
const RESERVED: &[&str] = &["location", "deleted", "deleted_at", "is_public"];
/// Writable attributes that are not custom properties.
const WRITABLE: &[&str] = &[
    "name",
    "visibility",
    "protected",
    "os_hidden",
    "tags",
    "container_format",
    "disk_format",
    "min_ram",
    "min_disk",
    "owner",
];
/// Formats a disk may be declared as.
pub const DISK_FORMATS: &[&str] =
    &["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"];
/// What may wrap a disk.
pub const CONTAINER_FORMATS: &[&str] = &["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"];
/// Who may see an image.
pub const VISIBILITIES: &[&str] = &["community", "public", "private", "shared"];
/// Longest value of a custom property in bytes.
const MAX_VALUE: usize = 65_535;

/// Bounds an operator sets.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Custom properties of one image.
    pub properties: usize,
    /// Tags of one image.
    pub tags: usize,
}

/// 400 in Glance's words.
pub fn invalid(path: &str, reason: &str) -> Error {
    Error::bad_request(format!("Provided object does not match schema 'image': {path}: {reason}"))
}

/// Whether `name` may be written at all.
///
/// # Errors
/// `Forbidden` for read-only, reserved and location attributes; `BadRequest` for what is no name.
pub fn writable(name: &str) -> Result<()> {
    if READ_ONLY.contains(&name) {
        return Err(Error::forbidden(format!("Attribute '{name}' is read-only.")));
    }
    if RESERVED.contains(&name) || name.starts_with("os_glance_") {
        return Err(Error::forbidden(format!("Attribute '{name}' is reserved.")));
    }
    if name == "locations" {
        return Err(Error::forbidden("It's not allowed to change locations if locations are invisible."));
    }
    if name.is_empty() || name.chars().count() > 255 {
        return Err(invalid(name.get(..64).unwrap_or(name), "a property name has 1 to 255 characters"));
    }
    Ok(())
}

/// Whether it is one of the image's own attributes rather than a custom property.
pub fn is_base(name: &str) -> bool {
    WRITABLE.contains(&name) || READ_ONLY.contains(&name) || name == "locations"
}

/// Writes one attribute. Who may make an image public, or give it away, is the caller's to check.
///
/// # Errors
/// `BadRequest` naming the attribute, `Forbidden` where it may not be written (now), `TooLarge` over a bound.
pub fn set(image: &mut Image, name: &str, value: &Value, bounds: Bounds) -> Result<()> {
    writable(name)?;
    match name {
        "name" => image.name = optional_text(name, value, 255)?,
        "owner" => image.owner = optional_text(name, value, 255)?.map(ProjectId::new),
        "visibility" => image.visibility = one_of(name, value, VISIBILITIES)?,
        "protected" => image.protected = boolean(name, value)?,
        "os_hidden" => image.os_hidden = boolean(name, value)?,
        "min_disk" => image.min_disk = number(name, value)?,
        "min_ram" => image.min_ram = number(name, value)?,
        "tags" => image.tags = tags(value, bounds)?,
        "disk_format" => {
            before_data(image, name)?;
            image.disk_format = optional_one_of(name, value, DISK_FORMATS)?;
        }
        "container_format" => {
            before_data(image, name)?;
            image.container_format = optional_one_of(name, value, CONTAINER_FORMATS)?;
        }
        _ => property(image, name, value, bounds)?,
    }
    Ok(())
}

fn property(image: &mut Image, name: &str, value: &Value, bounds: Bounds) -> Result<()> {
    if value.is_null() && matches!(name, "kernel_id" | "ramdisk_id") {
        image.properties.remove(name);
        return Ok(());
    }
    let Some(text) = value.as_str() else { return Err(invalid(name, "it is not of type 'string'")) };
    if text.len() > MAX_VALUE {
        return Err(invalid(name, "it is too long"));
    }
    image.properties.insert(name.to_owned(), text.to_owned());
    if image.properties.len() > bounds.properties {
        let (have, most) = (image.properties.len(), bounds.properties);
        return Err(Error::too_large(format!(
            "The limit has been exceeded on the number of allowed image properties. Attempted: {have}, Maximum: {most}"
        )));
    }
    Ok(())
}

/// Formats are what the bytes were checked against.
fn before_data(image: &Image, name: &str) -> Result<()> {
    if image.status == status::QUEUED {
        return Ok(());
    }
    Err(Error::forbidden(format!("Attribute {name} can be only replaced for a queued image.")))
}

/// Checks one tag.
///
/// # Errors
/// `BadRequest`.
pub fn tag(text: &str) -> Result<()> {
    if text.chars().count() > 255 {
        return Err(invalid("tags", "a tag has at most 255 characters"));
    }
    Ok(())
}

/// 413 where there are too many tags.
///
/// # Errors
/// `TooLarge`.
pub fn tag_count(have: usize, bounds: Bounds) -> Result<()> {
    if have > bounds.tags {
        return Err(Error::too_large(format!(
            "The limit has been exceeded on the number of allowed image tags. Attempted: {have}, Maximum: {}",
            bounds.tags
        )));
    }
    Ok(())
}

fn tags(value: &Value, bounds: Bounds) -> Result<Vec<String>> {
    let Some(items) = value.as_array() else { return Err(invalid("tags", "it is not of type 'array'")) };
    tag_count(items.len(), bounds)?;
    let mut tags: Vec<String> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.as_str() else { return Err(invalid("tags", "a tag is not of type 'string'")) };
        tag(text)?;
        if !tags.iter().any(|t| t == text) {
            tags.push(text.to_owned());
        }
    }
    Ok(tags)
}

fn optional_text(name: &str, value: &Value, max: usize) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.chars().count() <= max => Ok(Some(text.clone())),
        Value::String(_) => Err(invalid(name, &format!("it has more than {max} characters"))),
        _ => Err(invalid(name, "it is not of type 'null' or 'string'")),
    }
}

fn one_of(name: &str, value: &Value, allowed: &[&str]) -> Result<String> {
    match value.as_str() {
        Some(text) if allowed.contains(&text) => Ok(text.to_owned()),
        _ => Err(invalid(name, &format!("it is not one of {}", allowed.join(", ")))),
    }
}

fn optional_one_of(name: &str, value: &Value, allowed: &[&str]) -> Result<Option<String>> {
    if value.is_null() { Ok(None) } else { one_of(name, value, allowed).map(Some) }
}

fn boolean(name: &str, value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| invalid(name, "it is not of type 'boolean'"))
}

fn number(name: &str, value: &Value) -> Result<u64> {
    value
        .as_u64()
        .filter(|n| *n <= 2_147_483_647)
        .ok_or_else(|| invalid(name, "it is not an integer from 0 to 2147483647"))
}
