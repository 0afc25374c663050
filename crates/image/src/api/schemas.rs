//! JSON schemas. Source: Glance `api/v2/images.py:get_schema`, `image_members.py`.

use ::api::{Ctx, Reply, Request};
use base::Result;
use serde_json::{Map, Value, json};

use crate::State;
use crate::logic::attributes::{CONTAINER_FORMATS, DISK_FORMATS, VISIBILITIES};

/// Schemas on offer.
pub(crate) const NAMES: &[&str] = &["image", "images", "member", "members"];

pub(crate) async fn show(_: Ctx<State>, _: Request<()>, name: &str) -> Result<Reply> {
    Ok(Reply::json(&match name {
        "image" => image(),
        "images" => collection("images", "image", &image()),
        "member" => member(),
        _ => collection("members", "member", &member()),
    }))
}

fn collection(name: &str, item: &str, schema: &Value) -> Value {
    let mut properties = Map::new();
    properties.insert(name.to_owned(), json!({"type": "array", "items": schema}));
    properties.insert("schema".to_owned(), json!({"type": "string"}));
    let mut links = vec![json!({"rel": "describedby", "href": "{schema}"})];
    if item == "image" {
        for rel in ["first", "next"] {
            properties.insert(rel.to_owned(), json!({"type": "string"}));
            links.insert(links.len() - 1, json!({"rel": rel, "href": format!("{{{rel}}}")}));
        }
    }
    json!({"name": name, "properties": properties, "links": links})
}

fn image() -> Value {
    let uuid = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$";
    let text =
        |about: &str, max: u64| json!({"type": ["null", "string"], "description": about, "maxLength": max});
    let read_only = |kind: Value, about: &str| json!({"type": kind, "readOnly": true, "description": about});
    let nullable = |values: &[&str]| {
        std::iter::once(Value::Null).chain(values.iter().map(|v| json!(v))).collect::<Vec<Value>>()
    };
    let maybe_text = json!(["null", "string"]);
    let maybe_number = json!(["null", "integer"]);
    let properties = json!({
        "id": {"type": "string", "pattern": uuid, "description": "An identifier for the image"},
        "name": text("Descriptive name for the image", 255),
        "status": {"type": "string", "readOnly": true, "description": "Status of the image",
            "enum": ["queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete", "deactivated"]},
        "visibility": {"type": "string", "enum": VISIBILITIES, "description": "Scope of image accessibility"},
        "protected": {"type": "boolean", "description": "If true, image will not be deletable."},
        "os_hidden": {"type": "boolean", "description": "If true, image will not appear in default image list response."},
        "checksum": {"type": maybe_text, "maxLength": 32, "readOnly": true, "description": "md5 hash of image contents."},
        "os_hash_algo": {"type": maybe_text, "maxLength": 64, "readOnly": true, "description": "Algorithm to calculate the os_hash_value"},
        "os_hash_value": {"type": maybe_text, "maxLength": 128, "readOnly": true, "description": "Hexdigest of the image contents using the algorithm specified by the os_hash_algo"},
        "owner": text("Owner of the image", 255),
        "size": read_only(maybe_number.clone(), "Size of image file in bytes"),
        "virtual_size": read_only(maybe_number, "Virtual size of image in bytes"),
        "container_format": {"type": maybe_text, "enum": nullable(CONTAINER_FORMATS), "description": "Format of the container"},
        "disk_format": {"type": maybe_text, "enum": nullable(DISK_FORMATS), "description": "Format of the disk"},
        "created_at": read_only(json!("string"), "Date and time of image registration"),
        "updated_at": read_only(json!("string"), "Date and time of the last image modification"),
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}, "description": "List of strings related to the image"},
        "direct_url": read_only(json!("string"), "URL to access the image file kept in external store"),
        "min_ram": {"type": "integer", "description": "Amount of ram (in MB) required to boot image."},
        "min_disk": {"type": "integer", "description": "Amount of disk space (in GB) required to boot image."},
        "self": read_only(json!("string"), "An image self url"),
        "file": read_only(json!("string"), "An image file url"),
        "stores": read_only(json!("string"), "Store in which image data resides."),
        "schema": read_only(json!("string"), "An image schema url"),
        "locations": {"type": "array", "items": {"type": "object", "required": ["url", "metadata"],
            "properties": {"url": {"type": "string", "maxLength": 255}, "metadata": {"type": "object"}, "validation_data": {"type": "object"}}},
            "description": "A set of URLs to access the image file kept in external store"},
        "kernel_id": {"type": maybe_text, "pattern": uuid, "is_base": false, "description": "ID of image stored in Glance that should be used as the kernel when booting an AMI-style image."},
        "ramdisk_id": {"type": maybe_text, "pattern": uuid, "is_base": false, "description": "ID of image stored in Glance that should be used as the ramdisk when booting an AMI-style image."},
        "instance_uuid": {"type": "string", "is_base": false, "description": "Metadata which can be used to record which instance this image is associated with."},
        "architecture": {"type": "string", "is_base": false, "description": "Operating system architecture"},
        "os_distro": {"type": "string", "is_base": false, "description": "Common name of operating system distribution"},
        "os_version": {"type": "string", "is_base": false, "description": "Operating system version as specified by the distributor."},
    });
    json!({
        "name": "image",
        "properties": properties,
        "additionalProperties": {"type": "string"},
        "links": [
            {"rel": "self", "href": "{self}"},
            {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    })
}

fn member() -> Value {
    json!({
        "name": "member",
        "properties": {
            "member_id": {"type": "string", "description": "An identifier for the image member (tenantId)"},
            "image_id": {"type": "string", "description": "An identifier for the image"},
            "created_at": {"type": "string", "description": "Date and time of image member creation"},
            "updated_at": {"type": "string", "description": "Date and time of last modification of image member"},
            "status": {"type": "string", "enum": ["pending", "accepted", "rejected"], "description": "The status of this image member"},
            "schema": {"readOnly": true, "type": "string"},
        },
    })
}
