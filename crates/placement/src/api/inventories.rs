//! `/resource_providers/{uuid}/inventories`.

use std::collections::BTreeMap;

use ::api::types::Int;
use ::api::{Ctx, Reply, Request};
use base::{Error, ResourceProviderId, Result};
use contract::services::Inventory;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{allow, need, provider_id, same_epoch};
use crate::State;
use crate::logic::names;
use crate::model::{CustomClass, Provider};

type Amount = Int<0, { i32::MAX as i64 }>;
type Unit = Int<1, { i32::MAX as i64 }>;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wire {
    total: Unit,
    reserved: Option<Amount>,
    min_unit: Option<Unit>,
    max_unit: Option<Unit>,
    step_size: Option<Unit>,
    allocation_ratio: Option<f64>,
}

impl Wire {
    fn stock(&self, cx: &Ctx<State>, class: &str) -> Result<Inventory> {
        let ratio = self.allocation_ratio.unwrap_or(1.0);
        if !ratio.is_finite() || !(0.0..=3.40282e38).contains(&ratio) {
            return Err(cx.dialect().invalid_field("allocation_ratio", "it is not a positive number"));
        }
        let (total, reserved) = (self.total.unsigned(), self.reserved.map_or(0, Amount::unsigned));
        if reserved > total || (reserved == total && !cx.since(1, 26)) {
            return Err(Error::bad_request(format!(
                "Unable to update inventory for resource class {class}: Invalid inventory: reserved {reserved} does not leave anything of {total}."
            )));
        }
        Ok(Inventory {
            total,
            reserved,
            min_unit: self.min_unit.map_or(1, Unit::unsigned),
            max_unit: self.max_unit.map_or(i32::MAX as u64, Unit::unsigned),
            step_size: self.step_size.map_or(1, Unit::unsigned),
            allocation_ratio: ratio,
        })
    }
}

fn one(stock: &Inventory) -> Value {
    json!({
        "total": stock.total, "reserved": stock.reserved, "min_unit": stock.min_unit, "max_unit": stock.max_unit,
        "step_size": stock.step_size, "allocation_ratio": stock.allocation_ratio,
    })
}

fn one_with_epoch(provider: &Provider, stock: &Inventory) -> Value {
    let mut value = one(stock);
    if let Some(map) = value.as_object_mut() {
        map.insert("resource_provider_generation".into(), json!(provider.epoch));
    }
    value
}

fn all(provider: &Provider) -> Value {
    let map: BTreeMap<&str, Value> = provider.inventories.iter().map(|(c, s)| (c.as_str(), one(s))).collect();
    json!({"inventories": map, "resource_provider_generation": provider.epoch})
}

/// Refuses a class nobody knows.
fn known(tx: &mut store::Tx<'_>, class: &str) -> Result<()> {
    if names::CLASSES.contains(&class) || tx.get::<CustomClass>(&class.to_owned())?.is_some() {
        return Ok(());
    }
    Err(Error::bad_request(format!("Unknown resource class in inventory: No such resource class {class}.")))
}

/// Refuses to take away what is claimed.
fn still_enough(provider: &Provider, class: &str) -> Result<()> {
    let used = provider.used.get(class).copied().unwrap_or(0);
    let room = provider.inventories.get(class).map_or(0, Inventory::capacity);
    if used > 0 && !provider.inventories.contains_key(class) {
        return Err(Error::conflict(format!(
            "Inventory for '{class}' on resource provider '{}' in use.",
            provider.id
        ))
        .code("placement.inventory.inuse"));
    }
    if used > room {
        return Err(Error::conflict(format!(
            "Invalid inventory for '{class}' on resource provider '{}': {used} is in use.",
            provider.id
        )));
    }
    Ok(())
}

pub(super) async fn list(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let provider = cx.store().read(move |tx| need(tx, id)).await?;
    Ok(Reply::json(&all(&provider)))
}

fn no_inventory(class: &str, id: ResourceProviderId) -> Error {
    Error::not_found(format!("No inventory of class {class} for {id}"))
}

