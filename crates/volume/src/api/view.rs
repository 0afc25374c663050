//! Volumes, snapshots, attachments and types as callers read them, by microversion.
//! Source: Cinder `api/v3/views`, `api/openstack/rest_api_version_history.rst`.

use std::collections::BTreeMap;

use ::api::Ctx;
use base::{HostId, ProjectId, Result, VolumeId, VolumeTypeId};
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::common::{host_label, host_text, links};
use crate::State;
use crate::model::{Attachment, Host, Snapshot, Volume, VolumeType, status};

/// What is shown with volumes but kept elsewhere.
pub(crate) struct Around {
    types: BTreeMap<VolumeTypeId, String>,
    attachments: BTreeMap<VolumeId, Vec<Attachment>>,
    hosts: BTreeMap<HostId, String>,
}

impl Around {
    /// For these volumes.
    pub fn load(tx: &mut Tx<'_>, volumes: &[Volume]) -> Result<Self> {
        let types = tx.list::<VolumeType>(&Query::new())?.into_iter().map(|t| (t.id, t.name)).collect();
        let hosts = tx.list::<Host>(&Query::new())?.into_iter().map(|h| (h.id, h.name)).collect();
        let busy: Vec<VolumeId> =
            volumes.iter().filter(|v| v.status != status::CREATING).map(|v| v.id).collect();
        let mut attachments: BTreeMap<VolumeId, Vec<Attachment>> = BTreeMap::new();
        if !busy.is_empty() {
            for one in tx.list::<Attachment>(&Query::new().is_in("volume_id", busy))? {
                attachments.entry(one.volume_id).or_default().push(one);
            }
        }
        Ok(Around { types, attachments, hosts })
    }

    /// Name of a volume's type.
    pub fn type_name(&self, volume: &Volume) -> &str {
        self.types.get(&volume.volume_type_id).map_or("", String::as_str)
    }

    /// Name of a host as Cinder shows it.
    pub fn host(&self, id: Option<HostId>) -> Option<String> {
        id.map(|id| self.hosts.get(&id).map_or_else(|| host_text(id), |name| host_label(name)))
    }
}

