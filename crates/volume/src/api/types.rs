//! Volume types, their extra specs and who may use them.

use std::collections::BTreeMap;

use ::api::{Ctx, Reply, Request, Target};
use base::{Error, Kind, ProjectId, Result, VolumeTypeId};
use serde_json::{Value, json};
use store::{Query, Tx};

use super::actions::is_default;
use super::common::{default_type, here, may_use, missing_type, no_type, paged};
use super::view;
use crate::State;
use crate::logic::input::{Fields, invalid};
use crate::logic::list::{Cell, Page, sort_by};
use crate::model::{TypeAccess, Volume, VolumeType};

pub(crate) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let page = Page::parse(req.query_pairs(), &["id", "name", "created_at", "updated_at"])?;
    let wanted = match req.query_pairs().get("is_public") {
        None if cx.is_admin() => Some(true),
        None | Some("None" | "none") => None,
        Some(_) => req.query_pairs().bool("is_public")?,
    };
    let wanted = if cx.is_admin() { wanted } else { None };
    let state = cx.state().clone();
    let admin = cx.is_admin();
    let mut types = state
        .store()
        .read(move |tx| {
            let mut types = tx.list::<VolumeType>(&Query::new())?;
            if admin {
                types.retain(|t| wanted.is_none_or(|w| t.is_public == w));
                return Ok(types);
            }
            let mut own = Vec::new();
            for kind in types {
                if may_use(tx, &kind, &project, false)? {
                    own.push(kind);
                }
            }
            Ok(own)
        })
        .await?;
    if let Some(name) = req.query_pairs().get("name") {
        types.retain(|t| t.name == name);
    }
    let cell = |t: &VolumeType, key: &str| match key {
        "created_at" => Cell::Number(t.meta.created_at.0),
        "updated_at" => Cell::Number(t.meta.updated_at.0),
        "name" => Cell::Text(t.name.clone()),
        _ => Cell::Text(t.id.to_string()),
    };
    sort_by(&mut types, &page.sort, cell, |t| (t.meta.created_at, t.id.to_string()));
    let next = page.cut(&mut types, |t| t.id.to_string())?;
    let items = types.iter().map(|t| view::volume_type(&cx, t)).collect();
    Ok(paged(&cx, &req, &page, "volume_types", items, next, None))
}

/// The type, if the caller may use it.
fn seen(tx: &mut Tx<'_>, cx: &Ctx<State>, project: &ProjectId, id: VolumeTypeId) -> Result<VolumeType> {
    let kind = tx.get::<VolumeType>(&id)?.ok_or_else(|| no_type(id))?;
    if may_use(tx, &kind, project, cx.is_admin())? { Ok(kind) } else { Err(no_type(id)) }
}

pub(crate) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let state = cx.state().clone();
    let default = req.param("type_id").is_empty() || req.param("type_id") == "default";
    let id = if default { None } else { Some(req.id_or("type_id", missing_type)?) };
    let body = state
        .store()
        .read(move |tx| {
            let kind = match id {
                Some(id) => seen(tx, &cx, &project, id)?,
                None => default_type(tx, &cx.config.default_type)?,
            };
            Ok(json!({"volume_type": view::volume_type(&cx, &kind)}))
        })
        .await?;
    Ok(Reply::json(&body))
}

fn specs(value: &Value) -> Result<BTreeMap<String, String>> {
    let Some(map) = value.as_object() else {
        return Err(invalid("extra_specs", "It is not of type 'object'."));
    };
    let fine = |key: &str| {
        (1..=255).contains(&key.len())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.: ".contains(c))
    };
    map.iter()
        .map(|(key, value)| match value.as_str() {
            _ if !fine(key) => Err(invalid(&format!("extra_specs.{key}"), "It is not a valid key.")),
            Some(text) if text.chars().count() <= 255 => Ok((key.clone(), text.to_owned())),
            _ => Err(invalid(&format!("extra_specs.{key}"), "It is not text of at most 255 characters.")),
        })
        .collect()
}

