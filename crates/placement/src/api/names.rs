//! `/traits`, `/resource_classes`, and the traits of providers.

use std::collections::BTreeSet;

use ::api::types::Int;
use ::api::{Ctx, Reply, Request};
use base::{Error, ResourceProviderId, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use store::{Query, Tx};

use super::providers::Prefix;
use super::{allow, need, provider_id, same_epoch};
use crate::State;
use crate::logic::names;
use crate::model::{CustomClass, CustomTrait, Provider};

fn all_traits(tx: &mut Tx<'_>) -> Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = names::TRAITS.iter().map(|t| (*t).to_owned()).collect();
    all.extend(tx.list_ids::<CustomTrait>(&Query::new())?);
    Ok(all)
}

pub(super) async fn traits(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let filter = req.query_pairs().get("name").map(str::to_owned);
    let associated = req.query_pairs().bool("associated")?;
    if let Some(f) = &filter
        && !f.starts_with("in:")
        && !f.starts_with("startswith:")
    {
        return Err(Error::bad_request(format!(
            "Badly formatted name parameter. Expected name query string parameter in form: ?name=[in|startswith]:[name1,name2|prefix]. Got: \"{f}\""
        )));
    }
    let (all, used) = cx
        .store()
        .read(move |tx| {
            let used: BTreeSet<String> = match associated {
                None => BTreeSet::new(),
                Some(_) => tx.list::<Provider>(&Query::new())?.into_iter().flat_map(|p| p.traits).collect(),
            };
            Ok((all_traits(tx)?, used))
        })
        .await?;
    let named = |name: &str| match &filter {
        None => true,
        Some(f) => match f.split_once(':') {
            Some(("in", list)) => list.split(',').any(|n| n == name),
            Some((_, prefix)) => name.starts_with(prefix),
            None => false,
        },
    };
    let list: Vec<&String> =
        all.iter().filter(|t| named(t) && associated.is_none_or(|a| used.contains(*t) == a)).collect();
    Ok(Reply::json(&json!({"traits": list})))
}

fn no_trait(name: &str) -> Error {
    Error::not_found(format!("No such trait: {name}."))
}

pub(super) async fn show_trait(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    let found = cx.store().read(all_traits).await?.contains(&name);
    if found { Ok(Reply::empty()) } else { Err(no_trait(&name)) }
}

pub(super) async fn put_trait(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    names::custom("trait", &name)?;
    let url = cx.url(&format!("/traits/{name}"));
    let new = cx
        .store()
        .write(move |tx| {
            if tx.get::<CustomTrait>(&name)?.is_some() {
                return Ok(false);
            }
            tx.insert(&mut CustomTrait { id: name.clone(), meta: store::Meta::default() })?;
            Ok(true)
        })
        .await?;
    Ok(Reply::empty().status(if new { 201 } else { 204 }).location(url))
}

pub(super) async fn delete_trait(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    if names::TRAITS.contains(&name.as_str()) {
        return Err(Error::bad_request(format!("Cannot delete standard trait {name}.")));
    }
    cx.store()
        .write(move |tx| {
            if tx.get::<CustomTrait>(&name)?.is_none() {
                return Err(no_trait(&name));
            }
            if tx.list::<Provider>(&Query::new())?.iter().any(|p| p.traits.contains(&name)) {
                return Err(Error::conflict(format!("The trait {name} is in use by a resource provider.")));
            }
            tx.delete::<CustomTrait>(&name)
        })
        .await?;
    Ok(Reply::empty())
}

fn traits_view(provider: &Provider) -> Reply {
    Reply::json(&json!({"traits": provider.traits, "resource_provider_generation": provider.epoch}))
}

pub(super) async fn provider_traits(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    Ok(traits_view(&cx.store().read(move |tx| need(tx, id)).await?))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetTraits {
    resource_provider_generation: Int<0, { i64::MAX }>,
    traits: BTreeSet<String>,
}

async fn write_traits(
    cx: &Ctx<State>,
    id: ResourceProviderId,
    epoch: Option<u64>,
    traits: Vec<String>,
) -> Result<Provider> {
    cx.store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            same_epoch(&provider, epoch)?;
            let known = all_traits(tx)?;
            if let Some(unknown) = traits.iter().find(|t| !known.contains(*t)) {
                return Err(Error::bad_request(format!("No such trait {unknown}.")));
            }
            provider.traits.clone_from(&traits);
            provider.epoch += 1;
            tx.update(&mut provider)?;
            Ok(provider)
        })
        .await
}

