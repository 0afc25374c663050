//! What other services may ask: [`contract::services::Placement`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use base::{Error, ProjectId, ResourceProviderId, Result, ServerId, UserId};
use contract::services::{Candidate, Inventory, Placement};
use store::{Query, Tx};

use crate::State;
use crate::claims::{self, Wanted};
use crate::logic::{capacity, fits};
use crate::model::{Provider, Stock};

fn stock(inventory: &Inventory) -> Stock {
    Stock {
        total: inventory.total,
        reserved: inventory.reserved,
        min_unit: 1,
        max_unit: inventory.max_unit,
        step_size: 1,
        allocation_ratio: inventory.allocation_ratio,
    }
}

fn inventory(stock: &Stock) -> Inventory {
    Inventory {
        total: stock.total,
        reserved: stock.reserved,
        allocation_ratio: stock.allocation_ratio,
        max_unit: stock.max_unit,
    }
}

/// The wanted inventories, none below what is claimed: a host that shrank is full, not overdrawn.
fn floor(wanted: &BTreeMap<String, Inventory>, provider: &Provider) -> BTreeMap<String, Stock> {
    let mut stocks: BTreeMap<String, Stock> = wanted.iter().map(|(c, i)| (c.clone(), stock(i))).collect();
    for (class, used) in &provider.used {
        let kept = provider.inventories.get(class);
        let Some(kept) = kept else { continue };
        let new = stocks.entry(class.clone()).or_insert_with(|| kept.clone());
        if capacity(new) < *used {
            // The ratio is the operator's; the total is what gives way, by the least amount.
            let ratio = if new.allocation_ratio > 0.0 { new.allocation_ratio } else { 1.0 };
            let need = (*used as f64 / ratio).ceil();
            new.total = new.reserved + need as u64;
            while capacity(new) < *used {
                new.total += 1;
            }
        }
    }
    stocks
}

fn ensure(
    tx: &mut Tx<'_>,
    id: ResourceProviderId,
    name: &str,
    inventories: &BTreeMap<String, Inventory>,
    traits: &[String],
) -> Result<()> {
    let mut wanted_traits = traits.to_vec();
    wanted_traits.sort_unstable();
    wanted_traits.dedup();
    let Some(mut provider) = tx.get::<Provider>(&id)? else {
        return tx.insert(&mut Provider {
            id,
            meta: store::Meta::default(),
            name: name.to_owned(),
            parent: None,
            root: id,
            epoch: 1,
            inventories: inventories.iter().map(|(c, i)| (c.clone(), stock(i))).collect(),
            used: BTreeMap::new(),
            traits: wanted_traits,
            aggregates: Vec::new(),
        });
    };
    let stocks = floor(inventories, &provider);
    // Traits the operator gave stay.
    wanted_traits.extend(provider.traits.iter().filter(|t| t.starts_with("CUSTOM_")).cloned());
    wanted_traits.sort_unstable();
    wanted_traits.dedup();
    if provider.name == name && provider.inventories == stocks && provider.traits == wanted_traits {
        return Ok(());
    }
    provider.name = name.to_owned();
    provider.inventories = stocks;
    provider.traits = wanted_traits;
    provider.epoch += 1;
    tx.update(&mut provider)
}

/// Whether the provider has room for everything.
pub(crate) fn has_room(provider: &Provider, resources: &BTreeMap<String, u64>) -> bool {
    resources.iter().all(|(class, amount)| {
        let used = provider.used.get(class).copied().unwrap_or(0);
        fits(&provider.name, class, provider.inventories.get(class), used, *amount).is_ok()
    })
}

#[async_trait]
impl Placement for State {
    async fn ensure_provider(
        &self,
        id: ResourceProviderId,
        name: &str,
        inventories: &BTreeMap<String, Inventory>,
        traits: &[String],
    ) -> Result<()> {
        let (name, inventories, traits) = (name.to_owned(), inventories.clone(), traits.to_vec());
        self.store().write(move |tx| ensure(tx, id, &name, &inventories, &traits)).await
    }

    async fn candidates(
        &self,
        resources: &BTreeMap<String, u64>,
        required: &[String],
        forbidden: &[String],
    ) -> Result<Vec<Candidate>> {
        let providers = self.store().read(|tx| tx.list::<Provider>(&Query::new())).await?;
        let fit = providers.into_iter().filter(|p| {
            has_room(p, resources)
                && required.iter().all(|t| p.traits.contains(t))
                && !forbidden.iter().any(|t| p.traits.contains(t))
        });
        Ok(fit
            .map(|p| Candidate {
                provider: p.id,
                name: p.name,
                inventories: p.inventories.iter().map(|(c, s)| (c.clone(), inventory(s))).collect(),
                used: p.used,
            })
            .collect())
    }

    async fn allocate(
        &self,
        consumer: ServerId,
        project: &ProjectId,
        user: &UserId,
        provider: ResourceProviderId,
        resources: &BTreeMap<String, u64>,
    ) -> Result<()> {
        let amounts: BTreeMap<String, u64> =
            resources.iter().filter(|(_, n)| **n > 0).map(|(c, n)| (c.clone(), *n)).collect();
        let wanted = Wanted {
            consumer: consumer.0,
            project: project.clone(),
            user: user.clone(),
            consumer_type: "INSTANCE".to_owned(),
            claims: BTreeMap::from([(provider, amounts)]),
        };
        self.store().write(move |tx| claims::set(tx, &wanted)).await
    }

    async fn deallocate(&self, consumer: ServerId) -> Result<()> {
        self.store().write(move |tx| claims::release(tx, consumer.0).map(|_| ())).await
    }

    async fn usage(&self, provider: ResourceProviderId) -> Result<BTreeMap<String, u64>> {
        let found = self.store().read(move |tx| tx.get::<Provider>(&provider)).await?;
        let provider = found
            .ok_or_else(|| Error::not_found(format!("No resource provider with uuid {provider} found.")))?;
        let mut usage: BTreeMap<String, u64> = provider.inventories.keys().map(|c| (c.clone(), 0)).collect();
        usage.extend(provider.used);
        Ok(usage)
    }
}
