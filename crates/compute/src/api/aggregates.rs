//! Host aggregates; one whose metadata has `availability_zone` is a zone.

use std::collections::BTreeMap;

use ::api::types::Text;
use ::api::{Ctx, JsonSchema, Op, Reply, Request};
use base::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Query, Tx};

use super::ADMIN;
use super::lists::own;
use crate::State;
use crate::model::{Aggregate, Host, Server, Texts};

const ALL: &str = "/v2.1/os-aggregates";
const ONE: &str = "/v2.1/os-aggregates/{id}";
const ACTION: &str = "/v2.1/os-aggregates/{id}/action";
const ZONE: &str = "availability_zone";

/// Operations on aggregates.
pub fn ops() -> Vec<Op<State>> {
    let ops = vec![
        Op::get(ALL, "os_compute_api:os-aggregates:index", list).summary("List aggregates"),
        Op::post(ALL, "os_compute_api:os-aggregates:create", create).summary("Create an aggregate"),
        Op::get(ONE, "os_compute_api:os-aggregates:show", show).summary("Show an aggregate"),
        Op::put(ONE, "os_compute_api:os-aggregates:update", update)
            .summary("Rename an aggregate or its zone"),
        Op::delete(ONE, "os_compute_api:os-aggregates:delete", delete)
            .status(200)
            .summary("Delete an empty aggregate"),
        Op::action(ACTION, "add_host", "os_compute_api:os-aggregates:add_host", add_host)
            .summary("Put a host into an aggregate"),
        Op::action(ACTION, "remove_host", "os_compute_api:os-aggregates:remove_host", remove_host)
            .summary("Take a host out of an aggregate"),
        Op::action(ACTION, "set_metadata", "os_compute_api:os-aggregates:set_metadata", set_metadata)
            .summary("Set or remove metadata of an aggregate"),
    ];
    ops.into_iter().map(|op| op.default_rule(ADMIN)).collect()
}

fn missing(id: &str) -> Error {
    Error::not_found(format!("Aggregate {id} could not be found."))
}

fn view(cx: &Ctx<State>, aggregate: &Aggregate) -> Map<String, Value> {
    let meta = &aggregate.meta;
    let updated = (meta.revision > 1).then(|| meta.updated_at.iso_naive());
    let mut map = Map::new();
    for (key, value) in [
        ("id", json!(aggregate.number)),
        ("name", json!(aggregate.name)),
        (ZONE, json!(aggregate.metadata.get(ZONE))),
        ("hosts", json!(aggregate.hosts)),
        ("metadata", json!(aggregate.metadata)),
        ("created_at", json!(meta.created_at.iso_naive())),
        ("updated_at", json!(updated)),
        ("deleted", json!(false)),
        ("deleted_at", Value::Null),
    ] {
        map.insert(key.into(), value);
    }
    if cx.since(2, 41) {
        map.insert("uuid".into(), json!(aggregate.id));
    }
    map
}

fn one(cx: &Ctx<State>, aggregate: &Aggregate) -> Reply {
    Reply::json(&json!({"aggregate": view(cx, aggregate)}))
}

fn number<T>(req: &Request<T>) -> Result<u64> {
    req.id_or("id", missing)
}

fn find(tx: &mut Tx<'_>, number: u64) -> Result<Aggregate> {
    tx.first::<Aggregate>(&Query::new().eq("number", number))?.ok_or_else(|| missing(&number.to_string()))
}

async fn list(cx: Ctx<State>, _: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let mut all = cx.store().read(|tx| tx.list::<Aggregate>(&Query::new())).await?;
    all.sort_by_key(|a| a.number);
    let items: Vec<_> = all.iter().map(|a| view(&cx, a)).collect();
    Ok(Reply::json(&json!({"aggregates": items})))
}

async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let number = number(&req)?;
    let aggregate = cx.store().read(move |tx| find(tx, number)).await?;
    Ok(one(&cx, &aggregate))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewAggregate {
    name: Text<1, 255>,
    #[serde(default)]
    availability_zone: Option<Text<1, 255>>,
}

/// Body of POST.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Create {
    aggregate: NewAggregate,
}

/// A name without blanks at its ends (which Nova cuts off or refuses by version; we refuse).
fn trimmed(cx: &Ctx<State>, field: &str, text: Text<1, 255>) -> Result<String> {
    if text.trim() != text.as_str() {
        return Err(cx.dialect().invalid_field(field, "it may not begin or end with a blank"));
    }
    Ok(text.into_string())
}

/// A zone's name: no colon, which `zone:host` in server requests needs.
fn zone_name(cx: &Ctx<State>, text: Text<1, 255>) -> Result<String> {
    let zone = trimmed(cx, ZONE, text)?;
    if zone.contains(':') {
        return Err(cx.dialect().invalid_field(ZONE, "it may not contain ':'"));
    }
    Ok(zone)
}

