//! The attachments API (3.27, 3.44).

use ::api::{Ctx, Reply, Request, Target};
use base::{AttachmentId, Result, ServerId, VolumeId};
use serde_json::{Value, json};
use store::Query;

use super::actions::unmanaged;
use super::common::{attachment, attachments, here, missing_attachment, paged};
use super::view;
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::list::{Cell, Filters, Page, sort_by};
use crate::logic::machine::{invalid_volume, may_attach, no_volume};
use crate::model::{Attachment, Volume, status};
use crate::service::settle;

const SORT_KEYS: &[&str] = &["id", "volume_id", "status", "created_at", "updated_at"];
const FILTERS: &[&str] = &["id", "volume_id", "status", "instance_id", "attach_status", "project_id"];

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    listing(cx, req, false).await
}

pub(crate) async fn detail(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    listing(cx, req, true).await
}

async fn listing(cx: Ctx<State>, req: Request<()>, full: bool) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let page = Page::parse(req.query_pairs(), SORT_KEYS)?;
    let filters = Filters::parse(req.query_pairs(), FILTERS, false)?;
    let all = cx.is_admin() && filters.all_tenants;
    let query = if all { Query::new() } else { Query::new().eq("project_id", &project) };
    let mut rows = cx.store().read(move |tx| tx.list::<Attachment>(&query)).await?;
    rows.retain(|a| filters.pass(&std::collections::BTreeMap::new(), |key| cell_text(a, key)));
    let cell = |a: &Attachment, key: &str| match key {
        "created_at" => Cell::Number(a.meta.created_at.0),
        "updated_at" => Cell::Number(a.meta.updated_at.0),
        _ => Cell::Text(cell_text(a, key)),
    };
    sort_by(&mut rows, &page.sort, cell, |a| (a.meta.created_at, a.id.to_string()));
    let next = page.cut(&mut rows, |a| a.id.to_string())?;
    let items = rows.iter().map(|a| view::attachment(a, full)).collect();
    Ok(paged(&cx, &req, &page, "attachments", items, next, None))
}

fn cell_text(attachment: &Attachment, key: &str) -> String {
    match key {
        "id" => attachment.id.to_string(),
        "volume_id" => attachment.volume_id.to_string(),
        "instance_id" => attachment.server_id.map(|s| s.to_string()).unwrap_or_default(),
        "project_id" => attachment.project_id.to_string(),
        _ => attachment.status.clone(),
    }
}

/// A connector: what a client tells about itself. Kept small; nothing in it is acted on.
fn connector(fields: &Fields<'_>) -> Result<Option<Value>> {
    match fields.get("connector") {
        None => Ok(None),
        Some(value @ Value::Object(_)) if value.to_string().len() <= 4096 => Ok(Some(value.clone())),
        Some(Value::Object(_)) => Err(invalid("connector", "It is too large.")),
        Some(_) => Err(invalid("connector", "It is not of type 'object'.")),
    }
}

fn mode(fields: &Fields<'_>, cx: &Ctx<State>) -> Result<Option<String>> {
    if !cx.since(3, 54) {
        return Ok(None);
    }
    match fields.text("mode", 8)? {
        Some(mode) if !matches!(mode.as_str(), "rw" | "ro") => {
            Err(invalid("mode", "It is not one of 'rw', 'ro'."))
        }
        other => Ok(other),
    }
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let fields = Fields::of(&req.body, "attachment")?;
    fields.only(&["instance_uuid", "volume_uuid", "connector", "mode"])?;
    let volume_id: VolumeId =
        fields.id("volume_uuid")?.ok_or_else(|| invalid("volume_uuid", "It is a required property."))?;
    let server: Option<ServerId> = fields.id("instance_uuid")?;
    if server.is_none() && !cx.since(3, 71) && !fields.has("instance_uuid") {
        return Err(invalid("instance_uuid", "It is a required property."));
    }
    let connector = connector(&fields)?;
    let mode = mode(&fields, &cx)?;
    let id = AttachmentId::random(&cx.entropy);
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let mut volume = tx
                .get::<Volume>(&volume_id)?
                .filter(|v| v.project_id == project || cx.is_admin())
                .ok_or_else(|| no_volume(volume_id))?;
            may_attach(&volume)?;
            let mut row = Attachment::reserved(id, &volume, server, false);
            if connector.is_some() {
                row.status = "attaching".to_owned();
                row.connector.clone_from(&connector);
            }
            if let Some(mode) = &mode {
                row.mode.clone_from(mode);
            }
            tx.insert(&mut row)?;
            settle(tx, &mut volume)?;
            Ok(json!({"attachment": view::attachment(&row, true)}))
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("attachment_id", missing_attachment)?;
    let state = cx.state().clone();
    let row = state.store().read(move |tx| attachment(tx, &cx, id)).await?;
    Ok(Reply::json(&json!({"attachment": view::attachment(&row, true)})))
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("attachment_id", missing_attachment)?;
    let fields = Fields::of(&req.body, "attachment")?;
    fields.only(&["connector", "mode"])?;
    let connector = connector(&fields)?.ok_or_else(|| invalid("connector", "It is a required property."))?;
    let mode = mode(&fields, &cx)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let mut row = attachment(tx, &cx, id)?;
            unmanaged(&row, &cx)?;
            row.connector = Some(connector.clone());
            row.host_name = connector.get("host").and_then(Value::as_str).map(str::to_owned);
            row.device = connector.get("mountpoint").and_then(Value::as_str).map(str::to_owned);
            if let Some(mode) = &mode {
                row.mode.clone_from(mode);
            }
            if row.status == "reserved" {
                row.status = "attaching".to_owned();
            }
            tx.update_status(&mut row)?;
            if let Some(mut volume) = tx.get::<Volume>(&row.volume_id)? {
                settle(tx, &mut volume)?;
            }
            Ok(json!({"attachment": view::attachment(&row, true)}))
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn complete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("attachment_id", missing_attachment)?;
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut row = attachment(tx, &cx, id)?;
            unmanaged(&row, &cx)?;
            row.status = "attached".to_owned();
            row.attached_at = row.attached_at.or(Some(tx.now()));
            tx.update_status(&mut row)?;
            match tx.get::<Volume>(&row.volume_id)? {
                Some(mut volume) => settle(tx, &mut volume),
                None => Ok(()),
            }
        })
        .await?;
    Ok(Reply::empty())
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("attachment_id", missing_attachment)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let row = attachment(tx, &cx, id)?;
            unmanaged(&row, &cx)?;
            let Some(mut volume) = tx.get::<Volume>(&row.volume_id)? else {
                return Err(no_volume(row.volume_id));
            };
            if volume.status == status::DELETING {
                return Err(invalid_volume("it is being deleted"));
            }
            tx.delete::<Attachment>(&id)?;
            settle(tx, &mut volume)?;
            let left: Vec<Value> =
                attachments(tx, volume.id)?.iter().map(|a| view::attachment(a, false)).collect();
            Ok(json!({"attachments": left}))
        })
        .await?;
    Ok(Reply::json(&body))
}
