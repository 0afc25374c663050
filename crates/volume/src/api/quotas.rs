//! Quota sets and limits.

use std::collections::BTreeMap;

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, ProjectId, Result};
use serde_json::{Map, Value, json};
use store::Tx;

use super::common::here;
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::quota::{self, DEFAULT_CLASS, Limits};
use crate::model::Quota;

/// The project of the URL; others than the own are for administrators.
fn target(cx: &Ctx<State>, req: &Request<impl Sized>) -> Result<ProjectId> {
    here(cx, req)?;
    let id: ProjectId =
        req.id_or("target", |text| Error::not_found(format!("Project {text} could not be found.")))?;
    cx.allow(&Target::project(&id).visible(true))?;
    Ok(id)
}

fn set(id: &str, limits: &Limits) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".to_owned(), json!(id));
    map.extend(limits.iter().map(|(name, limit)| (name.clone(), json!(limit))));
    map
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = target(&cx, &req)?;
    let usage = req.query_pairs().bool("usage")?.unwrap_or(false);
    let config = cx.config.quotas.clone();
    let body = cx
        .store()
        .read(move |tx| {
            let limits = quota::limits(tx, &config, &id)?;
            let mut map = set(id.as_str(), &limits);
            if usage {
                for (name, limit) in &limits {
                    let used = quota::used(tx, &id, name)?;
                    map.insert(name.clone(), json!({"limit": limit, "in_use": used, "reserved": 0}));
                }
            }
            Ok(map)
        })
        .await?;
    Ok(Reply::json(&json!({"quota_set": body})))
}

pub(crate) async fn defaults(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = target(&cx, &req)?;
    let config = cx.config.quotas.clone();
    let limits = cx.store().read(move |tx| quota::defaults(tx, &config)).await?;
    Ok(Reply::json(&json!({"quota_set": set(id.as_str(), &limits)})))
}

/// New limits of a body, by name.
fn new_limits(fields: &Fields<'_>, body: &Value, key: &str, known: &Limits) -> Result<BTreeMap<String, i64>> {
    let mut new = BTreeMap::new();
    for name in body.get(key).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
        if matches!(name.as_str(), "id" | "tenant_id" | "force" | "class_name") {
            continue;
        }
        if !known.iter().any(|(n, _)| n == name) {
            return Err(invalid(name, "Bad key in quota set."));
        }
        let limit = fields.number(name, -1..=2_147_483_647)?;
        new.insert(name.clone(), limit.ok_or_else(|| invalid(name, "It is not an integer."))?);
    }
    if new.is_empty() { Err(invalid(key, "It has no limits.")) } else { Ok(new) }
}

async fn save(cx: Ctx<State>, id: ProjectId, body: Value, key: &'static str) -> Result<Limits> {
    Fields::of(&body, key)?;
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let known = quota::defaults(tx, &cx.config.quotas)?;
            let fields = Fields::of(&body, key)?;
            let new = new_limits(&fields, &body, key, &known)?;
            put(tx, &id, new)?;
            quota::limits(tx, &cx.config.quotas, &id)
        })
        .await
}

fn put(tx: &mut Tx<'_>, id: &ProjectId, new: BTreeMap<String, i64>) -> Result<()> {
    match tx.get::<Quota>(id)? {
        Some(mut row) => {
            row.limits.extend(new);
            tx.update(&mut row)
        }
        None => tx.insert(&mut Quota { id: id.clone(), meta: store::Meta::default(), limits: new }),
    }
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    let id = target(&cx, &req)?;
    let limits = save(cx, id.clone(), req.body, "quota_set").await?;
    let mut map = set(id.as_str(), &limits);
    map.shift_remove("id");
    Ok(Reply::json(&json!({"quota_set": map})))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = target(&cx, &req)?;
    cx.store().write(move |tx| tx.delete::<Quota>(&id).map(|_| ())).await?;
    Ok(Reply::empty())
}

/// Only the class `default` exists.
fn class<T>(cx: &Ctx<State>, req: &Request<T>) -> Result<()> {
    here(cx, req)?;
    cx.allow(&Target::none())?;
    if req.param("class") == "default" {
        return Ok(());
    }
    Err(Error::not_found(format!("Quota class {} could not be found.", req.param("class"))))
}

pub(crate) async fn show_class(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    class(&cx, &req)?;
    let config = cx.config.quotas.clone();
    let limits = cx.store().read(move |tx| quota::defaults(tx, &config)).await?;
    Ok(Reply::json(&json!({"quota_class_set": set("default", &limits)})))
}

pub(crate) async fn update_class(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    class(&cx, &req)?;
    let limits = save(cx, ProjectId::new(DEFAULT_CLASS), req.body, "quota_class_set").await?;
    let mut map = set("default", &limits);
    map.shift_remove("id");
    Ok(Reply::json(&json!({"quota_class_set": map})))
}

pub(crate) async fn limits(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::project(&project))?;
    let config = cx.config.quotas.clone();
    let absolute = cx
        .store()
        .read(move |tx| {
            let limits = quota::limits(tx, &config, &project)?;
            let limit = |name: &str| limits.iter().find(|(n, _)| n == name).map_or(-1, |(_, l)| *l);
            Ok(json!({
                "maxTotalVolumes": limit("volumes"),
                "maxTotalSnapshots": limit("snapshots"),
                "maxTotalVolumeGigabytes": limit("gigabytes"),
                "maxTotalBackups": limit("backups"),
                "maxTotalBackupGigabytes": limit("backup_gigabytes"),
                "totalVolumesUsed": quota::used(tx, &project, "volumes")?,
                "totalSnapshotsUsed": quota::used(tx, &project, "snapshots")?,
                "totalGigabytesUsed": quota::used(tx, &project, "gigabytes")?,
                "totalBackupsUsed": 0,
                "totalBackupGigabytesUsed": 0,
            }))
        })
        .await?;
    Ok(Reply::json(&json!({"limits": {"rate": [], "absolute": absolute}})))
}