pub(super) async fn set_provider_traits(cx: Ctx<State>, req: Request<SetTraits>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let epoch = req.body.resource_provider_generation.unsigned();
    let traits = req.body.traits.into_iter().collect();
    Ok(traits_view(&write_traits(&cx, id, Some(epoch), traits).await?))
}

pub(super) async fn clear_provider_traits(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    write_traits(&cx, id, None, Vec::new()).await?;
    Ok(Reply::empty())
}

fn class_view(cx: &Ctx<State>, name: &str) -> serde_json::Value {
    let href = format!("{}/resource_classes/{name}", cx.settings_prefix());
    json!({"name": name, "links": [{"rel": "self", "href": href}]})
}

pub(super) async fn classes(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let own = cx.store().read(|tx| tx.list_ids::<CustomClass>(&Query::new())).await?;
    let all = names::CLASSES.iter().copied().chain(own.iter().map(String::as_str));
    let list: Vec<_> = all.map(|name| class_view(&cx, name)).collect();
    Ok(Reply::json(&json!({"resource_classes": list})))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateClass {
    name: String,
}

async fn make_class(cx: &Ctx<State>, name: String) -> Result<bool> {
    names::custom("resource class", &name)?;
    cx.store()
        .write(move |tx| {
            if tx.get::<CustomClass>(&name)?.is_some() {
                return Ok(false);
            }
            tx.insert(&mut CustomClass { id: name.clone(), meta: store::Meta::default() })?;
            Ok(true)
        })
        .await
}

pub(super) async fn create_class(cx: Ctx<State>, req: Request<CreateClass>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.body.name;
    if !make_class(&cx, name.clone()).await? {
        return Err(Error::conflict(format!("Conflicting resource class already exists: {name}")));
    }
    Ok(Reply::empty().location(cx.url(&format!("/resource_classes/{name}"))))
}

pub(super) async fn put_class(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    let new = make_class(&cx, name.clone()).await?;
    let url = cx.url(&format!("/resource_classes/{name}"));
    Ok(Reply::empty().status(if new { 201 } else { 204 }).location(url))
}

fn no_class(name: &str) -> Error {
    Error::not_found(format!("No such resource class {name}."))
}

pub(super) async fn show_class(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    let key = name.clone();
    let known = names::CLASSES.contains(&name.as_str())
        || cx.store().read(move |tx| tx.get::<CustomClass>(&key)).await?.is_some();
    if known { Ok(Reply::json(&class_view(&cx, &name))) } else { Err(no_class(&name)) }
}

pub(super) async fn delete_class(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let name = req.param("name").to_owned();
    if names::CLASSES.contains(&name.as_str()) {
        return Err(Error::bad_request(format!(
            "Error in delete resource class: Cannot delete standard resource class {name}."
        )));
    }
    cx.store()
        .write(move |tx| {
            if tx.list::<Provider>(&Query::new())?.iter().any(|p| p.inventories.contains_key(&name)) {
                return Err(Error::conflict(format!(
                    "Error in delete resource class: Cannot delete resource class {name}. Class is in use in inventory."
                )));
            }
            if tx.delete::<CustomClass>(&name)? { Ok(()) } else { Err(no_class(&name)) }
        })
        .await?;
    Ok(Reply::empty())
}