pub(crate) async fn create(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    cx.allow(&Target::none())?;
    let fields = Fields::of(&req.body, "volume_type")?;
    fields.only(&["name", "description", "extra_specs", "os-volume-type-access:is_public"])?;
    let name = fields.name("name")?.filter(|n| !n.is_empty());
    let mut kind = VolumeType {
        id: VolumeTypeId::random(&cx.entropy),
        meta: store::Meta::default(),
        name: name.ok_or_else(|| invalid("name", "It is a required property and may not be empty."))?,
        description: fields.text("description", 255)?,
        is_public: fields.boolean("os-volume-type-access:is_public")?.unwrap_or(true),
        extra_specs: fields.get("extra_specs").map(specs).transpose()?.unwrap_or_default(),
    };
    let state = cx.state().clone();
    let name = kind.name.clone();
    kind = state
        .store()
        .write(move |tx| {
            let mut kind = kind.clone();
            tx.insert(&mut kind)?;
            Ok(kind)
        })
        .await
        .map_err(|e| duplicate(e, &name))?;
    Ok(Reply::json(&json!({"volume_type": view::volume_type(&cx, &kind)})))
}

fn duplicate(error: Error, name: &str) -> Error {
    match error.kind() {
        Kind::Conflict => Error::conflict(format!("Volume Type {name} already exists.")),
        _ => error,
    }
}

/// Changes a type in one transaction; the operation's rule must allow it.
async fn change<F>(cx: Ctx<State>, id: VolumeTypeId, edit: F) -> Result<Value>
where
    F: Fn(&mut Tx<'_>, &Ctx<State>, &mut VolumeType) -> Result<Value> + Send + Sync + 'static,
{
    cx.allow(&Target::none())?;
    let state = cx.state().clone();
    state
        .store()
        .write(move |tx| {
            let mut kind = tx.get::<VolumeType>(&id)?.ok_or_else(|| no_type(id))?;
            edit(tx, &cx, &mut kind)
        })
        .await
}

pub(crate) async fn update(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let fields = Fields::of(&req.body, "volume_type")?;
    fields.only(&["name", "description", "is_public"])?;
    let name = fields.name("name")?;
    let description = fields.text("description", 255)?;
    let public = fields.boolean("is_public")?;
    if name.as_ref().is_some_and(String::is_empty) {
        return Err(invalid("name", "Volume type name can not be empty."));
    }
    if name.is_none() && description.is_none() && public.is_none() {
        return Err(Error::bad_request(
            "Invalid input for field/attribute volume_type. Specify volume type name, description, is_public or a combination thereof.",
        ));
    }
    let told = name.clone().unwrap_or_default();
    let body = change(cx, id, move |tx, cx, kind| {
        if name.is_some() && is_default(tx, cx, kind)? && name.as_ref() != Some(&kind.name) {
            return Err(Error::bad_request("The default volume type cannot be renamed: name"));
        }
        if let Some(name) = &name {
            kind.name.clone_from(name);
        }
        if description.is_some() {
            kind.description.clone_from(&description);
        }
        kind.is_public = public.unwrap_or(kind.is_public);
        tx.update(kind)?;
        Ok(json!({"volume_type": view::volume_type(cx, kind)}))
    })
    .await
    .map_err(|e| duplicate(e, &told))?;
    Ok(Reply::json(&body))
}

pub(crate) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    change(cx, id, |tx, cx, kind| {
        if is_default(tx, cx, kind)? {
            return Err(Error::forbidden(format!(
                "Volume type {} is the default volume type and cannot be deleted.",
                kind.name
            )));
        }
        if tx.exists::<Volume>(&Query::new().eq("volume_type_id", kind.id))? {
            return Err(Error::bad_request("Target volume type is still in use."));
        }
        tx.delete_where::<TypeAccess>(&Query::new().eq("type_id", kind.id))?;
        tx.delete::<VolumeType>(&kind.id)?;
        Ok(Value::Null)
    })
    .await?;
    Ok(Reply::empty())
}