/// A boolean as Python writes it.
pub(crate) fn python(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// Id, name and links.
pub(crate) fn summary(cx: &Ctx<State>, project: &ProjectId, volume: &Volume) -> Value {
    json!({"id": volume.id, "name": volume.name, "links": links(cx, project, &format!("/volumes/{}", volume.id))})
}

/// Everything about a volume that the caller may read at its microversion: what GET shows.
pub(crate) fn full_volume(cx: &Ctx<State>, project: &ProjectId, one: &Volume, around: &Around) -> Value {
    let mut view = volume(cx, project, one, around);
    if let Some(map) = view.as_object_mut() {
        extensions(cx, one, around, map);
    }
    view
}

/// What POST and PUT answer: without the fields that extensions add to GET.
pub(crate) fn volume(cx: &Ctx<State>, project: &ProjectId, volume: &Volume, around: &Around) -> Value {
    let mut metadata = volume.metadata.clone();
    if let Some(readonly) = volume.readonly {
        metadata.insert("readonly".to_owned(), python(readonly).to_owned());
    }
    let none = Vec::new();
    let attachments: Vec<Value> = around
        .attachments
        .get(&volume.id)
        .unwrap_or(&none)
        .iter()
        .filter(|a| a.status == "attached")
        .map(|a| {
            json!({
                "id": volume.id, "attachment_id": a.id, "volume_id": volume.id, "server_id": a.server_id,
                "host_name": a.host_name, "device": a.device, "attached_at": a.attached_at.map(|t| t.iso_naive()),
            })
        })
        .collect();
    let mut view = json!({
        "id": volume.id,
        "status": volume.status,
        "size": volume.size_gib,
        "availability_zone": volume.availability_zone,
        "created_at": volume.meta.created_at.iso_naive(),
        "updated_at": volume.meta.updated_at.iso_naive(),
        "attachments": attachments,
        "name": volume.name,
        "description": volume.description,
        "volume_type": around.type_name(volume),
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": metadata,
        "links": links(cx, project, &format!("/volumes/{}", volume.id)),
        "user_id": volume.user_id,
        "bootable": if volume.bootable { "true" } else { "false" },
        "encrypted": false,
        "replication_status": null,
        "consistencygroup_id": null,
        "multiattach": volume.multiattach,
        "migration_status": null,
    });
    if let Some(map) = view.as_object_mut() {
        newer(cx, volume, map);
    }
    view
}

/// Fields that extensions add.
fn extensions(cx: &Ctx<State>, volume: &Volume, around: &Around, map: &mut Map<String, Value>) {
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    put("os-vol-tenant-attr:tenant_id", json!(volume.project_id));
    if !volume.image_metadata.is_empty() {
        put("volume_image_metadata", json!(volume.image_metadata));
    }
    if cx.is_admin() {
        put("os-vol-host-attr:host", json!(around.host(volume.host)));
        put("os-vol-mig-status-attr:migstat", Value::Null);
        put("os-vol-mig-status-attr:name_id", Value::Null);
    }
}

/// Fields of later microversions.
fn newer(cx: &Ctx<State>, volume: &Volume, map: &mut Map<String, Value>) {
    let admin = cx.is_admin();
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    if cx.since(3, 13) {
        put("group_id", Value::Null);
    }
    if cx.since(3, 21) && admin {
        put("provider_id", Value::Null);
    }
    if cx.since(3, 48) {
        put("shared_targets", json!(false));
        put("service_uuid", Value::Null);
    }
    if cx.since(3, 61) && admin {
        put("cluster_name", Value::Null);
    }
    if cx.since(3, 63) {
        put("volume_type_id", json!(volume.volume_type_id));
    }
    if cx.since(3, 64) {
        put("encryption_key_id", Value::Null);
    }
    if cx.since(3, 65) {
        put("consumes_quota", json!(true));
    }
}

/// A snapshot; `detail`: with the fields of its extension.
pub(crate) fn snapshot(cx: &Ctx<State>, snapshot: &Snapshot, detail: bool) -> Value {
    let mut view = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "description": snapshot.description,
        "volume_id": snapshot.volume_id,
        "status": snapshot.status,
        "size": snapshot.size_gib,
        "created_at": snapshot.meta.created_at.iso_naive(),
        "updated_at": snapshot.meta.updated_at.iso_naive(),
        "metadata": snapshot.metadata,
    });
    let Some(map) = view.as_object_mut() else { return view };
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    if detail {
        let progress = if snapshot.status == status::AVAILABLE { "100%" } else { "0%" };
        put("os-extended-snapshot-attributes:project_id", json!(snapshot.project_id));
        put("os-extended-snapshot-attributes:progress", json!(progress));
    }
    if cx.since(3, 14) {
        put("group_snapshot_id", Value::Null);
    }
    if cx.since(3, 41) {
        put("user_id", json!(snapshot.user_id));
    }
    if cx.since(3, 65) {
        put("consumes_quota", json!(true));
    }
    view
}

/// An attachment; `detail`: with times and connection.
pub(crate) fn attachment(attachment: &Attachment, detail: bool) -> Value {
    let mut view = json!({
        "id": attachment.id,
        "status": attachment.status,
        "instance": attachment.server_id,
        "volume_id": attachment.volume_id,
    });
    if let (true, Some(map)) = (detail, view.as_object_mut()) {
        let connection = attachment.connector.as_ref().map_or_else(
            || json!({}),
            |_| json!({"driver_volume_type": "local", "volume_id": attachment.volume_id, "attachment_id": attachment.id}),
        );
        map.insert(
            "attached_at".to_owned(),
            json!(attachment.attached_at.map_or_else(String::new, |t| t.iso_naive())),
        );
        map.insert("detached_at".to_owned(), json!(""));
        map.insert("attach_mode".to_owned(), json!(attachment.mode));
        map.insert("connection_info".to_owned(), connection);
    }
    view
}

/// A volume type.
pub(crate) fn volume_type(cx: &Ctx<State>, kind: &VolumeType) -> Value {
    let admin = cx.is_admin();
    // Users read only what tells them what the type can do.
    let readable = |key: &str| {
        admin || matches!(key, "multiattach" | "replication_enabled" | "RESKEY:availability_zones")
    };
    let specs: BTreeMap<&String, &String> = kind.extra_specs.iter().filter(|(k, _)| readable(k)).collect();
    let mut view = json!({
        "id": kind.id,
        "name": kind.name,
        "is_public": kind.is_public,
        "description": kind.description,
        "extra_specs": specs,
        "os-volume-type-access:is_public": kind.is_public,
    });
    if let (true, Some(map)) = (admin, view.as_object_mut()) {
        map.insert("qos_specs_id".to_owned(), Value::Null);
    }
    view
}
