//! What other services may ask: [`contract::services::Placement`].

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Error, ResourceProviderId, Result, ServerId};
use contract::services::{Candidate, Claim, Inventory, Placement};
use store::Tx;

use crate::State;
use crate::claims::{self, Wanted};
use crate::model::Provider;

/// The wanted inventories, none below what is claimed: a host that shrank is full, not overdrawn.
fn floor(wanted: &BTreeMap<String, Inventory>, provider: &Provider) -> BTreeMap<String, Inventory> {
    let mut stocks = wanted.clone();
    for (class, used) in &provider.used {
        let kept = provider.inventories.get(class);
        let Some(kept) = kept else { continue };
        let new = stocks.entry(class.clone()).or_insert_with(|| kept.clone());
        if new.capacity() < *used {
            // The ratio is the operator's; the total is what gives way, by the least amount.
            let ratio = if new.allocation_ratio > 0.0 { new.allocation_ratio } else { 1.0 };
            let need = (*used as f64 / ratio).ceil();
            new.total = new.reserved + need as u64;
            while new.capacity() < *used {
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
            inventories: inventories.clone(),
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

/// A provider as other services see it.
pub(crate) fn candidate(provider: Provider) -> Candidate {
    Candidate {
        provider: provider.id,
        name: provider.name,
        inventories: provider.inventories,
        used: provider.used,
        traits: provider.traits,
    }
}

fn wanted(claim: &Claim) -> Wanted {
    let amounts = claim.resources.iter().filter(|(_, n)| **n > 0).map(|(c, n)| (c.clone(), *n)).collect();
    Wanted {
        consumer: claim.consumer.0,
        project: claim.project.clone(),
        user: claim.user.clone(),
        consumer_type: "INSTANCE".to_owned(),
        claims: BTreeMap::from([(claim.provider, amounts)]),
    }
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

    async fn providers(&self) -> Result<Vec<Arc<Candidate>>> {
        self.providers.look(self.store()).await
    }

    async fn allocate(&self, claims: &[Claim]) -> Result<Vec<Result<()>>> {
        let wanted: Vec<Wanted> = claims.iter().map(wanted).collect();
        self.store().write(move |tx| claims::set_many(tx, &wanted)).await
    }

    async fn deallocate(&self, consumer: ServerId) -> Result<()> {
        self.store().write(move |tx| claims::release(tx, consumer.0).map(|_| ())).await
    }

    async fn take_over(&self, pairs: &[(ServerId, ServerId)]) -> Result<()> {
        let pairs: Vec<_> = pairs.iter().map(|(consumer, from)| (consumer.0, from.0)).collect();
        self.store().write(move |tx| claims::take_over(tx, &pairs)).await
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
