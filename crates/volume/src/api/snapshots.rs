//! Snapshots.

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, Result, SnapshotId, VolumeId};
use serde_json::{Value, json};
use store::{Query, Tx};

use super::common::{here, missing_snapshot, paged, snapshot, wake_volume};
use super::view;
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::list::{Cell, Filters, Page, sort_by};
use crate::logic::machine::{invalid_volume, no_volume};
use crate::logic::quota::{self, Claim};
use crate::model::{Snapshot, Volume, VolumeType, status};

const SORT_KEYS: &[&str] = &[
    "id",
    "status",
    "size",
    "volume_id",
    "name",
    "display_name",
    "created_at",
    "updated_at",
    "user_id",
    "project_id",
];
const FILTERS: &[&str] =
    &["name", "status", "volume_id", "id", "size", "project_id", "user_id", "description"];

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
    let filters = Filters::parse(req.query_pairs(), FILTERS, cx.since(3, 34))?;
    let one = filters.exact.iter().find(|(k, _)| k == "project_id").map(|(_, v)| v.clone());
    let query = match (cx.is_admin() && filters.all_tenants, one) {
        (true, None) => Query::new(),
        (true, Some(one)) => Query::new().eq("project_id", one),
        (false, _) => Query::new().eq("project_id", &project),
    };
    let mut snapshots = cx.store().read(move |tx| tx.list::<Snapshot>(&query)).await?;
    snapshots.retain(|s| filters.pass(&s.metadata, |key| cell_text(s, key)));
    sort_by(&mut snapshots, &page.sort, cell, |s| (s.meta.created_at, s.id.to_string()));
    let count = (cx.since(3, 45) && req.query_pairs().bool("with_count")?.unwrap_or(false))
        .then_some(snapshots.len());
    let next = page.cut(&mut snapshots, |s| s.id.to_string())?;
    let items = snapshots.iter().map(|s| view::snapshot(&cx, s, full)).collect();
    Ok(paged(&cx, &req, &page, "snapshots", items, next, count))
}

fn cell_text(snapshot: &Snapshot, key: &str) -> String {
    match key {
        "id" => snapshot.id.to_string(),
        "name" | "display_name" => snapshot.name.clone(),
        "status" => snapshot.status.clone(),
        "size" => snapshot.size_gib.to_string(),
        "volume_id" => snapshot.volume_id.to_string(),
        "project_id" => snapshot.project_id.to_string(),
        "user_id" => snapshot.user_id.to_string(),
        "description" => snapshot.description.clone().unwrap_or_default(),
        _ => String::new(),
    }
}

fn cell(snapshot: &Snapshot, key: &str) -> Cell {
    match key {
        "size" => Cell::Number(i64::try_from(snapshot.size_gib).unwrap_or(i64::MAX)),
        "created_at" => Cell::Number(snapshot.meta.created_at.0),
        "updated_at" => Cell::Number(snapshot.meta.updated_at.0),
        _ => Cell::Text(cell_text(snapshot, key)),
    }
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let fields = Fields::of(&req.body, "snapshot")?;
    fields.only(&[
        "volume_id",
        "name",
        "display_name",
        "description",
        "display_description",
        "force",
        "metadata",
    ])?;
    if fields.has("volume_id") && fields.get("volume_id").is_none() {
        // Null passes Cinder's schema and is then looked for.
        return Err(no_volume("None"));
    }
    let volume_id: VolumeId =
        fields.id("volume_id")?.ok_or_else(|| invalid("volume_id", "It is a required property."))?;
    let name = fields.name("name")?.or(fields.name("display_name")?).unwrap_or_default();
    let description = fields.text("description", 255)?.or(fields.text("display_description", 255)?);
    let metadata = fields.metadata("metadata")?.unwrap_or_default();
    let force = fields.boolean("force")?;
    // Since 3.66 volumes in use are always allowed, and asking for anything else is an error.
    if cx.since(3, 66) && force == Some(false) {
        return Err(invalid("force", "Since microversion 3.66 it may only be true or left out."));
    }
    let in_use_too = cx.since(3, 66) || force == Some(true);
    let id = SnapshotId::random(&cx.entropy);
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let volume = tx
                .get::<Volume>(&volume_id)?
                .filter(|v| v.project_id == project || cx.is_admin())
                .ok_or_else(|| no_volume(volume_id))?;
            may_snapshot(&volume, in_use_too)?;
            let kind = tx.need::<VolumeType>(&volume.volume_type_id)?;
            let claim = Claim { snapshots: 1, gigabytes: volume.size_gib, volumes: 0 };
            quota::claim(tx, &cx.config.quotas, &volume.project_id, &kind, claim)?;
            let mut snapshot = Snapshot {
                id,
                meta: store::Meta::default(),
                project_id: volume.project_id.clone(),
                user_id: cx.user_id().clone(),
                volume_id,
                name: name.clone(),
                description: description.clone(),
                size_gib: volume.size_gib,
                status: status::CREATING.to_owned(),
                host: volume.host,
                metadata: metadata.clone(),
                made: false,
                doomed: false,
                since: tx.now(),
                error: None,
            };
            tx.insert(&mut snapshot)?;
            tx.wake("volume_snapshot", id);
            Ok(json!({"snapshot": view::snapshot(&cx, &snapshot, false)}))
        })
        .await?;
    Ok(Reply::json(&body))
}

