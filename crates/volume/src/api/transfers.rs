//! Transfers: a volume changes its owner, who proves knowledge of a key.

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, ProjectId, Result, VolumeId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{Query, Tx};
use uuid::Uuid;

use super::common::{here, links, paged};
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::list::{Cell, Page, sort_by};
use crate::logic::machine::{no_volume, step};
use crate::logic::quota::{self, Claim};
use crate::model::{Snapshot, Transfer, Volume, VolumeType, status};

fn no_transfer(id: impl std::fmt::Display) -> Error {
    Error::not_found(format!("Transfer {id} could not be found."))
}

fn missing_transfer(text: &str) -> Error {
    no_transfer(text)
}

fn hash(salt: &str, key: &str) -> String {
    hex::encode(Sha256::digest(format!("{salt}{key}")))
}

fn view(cx: &Ctx<State>, project: &ProjectId, transfer: &Transfer, detail: bool) -> Value {
    let mut view = json!({
        "id": transfer.id,
        "volume_id": transfer.volume_id,
        "name": transfer.name,
        "links": links(cx, project, &format!("/volume-transfers/{}", transfer.id)),
    });
    if let (true, Some(map)) = (detail, view.as_object_mut()) {
        map.insert("created_at".to_owned(), json!(transfer.meta.created_at.iso_naive()));
    }
    view
}

fn found(tx: &mut Tx<'_>, cx: &Ctx<State>, id: Uuid) -> Result<Transfer> {
    let transfer = tx.get::<Transfer>(&id)?.ok_or_else(|| no_transfer(id))?;
    cx.allow(&Target::project(&transfer.project_id).missing(no_transfer(id).public()))?;
    Ok(transfer)
}

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>, detail: bool) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let page = Page::parse(req.query_pairs(), &["id", "name", "created_at", "updated_at", "volume_id"])?;
    let all = cx.is_admin() && req.query_pairs().bool("all_tenants")?.unwrap_or(false);
    let query = if all { Query::new() } else { Query::new().eq("project_id", &project) };
    let mut rows = cx.store().read(move |tx| tx.list::<Transfer>(&query)).await?;
    let cell = |t: &Transfer, key: &str| match key {
        "name" => Cell::Text(t.name.clone()),
        "created_at" | "updated_at" => Cell::Number(t.meta.created_at.0),
        "volume_id" => Cell::Text(t.volume_id.to_string()),
        _ => Cell::Text(t.id.to_string()),
    };
    sort_by(&mut rows, &page.sort, cell, |t| (t.meta.created_at, t.id.to_string()));
    let next = page.cut(&mut rows, |t| t.id.to_string())?;
    let items = rows.iter().map(|t| view(&cx, &project, t, detail)).collect();
    Ok(paged(&cx, &req, &page, "transfers", items, next, None))
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let fields = Fields::of(&req.body, "transfer")?;
    fields.only(&["volume_id", "name", "no_snapshots"])?;
    let volume_id: VolumeId =
        fields.id("volume_id")?.ok_or_else(|| invalid("volume_id", "It is a required property."))?;
    let name = fields.name("name")?.unwrap_or_default();
    let (id, salt, key) = (cx.entropy.uuid(), cx.entropy.password(16), cx.entropy.password(32));
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let own = |v: &Volume| v.project_id == project || cx.is_admin();
            let mut volume = tx.get::<Volume>(&volume_id)?.filter(own).ok_or_else(|| no_volume(volume_id))?;
            cx.allow(&Target::project(&volume.project_id))?;
            step(&mut volume, &[status::AVAILABLE], status::AWAITING_TRANSFER, "transfer")?;
            if tx.exists::<Snapshot>(&Query::new().eq("volume_id", volume_id))? {
                return Err(Error::bad_request(
                    "Invalid volume: a volume with snapshots cannot be transferred: volume_id",
                ));
            }
            tx.update_status(&mut volume)?;
            let mut row = Transfer {
                id,
                meta: store::Meta::default(),
                volume_id,
                project_id: volume.project_id,
                name: name.clone(),
                key_hash: hash(&salt, &key),
                salt: salt.clone(),
            };
            tx.insert(&mut row)?;
            let mut view = view(&cx, &project, &row, true);
            if let Some(map) = view.as_object_mut() {
                map.insert("auth_key".to_owned(), json!(key));
            }
            Ok(json!({"transfer": view}))
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let id = req.id_or("transfer_id", missing_transfer)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .read(move |tx| Ok(json!({"transfer": view(&cx, &project, &found(tx, &cx, id)?, true)})))
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("transfer_id", missing_transfer)?;
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let transfer = found(tx, &cx, id)?;
            if let Some(mut volume) = tx.get::<Volume>(&transfer.volume_id)?
                && volume.status == status::AWAITING_TRANSFER
            {
                volume.status = status::AVAILABLE.to_owned();
                tx.update_status(&mut volume)?;
            }
            tx.delete::<Transfer>(&id).map(|_| ())
        })
        .await?;
    Ok(Reply::empty())
}

/// Whoever knows the key may take it; the id alone says nothing.
pub(crate) async fn accept(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let id = req.id_or("transfer_id", missing_transfer)?;
    let key = Fields::of(&req.body, "accept")?.need_text("auth_key", 255)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .write(move |tx| {
            let transfer = tx.get::<Transfer>(&id)?.ok_or_else(|| no_transfer(id))?;
            if hash(&transfer.salt, &key) != transfer.key_hash {
                return Err(Error::bad_request(
                    "Invalid auth key: Attempt to transfer with invalid auth key: auth_key",
                ));
            }
            let mut volume = tx.get::<Volume>(&transfer.volume_id)?.ok_or_else(|| no_transfer(id))?;
            let kind = tx.need::<VolumeType>(&volume.volume_type_id)?;
            let claim = Claim { volumes: 1, gigabytes: volume.size_gib, snapshots: 0 };
            quota::claim(tx, &cx.config.quotas, &project, &kind, claim)?;
            step(&mut volume, &[status::AWAITING_TRANSFER], status::AVAILABLE, "accept")?;
            volume.project_id = project.clone();
            volume.user_id = cx.user_id().clone();
            tx.update_status(&mut volume)?;
            tx.delete::<Transfer>(&id)?;
            Ok(json!({"transfer": view(&cx, &project, &transfer, false)}))
        })
        .await?;
    Ok(Reply::json(&body))
}
