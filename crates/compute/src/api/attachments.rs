//! `/servers/{id}/os-volume_attachments`.

use ::api::types::{LaxBool, Text, Uuid};
use ::api::{Ctx, Op, Reply, Request};
use base::{AttachmentId, Error, Result, VolumeId};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::interfaces::PLUGGABLE;
use super::wire::{gate, owned, record, server_id};
use crate::State;
use crate::logic::state::{need, unlocked};
use crate::model::{Disk, DiskState, Origin, Server, VolumeClaim};

pub(super) fn ops() -> Vec<Op<State>> {
    const ALL: &str = "/v2.1/servers/{id}/os-volume_attachments";
    const ONE: &str = "/v2.1/servers/{id}/os-volume_attachments/{volume}";
    vec![
        Op::get(ALL, "os_compute_api:os-volumes-attachments:index", list).summary("List attached volumes"),
        Op::post(ALL, "os_compute_api:os-volumes-attachments:create", create).summary("Attach a volume"),
        Op::get(ONE, "os_compute_api:os-volumes-attachments:show", show).summary("Show an attached volume"),
        Op::put(ONE, "os_compute_api:os-volumes-attachments:update", update)
            .status(202)
            .summary("Change an attachment"),
        Op::delete(ONE, "os_compute_api:os-volumes-attachments:delete", delete)
            .status(202)
            .summary("Detach a volume"),
    ]
}

fn view(cx: &Ctx<State>, server: &Server, disk: &Disk) -> Value {
    let mut map = Map::new();
    // The old id, the volume's own, is gone since 2.89.
    if !cx.since(2, 89) {
        map.insert("id".into(), json!(disk.volume));
    }
    map.insert("volumeId".into(), json!(disk.volume));
    map.insert("serverId".into(), json!(server.id));
    map.insert("device".into(), json!(disk.device));
    if cx.since(2, 70) {
        map.insert("tag".into(), json!(disk.tag));
    }
    if cx.since(2, 79) {
        map.insert("delete_on_termination".into(), json!(disk.delete_on_termination));
    }
    if cx.since(2, 89) {
        map.insert("attachment_id".into(), json!(disk.attachment));
        map.insert("bdm_uuid".into(), json!(disk.attachment));
    }
    Value::Object(map)
}

async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let page = req.page(cx.state().config.max_limit)?;
    let offset: usize = match req.query_pairs().get("offset") {
        None => 0,
        Some(t) => t
            .parse()
            .map_err(|_| Error::bad_request(format!("Invalid input for query parameter 'offset': '{t}'.")))?,
    };
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let items: Vec<Value> =
        server.disks.iter().skip(offset).take(page.limit).map(|d| view(&cx, &server, d)).collect();
    Ok(Reply::json(&json!({"volumeAttachments": items})))
}