fn free_name(tx: &mut Tx<'_>, name: &str) -> Result<()> {
    if tx.exists::<Aggregate>(&Query::new().eq("name", name))? {
        return Err(Error::conflict(format!("Aggregate {name} already exists.")));
    }
    Ok(())
}

async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let new = req.body.aggregate;
    let name = trimmed(&cx, "name", new.name)?;
    let mut metadata = Texts::new();
    if let Some(zone) = new.availability_zone {
        metadata.insert(ZONE.to_owned(), zone_name(&cx, zone)?);
    }
    let id = cx.entropy.uuid();
    let made = cx
        .store()
        .write(move |tx| {
            free_name(tx, &name)?;
            let numbers = tx.list::<Aggregate>(&Query::new())?;
            let mut aggregate = Aggregate {
                id,
                meta: store::Meta::default(),
                number: numbers.iter().map(|a| a.number).max().unwrap_or(0) + 1,
                name: name.clone(),
                hosts: std::collections::BTreeSet::new(),
                metadata: metadata.clone(),
            };
            tx.insert(&mut aggregate)?;
            Ok(aggregate)
        })
        .await?;
    let mut map = view(&cx, &made);
    // Nova's answer to a creation never had these two.
    map.remove("hosts");
    map.remove("metadata");
    Ok(Reply::json(&json!({"aggregate": map})))
}

/// Reads, changes and writes an aggregate.
async fn change<F>(cx: &Ctx<State>, number: u64, edit: F) -> Result<Reply>
where
    F: Fn(&mut Tx<'_>, &mut Aggregate) -> Result<()> + Send + Sync + 'static,
{
    cx.allow(&own(cx))?;
    let changed = cx
        .store()
        .write(move |tx| {
            let mut aggregate = find(tx, number)?;
            edit(tx, &mut aggregate)?;
            tx.update(&mut aggregate)?;
            Ok(aggregate)
        })
        .await?;
    Ok(one(cx, &changed))
}

/// Why a host cannot be in a zone: it is in another, or servers were promised that it is where it is.
fn obstacle(
    tx: &mut Tx<'_>,
    aggregate: &Aggregate,
    hosts: &[String],
    zone: Option<&str>,
) -> Result<Option<String>> {
    let others = tx.list::<Aggregate>(&Query::new())?;
    for host in hosts {
        let elsewhere = others.iter().filter(|a| a.id != aggregate.id && a.hosts.contains(host));
        let elsewhere = elsewhere.filter_map(|a| a.metadata.get(ZONE)).map(String::as_str).next();
        if let Some(other) = elsewhere.filter(|other| zone.is_some_and(|zone| zone != *other)) {
            return Ok(Some(format!("Host already in availability zone \"{other}\"")));
        }
        let here = aggregate.metadata.get(ZONE).map(String::as_str);
        let before = elsewhere.or(here.filter(|_| aggregate.hosts.contains(host)));
        if before == elsewhere.or(zone) {
            continue;
        }
        let row = tx.first::<Host>(&Query::new().eq("name", host))?;
        if let Some(row) = row
            && tx.exists::<Server>(&Query::new().eq("host_id", row.id))?
        {
            return Ok(Some("One or more hosts contain instances in this zone".to_owned()));
        }
    }
    Ok(None)
}

/// Moves an aggregate to another zone (or none), if its hosts can follow.
fn set_zone(tx: &mut Tx<'_>, aggregate: &mut Aggregate, zone: Option<String>, verb: &str) -> Result<()> {
    if aggregate.metadata.get(ZONE) == zone.as_ref() {
        return Ok(());
    }
    let hosts: Vec<String> = aggregate.hosts.iter().cloned().collect();
    if let Some(reason) = obstacle(tx, aggregate, &hosts, zone.as_deref())? {
        return Err(Error::bad_request(format!(
            "Cannot {verb} aggregate {}. Reason: {reason}.",
            aggregate.number
        )));
    }
    match zone {
        Some(zone) => aggregate.metadata.insert(ZONE.to_owned(), zone),
        None => aggregate.metadata.remove(ZONE),
    };
    Ok(())
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    #[serde(default)]
    name: Option<Text<1, 255>>,
    #[serde(default)]
    availability_zone: ::api::types::Patch<Text<1, 255>>,
}

/// Body of PUT.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(deserialize_with = "super::lists::object")]
    aggregate: Changes,
}