fn may_snapshot(volume: &Volume, in_use_too: bool) -> Result<()> {
    match volume.status.as_str() {
        status::AVAILABLE => Ok(()),
        status::IN_USE if in_use_too => Ok(()),
        other => Err(invalid_volume(format!(
            "Volume {} status must be available{}, but current status is: {other}.",
            volume.id,
            if in_use_too { " or in-use" } else { "" }
        ))),
    }
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("snapshot_id", missing_snapshot)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .read(move |tx| {
            let found = snapshot(tx, &cx, id)?;
            Ok(json!({"snapshot": view::snapshot(&cx, &found, true)}))
        })
        .await?;
    Ok(Reply::json(&body))
}

/// Changes a snapshot in one transaction.
async fn change<F>(cx: Ctx<State>, id: SnapshotId, edit: F) -> Result<Value>
where
    F: Fn(&mut Tx<'_>, &mut Snapshot) -> Result<()> + Send + Sync + 'static,
{
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut found = snapshot(tx, &cx, id)?;
            edit(tx, &mut found)?;
            tx.update_status(&mut found)?;
            Ok(json!({"snapshot": view::snapshot(&cx, &found, false)}))
        })
        .await
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("snapshot_id", missing_snapshot)?;
    let fields = Fields::of(&req.body, "snapshot")?;
    fields.only(&["name", "display_name", "description", "display_description"])?;
    let name = fields.name("name")?.or(fields.name("display_name")?);
    let description = fields.text("description", 255)?.or(fields.text("display_description", 255)?);
    if name.is_none() && description.is_none() {
        return Err(Error::bad_request(
            "Invalid input for field/attribute snapshot. It has no field that can be updated.",
        ));
    }
    let body = change(cx, id, move |_, snapshot| {
        if let Some(name) = &name {
            snapshot.name.clone_from(name);
        }
        if description.is_some() {
            snapshot.description.clone_from(&description);
        }
        Ok(())
    })
    .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("snapshot_id", missing_snapshot)?;
    change(cx, id, |tx, snapshot| remove(tx, snapshot, false)).await?;
    Ok(Reply::empty())
}

pub(crate) async fn force_delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("snapshot_id", missing_snapshot)?;
    change(cx, id, |tx, snapshot| remove(tx, snapshot, true)).await?;
    Ok(Reply::empty())
}

fn remove(tx: &mut Tx<'_>, snapshot: &mut Snapshot, force: bool) -> Result<()> {
    let ends = matches!(
        snapshot.status.as_str(),
        status::AVAILABLE | status::ERROR | status::ERROR_DELETING | status::DELETING
    );
    if !ends && !force {
        return Err(Error::bad_request(format!(
            "Invalid snapshot: Snapshot status must be available or error (it is {}).",
            snapshot.status
        )));
    }
    snapshot.status = status::DELETING.to_owned();
    snapshot.doomed = true;
    snapshot.since = tx.now();
    tx.wake("volume_snapshot", snapshot.id);
    wake_volume(tx, snapshot.volume_id);
    Ok(())
}

pub(crate) async fn reset_status(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("snapshot_id", missing_snapshot)?;
    let to = Fields::whole(&req.body)?.need_text("status", 64)?;
    if !["available", "creating", "deleting", "error", "error_deleting"].contains(&to.as_str()) {
        return Err(invalid("status", "Must specify a valid status."));
    }
    change(cx, id, move |tx, snapshot| {
        if snapshot.doomed {
            return Err(Error::bad_request(
                "Invalid snapshot: it is being deleted; its status cannot be reset.",
            ));
        }
        snapshot.status.clone_from(&to);
        snapshot.since = tx.now();
        tx.wake("volume_snapshot", snapshot.id);
        Ok(())
    })
    .await?;
    Ok(Reply::empty())
}