pub(super) async fn show(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let class = req.param("class").to_owned();
    let provider = cx.store().read(move |tx| need(tx, id)).await?;
    let stock = provider.inventories.get(&class).ok_or_else(|| no_inventory(&class, id))?;
    Ok(Reply::json(&one_with_epoch(&provider, stock)))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Replace {
    resource_provider_generation: Int<0, { i64::MAX }>,
    inventories: BTreeMap<String, Wire>,
}

pub(super) async fn replace(cx: Ctx<State>, req: Request<Replace>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let epoch = req.body.resource_provider_generation.unsigned();
    let mut stocks = BTreeMap::new();
    for (class, wire) in &req.body.inventories {
        stocks.insert(class.clone(), wire.stock(&cx, class)?);
    }
    let provider = cx
        .store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            same_epoch(&provider, Some(epoch))?;
            for class in stocks.keys() {
                known(tx, class)?;
            }
            provider.inventories.clone_from(&stocks);
            for class in provider.used.keys() {
                still_enough(&provider, class)?;
            }
            provider.epoch += 1;
            tx.update(&mut provider)?;
            Ok(provider)
        })
        .await?;
    Ok(Reply::json(&all(&provider)))
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Create {
    resource_class: String,
    resource_provider_generation: Option<Int<0, { i64::MAX }>>,
    total: Unit,
    reserved: Option<Amount>,
    min_unit: Option<Unit>,
    max_unit: Option<Unit>,
    step_size: Option<Unit>,
    allocation_ratio: Option<f64>,
}

pub(super) async fn create(cx: Ctx<State>, req: Request<Create>) -> Result<Reply> {
    let b = &req.body;
    let wire = Wire {
        total: b.total,
        reserved: b.reserved,
        min_unit: b.min_unit,
        max_unit: b.max_unit,
        step_size: b.step_size,
        allocation_ratio: b.allocation_ratio,
    };
    let (class, epoch) = (b.resource_class.clone(), b.resource_provider_generation.map(Int::unsigned));
    let id: ResourceProviderId = provider_id(&req)?;
    let provider = put_one(&cx, id, &class, &wire, epoch, true).await?;
    let stock = provider.inventories.get(&class).ok_or_else(|| no_inventory(&class, id))?;
    let url = cx.url(&format!("/resource_providers/{id}/inventories/{class}"));
    Ok(Reply::json(&one_with_epoch(&provider, stock)).location(url))
}

async fn put_one(
    cx: &Ctx<State>,
    id: ResourceProviderId,
    class: &str,
    wire: &Wire,
    epoch: Option<u64>,
    new: bool,
) -> Result<Provider> {
    allow(cx)?;
    let stock = wire.stock(cx, class)?;
    let class = class.to_owned();
    cx.store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            same_epoch(&provider, epoch)?;
            known(tx, &class)?;
            match (provider.inventories.contains_key(&class), new) {
                (true, true) => {
                    return Err(Error::conflict(format!(
                        "Update conflict: Inventory for {class} on resource provider {id} exists already."
                    )));
                }
                (false, false) => {
                    return Err(Error::bad_request(format!(
                        "No inventory record with resource class '{class}' to update."
                    )));
                }
                _ => {}
            }
            provider.inventories.insert(class.clone(), stock.clone());
            still_enough(&provider, &class)?;
            provider.epoch += 1;
            tx.update(&mut provider)?;
            Ok(provider)
        })
        .await
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Update {
    resource_provider_generation: Int<0, { i64::MAX }>,
    total: Unit,
    reserved: Option<Amount>,
    min_unit: Option<Unit>,
    max_unit: Option<Unit>,
    step_size: Option<Unit>,
    allocation_ratio: Option<f64>,
}

pub(super) async fn update(cx: Ctx<State>, req: Request<Update>) -> Result<Reply> {
    let id: ResourceProviderId = provider_id(&req)?;
    let class = req.param("class").to_owned();
    let b = &req.body;
    let wire = Wire {
        total: b.total,
        reserved: b.reserved,
        min_unit: b.min_unit,
        max_unit: b.max_unit,
        step_size: b.step_size,
        allocation_ratio: b.allocation_ratio,
    };
    let epoch = Some(b.resource_provider_generation.unsigned());
    let provider = put_one(&cx, id, &class, &wire, epoch, false).await?;
    let stock = provider.inventories.get(&class).ok_or_else(|| no_inventory(&class, id))?;
    Ok(Reply::json(&one_with_epoch(&provider, stock)))
}

pub(super) async fn delete(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    let class = req.param("class").to_owned();
    cx.store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            provider.inventories.remove(&class).ok_or_else(|| no_inventory(&class, id))?;
            still_enough(&provider, &class)?;
            provider.epoch += 1;
            tx.update(&mut provider)
        })
        .await?;
    Ok(Reply::empty())
}

pub(super) async fn clear(cx: Ctx<State>, req: Request<()>) -> Result<Reply> {
    allow(&cx)?;
    let id: ResourceProviderId = provider_id(&req)?;
    cx.store()
        .write(move |tx| {
            let mut provider = need(tx, id)?;
            provider.inventories.clear();
            for class in provider.used.keys() {
                still_enough(&provider, class)?;
            }
            provider.epoch += 1;
            tx.update(&mut provider)
        })
        .await?;
    Ok(Reply::empty())
}