async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let number = number(&req)?;
    let changes = req.body.aggregate;
    if changes.name.is_none() && changes.availability_zone.is_absent() {
        return Err(cx.dialect().invalid_field("aggregate", "it does not have enough properties"));
    }
    let name = changes.name.map(|name| trimmed(&cx, "name", name)).transpose()?;
    let zone = match changes.availability_zone.sent() {
        None => None,
        Some(zone) => Some(zone.map(|zone| zone_name(&cx, zone)).transpose()?),
    };
    change(&cx, number, move |tx, aggregate| {
        if let Some(name) = name.as_ref().filter(|name| **name != aggregate.name) {
            free_name(tx, name)?;
            aggregate.name.clone_from(name);
        }
        match &zone {
            None => Ok(()),
            Some(zone) => set_zone(tx, aggregate, zone.clone(), "update"),
        }
    })
    .await
}

async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    cx.allow(&own(&cx))?;
    let number = number(&req)?;
    cx.store()
        .write(move |tx| {
            let aggregate = find(tx, number)?;
            if !aggregate.hosts.is_empty() {
                return Err(Error::bad_request(format!(
                    "Cannot delete aggregate {number}. Reason: Host aggregate is not empty."
                )));
            }
            tx.delete::<Aggregate>(&aggregate.id).map(drop)
        })
        .await?;
    Ok(Reply::empty())
}

/// Body of `add_host` and `remove_host`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ForHost {
    host: Text<1, 255>,
}

fn known_host(tx: &mut Tx<'_>, name: &str) -> Result<Host> {
    tx.first::<Host>(&Query::new().eq("name", name))?
        .ok_or_else(|| Error::not_found(format!("Compute host {name} could not be found.")))
}

async fn add_host(cx: Ctx<State>, req: Request<ForHost>) -> Result<Reply> {
    let number = number(&req)?;
    let name = req.body.host.into_string();
    change(&cx, number, move |tx, aggregate| {
        let host = known_host(tx, &name)?;
        if aggregate.hosts.contains(&host.name) {
            return Err(Error::conflict(format!("Aggregate {number} already has host {name}.")));
        }
        let zone = aggregate.metadata.get(ZONE).cloned();
        if zone.is_some()
            && let Some(reason) = obstacle(tx, aggregate, std::slice::from_ref(&name), zone.as_deref())?
        {
            return Err(Error::conflict(format!("Cannot add host to aggregate {number}. Reason: {reason}.")));
        }
        aggregate.hosts.insert(name.clone());
        Ok(())
    })
    .await
}

async fn remove_host(cx: Ctx<State>, req: Request<ForHost>) -> Result<Reply> {
    let number = number(&req)?;
    let name = req.body.host.into_string();
    change(&cx, number, move |tx, aggregate| {
        // A host that is gone can still be taken out.
        if !aggregate.hosts.contains(&name) {
            known_host(tx, &name)?;
            return Err(Error::not_found(format!("Aggregate {number} has no host {name}.")));
        }
        if aggregate.metadata.contains_key(ZONE)
            && let Some(reason) = obstacle(tx, aggregate, std::slice::from_ref(&name), None)?
        {
            return Err(Error::conflict(format!(
                "Cannot remove host from aggregate {number}. Reason: {reason}."
            )));
        }
        aggregate.hosts.remove(&name);
        Ok(())
    })
    .await
}

/// Body of `set_metadata`: null removes a key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetMetadata {
    metadata: BTreeMap<String, Option<Text<0, 255>>>,
}

async fn set_metadata(cx: Ctx<State>, req: Request<SetMetadata>) -> Result<Reply> {
    let number = number(&req)?;
    let sent: BTreeMap<String, Option<String>> =
        req.body.metadata.into_iter().map(|(k, v)| (k, v.map(Text::into_string))).collect();
    for key in sent.keys() {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_:. ".contains(c);
        if !(1..=255).contains(&key.len()) || !key.chars().all(good) {
            return Err(cx.dialect().invalid_field(
                "metadata",
                &format!("the key '{key}' is not 1 to 255 letters, digits, '-', '_', ':', '.' or blanks"),
            ));
        }
    }
    if let Some(Some(zone)) = sent.get(ZONE)
        && (zone.is_empty() || zone.trim() != zone || zone.contains(':'))
    {
        return Err(cx.dialect().invalid_field(&format!("metadata.{ZONE}"), "it is no name of a zone"));
    }
    change(&cx, number, move |tx, aggregate| {
        if let Some(zone) = sent.get(ZONE) {
            set_zone(tx, aggregate, zone.clone(), "update metadata of")?;
        }
        for (key, value) in sent.iter().filter(|(key, _)| *key != ZONE) {
            match value {
                Some(value) => aggregate.metadata.insert(key.clone(), value.clone()),
                None => aggregate.metadata.remove(key),
            };
        }
        Ok(())
    })
    .await
}