fn no_attachment(server: &Server, volume: &str) -> Error {
    Error::not_found(format!("Instance {} is not attached to volume {volume}.", server.id))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let volume = req.param("volume");
    let disk = server.disks.iter().find(|d| d.volume.to_string() == volume);
    let disk = disk.ok_or_else(|| no_attachment(&server, volume))?;
    Ok(Reply::json(&json!({"volumeAttachment": view(&cx, &server, disk)})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    #[serde(rename = "volumeAttachment")]
    new: New,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct New {
    #[serde(rename = "volumeId")]
    volume: Uuid,
    device: Option<Text<0, 255>>,
    tag: Option<Text<1, 60>>,
    delete_on_termination: Option<LaxBool>,
}

async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    let id = server_id(&req)?;
    let new = &req.body.new;
    gate(&cx, new.tag.is_some(), 2, 49, "tag")?;
    gate(&cx, new.delete_on_termination.is_some(), 2, 79, "delete_on_termination")?;
    let cx2 = cx.clone();
    let server = cx.store().read(move |tx| owned(tx, &cx2, id)).await?;
    let volume = VolumeId(new.volume.0);
    let info = cx.state().deps.volumes.get(cx.auth(), volume).await.map_err(|e| match e.kind() {
        base::Kind::NotFound => Error::not_found(format!("Volume {volume} could not be found.")),
        _ => e,
    })?;
    if info.status != "available" && !(info.multiattach && info.status == "in-use" && cx.since(2, 60)) {
        return Err(Error::bad_request(format!(
            "Invalid volume: volume {volume} status must be 'available'. Currently in '{}'",
            info.status
        )));
    }
    if let (Some(at), Some(host)) = (info.host, server.host_id)
        && at != host
    {
        return Err(Error::conflict(format!(
            "Volume {volume} is stored on another host than the one that runs instance {id}."
        )));
    }
    let wanted = new.device.as_ref().map(|d| d.as_str().to_owned());
    let disk = Disk {
        volume,
        attachment: AttachmentId::random(&cx.state().entropy),
        origin: Origin::Existing,
        near: None,
        size: info.size_gib,
        volume_type: None,
        boot_index: None,
        device: String::new(),
        tag: new.tag.as_ref().map(|t| t.as_str().to_owned()),
        delete_on_termination: new.delete_on_termination.is_some_and(|d| d.0),
        state: DiskState::Reserved,
        shared: info.multiattach,
    };
    let cx2 = cx.clone();
    let (server, disk) = cx
        .store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            need(&server, "attach_volume", PLUGGABLE)?;
            if server.disks.iter().any(|d| d.volume == volume) {
                return Err(Error::bad_request(format!(
                    "Volume {volume} is already attached to instance {id}."
                )));
            }
            let mut disk = disk.clone();
            disk.device = super::servers::device(&server, wanted.as_deref())?;
            VolumeClaim::take(tx, id, &disk)?;
            server.disks.push(disk.clone());
            tx.update_status(&mut server)?;
            record(tx, &cx2, &server, "attach_volume")?;
            tx.wake("server", id);
            Ok((server, disk))
        })
        .await?;
    Ok(Reply::json(&json!({"volumeAttachment": view(&cx, &server, &disk)})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(rename = "volumeAttachment")]
    new: Changed,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Changed {
    #[serde(rename = "volumeId")]
    volume: Uuid,
    delete_on_termination: Option<LaxBool>,
    #[serde(rename = "device")]
    _device: Option<Text<0, 255>>,
    #[serde(rename = "serverId")]
    _server: Option<Uuid>,
    #[serde(rename = "tag")]
    _tag: Option<Text<0, 60>>,
    #[serde(rename = "id")]
    _id: Option<Uuid>,
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let id = server_id(&req)?;
    let volume = req.param("volume").to_owned();
    let wanted = VolumeId(req.body.new.volume.0);
    let delete = req.body.new.delete_on_termination.map(|d| d.0);
    gate(&cx, delete.is_some(), 2, 85, "delete_on_termination")?;
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            let at = server.disks.iter().position(|d| d.volume.to_string() == volume);
            let at = at.ok_or_else(|| no_attachment(&server, &volume))?;
            if wanted.to_string() != volume {
                return Err(Error::conflict("Swapping volumes is not offered by this cloud."));
            }
            if let (Some(disk), Some(delete)) = (server.disks.get_mut(at), delete) {
                disk.delete_on_termination = delete;
            }
            tx.update_status(&mut server)
        })
        .await?;
    Ok(Reply::empty())
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = server_id(&req)?;
    let volume = req.param("volume").to_owned();
    let cx2 = cx.clone();
    cx.store()
        .write(move |tx| {
            let mut server = owned(tx, &cx2, id)?;
            unlocked(&server, cx2.is_admin())?;
            let at = server.disks.iter().position(|d| d.volume.to_string() == volume);
            let at = at.ok_or_else(|| no_attachment(&server, &volume))?;
            need(&server, "detach_volume", PLUGGABLE)?;
            let Some(disk) = server.disks.get_mut(at) else { return Ok(()) };
            if disk.boot_index == Some(0) {
                return Err(Error::forbidden("Can't detach root device volume"));
            }
            if disk.state == DiskState::Detaching {
                return Ok(());
            }
            disk.state = DiskState::Detaching;
            tx.update(&mut server)?;
            record(tx, &cx2, &server, "detach_volume")?;
            tx.wake("server", id);
            if let Some(host) = server.host_id {
                tx.wake("host", host);
            }
            Ok(())
        })
        .await?;
    Ok(Reply::empty())
}
