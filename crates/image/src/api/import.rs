//! The interoperable import: stage bytes, then ask for their import. Only `glance-direct`.

use ::api::{Ctx, JsonSchema, RawBody, Reply, Request};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::data::{formats, receive};
use super::see::{allowed, find, missing};
use crate::State;
use crate::model::status;

/// Import methods on offer.
pub(crate) const METHODS: &str = "glance-direct";
/// The one store.
pub(crate) const STORE: &str = "file";

/// Body of the import.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Import {
    /// How.
    method: ImportMethod,
    /// Stores to import to.
    #[serde(default)]
    stores: Option<Vec<String>>,
    /// Import to all stores (there is one).
    #[serde(default, rename = "all_stores")]
    _all_stores: Option<bool>,
    /// What to do if one of several stores fails (there is one).
    #[serde(default, rename = "all_stores_must_succeed")]
    _all_stores_must_succeed: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct ImportMethod {
    /// `glance-direct`.
    name: String,
    /// Of `web-download`.
    #[serde(default, rename = "uri")]
    _uri: Option<String>,
}

pub(crate) async fn stage(cx: Ctx<State>, req: Request<RawBody>) -> Result<Reply> {
    receive(cx, req, status::UPLOADING).await
}

pub(crate) async fn import(cx: Ctx<State>, req: Request<Import>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    let method = &req.body.method.name;
    if method != METHODS {
        return Err(Error::bad_request(format!("Unknown import method name '{method}'.")));
    }
    if let Some(store) = req.body.stores.iter().flatten().find(|s| *s != STORE) {
        return Err(Error::conflict(format!("Store '{store}' is unknown or disabled.")));
    }
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut image = allowed(tx, &cx, id)?;
            formats(&image)?;
            if image.status != status::UPLOADING || image.upload.as_ref().is_none_or(|u| u.staged.is_none()) {
                return Err(Error::conflict(
                    "Image needs to be staged before 'glance-direct' method can be used",
                ));
            }
            image.status = status::IMPORTING.to_owned();
            image.touched_at = tx.now();
            tx.update_status(&mut image)?;
            tx.wake("image", id);
            Ok(())
        })
        .await?;
    Ok(Reply::empty())
}

/// Imports are work of the image itself here: there are no task records.
pub(crate) async fn tasks(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let id = req.id_or("image_id", missing)?;
    cx.clone().store().read(move |tx| find(tx, &cx, id).map(|_| ())).await?;
    Ok(Reply::json(&json!({"tasks": []})))
}

pub(crate) async fn info(_: Ctx<State>, _: Request<()>) -> Result<Reply> {
    let methods: Value =
        json!({"description": "Import methods available.", "type": "array", "value": [METHODS]});
    Ok(Reply::json(&json!({"import-methods": methods})))
}

pub(crate) async fn stores(_: Ctx<State>, _: Request<()>) -> Result<Reply> {
    Ok(Reply::json(&json!({"stores": [{"id": STORE, "description": "Local files", "default": "true"}]})))
}
