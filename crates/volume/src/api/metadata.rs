//! Metadata of volumes and snapshots: the same operations on two resources.

use std::collections::BTreeMap;

use ::api::{Ctx, Reply, Request};
use base::{Error, Result};
use serde_json::{Value, json};
use store::Tx;

use super::common::{here, missing_snapshot, missing_volume, snapshot, volume};
use crate::State;
use crate::logic::input::{Fields, invalid, metadata, metadata_key};

/// Metadata by key.
type Items = BTreeMap<String, String>;

/// What to do with the metadata; answers the body.
type Work = Box<dyn Fn(&mut Items) -> Result<Value> + Send + Sync>;

/// Whose metadata.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    Volume,
    Snapshot,
}

async fn run<T>(cx: Ctx<State>, req: &Request<T>, of: Of, writes: bool, work: Work) -> Result<Reply> {
    here(&cx, req)?;
    let state = cx.state().clone();
    let body = match of {
        Of::Volume => {
            let id = req.id_or("volume_id", missing_volume)?;
            let on = move |tx: &mut Tx<'_>| {
                let mut found = volume(tx, &cx, id)?;
                let body = work(&mut found.metadata)?;
                if writes {
                    tx.update_status(&mut found)?;
                }
                Ok(body)
            };
            if writes { state.store().write(on).await? } else { state.store().read(on).await? }
        }
        Of::Snapshot => {
            let id = req.id_or("snapshot_id", missing_snapshot)?;
            let on = move |tx: &mut Tx<'_>| {
                let mut found = snapshot(tx, &cx, id)?;
                let body = work(&mut found.metadata)?;
                if writes {
                    tx.update_status(&mut found)?;
                }
                Ok(body)
            };
            if writes { state.store().write(on).await? } else { state.store().read(on).await? }
        }
    };
    Ok(if body.is_null() { Reply::empty() } else { Reply::json(&body) })
}

fn bounded(items: &Items) -> Result<()> {
    if items.len() > 128 { Err(invalid("metadata", "It has more than 128 items.")) } else { Ok(()) }
}

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>, of: Of) -> Result<Reply> {
    run(cx, &req, of, false, Box::new(|items| Ok(json!({"metadata": items})))).await
}

/// POST adds, PUT replaces.
pub(crate) async fn set(cx: Ctx<State>, req: Request<Value>, of: Of, replace: bool) -> Result<Reply> {
    let fields = Fields::whole(&req.body)?;
    fields.only(&["metadata"])?;
    let new = fields.get("metadata").map(metadata).transpose()?;
    let new = new.ok_or_else(|| invalid("metadata", "It is a required property."))?;
    let work = move |items: &mut Items| {
        if replace {
            items.clear();
        }
        items.extend(new.clone());
        bounded(items)?;
        Ok(json!({"metadata": items}))
    };
    run(cx, &req, of, true, Box::new(work)).await
}

pub(crate) async fn item(cx: Ctx<State>, req: Request<()>, of: Of) -> Result<Reply> {
    let key = req.param("key").to_owned();
    let work = move |items: &mut Items| match items.get(&key) {
        Some(value) => Ok(json!({"meta": {(key.as_str()): value}})),
        None => Err(Error::not_found(format!("Metadata item '{key}' was not found."))),
    };
    run(cx, &req, of, false, Box::new(work)).await
}

pub(crate) async fn set_item(cx: Ctx<State>, req: Request<Value>, of: Of) -> Result<Reply> {
    let key = req.param("key").to_owned();
    metadata_key(&key)?;
    let new = metadata(req.body.get("meta").unwrap_or(&Value::Null))?;
    let value = match (new.len(), new.get(&key)) {
        (1, Some(value)) => value.clone(),
        (1, None) => return Err(Error::bad_request("Request body and URI mismatch: meta")),
        _ => return Err(Error::bad_request("Request body contains too many items or none: meta")),
    };
    let work = move |items: &mut Items| {
        items.insert(key.clone(), value.clone());
        bounded(items)?;
        Ok(json!({"meta": {(key.as_str()): value}}))
    };
    run(cx, &req, of, true, Box::new(work)).await
}

pub(crate) async fn delete_item(cx: Ctx<State>, req: Request<()>, of: Of) -> Result<Reply> {
    let key = req.param("key").to_owned();
    let work = move |items: &mut Items| match items.remove(&key) {
        Some(_) => Ok(Value::Null),
        None => Err(Error::not_found(format!("Metadata item '{key}' was not found."))),
    };
    run(cx, &req, of, true, Box::new(work)).await
}