pub(crate) async fn list_specs(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let state = cx.state().clone();
    let body = state
        .store()
        .read(move |tx| {
            let kind = seen(tx, &cx, &project, id)?;
            Ok(json!({"extra_specs": view::volume_type(&cx, &kind).get("extra_specs")}))
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn add_specs(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let new = specs(req.body.get("extra_specs").unwrap_or(&Value::Null))?;
    let body = change(cx, id, move |tx, _, kind| {
        kind.extra_specs.extend(new.clone());
        tx.update(kind)?;
        Ok(json!({"extra_specs": kind.extra_specs}))
    })
    .await?;
    Ok(Reply::json(&body))
}

fn no_spec(kind: VolumeTypeId, key: &str) -> Error {
    Error::not_found(format!("Volume Type {kind} has no extra specs with key {key}."))
}

pub(crate) async fn show_spec(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let key = req.param("key").to_owned();
    let state = cx.state().clone();
    let body = state
        .store()
        .read(move |tx| {
            let kind = seen(tx, &cx, &project, id)?;
            let view = view::volume_type(&cx, &kind);
            let value = view.get("extra_specs").and_then(|s| s.get(&key)).cloned();
            Ok(json!({(key.as_str()): value.ok_or_else(|| no_spec(id, &key))?}))
        })
        .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn set_spec(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let key = req.param("key").to_owned();
    let new = specs(&req.body)?;
    if new.len() != 1 || !new.contains_key(&key) {
        return Err(Error::bad_request("Request body and URI mismatch: extra_specs"));
    }
    let body = change(cx, id, move |tx, _, kind| {
        kind.extra_specs.extend(new.clone());
        tx.update(kind)?;
        Ok(json!(new))
    })
    .await?;
    Ok(Reply::json(&body))
}

pub(crate) async fn delete_spec(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let key = req.param("key").to_owned();
    change(cx, id, move |tx, _, kind| {
        kind.extra_specs.remove(&key).ok_or_else(|| no_spec(kind.id, &key))?;
        tx.update(kind)?;
        Ok(Value::Null)
    })
    .await?;
    Ok(Reply::empty())
}

/// No type is encrypted yet.
pub(crate) async fn encryption(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    let project = here(&cx, &req)?;
    cx.allow(&Target::none())?;
    let id = req.id_or("type_id", missing_type)?;
    let state = cx.state().clone();
    state.store().read(move |tx| seen(tx, &cx, &project, id).map(|_| ())).await?;
    Ok(Reply::json(&json!({})))
}

pub(crate) async fn access(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    here(&cx, &req)?;
    cx.allow(&Target::none())?;
    let id = req.id_or("type_id", missing_type)?;
    let state = cx.state().clone();
    let rows = state
        .store()
        .read(move |tx| {
            let kind = tx.get::<VolumeType>(&id)?.ok_or_else(|| no_type(id))?;
            if kind.is_public {
                return Err(Error::not_found("Access list not available for public volume types."));
            }
            tx.list::<TypeAccess>(&Query::new().eq("type_id", id))
        })
        .await?;
    let list: Vec<Value> =
        rows.iter().map(|r| json!({"volume_type_id": r.type_id, "project_id": r.project_id})).collect();
    Ok(Reply::json(&json!({"volume_type_access": list})))
}

fn project_of(body: &Value) -> Result<ProjectId> {
    Fields::whole(body)?.id("project")?.ok_or_else(|| invalid("project", "It is a required property."))
}

pub(crate) async fn add_access(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let project = project_of(&req.body)?;
    let row = cx.entropy.uuid();
    change(cx, id, move |tx, _, kind| {
        if kind.is_public {
            return Err(Error::conflict("Type access modification is not applicable to public volume type."));
        }
        let mut row = TypeAccess {
            id: row,
            meta: store::Meta::default(),
            type_id: kind.id,
            project_id: project.clone(),
        };
        tx.insert(&mut row)?;
        Ok(Value::Null)
    })
    .await?;
    Ok(Reply::empty())
}

pub(crate) async fn remove_access(cx: Ctx<State>, req: Request<Value>) -> Result<Reply> {
    here(&cx, &req)?;
    let id = req.id_or("type_id", missing_type)?;
    let project = project_of(&req.body)?;
    change(cx, id, move |tx, _, kind| {
        let query = Query::new().eq("type_id", kind.id).eq("project_id", &project);
        if tx.delete_where::<TypeAccess>(&query)? == 0 {
            return Err(Error::not_found(format!(
                "Volume type access not found for {} / {project} combination.",
                kind.id
            )));
        }
        Ok(Value::Null)
    })
    .await?;
    Ok(Reply::empty())
}
